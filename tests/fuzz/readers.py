"""What each reader gets to read, and what it may do then: read it, or refuse it in a sentence.

A reader is a strategy of files (name -> content) and a function that reads them in their folder.
An InputError is an answer, unless it quotes half the file; anything else that is raised is a fault.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from damage import altered, as_json, damaged, one_spoiled, packed, spoiled_json
from fake_runs import TEXTS, write_data, write_run
from hypothesis import strategies as st

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.adapters import seal
from fairseq_peft.commands import watch as watch_command
from fairseq_peft.data import checks, targets
from fairseq_peft.data.numbers import read_numbers
from fairseq_peft.errors import MOST_CHARS, InputError, sentence
from fairseq_peft.models import folder as folders_model
from fairseq_peft.report import result as report_result
from fairseq_peft.report import runs as report_runs
from fairseq_peft.runs import log, plan, predictions
from fairseq_peft.scores import CLASSES, LABELS, NUMBER
from fairseq_peft.sweeps import epochs, watch
from fairseq_peft.text import binarised, bpe, corpus, kinds, pairs, raw_text, spm_file
from fairseq_peft.text.subwords import byte_letters
from fairseq_peft.text.tables import Columns

GOLDEN = Path(__file__).parents[1] / "golden" / "adapter"
#: No model of these sizes is built: that a folder may ask for much memory is known.
LARGEST = 64


class Reader(NamedTuple):
    """Attributes:
    files: strategy of name -> content.
    read: reads them in a folder; calls what it is given around each step that may refuse.
    """

    files: st.SearchStrategy
    read: Callable


def check(reader: Reader, files: dict) -> None:
    """Write ``files`` and have them read.

    Raises:
        AssertionError: they are refused, but not in a sentence.
        Exception: they are neither read nor refused.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz."))
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            reader.read(folder)
    finally:
        shutil.rmtree(folder)


def answer(function, *given, **more):
    """What ``function`` returns; None where it refuses."""
    try:
        return function(*given, **more)
    except InputError as error:
        text = sentence(error)
        assert 0 < len(text) <= MOST_CHARS + 20 and "\n" not in text
        return None


# An adapter folder

ADAPTER = {path.name: path.read_bytes() for path in sorted(GOLDEN.iterdir())}
DESCRIBED = json.loads(ADAPTER[seal.DESCRIPTION])


@st.composite
def adapter_files(draw):
    """A folder, damaged; or as somebody could have written it who can seal it, too."""
    files = draw(one_spoiled(ADAPTER))
    if draw(st.booleans()):
        files["bpe.json"] = draw(spoiled_json({"bpe": "gpt2"}))
    if draw(st.booleans()):
        described = draw(altered(DESCRIBED))
        is_whole = isinstance(described, dict)
        described = {k: v for k, v in described.items() if k not in ("json_sha256", "schema")}
        if draw(st.booleans()) and is_whole:
            names = (name for name in files if name != seal.DESCRIPTION)
            described["files"] = {name: seal.measure(files[name]) for name in names}
        try:
            files[seal.DESCRIPTION] = seal.seal(described)
        except ValueError:  # NaN: nobody has sealed it
            files[seal.DESCRIPTION] = as_json(described)
    return files


def read_adapter(folder):
    found = answer(adapter_folder.read, folder, of_any_task=True)
    if found is None:
        return
    subwords = answer(found.subwords)
    if subwords is not None:
        subwords.encode(["a text", ""])
    sizes = [found.description["model"], found.description.get("head")]
    if _largest(sizes) <= LARGEST:
        answer(folders_model.build, found)


def _largest(value):
    if isinstance(value, (dict, list)):
        return max(map(_largest, value.values() if isinstance(value, dict) else value), default=0)
    return abs(value) if isinstance(value, (int, float)) and value == value else 0


# Texts: a file a column, or a table

ROWS = [(text, ("good", "bad")[i % 2], ("train", "valid", "test")[i % 3]) for i, text in
        enumerate(TEXTS * 3)]  # fmt: skip
LINES = {
    f"{split}.{kind}": "".join(f"{row[i]}\n" for row in ROWS if row[2] == split).encode()
    for split in ("train", "valid", "test")
    for i, kind in enumerate(("review", "label"))
}
LINES["corpus.txt"] = "\n".join(TEXTS).encode()
LINES["corpus.txt.xz"] = b"\xfd7zXZ\x00\x00"


def read_texts(folder):
    for kind in (CLASSES, LABELS, NUMBER):
        answer(corpus.read_corpus, folder, kind=kind)
    for path in folder.glob("corpus*"):
        answer(lambda path: list(raw_text.read_lines([path])), path)


def delimited(mark, quote=""):
    rows = [("text", "label", "split"), *ROWS]
    return "".join(
        mark.join(f"{quote}{field}{quote}" for field in row) + "\n" for row in rows
    ).encode()


OBJECTS = [dict(zip(("text", "label", "split"), row)) for row in ROWS]
TABLES = {
    "data.csv": (delimited(",", '"'), delimited(";")),
    "data.tsv": (delimited("\t"), delimited("\t", '"')),
}


@st.composite
def table_files(draw):
    name = draw(st.sampled_from(("data.csv", "data.tsv", "data.json", "data.jsonl")))
    if name in TABLES:
        content = draw(damaged(draw(st.sampled_from(TABLES[name]))))
    elif name == "data.json":
        content = draw(spoiled_json(OBJECTS))
    else:
        content = draw(damaged(b"".join(as_json(row) + b"\n" for row in draw(altered(OBJECTS)))))
    return {name: draw(packed(content))}


def read_table(folder):
    (path,) = folder.iterdir()
    for columns in (Columns(), Columns(text="1", label="2"), Columns("label", "text", "split")):
        for kind in (CLASSES, LABELS, NUMBER):
            answer(corpus.read_corpus, path, columns=columns, kind=kind)
    split = folder / f"train{path.suffix}"
    shutil.copy(path, split)
    answer(pairs.read, folder, "train", ("text", "label"))


# Dictionaries, and what cuts text into pieces

WORDS = "".join(f"{letter} {9 - i}\n" for i, letter in enumerate("abcde")).encode()
BYTES = {letter: i for i, letter in enumerate(byte_letters())}
SUBWORDS = {
    "encoder.json": as_json({**BYTES, "ab": 256}),
    "vocab.bpe": b"#version: 0.2\na b\n",
    "bpecodes": b"#version: 0.2\na b\nb c</w>\n",
    "dict.txt": WORDS,
    "vocab.txt": b"[UNK]\n[CLS]\n[SEP]\na\nb\n##c\n",
    raw_text.MODEL_NAME: None,
}


def sentencepiece_model() -> bytes:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=60, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


SUBWORDS[raw_text.MODEL_NAME] = sentencepiece_model()


@st.composite
def dictionary_files(draw):
    files = draw(one_spoiled(SUBWORDS))
    if draw(st.booleans()):
        told = {"bpe": draw(st.sampled_from(sorted(bpe.KINDS))), "lower": True}
        files[bpe.TOLD] = draw(spoiled_json(told))
    return files


def read_dictionaries(folder):
    if (folder / "dict.txt").exists():
        answer(binarised.read_dictionary, folder / "dict.txt")
        dictionary = answer(checks.load_dictionary, str(folder / "dict.txt"))
        if dictionary is not None:
            checks.fingerprint(dictionary)
            answer(checks.class_names, dictionary)
    for kind in (None, *bpe.KINDS):
        subwords = answer(bpe.find, folder, kind)
        if subwords is not None:
            (pieces,) = subwords.encode(["a bc"])
            subwords.decode(pieces)
            answer(bpe.check_dictionary, subwords, folder / "dict.txt")
    if (folder / raw_text.MODEL_NAME).exists():
        answer(spm_file.read, folder / raw_text.MODEL_NAME)


# Labels, and the rows of a data folder


def index(rows) -> dict:
    """The two files of ``fairseq-preprocess`` of rows of token ids."""
    flat = np.concatenate(rows).astype("<u2")
    sizes = np.array([len(row) for row in rows], "<i4")
    offsets = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype("<i8") * 2
    head = binarised.MAGIC + b"\x01" + bytes(7) + b"\x08" + np.array([len(rows)], "<u8").tobytes()
    return {"idx": head + sizes.tobytes() + offsets.tobytes(), "bin": flat.tobytes()}


def data_files() -> dict:
    files = {"input0/dict.txt": WORDS, "label/dict.txt": b"bad 2\ngood 2\n"}
    for end, content in index([[4, 5, 2], [6, 2], [7, 8, 4, 2], [5, 2]]).items():
        files[f"input0/train.{end}"] = content
    for end, content in index([[4, 2], [5, 2], [5, 2], [4, 2]]).items():
        files[f"label/train.{end}"] = content
    return {**files, "label/train.label": b"1.5\n-2\n3e1\n4\n", "kind.txt": b"labels\n"}


def read_labels(folder):
    answer(kinds.kind_of, folder)
    dictionary = answer(checks.load_dictionary, str(folder / "input0" / "dict.txt"))
    numbers = answer(read_numbers, folder, "train")
    assert numbers is None or np.isfinite(numbers).all()
    answer(binarised.read_tokens, folder / "input0" / "train")
    for kind in (CLASSES, LABELS, NUMBER):
        names = answer(targets.names, folder, kind)
        if dictionary is not None and names is not None:
            answer(checks.load_split, str(folder), "train", dictionary, names, kind)


# What a run leaves


def run_files() -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = write_data(folder / "data" / "books", "classes", ["bad", "good"], 20)
        run = write_run(folder / "runs", folder / "data" / "books", target, epochs=3)
        kept = ("run.json", "plan.json", "metrics.jsonl", "result.json", predictions.NAME)
        return {f"books/pretrained/lora/seed1/{n}": (run / n).read_bytes() for n in kept}


RUN = run_files()
PLACE = "books/pretrained/lora/seed1"
METRICS = [json.loads(line) for line in RUN[f"{PLACE}/metrics.jsonl"].splitlines()]


@st.composite
def metrics_files(draw):
    lines = b"".join(as_json(line) + b"\n" for line in draw(altered(METRICS)))
    files = {**RUN, f"{PLACE}/metrics.jsonl": draw(damaged(lines))}
    if draw(st.booleans()):
        del files[f"{PLACE}/result.json"]
    return files


def read_metrics(folder):
    run = folder / PLACE
    following = epochs.Epochs(run.with_name("none"), 3)
    following.path, following._place = run / "metrics.jsonl", 0
    following.tell()
    for line in log.read_lines(str(run), 2**62):
        assert line["subsets"] and line["num_updates"] > 0
    answer(report_runs.read_validations, run / "metrics.jsonl")
    answer(report_result.summarise, run)
    look(folder)


@st.composite
def plan_files(draw):
    files = dict(RUN)
    for name in ("plan.json", "run.json", "result.json"):
        place = f"{PLACE}/{name}"
        files[place] = draw(spoiled_json(json.loads(files[place])))
    sweep = {"schema": 1, "seeds": [1, 2], "cells": {"pretrained/lora": ["1e-3", "2e-3"]}}
    files["books/sweep.json"] = draw(spoiled_json(sweep))
    if draw(st.booleans()):
        place = f"{PLACE}/{predictions.NAME}"
        files[place] = draw(damaged(files[place]))
    return files


def read_plans(folder):
    run = folder / PLACE
    found = answer(plan.read, run)
    if found is not None:
        now = plan.Plan(**json.loads(RUN[f"{PLACE}/plan.json"]))
        plan.sentence({**plan.differences(found, now), **plan.differences(now, found)})
        asdict(found)
    log.read_start(str(run)), log.read_frozen(str(run)), log.read_knobs(str(run))
    log.read_choice(str(run))
    answer(report_runs.read_result, run / "result.json")
    answer(report_result.summarise, run)
    answer(report_runs.find_runs, folder)
    answer(predictions.read, run / predictions.NAME)
    look(folder)


def look(folder):
    """As ``fairseq-peft watch`` does, which never refuses."""
    from rich.console import Console

    console = Console(width=100, quiet=True)
    console.print(watch_command.view(watch.look(folder)))


READERS = {
    "adapter": Reader(adapter_files(), read_adapter),
    "texts": Reader(one_spoiled(LINES), read_texts),
    "tables": Reader(table_files(), read_table),
    "dictionaries": Reader(dictionary_files(), read_dictionaries),
    "labels": Reader(one_spoiled(data_files()), read_labels),
    "metrics": Reader(metrics_files(), read_metrics),
    "plans": Reader(plan_files(), read_plans),
}
