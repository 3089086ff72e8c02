"""A fairseq checkpoint as a folder that Hugging Face's library opens by itself.

config.json, model.safetensors           RobertaForSequenceClassification, or RobertaForMaskedLM
tokenizer.json, tokenizer_config.json    text -> fairseq's ids
dict.txt, sentencepiece.bpe.model        copies, for the way back
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from fairseq_peft import artifact, checkpoints, folders
from fairseq_peft.data.text_encoder import TextEncoder
from fairseq_peft.errors import InputError
from fairseq_peft.hf import base_model, check, tokenizer, weights
from fairseq_peft.hf import config as hf_config
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.text.raw_text import load_tokenizer

#: Texts of random pieces that are read on both sides.
NUM_TEXTS = 200


def convert(
    checkpoint: Path,
    out: Path,
    dictionary: Path,
    spm: Path,
    *,
    head: str | None = None,
    labels: Sequence[str] | None = None,
    checked: bool = True,
    texts: Sequence[str] = (),
    trust: bool = False,
) -> dict:
    """Write the folder ``out``, which appears once it is whole and checked.

    Args:
        checkpoint: a language model, or a model fine-tuned as a whole or merged.
        dictionary, spm: its dict.txt and its sentencepiece model.
        head: the classification head, where there are several.
        labels: class names in the order of the outputs; else the checkpoint's, else LABEL_0, ...
        checked: whether both sides compute, and read, the same (``check.py``); needs transformers.
        texts: more texts to read on both sides.
        trust: as ``slim.read`` takes it.

    Returns:
        what was written and compared: kind, labels, tensors, and the largest differences.

    Raises:
        InputError: a file cannot be used, the model has no counterpart, or the sides differ.
    """
    if checked:
        check.load_transformers()
    base = base_model.read(checkpoint, dictionary, trust)
    head = choose_head(checkpoint, base, head)
    names = class_names(checkpoint, base, head, labels)
    tied = weights.is_tied(base.weights)
    config = hf_config.roberta(Namespace(**base.flags), len(base.dictionary), names, tied)
    tensors = weights.convert_to_hf(base.weights, head)
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer.build(spm, base.dictionary.symbols),
        "tokenizer_config.json": tokenizer.settings(base.flags["max_positions"]),
    }
    found = {"kind": config["architectures"][0], "labels": names, "tensors": len(tensors)}
    try:
        with folders.replaced(out) as new:
            (new / "model.safetensors").write_bytes(
                safetensors.torch.save(tensors, {"format": "pt"})
            )
            for name, value in files.items():
                text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
                (new / name).write_text(text, encoding="utf-8")
            shutil.copyfile(dictionary, new / artifact.DICTIONARY)
            shutil.copyfile(spm, new / artifact.TOKENIZER)
            if checked:
                found.update(compare(base, head, spm, new, texts))
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror or error}). Give another place."
        ) from error
    return found


def choose_head(checkpoint: Path, base: base_model.Base, wanted: str | None) -> str | None:
    """The classification head to convert; None for a language model.

    Raises:
        InputError: there is no such head, or several to choose from.
    """
    ending = ".out_proj.weight"
    heads = [
        name[len(HEADS) : -len(ending)]
        for name in base.weights
        if name.startswith(HEADS) and name.endswith(ending)
    ]
    if wanted is not None and wanted not in heads:
        raise InputError(
            f"--head {wanted!r}: {checkpoint} has no such head. Its heads: "
            f"{', '.join(heads) or 'none'}."
        )
    if wanted is None and len(heads) > 1:
        raise InputError(
            f"{checkpoint} has the heads {', '.join(heads)}, and a folder has one. Choose (--head)."
        )
    head = wanted or next(iter(heads), None)
    dense = None if head is None else base.weights.get(f"{HEADS}{head}.dense.weight")
    dim = base.flags["encoder_embed_dim"]
    if head is not None and (dense is None or tuple(dense.shape) != (dim, dim)):
        raise InputError(
            f"{checkpoint} has a head {head!r} without a dense layer of {dim} x {dim}, and Hugging "
            "Face's classification head has no other. Train with --classifier-head roberta."
        )
    return head


def class_names(checkpoint: Path, base: base_model.Base, head: str | None, given) -> list[str]:
    """Class names in the order of the outputs; none for a language model.

    Raises:
        InputError: they are not as many as the head has outputs.
    """
    if head is None:
        if given:
            raise InputError(
                f"--labels {','.join(given)} would be ignored: {checkpoint} has no classification "
                "head. Leave it out."
            )
        return []
    number = len(base.weights[f"{HEADS}{head}.out_proj.weight"])
    told = (base.state.get("task_state") or {}).get("labels")
    names = list(given or told or (f"LABEL_{i}" for i in range(number)))
    if len(names) != number or len(set(names)) < number:
        raise InputError(
            f"{checkpoint} has a head of {number} classes; the names given are {', '.join(names)}. "
            "Give one for each class, in the order of the outputs (--labels)."
        )
    return names


def compare(base: base_model.Base, head, spm: Path, folder: Path, texts: Sequence[str]) -> dict:
    """What ``check.py`` finds of the folder: differences, and how many texts were read alike."""
    model = base_model.load(base, head)
    batches = checkpoints.random_batches(base.dictionary, base.flags["max_positions"])
    found = check.models(model, head, folder, batches)
    encoder = TextEncoder(spm, base.dictionary)
    rows = [*random_texts(spm), *texts]

    def encode(rows):
        whole = [10**9] * len(rows)
        return encoder.items([(row,) for row in rows], whole)

    same, ties = check.texts(encode, folder, rows)
    return {**found, "texts": same, "ties": ties}


def random_texts(spm: Path) -> list[str]:
    """Texts of random pieces."""
    pieces = load_tokenizer(spm)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, len(pieces), (NUM_TEXTS, 24), generator=generator)
    return [pieces.decode(row) for row in ids.tolist()]
