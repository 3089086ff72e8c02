"""Classification heads, and the pooler in front of them: one vector for a row.

Shape letters: B batch, T tokens, C model dim.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.errors import InputError

HEADS = "classification_heads."
KINDS = ("roberta", "linear")
POOLERS = ("first", "mean", "max")


class LinearHead(nn.Module):
    """One linear map of the first features: (B, T, C) -> (B, classes).

    Parameters: C x classes + classes; RoBERTa's head has C x C + C more.
    """

    def __init__(self, input_dim: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(input_dim, num_classes)

    def forward(self, features, **unused):
        return self.out_proj(self.dropout(features[:, 0]))


def kind_of(args) -> str:
    """``--classifier-head`` of a model's args; a checkpoint from before this flag has RoBERTa's.

    Raises:
        InputError: there is no such head.
    """
    return _choice(args, "classifier_head", KINDS)


def pooler_of(args) -> str:
    """``--pooler`` of a model's args; a checkpoint from before this flag reads ``<s>``.

    Raises:
        InputError: there is no such pooler.
    """
    return _choice(args, "pooler", POOLERS)


def _choice(args, name, known):
    """The value of a flag; the first of ``known`` where ``args`` is from before the flag."""
    value = getattr(args, name, None) or known[0]
    if value not in known:
        flag = "--" + name.replace("_", "-")
        given = f"{', '.join(known[:-1])} or {known[-1]}"
        raise InputError(f"{flag} {value!r} is unknown: give {given}.")
    return value


def pool(features: torch.Tensor, text: torch.Tensor, pooler: str) -> torch.Tensor:
    """One vector a row, where heads look for it: features (B, T, C) -> (B, 1, C).

    Args:
        text: (B, T), true where there is no padding; ``<s>`` and ``</s>`` are text.
        pooler: ``first``, the features of ``<s>``; or ``mean`` or ``max`` over the text.
    """
    if pooler == "first":
        return features[:, :1]
    text = text.unsqueeze(-1)
    if pooler == "max":
        return features.masked_fill(~text, float("-inf")).amax(1, keepdim=True)
    return features.masked_fill(~text, 0).sum(1, keepdim=True) / text.sum(1, keepdim=True)


def check_pooler(model, state: dict) -> None:
    """Raise InputError where ``model`` would take a head from the checkpoint ``state`` that was
    trained with another pooler."""
    if model.accepts_base and model.args.reset_head:
        return
    for name, head in model.classification_heads.items():
        if f"classification_heads.{name}.out_proj.weight" not in state["model"]:
            continue
        before = pooler_of(SimpleNamespace(**checkpoint_file.told(state)))
        if head.pooler != before:
            raise InputError(
                f"The checkpoint's head {name!r} was trained with --pooler {before}, not "
                f"{head.pooler}. Give --pooler {before}, or --reset-head to start a fresh head."
            )


def scores(head: nn.Module, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Class scores (B, classes) of a head that ``RobertaPeftModel`` registered; as ``pool``."""
    return head(pool(features, text, head.pooler))


def check_kind(head_name: str, head: nn.Module, keys) -> None:
    """Raise InputError where the head ``head_name`` of a checkpoint (names of its tensors) is of
    the other kind than ``head``."""
    found = "roberta" if f"{head_name}.dense.weight" in keys else "linear"
    own = "linear" if isinstance(head, LinearHead) else "roberta"
    if f"{head_name}.out_proj.weight" in keys and found != own:
        raise InputError(
            f"The checkpoint's head {head_name.rpartition('.')[2]!r} is that of --classifier-head "
            f"{found}, not {own}. Give the flag it was trained with, or --reset-head to start a "
            "fresh head."
        )


def fit(model, own, state_dict: dict, prefix: str) -> None:
    """Hold the heads of a checkpoint, named below ``prefix``, against those of ``model``, whose
    state is ``own``; with ``--reset-head`` take them out.

    Raises:
        InputError: a head is missing that a model rebuilt from its own checkpoint has, or is of
            another kind or has other classes.
    """
    if model.accepts_base and model.args.reset_head:
        names = tuple(f"{prefix}{name}." for name in model.classification_heads)
        for key in [key for key in state_dict if key.startswith(names)]:
            del state_dict[key]
    for name, head in model.classification_heads.items():
        check_kind(f"{prefix}{name}", head, state_dict)
        found = state_dict.get(f"{prefix}{name}.out_proj.weight")
        if found is not None and found.shape[0] != head.out_proj.out_features:
            raise InputError(
                f"The checkpoint's head {name!r} has {found.shape[0]} classes, the data has "
                f"{head.out_proj.out_features}. Pass --reset-head to start a fresh head, or give "
                "another checkpoint."
            )
    outer = prefix[: -len(HEADS)]
    missing = [key for key in own if key.startswith(HEADS) and outer + key not in state_dict]
    if missing and not model.accepts_base:
        raise InputError(
            f"The checkpoint has no {missing[0]}: its classification head is missing, so it "
            "cannot classify. Give a checkpoint that fairseq-train wrote with --task "
            "sentence_classification."
        )


def linear_keys(keys, prefix: str) -> list[str]:
    """Those of ``keys`` that belong to a linear head; heads are named below ``prefix``."""
    names = {key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)}
    linear = [name for name in names if f"{prefix}{name}.dense.weight" not in keys]
    return [key for key in keys if key.startswith(tuple(f"{prefix}{name}." for name in linear))]
