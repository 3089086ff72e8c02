"""A base checkpoint outside of training: which flags it was trained with, and its model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.architectures import SIZES
from fairseq_peft.checkpoints import slim
from fairseq_peft.checkpoints.file import told
from fairseq_peft.errors import InputError
from fairseq_peft.hf import encoder_decoder
from fairseq_peft.hf.weights import has_lm_head
from fairseq_peft.models.roberta import BASE_SIZES, HEADS

#: The name of a head that comes from there: fairseq's own default.
HEAD = "sentence_classification_head"
#: The architecture of models of no known size: all its sizes are given as flags.
ANY_SIZE = "roberta_small"
_BODY = "encoder.sentence_encoder."
#: Flags that weights do not tell, taken from the checkpoint where it has them.
_TOLD = (
    *("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop"),
    *("classifier_head", "pooler", "pooler_activation_fn", "pooler_dropout"),
)


class Base(NamedTuple):
    """A checkpoint and its dictionary.

    Attributes:
        state: the checkpoint.
        weights: its tensors by today's names.
        flags: what builds its model; ``_name`` is the size's, without a method.
        dictionary: with ``<mask>``.
        kind: of an encoder-decoder; None for a RoBERTa.
    """

    state: dict
    weights: dict[str, torch.Tensor]
    flags: dict
    dictionary: object
    kind: encoder_decoder.Kind | None = None


def read_any(path: Path, dictionary: Path, trust: bool = False, languages=()) -> Base:
    """As ``read``, and encoder-decoders, too.

    Args:
        languages: those that the task adds to the dictionary, where the checkpoint names none.
    """
    state = slim.read(str(path), trust=trust)
    weights = adapter_folder.renamed(state["model"])
    if not encoder_decoder.is_one(weights):
        if languages:
            raise InputError(
                f"--langs {','.join(languages)} would be ignored: {path} is no encoder-decoder. "
                "Leave it out."
            )
        return read(path, dictionary, trust)
    kind, found = encoder_decoder.flags(path, state, weights)
    num_rows = len(weights[encoder_decoder.WORDS[0]])
    words = encoder_decoder.dictionary(path, dictionary, num_rows, state, kind, languages)
    return Base(state, weights, found, words, kind)


def read(path: Path, dictionary: Path, trust: bool = False) -> Base:
    """The checkpoint ``path`` and its dict.txt.

    Raises:
        InputError: one cannot be read, it is no RoBERTa, or they do not belong together.
    """
    from fairseq_peft.data import checks

    state = slim.read(str(path), trust=trust)
    weights = adapter_folder.renamed(state["model"])
    found = flags(path, state, weights)
    words = checks.load_dictionary(str(dictionary))
    words.add_symbol("<mask>")
    num_rows = len(weights[_BODY + "embed_tokens.weight"])
    if len(words) != num_rows:
        raise InputError(
            f"{dictionary} gives {len(words)} rows with <mask>, and {path} has {num_rows}. Give "
            "its own dictionary (--dict)."
        )
    checks.check_beside(str(path), words, str(dictionary))
    return Base(state, weights, found, words)


def flags(path, state: dict, weights: Mapping[str, torch.Tensor]) -> dict:
    """Flag -> value; ``_name`` is the size's, without a method.

    Args:
        path: of the checkpoint, for messages.
        state: the checkpoint.
        weights: its tensors by today's names (``adapters.folder.renamed``).

    Raises:
        InputError: it is no RoBERTa, or nothing tells its number of heads.
    """
    given = told(state)
    found = BASE_SIZES.read({"model": weights, "args": given}, str(path))
    name = size(found)
    if found["encoder_attention_heads"] is None and name is None:
        raise InputError(
            f"{path} does not say how many attention heads it has. Give a checkpoint with its "
            "configuration, as fairseq-train writes it."
        )
    return {
        "_name": name or ANY_SIZE,
        **found,
        "encoder_attention_heads": found["encoder_attention_heads"] or SIZES[name].num_heads,
        **{name: given[name] for name in _TOLD if given.get(name) is not None},
    }


def size(flags: dict) -> str | None:
    """The name of the known architecture of these sizes, if there is one."""
    wanted = (flags["encoder_layers"], flags["encoder_embed_dim"], flags["encoder_ffn_embed_dim"])
    for name, dims in SIZES.items():
        if (dims.num_layers, dims.embed_dim, dims.ffn_dim) == wanted:
            return name
    return None


def build(flags: dict, dictionary, seed: int = 1, **more):
    """The model that ``flags`` (with ``more``, ``peft`` for example) build, with random weights; a
    method's own are those of a run with ``seed``. It computes in fp32 unless they say otherwise:
    what is compared with another library, or written, is no matter of this machine's speed."""
    from fairseq import models

    name = f"{flags['_name']}_{more.get('peft', 'full')}"
    given = Namespace(**{"precision": "fp32", **flags, "_name": name, **more})
    task = SimpleNamespace(
        source_dictionary=dictionary,
        target_dictionary=dictionary,
        cfg=SimpleNamespace(seed=seed),
    )
    return models.build_model(given, task)


def load(base: Base, head: str | None):
    """The base's model with its weights, and its head if it is named, in eval mode. An LM head that
    the base has not is random.

    Raises:
        InputError: the weights do not fit.
    """
    model = build(base.flags, base.dictionary)
    if base.kind is not None:
        model.load_state_dict(dict(base.weights))
        return model.eval()
    model.reads_lm_head = has_lm_head(base.weights)
    own = None if head is None else f"{HEADS}{head}."
    weights = {n: t for n, t in base.weights.items() if not n.startswith(HEADS)}
    if own is not None:
        weights.update({n: t for n, t in base.weights.items() if n.startswith(own)})
        model.register_classification_head(head, len(weights[f"{own}out_proj.weight"]))
    model.load_state_dict(weights)
    return model.eval()
