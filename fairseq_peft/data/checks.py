"""What is checked before training starts: dictionaries, labels, rows, the base checkpoint."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils

from fairseq_peft.errors import InputError


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
    except (ValueError, RuntimeError, UnicodeError) as error:
        raise InputError(
            f"{path} is not a fairseq dictionary ({error}). Expected UTF-8 lines of a symbol, a "
            "space and a count."
        ) from error


def class_names(dictionary: Dictionary) -> list[str]:
    """The classes of a label dictionary, without special symbols and padding words.

    Raises:
        InputError: there are fewer than two.
    """
    names = [dictionary[i] for i in range(dictionary.nspecial, len(dictionary))]
    names = [name for name in names if not name.startswith("madeupword") and name != "<mask>"]
    if len(names) < 2:
        raise InputError(
            f"label/dict.txt names {len(names)} classes ({', '.join(names)}); a classifier needs "
            "at least 2."
        )
    return names


def load_split(data: str, split: str, dictionary: Dictionary, labels: list[str]):
    """A split's one or two indexed texts and its class ids (N,), by name in ``labels``.

    Raises:
        InputError: a file is missing, counts differ, a row is empty, or a label is unknown.
    """
    texts = [_indexed(data, "input0", split, dictionary)]
    if os.path.isdir(os.path.join(data, "input1")):
        texts.append(_indexed(data, "input1", split, dictionary))
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
        top = max((int(text[i].max()) for i in range(len(text))), default=0)
        if top >= len(dictionary):
            raise InputError(
                f"{data}/{name}: split {split!r} has the token id {top}, the dictionary "
                f"{len(dictionary)} rows. It was "
                "binarised with another dictionary: prepare the data again."
            )
    if len(rows) == 0:
        raise InputError(f"{data}: split {split!r} has no rows.")
    return texts, np.array(
        [_class_id(rows, i, split, label_dictionary, labels) for i in range(len(rows))]
    )


def _indexed(data, name, split, dictionary):
    prefix = os.path.join(data, name, split)
    try:
        dataset = data_utils.load_indexed_dataset(prefix, dictionary)
    except Exception as error:
        raise InputError(
            f"{prefix}.bin and .idx cannot be read ({error}). Prepare the data again."
        ) from error
    if dataset is None:
        raise InputError(
            f"{prefix}.bin does not exist: {data} has no split {split!r}. Prepare it "
            "(scripts/prepare_data.sh), or name "
            "other splits with --valid-subset."
        )
    return dataset


def _class_id(rows, index, split, dictionary, labels):
    tokens = [int(token) for token in rows[index] if token != dictionary.eos()]
    name = dictionary[tokens[0]] if len(tokens) == 1 and tokens[0] < len(dictionary) else None
    if name in labels:
        return labels.index(name)
    seen = (
        " ".join(str(dictionary[t]) if t < len(dictionary) else str(t) for t in tokens) or "nothing"
    )
    raise InputError(
        f"Row {index + 1} of split {split!r} has the label {seen!r}; expected one of "
        f"{', '.join(labels)}. "
        "Labels come from label/dict.txt: prepare the data again with every class in it."
    )


def base_checkpoint(cfg) -> str | None:
    """The checkpoint that training starts from; None if it starts from random weights or continues
    a run of its own.

    Raises:
        InputError: it does not exist, or there is none and ``--from-scratch`` was not given.
    """
    last = os.path.join(cfg.save_dir, "checkpoint_last.pt")
    named = cfg.finetune_from_model
    if named is None and cfg.restore_file not in ("checkpoint_last.pt", last):
        named = cfg.restore_file
    if named is not None:
        if cfg.from_scratch:
            raise InputError(
                f"--from-scratch and a base checkpoint ({named}) exclude each other. Leave one out."
            )
        if not os.path.isfile(named):
            raise InputError(
                f"The base checkpoint {named} does not exist. Give an existing file with "
                "--finetune-from-model, or "
                "--from-scratch to train from random weights."
            )
        return named
    if not cfg.from_scratch and not os.path.isfile(last):
        raise InputError(
            "No base checkpoint was given. Give one with --finetune-from-model, or "
            "--from-scratch to train from "
            "random weights."
        )
    return None


def read_checkpoint(path: str) -> dict:
    """A fairseq checkpoint, through torch's safe loader.

    Raises:
        InputError: it is cut short, no checkpoint, or would need to run code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and plain values, or is no checkpoint; it is not "
            "opened, because that could "
            f"run code ({str(error).splitlines()[0][:200]}). Give a checkpoint of fairseq-train."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint: it is cut short or damaged "
            f"({str(error).splitlines()[0][:200]}). "
            "Copy or download it again."
        ) from error
    if not isinstance(state, dict) or "model" not in state:
        raise InputError(f"{path} has no entry 'model': it is no fairseq checkpoint.")
    return state


def check_base(path: str, model) -> None:
    """Raise InputError unless the checkpoint at ``path`` will load into ``model``."""
    state = read_checkpoint(path)["model"]
    try:
        model.account(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
