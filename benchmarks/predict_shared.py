"""What predict_speed.py and many_adapters.py share: flags, texts, tokenizer, models, speeds."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from pathlib import Path

import harness
from harness import HERE, ROOT, InputError, size_flags, start
from train_rows import count_lines, write_indexed

MODEL, DICT = "sentencepiece.bpe.model", "dict.txt"


def parser(doc: str, only: str, texts: int, warmup: int):
    """The flags of both; ``texts`` and ``warmup`` are defaults."""
    flags = harness.parser(doc, only)
    add = flags.add_argument
    add("--texts", type=int, default=texts, help=f"texts on the clock ({texts})")
    help = f"of them, predicted once before the clock ({warmup})"
    add("--warmup", type=int, default=warmup, help=help)
    return flags


def flags_of_process(one, precision: str, args, sizes: dict) -> list[str]:
    """The flags that every contestant's process has (predict_meter.py)."""
    return [
        *("--precision", precision, "--batch-size", str(one.batch_size)),
        *("--max-tokens", str(sizes["max_positions"]), "--warmup", str(args.warmup)),
        *("--device", args.device),
    ]


# Texts, tokenizer, models


def shared_text() -> tuple[Path, Path] | None:
    """(texts, folder of the tokenizer) that FAIRSEQ_PEFT_SHARED names, if it does."""
    shared = os.environ.get("FAIRSEQ_PEFT_SHARED", "")
    texts = Path(shared) / "data" / "cls-books" / "test.review"
    tokenizer = Path(shared) / "models" / "roberta_small_fr"
    there = shared and texts.is_file() and (tokenizer / MODEL).is_file()
    return (texts, tokenizer) if there else None


def prepare_text(args, work: Path) -> tuple[list[str], str]:
    """The texts, what they are called; and the tokenizer's files in ``work``."""
    from fairseq_peft.text import demo, raw_text

    (work / "tokenizer").mkdir()
    found = shared_text()
    if found:
        path, tokenizer = found
        raw_text.copy_tokenizer(tokenizer / MODEL, tokenizer / DICT, work / "tokenizer")
        texts = path.read_bytes().decode().split("\n")[:-1]
        return texts[: args.texts], "cls-books, test"
    data = demo.make_demo_data(1, 3000, 100, 50, args.texts)
    raw_text.train_tokenizer(data.unlabelled, work / "tokenizer", 250, num_threads=1)
    demo.write_demo_data(data, work / "demo")
    texts = (work / "demo" / "test.review").read_text(encoding="utf-8").split("\n")[:-1]
    return texts, "demo data, test"


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data: bytes):
    """(number, value) of the fields of a protocol buffer's message."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def describe_tokenizer(model: Path, path: Path) -> None:
    """Write what Hugging Face's tokenizer is made of: pieces in the order of fairseq's ids."""
    from fairseq_peft.text import raw_text

    spm = raw_text.load_tokenizer(model)
    proto = dict(fields(spm.serialized_model_proto()))
    kind = dict(fields(proto[2])).get(3, 1)
    if kind != 1:
        raise InputError(f"{model} is no unigram model, which is what this benchmark compares.")
    ids = {piece: i for i, piece in enumerate(raw_text.pieces_of(spm), start=4)}
    scores = {piece: spm.get_score(spm.piece_to_id(piece)) for piece in ids}
    lowest = min(scores.values())
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", lowest - 10)]
    pieces += [(piece, scores[piece]) for piece in ids]
    charsmap = dict(fields(proto[3])).get(2, b"")
    given = {"pieces": pieces, "charsmap": base64.b64encode(charsmap).decode()}
    path.write_text(json.dumps(given), encoding="utf-8")


def prepare_models(args, methods: set, work: Path, hf: str | None) -> dict:
    """Make what the contestants load; returns the sizes.

    Args:
        methods: of fairseq_peft's models; each lands in ``work``/METHOD.
        hf: Hugging Face's Python, where its model is wanted as well.
    """
    tokenizer = work / "tokenizer"
    vocab = 5 + count_lines(tokenizer / DICT)
    sizes = harness.model_sizes(args, vocab, classes=2, dropout=0.1)
    data = work / "data"
    for part in ("input0", "label"):
        (data / part).mkdir(parents=True)
    shutil.copy(tokenizer / DICT, data / "input0")
    shutil.copy(tokenizer / MODEL, data)
    (data / "label" / DICT).write_text("0 1\n1 1\n")
    for split in ("train", "valid"):
        write_indexed(data / "input0" / split, [[4, 5, 2], [5, 4, 2]])
        write_indexed(data / "label" / split, [[4, 2], [5, 2]])
    logs = args.out / "logs"
    for method in sorted(methods):
        train(method, ["--from-scratch"], sizes, work, logs / f"make-{method}.log", args.threads)
    if hf:
        describe_tokenizer(tokenizer / MODEL, work / "tokenizer.json")
        words = [hf, str(HERE / "train_hf.py"), "--make-base", str(work / "hf")]
        words += ["--sizes", json.dumps(sizes)]
        start(words, logs / "make-hf.log", args.threads)
    return sizes


def train(method: str, base: list[str], sizes: dict, work: Path, log: Path, threads: int) -> None:
    """Train an epoch on the few rows of ``work``/data, into ``work``/METHOD.

    Args:
        base: the flags that say what it starts from.
    """
    words = [
        *(sys.executable, "-m", "fairseq_cli.train", str(work / "data")),
        *("--user-dir", str(ROOT / "fairseq_peft"), "--arch", "roberta_small"),
        *("--peft", method, "--task", "sentence_classification", *base, *size_flags(sizes)),
        *("--criterion", "sentence_classification", "--optimizer", "peft_adamw"),
        *("--lr", "1e-5", "--lr-scheduler", "fixed", "--batch-size", "2", "--max-epoch", "1"),
        *("--num-workers", "0", "--seed", "1", "--no-epoch-checkpoints"),
        *("--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"),
        *("--save-dir", str(work / method), "--cpu", "--log-format", "simple"),
    ]
    start(words, log, threads)


# Speeds


def speed(run: dict) -> float:
    return run["texts"] / run["seconds"]


def other_rows(runs: dict) -> dict[str, float]:
    """Contestant -> share of the texts whose tokens are others than those of the first one."""
    first = next(iter(runs.values()), {})
    wanted = first[min(first)]["rows"] if first else []
    return {
        name: sum(a != b for a, b in zip(mine[min(mine)]["rows"], wanted)) / len(wanted)
        for name, mine in runs.items()
    }


def speeds(runs: dict) -> dict[int, float]:
    """Repeat -> texts/s of one contestant."""
    return {repeat: speed(run) for repeat, run in runs.items()}


def told(name: str, run: dict) -> str:
    """The line about one measurement."""
    return f"{name:<18} {speed(run):7,.1f} texts/s"


def data_of(texts: list[str], source: str, runs: dict) -> dict:
    """What is to know of the texts."""
    first = next(iter(runs.values()), {1: {"tokens": 0}})
    mean = first[min(first)]["tokens"] / len(texts)
    return {"source": source, "texts": len(texts), "mean_length": mean}


def token_lines(result: dict) -> list[str]:
    """A line for each contestant whose tokens are others than ours."""
    return [
        f"{name}: {share:.1%} of the texts have other tokens than ours."
        for name, share in result["other_tokens"].items()
        if share
    ]
