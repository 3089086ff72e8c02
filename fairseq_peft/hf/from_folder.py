"""A folder of Hugging Face's library as a fairseq checkpoint, its dictionary, its tokenizer."""

from __future__ import annotations

import json
import pickle
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from fairseq_peft import folders
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.data import checks
from fairseq_peft.errors import InputError
from fairseq_peft.hf import base_model, check, tokenizer, vocabulary, weights
from fairseq_peft.hf import config as hf_config
from fairseq_peft.hf.base_model import HEAD
from fairseq_peft.text import bpe, spm_file

CHECKPOINT = "model.pt"
#: Files of weights, the first that there is.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def convert(folder: Path, out: Path, *, checked: bool = True, texts: Sequence[str] = ()) -> dict:
    """Write the folder ``out`` with model.pt, dict.txt and, if there is one, the sentencepiece
    model; it appears once it is whole and checked.

    Args:
        checked: whether both sides compute, and read, the same (``check.py``); needs transformers.
        texts: more texts to read on both sides, where there is a sentencepiece model.

    Returns:
        what was written and compared: labels, tensors, and the largest differences.

    Raises:
        InputError: a file cannot be used, the model has no counterpart, or the sides differ.
    """
    if checked:
        check.load_transformers()
    config, tensors = read(folder)
    vocab = vocabulary.read(folder)
    # What the config says of <s> and </s> nobody reads there: the tokenizer puts them.
    flags = hf_config.flags({**config, "bos_token_id": 0, "eos_token_id": 2})
    labels = hf_config.class_names(config)
    head = HEAD if labels else None
    state = {name: t.float() for name, t in weights.convert_from_hf(tensors, head).items()}
    check_rows(folder, vocab, state, head)
    state = vocab.reorder(state)
    spm = folder / adapter_folder.TOKENIZER
    if spm.is_file():
        tokenizer.check_pieces(spm, spm_file.read(spm).scores, vocab.symbols)
    found = {"labels": labels, "tensors": len(state)}
    try:
        with folders.replaced(out) as new:
            lines = vocab.symbols[len(tokenizer.SPECIALS) : -1]
            text = "".join(f"{line} 1\n" for line in lines)
            (new / adapter_folder.DICTIONARY).write_text(text, encoding="utf-8")
            words = checks.load_dictionary(str(new / adapter_folder.DICTIONARY))
            words.add_symbol(tokenizer.MASK)
            if spm.is_file():
                shutil.copyfile(spm, new / adapter_folder.TOKENIZER)
            base = base_model.Base(
                {}, state, {"_name": base_model.size(flags) or base_model.ANY_SIZE, **flags}, words
            )
            model = load(folder, base, head)
            torch.save(checkpoint(base, labels), new / CHECKPOINT)
            if checked:
                batches = finetuned.random_batches(words, flags["max_positions"])
                found.update(check.models(model, head, folder, batches, vocab.ids))
                found.update(check.reading(bpe.find(new), words, folder, texts, vocab.ids))
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror or error}). Give another place."
        ) from error
    return found


def read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.json, and the weights: model.safetensors, else pytorch_model.bin of older versions.

    Raises:
        InputError: one is missing or damaged, or holds more than tensors.
    """
    paths = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not paths or not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no {' or '.join(WEIGHTS) if not paths else 'config.json'}. Give a "
            "folder that save_pretrained wrote, with all weights in one file."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if paths[0].suffix == ".safetensors":
            tensors = safetensors.torch.load(paths[0].read_bytes())
        else:
            tensors = torch.load(paths[0], map_location="cpu", weights_only=True)
        if not isinstance(config, dict) or not all(map(torch.is_tensor, tensors.values())):
            raise TypeError("no table of values, or of tensors")
    except pickle.UnpicklingError as error:  # torch's text recommends the unsafe loader
        raise InputError(
            f"{paths[0]} is no file of torch's, or holds more than tensors; it is not opened, "
            f"because that could run code. Give {WEIGHTS[0]}."
        ) from error
    except Exception as error:  # what damaged data raise depends on where
        raise InputError(
            f"{folder} cannot be read ({type(error).__name__}: {str(error)[:100]}). Copy it again."
        ) from error
    return config, tensors


def check_rows(folder: Path, vocab: vocabulary.Vocabulary, state: dict, head: str | None) -> None:
    """Raise InputError where the model is not the tokenizer's, or is neither a language model nor a
    classifier."""
    num_rows = len(state[weights.WORDS])
    if len(vocab.symbols) != num_rows:
        raise InputError(
            f"The tokenizer of {folder} has {len(vocab.symbols)} rows, its model {num_rows}. Give "
            "a folder whose tokenizer is the model's."
        )
    if head is None and "encoder.lm_head.dense.weight" not in state:
        raise InputError(
            f"{folder} has neither a language model's head nor a classifier. Give the folder of a "
            "model for masked words, or for classes of texts."
        )


def load(folder: Path, base: base_model.Base, head: str | None):
    """The model, with every tensor accounted for.

    Raises:
        InputError: the weights are not those of the configuration.
    """
    try:
        return base_model.load(base, head)
    except (InputError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The weights of {folder} are not those of its config.json ({reason}). Copy it again."
        ) from error


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
