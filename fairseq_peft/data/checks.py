"""What is checked before training starts: dictionaries, labels, rows, the base checkpoint."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import NamedTuple

import numpy as np
from fairseq.data import Dictionary, data_utils, indexed_dataset

from fairseq_peft import scores
from fairseq_peft.checkpoints import start as run_start
from fairseq_peft.data.numbers import read_numbers
from fairseq_peft.errors import InputError
from fairseq_peft.fairseq_fixes import processes


def load_dictionary(path: str) -> Dictionary:
    """fairseq's dictionary from ``path``.

    Raises:
        InputError: it is missing or malformed.
    """
    if not os.path.isfile(path):
        raise InputError(
            f"{path} does not exist. Expected a folder that scripts/prepare_data.sh made, with "
            "input0/dict.txt and "
            "label/dict.txt."
        )
    try:
        return Dictionary.load(path)
    except OSError:
        raise
    except Exception as error:  # fairseq raises a bare Exception for bytes that are no UTF-8
        raise InputError(
            f"{path} is not a fairseq dictionary ({error}). Expected UTF-8 lines of a symbol, a "
            "space and a count: prepare the data again (scripts/prepare_data.sh)."
        ) from error


def fingerprint(dictionary: Dictionary) -> str:
    """SHA-256 of the symbols in their order: which id is which word."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()


def class_names(dictionary: Dictionary, fewest: int = 2) -> list[str]:
    """The classes of a label dictionary, without special symbols and padding words.

    Raises:
        InputError: there are fewer than ``fewest``.
    """
    names = [dictionary[i] for i in range(dictionary.nspecial, len(dictionary))]
    names = [name for name in names if not name.startswith("madeupword") and name != "<mask>"]
    if len(names) < fewest:
        raise InputError(
            f"label/dict.txt names {len(names)} classes ({', '.join(names)}); a classifier needs "
            f"at least {fewest}."
        )
    return names


def load_split(
    data: str, split: str, dictionary: Dictionary, labels: list[str], kind: str = scores.CLASSES
):
    """A split's one or two indexed texts and its targets: class ids (N,), by name in ``labels``;
    (N, labels) zeros and ones, where a row has any number of them; or (N,) numbers.

    Raises:
        InputError: a file is missing, counts differ, a row is empty, or a label is unknown.
    """
    texts = [_indexed(data, "input0", split, dictionary)]
    if os.path.isdir(os.path.join(data, "input1")):
        texts.append(_indexed(data, "input1", split, dictionary))
    if kind == scores.NUMBER:
        rows = read_numbers(data, split)
    else:
        label_dictionary = load_dictionary(os.path.join(data, "label", "dict.txt"))
        rows = _indexed(data, "label", split, label_dictionary)
    for name, text in zip(("input0", "input1"), texts):
        if len(text) != len(rows):
            raise InputError(
                f"{data}: split {split!r} has {len(text)} rows in {name} and {len(rows)} in "
                "label. Each row needs "
                "one label: prepare the data again (scripts/prepare_data.sh)."
            )
        empty = np.flatnonzero(np.asarray(text.sizes) < 2)
        if len(empty):
            raise InputError(
                f"{data}/{name}: row {empty[0] + 1} of split {split!r} is empty ({len(empty)} "
                "such rows). Remove it "
                "from text and labels and prepare the data again."
            )
        for i in range(len(text)):
            row = text[i]
            top, last = int(row.max()), int(row[-1])
            if top >= len(dictionary):
                raise InputError(
                    f"{data}/{name}: row {i + 1} of split {split!r} has the token id {top}, the "
                    f"dictionary {len(dictionary)} rows. It was binarised with another "
                    "dictionary: prepare the data again."
                )
            if last != dictionary.eos():
                raise InputError(
                    f"{data}/{name}: row {i + 1} of split {split!r} does not end with </s>. "
                    "Prepare the data again with scripts/prepare_data.sh, or with "
                    "fairseq-preprocess and its default of appending </s>."
                )
    if len(rows) == 0:
        raise InputError(f"{data}: split {split!r} has no rows.")
    if kind == scores.NUMBER:
        return texts, rows
    if kind == scores.LABELS:
        found = np.zeros((len(rows), len(labels)), dtype=np.int64)
        for i in range(len(rows)):
            for name in _names(rows[i], label_dictionary):
                if name not in labels:
                    _refuse_label(i, split, name, labels)
                found[i, labels.index(name)] = 1
        return texts, found
    return texts, np.array(
        [_class_id(rows, i, split, label_dictionary, labels) for i in range(len(rows))]
    )


def _indexed(data, name, split, dictionary):
    prefix = os.path.join(data, name, split)
    try:
        _check_lengths(prefix)
        dataset = data_utils.load_indexed_dataset(prefix, dictionary)
    except Exception as error:
        raise InputError(
            f"{prefix}.bin and .idx cannot be read ({error}). Prepare the data again."
        ) from error
    if dataset is None:
        raise InputError(
            f"{prefix}.bin does not exist: {data} has no split {split!r}. Prepare it "
            "(scripts/prepare_data.sh), or name "
            "other splits with --valid-subset (finetune and sweep: --subsets)."
        )
    return dataset


def _check_lengths(prefix):
    """Raise ValueError where an .idx of fairseq's usual format, or its .bin, is cut short.

    fairseq looks at neither: it fails at the first row that is not there, in the middle of a run.
    """
    if not indexed_dataset.MMapIndexedDataset.exists(prefix):
        return
    with open(f"{prefix}.idx", "rb") as file:
        head, index = file.read(26), file.read()
    if head[:9] != indexed_dataset.MMapIndexedDataset.Index._HDR_MAGIC or len(head) < 26:
        return  # another format, or none: fairseq says so
    # After the magic: version (8 bytes), type (1), number of rows (8); then sizes and offsets.
    version, code, num_rows = struct.unpack("<QBQ", head[9:])
    if version != 1 or code not in indexed_dataset._code_to_dtype:
        raise ValueError(f"{prefix}.idx is of version {version}, its tokens of type {code}")
    if len(index) != num_rows * (4 + 8):
        raise ValueError(f"{prefix}.idx is cut short: {num_rows} rows announced")
    sizes = np.frombuffer(index, np.int32, num_rows)
    needed = int(sizes.sum()) * np.dtype(indexed_dataset._code_to_dtype[code]).itemsize
    found = os.path.getsize(f"{prefix}.bin")
    if found != needed:
        raise ValueError(f"{prefix}.bin has {found} bytes, its .idx speaks of {needed}")


def _class_id(rows, index, split, dictionary, labels):
    names = _names(rows[index], dictionary)
    if len(names) == 1 and names[0] in labels:
        return labels.index(names[0])
    _refuse_label(index, split, " ".join(names) or "nothing", labels)


def _names(row, dictionary):
    """The labels of a row; a number for what the dictionary does not have."""
    tokens = [int(token) for token in row if token != dictionary.eos()]
    return [str(dictionary[t]) if t < len(dictionary) else str(t) for t in tokens]


def _refuse_label(index, split, seen, labels):
    raise InputError(
        f"Row {index + 1} of split {split!r} has the label {seen!r}; expected one of "
        f"{', '.join(labels)}. "
        "Labels come from label/dict.txt: prepare the data again with every class in it."
    )


def flags(cfg) -> None:
    """Refuse flags of fairseq that would be ignored, fail late or leave rows out.

    Raises:
        InputError: naming the flag and what to give instead.
    """
    if os.pathsep in cfg.data:
        raise InputError(
            f"The data folder {cfg.data} has a {os.pathsep!r} in its name, which fairseq takes for "
            "a list of folders. Give it another name, or a link of another name."
        )
    processes.check_casts("fp16" if cfg.fp16 else "bf16" if cfg.bf16 else None)
    processes.check(cfg.amp, cfg.store_ema)
    for name, value, of in (
        ("--keep-features", cfg.keep_features, "memory"),
        ("--keep-features-on-disk", cfg.keep_features_on_disk, "disk"),
    ):
        if value < 0:
            raise InputError(f"{name} {value}: expected MB of {of}, or 0 to keep none there.")
    validation(cfg)


def validation(cfg) -> None:
    """Raise InputError where flags would leave rows out of a validation, or mean no splits."""
    subsets = cfg.valid_subset.split(",")
    if cfg.eval_test not in ("each", "best"):
        raise InputError(
            f"--eval-test {cfg.eval_test} is unknown: give each (validation) or best (once, with "
            "the best weights)."
        )
    if cfg.max_valid_steps is not None:
        raise InputError(
            f"--max-valid-steps {cfg.max_valid_steps} would leave rows out of every evaluation. "
            "Leave it out, or prepare a smaller split and name it with --valid-subset."
        )
    if cfg.combine_valid_subsets:
        raise InputError(
            "--combine-val would be ignored: name every split with --valid-subset, "
            "such as --valid-subset valid,valid1."
        )
    if len(set(subsets)) < len(subsets) or "" in subsets:
        raise InputError(
            f"--valid-subset {cfg.valid_subset!r} names a split twice or none. Give names with "
            "commas between, such as valid,test."
        )


class Start(NamedTuple):
    """Where training starts.

    Attributes:
        path: the checkpoint that fairseq will load; None for random weights.
        base: the base checkpoint of the run, whether it is read now or was read by the first
            launch; None if there is none.
        resumes: whether ``path`` is the last checkpoint of this very run.
    """

    path: str | None
    base: str | None
    resumes: bool


def start(cfg) -> Start:
    """Where training starts, from fairseq's flags: a resumed run, a base, or random weights.

    Raises:
        InputError: the base does not exist, flags contradict each other, or there is no base and
            ``--from-scratch`` was not given.
    """
    last = run_start.last(cfg.save_dir)
    restore = None if cfg.restore_file == run_start.LAST else cfg.restore_file
    base = cfg.finetune_from_model
    run_start.check_one(cfg)
    if base is not None and run_start.resets(cfg):
        raise InputError(
            "--finetune-from-model resets optimizer, schedule, meters and data by itself. Leave "
            "--reset-optimizer and the like out."
        )
    named = base if base is not None else restore
    if named is not None and cfg.from_scratch:
        raise InputError(
            f"--from-scratch and a base checkpoint ({named}) exclude each other. Leave one out."
        )
    if restore is None and os.path.isfile(last):
        return Start(last, base, resumes=True)
    if named is None:
        if cfg.from_scratch:
            return Start(None, None, resumes=False)
        raise InputError(
            "No base checkpoint was given. Give one with --finetune-from-model, or "
            "--from-scratch to train from random weights."
        )
    if not os.path.isfile(named):
        raise InputError(
            f"The base checkpoint {named} does not exist. Give an existing file with "
            "--finetune-from-model, or --from-scratch to train from random weights."
        )
    resumes = run_start.is_last(named, cfg.save_dir)
    return Start(named, None if resumes else named, resumes)


def check_beside(path: str, dictionary: Dictionary, name: str) -> None:
    """Raise InputError where the dict.txt beside a checkpoint of ``path`` gives words other ids
    than ``dictionary``, which is the file ``name``."""
    beside = os.path.join(os.path.dirname(path), "dict.txt")
    if not os.path.isfile(beside):
        return
    own = load_dictionary(beside)
    own.add_symbol("<mask>")
    if len(own) != len(dictionary) or own.symbols == dictionary.symbols:
        return
    other = next(i for i in range(len(own)) if own[i] != dictionary[i])
    raise InputError(
        f"{path} comes with another dictionary: token {other} is {own[other]!r} in {beside} and "
        f"{dictionary[other]!r} in {name}. Use the checkpoint's dict.txt."
    )


def check_start(path: str, state: dict, model, dictionary: Dictionary, cfg) -> None:
    """Raise InputError unless fairseq will load the checkpoint ``state`` of ``path`` into
    ``model``, and its token ids mean what they mean in the data."""
    try:
        model.account(state["model"])
        model.check_pooler(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    check_beside(path, dictionary, f"{cfg.data}/input0/dict.txt")
    history = state.get("optimizer_history") or [{}]
    criterion = history[-1].get("criterion_name", "SentenceClassificationCriterion")
    keeps_optimizer = cfg.finetune_from_model is None and not cfg.reset_optimizer
    if (
        keeps_optimizer
        and state.get("last_optimizer_state") is not None
        and criterion != "SentenceClassificationCriterion"
    ):
        raise InputError(
            f"{path} holds the optimizer of a run with {criterion}, which --restore-file would "
            "continue. Give the file with --finetune-from-model, which starts afresh."
        )
