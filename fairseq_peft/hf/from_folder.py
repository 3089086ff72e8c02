"""A folder of Hugging Face's library as a fairseq checkpoint, its dictionary, its tokenizer."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import safetensors.torch
import torch

from fairseq_peft import artifact, checkpoints, folders
from fairseq_peft.errors import InputError
from fairseq_peft.hf import base_model, check, tokenizer, weights
from fairseq_peft.hf import config as hf_config
from fairseq_peft.hf.base_model import HEAD

CHECKPOINT = "model.pt"


def convert(folder: Path, out: Path, *, checked: bool = True) -> dict:
    """Write the folder ``out`` with model.pt, dict.txt and, if there is one, the sentencepiece
    model; it appears once it is whole and checked.

    Args:
        checked: whether both sides compute the same (``check.py``); needs transformers.

    Returns:
        what was written and compared: labels, tensors, and the largest differences.

    Raises:
        InputError: a file cannot be used, the model has no counterpart, or the sides differ.
    """
    from fairseq.data import Dictionary

    if checked:
        check.load_transformers()
    config, tensors = read(folder)
    flags = hf_config.flags(config)
    labels = hf_config.class_names(config)
    head = HEAD if labels else None
    state = {name: t.float() for name, t in weights.convert_from_hf(tensors, head).items()}
    lines = dictionary_lines(folder)
    words = Dictionary()
    for line in lines:
        words.add_symbol(line)
    words.add_symbol(tokenizer.MASK)
    if len(words) != len(state[weights.WORDS]):
        raise InputError(
            f"The tokenizer of {folder} has {len(words)} rows, its model "
            f"{len(state[weights.WORDS])}. Give a folder whose tokenizer is the model's."
        )
    base = base_model.Base(
        {}, state, {"_name": base_model.size(flags) or base_model.ANY_SIZE, **flags}, words
    )
    found = {"labels": labels, "tensors": len(state)}
    try:
        with folders.replaced(out) as new:
            text = "".join(f"{line} 1\n" for line in lines)
            (new / artifact.DICTIONARY).write_text(text, encoding="utf-8")
            if (folder / artifact.TOKENIZER).is_file():
                shutil.copyfile(folder / artifact.TOKENIZER, new / artifact.TOKENIZER)
            torch.save(checkpoint(base, labels), new / CHECKPOINT)
            if checked:
                batches = checkpoints.random_batches(words, flags["max_positions"])
                found.update(check.models(base_model.load(base, head), head, folder, batches))
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror or error}). Give another place."
        ) from error
    return found


def read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.json and model.safetensors.

    Raises:
        InputError: one is missing or damaged.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}. Give a folder that save_pretrained wrote, in one file of "
                "safetensors; other formats are not opened, because they can hold code."
            )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config, safetensors.torch.load((folder / "model.safetensors").read_bytes())
    except Exception as error:  # what damaged data raise depends on where
        raise InputError(
            f"{folder} cannot be read ({type(error).__name__}: {str(error)[:100]}). Copy it again."
        ) from error


def dictionary_lines(folder: Path) -> list[str]:
    """The symbols of dict.txt: the tokenizer's vocabulary in the order of its ids, without
    specials and ``<mask>``.

    Raises:
        InputError: there is no tokenizer.json, or its special tokens are not where fairseq has
            them.
    """
    path = folder / "tokenizer.json"
    try:
        vocab = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
        symbols = sorted(vocab, key=vocab.get) if isinstance(vocab, dict) else [p for p, _ in vocab]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}). Save the tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained)."
        ) from error
    if tuple(symbols[:4]) != tokenizer.SPECIALS or symbols[-1] != tokenizer.MASK:
        raise InputError(
            f"The tokenizer of {folder} begins with {', '.join(symbols[:4])} and ends with "
            f"{symbols[-1]}; fairseq's dictionaries begin with {', '.join(tokenizer.SPECIALS)} and "
            f"end with {tokenizer.MASK}."
        )
    return symbols[4:-1]


def checkpoint(base: base_model.Base, labels: list[str]) -> dict:
    """What fairseq's loader looks for: weights, flags, and no history to go on from."""
    flags = {name: value for name, value in base.flags.items() if name != "_name"}
    named = {"arch": base.flags["_name"], "task": "masked_lm", "criterion": "masked_lm"}
    history = {
        "criterion_name": "",
        "optimizer_name": "",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    return {
        "args": Namespace(**named, **flags),
        "model": base.weights,
        "task_state": {"labels": labels} if labels else {},
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None},
        "last_optimizer_state": None,
    }
