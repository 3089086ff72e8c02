"""From files to what classifies: the model of a checkpoint or of an adapter folder, and the reader
that turns texts into its tokens."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Optional, Union

import torch
from fairseq import models
from omegaconf import OmegaConf
from torch import nn

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.adapters.base import check_fingerprint, fingerprint
from fairseq_peft.adapters.folder import AdapterFolder
from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.checkpoints.slim import read as read_checkpoint
from fairseq_peft.data import checks
from fairseq_peft.data.text_encoder import TextEncoder
from fairseq_peft.errors import InputError
from fairseq_peft.models import folder, norms
from fairseq_peft.models.options import METHOD_FIELDS
from fairseq_peft.models.roberta import FAMILY
from fairseq_peft.scores import CLASSES
from fairseq_peft.text import bpe
from fairseq_peft.text.raw_text import DICT_NAME, MODEL_NAME

ROOT = FAMILY.root


@dataclass(frozen=True)
class Reader:
    """How the rows of one adapter are read, and what its outputs are called.

    Attributes:
        labels: class names, in the order of the model's outputs.
        encoder: text -> tokens.
        max_tokens: longest row, with the special tokens.
        num_texts: texts of a row, 1 or 2.
        kind: what is predicted of a row (``scores``): a class, any number of labels, or a number.
    """

    labels: tuple[str, ...]
    encoder: TextEncoder
    max_tokens: int
    num_texts: int
    kind: str = CLASSES

    def check(self, row: Union[str, Sequence[str]], number: int) -> tuple[str, ...]:
        """The texts of a row.

        Raises:
            InputError: they are not as many as the model was trained on, or no texts.
        """
        texts = (row,) if isinstance(row, str) else tuple(row) if _is_sequence(row) else ()
        if len(texts) != self.num_texts or not all(isinstance(text, str) for text in texts):
            expected = "one text" if self.num_texts == 1 else "a pair of texts"
            raise InputError(
                f"Row {number} is {repr(row)[:40]} ({type(row).__name__}). Expected {expected}, "
                "as in training."
            )
        return texts


def _is_sequence(row) -> bool:
    return isinstance(row, Sequence) and not isinstance(row, (bytes, bytearray))


def dictionary_of(path: Path, sha256: Optional[str], owner) -> checks.Dictionary:
    """The dictionary in ``path``, with ``<mask>``.

    Raises:
        InputError: it is not the one that ``owner`` was trained with.
    """
    dictionary = checks.load_dictionary(str(path))
    dictionary.add_symbol("<mask>")
    found = checks.fingerprint(dictionary)
    if sha256 not in (None, found):
        raise InputError(
            f"{path} is not the dictionary that {owner} was trained with: its sha256 is "
            f"{found[:12]}, expected {sha256[:12]}. Give that one."
        )
    return dictionary


# A checkpoint that is fine-tuned as a whole


def from_checkpoint(path, data=None, kind=None) -> tuple[nn.Module, str, Reader, str]:
    """A checkpoint, fine-tuned as a whole or merged: its model, the name of its head, its reader,
    its precision.

    Args:
        path: the checkpoint's file.
        data: folder with its dict.txt and the files of its ``--bpe``, as its sentencepiece model;
            None for the one that it was trained on.
        kind: its ``--bpe``; None for what the folder says.

    Raises:
        InputError: it cannot classify, or the folder lacks what turns text into tokens.
    """
    path = Path(path)
    state = as_trained(read_checkpoint(str(path)))
    cfg = state.get("cfg") if isinstance(state.get("cfg"), dict) else {}
    task, saved = cfg.get("task") or {}, state.get("task_state") or {}
    labels = saved.get("labels") if isinstance(saved, dict) else None
    if not labels or not isinstance(task, dict) or task.get("_name") != "sentence_classification":
        raise InputError(
            f"{path} has no classifier of this plugin. Give an adapter folder beside it "
            "(--adapter), or a checkpoint of fairseq-train --task sentence_classification."
        )
    model = finetuned.rebuild(path, state)
    head = finetuned.choose_head(path, task, model)
    folder = Path(data or task.get("data") or "")
    subwords = bpe.find(folder, kind)
    if subwords is None:
        raise InputError(
            f"{folder / MODEL_NAME} does not exist: {path} has no sentencepiece model to read text "
            "with. Give its data folder (--data), an adapter folder (--adapter), which has one, or "
            "another --bpe."
        )
    words = folder / "input0" / DICT_NAME
    words = words if words.is_file() else folder / DICT_NAME
    dictionary = dictionary_of(words, saved.get("dictionary"), path)
    _check_rows(words, dictionary, len(model.encoder.dictionary))
    reader = Reader(
        tuple(labels),
        TextEncoder(subwords, dictionary, not task.get("no_init_token", False)),
        model.longest_text,
        2 if (folder / "input1").is_dir() else 1,
        saved.get("kind", CLASSES),
    )
    return model, head, reader, (cfg.get("model") or {}).get("precision") or "fp32"


#: What ``merge`` names the models of classifiers -> what this plugin does, and what stock has no
#: flag for.
_MERGED = {
    "roberta": ("roberta_peft", {"layer_norm_eps": norms.STOCK_EPS}),
    "bart_large": ("bart_peft", {}),
}


def as_trained(state: dict) -> dict:
    """A merged checkpoint, which names fairseq's own task and architecture, as one of the same
    weights that was fine-tuned as a whole; any other as it is."""
    cfg = state.get("cfg") if isinstance(state.get("cfg"), dict) else {}
    task, told = cfg.get("task"), checkpoint_file.told(state)
    if not isinstance(task, dict) or task.get("_name") != "sentence_prediction":
        return state
    if told.get("_name") not in _MERGED:
        return state
    name, stock = _MERGED[told["_name"]]
    task = {
        "_name": "sentence_classification",
        "data": task.get("data"),
        "classification_head_name": task.get("classification_head_name"),
        "no_init_token": task.get("init_token") is None,
    }
    model = {**stock, **told, "_name": name, "peft": "full"}
    return {**state, "cfg": {**cfg, "task": task, "model": model}}


def _check_rows(path, dictionary, num_rows):
    if len(dictionary) != num_rows:
        raise InputError(
            f"{path} has {len(dictionary)} rows with the special ones, the model {num_rows}. Give "
            "the dictionary that it was trained with."
        )


# Adapter folders


def open_folder(folder: Union[str, Path, AdapterFolder]) -> AdapterFolder:
    """An adapter folder, with what prediction needs.

    Raises:
        InputError: it is damaged, or has nothing to read text with.
    """
    found = folder if isinstance(folder, AdapterFolder) else adapter_folder.read(folder)
    if not found.text_files:
        raise InputError(
            f"{found.folder} has no {MODEL_NAME}: the data that it was trained on had none, so no "
            "text can be read. Prepare data with scripts/prepare_data.sh, and train on them."
        )
    return found


def check_shares(found: AdapterFolder) -> None:
    """Raise InputError where a folder holds a whole model: it has no base to share with others."""
    if found.description["complete"]:
        raise InputError(
            f"{found.folder} holds a whole model, which is no adapter for another. Load it on its "
            "own."
        )


def precision_of(found: AdapterFolder) -> str:
    """That of the training run."""
    return found.description["model"].get("precision") or "fp32"


def check_precisions(trained: Mapping[str, str]) -> None:
    """Raise InputError where adapters, name -> ``precision_of``, were trained in different ones:
    all of a base compute in the same."""
    if len(set(trained.values())) > 1:
        told = ", ".join(f"{name} in {value}" for name, value in trained.items())
        raise InputError(
            f"The adapters were trained in different precisions ({told}). Give one (--precision; "
            "in Python precision=)."
        )


def read_folder(found: AdapterFolder, encoder: Optional[TextEncoder] = None) -> Reader:
    """The reader of an adapter folder; it shares ``encoder``, if it has the same."""
    description = found.description
    given = description["input"]
    if encoder is None:
        words = found.folder / adapter_folder.DICTIONARY
        sha256 = description["dictionary"]["sha256"]
        dictionary = dictionary_of(words, sha256, found.folder)
        encoder = TextEncoder(found.subwords(), dictionary, given["begin"])
    kind = description.get("kind", CLASSES)
    labels = tuple(description["labels"])
    return Reader(labels, encoder, given["max_tokens"], given["num_texts"], kind)


def from_complete(found: AdapterFolder) -> tuple[nn.Module, str, Reader]:
    """The model of a folder that needs no base, the name of its head, its reader."""
    return folder.load(found, None), found.description["head"]["name"], read_folder(found)


class Base:
    """The base of adapters.

    Attributes:
        model: the plain model with the base's weights.
        sha256: fingerprint of the base.
    """

    def __init__(self, path: Union[str, Path, None], found: AdapterFolder):
        """Load the base of ``path`` for the adapter of ``found``, and others like it.

        Raises:
            InputError: it cannot be read, or has another shape than the adapter's base.
        """
        if path is None:
            base = found.description["base"] or {}
            raise InputError(
                f"{found.folder} holds what was trained on a base, not the base. Give it "
                f"(--base); it was {base.get('path')}."
            )
        state = read_checkpoint(str(path))
        self.path = path
        self.sha256 = fingerprint(state["model"])
        self._encoders = {}
        reader = self._reader(found)
        self.model = plain_model(found.description["model"], reader.encoder.dictionary)
        try:
            self.model.load_state_dict(state["model"])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def reader(self, found: AdapterFolder, allow_other: bool = False) -> Reader:
        """The reader of an adapter that belongs to this base.

        Raises:
            InputError: it belongs to another base, or was trained with another dictionary.
        """
        check_fingerprint(found.description, self.sha256, allow_other)
        reader = self._reader(found)
        if reader.encoder.dictionary.symbols != self.model.encoder.dictionary.symbols:
            raise InputError(
                f"{found.folder} has another dictionary than the adapters before. Load it with a "
                "base of its own."
            )
        return reader

    def _reader(self, found):
        """Folders with the same files share an encoder, so that their rows are read together."""
        files, given = found.description["files"], found.description["input"]
        names = (adapter_folder.DICTIONARY, *found.text_files)
        key = (*((name, files[name]["sha256"]) for name in names), given["begin"])
        reader = read_folder(found, self._encoders.get(key))
        self._encoders[key] = reader.encoder
        return reader


def plain_model(flags: dict, dictionary):
    """The model that ``flags`` build, without any method or head."""
    # An adapter from before --pooler must not find that of another.
    plain = {"peft": "full", "precision": "fp32", "init_embeddings": "", "pooler": "first"}
    given = OmegaConf.create({**flags, **dict.fromkeys(METHOD_FIELDS), **plain})
    task = SimpleNamespace(
        source_dictionary=dictionary, target_dictionary=dictionary, cfg=SimpleNamespace(seed=1)
    )
    with folder.fp32_by_default():
        return models.build_model(given, task)


def build(model, found: AdapterFolder) -> nn.Module:
    """Make ``model``, which shares the base's tensors, the one of the folder; returns its head.

    The folder's versions of base tensors (biases that trained, corrected weights, buffers) go into
    tensors of their own.
    """
    flags, head = found.description["model"], found.description["head"]
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    model.args = argparse.Namespace(**{**vars(model.args), **flags})
    given = {flag: flags.get(flag) for flag in METHOD_FIELDS}
    with folder.fp32_by_default():
        model.inject(found.description["method"]["peft"], given, seed=1)
        folder.check_knobs(model, found)
        model.register_classification_head(
            head["name"], head["num_classes"], head.get("inner_dim"), seed=1
        )
    for name in found.tensors:
        owner, _, kind = name.rpartition(".")
        if name in parameters:
            value = nn.Parameter(torch.empty_like(parameters[name]))
        elif name in buffers:
            value = torch.empty_like(buffers[name])
        else:
            continue
        setattr(model.get_submodule(owner), kind, value)
    model.freeze()
    adapter_folder.apply(model, found)
    return model.classification_heads[head["name"]]
