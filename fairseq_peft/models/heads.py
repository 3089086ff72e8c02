"""Classification heads: what stands on the features of ``<s>``.

Shape letters: B batch, T tokens, C model dim.
"""

from __future__ import annotations

from fairseq.models.roberta import RobertaClassificationHead
from torch import nn

from fairseq_peft.errors import InputError

KINDS = ("roberta", "linear")


class LinearHead(nn.Module):
    """One linear map of the features of ``<s>``: (B, T, C) -> (B, classes).

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
    kind = getattr(args, "classifier_head", None) or "roberta"
    if kind not in KINDS:
        raise InputError(f"--classifier-head {kind!r} is unknown: give {' or '.join(KINDS)}.")
    return kind


def check_kind(head_name: str, head: nn.Module, keys) -> None:
    """Raise InputError where the head ``head_name`` of a checkpoint (names of its tensors) is of
    the other kind than ``head``."""
    found = "roberta" if f"{head_name}.dense.weight" in keys else "linear"
    own = "roberta" if isinstance(head, RobertaClassificationHead) else "linear"
    if f"{head_name}.out_proj.weight" in keys and found != own:
        raise InputError(
            f"The checkpoint's head {head_name.rpartition('.')[2]!r} is that of --classifier-head "
            f"{found}, not {own}. Give the flag it was trained with, or --reset-head to start a "
            "fresh head."
        )


def linear_keys(keys, prefix: str) -> list[str]:
    """Those of ``keys`` that belong to a linear head; heads are named below ``prefix``."""
    names = {key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)}
    linear = [name for name in names if f"{prefix}{name}.dense.weight" not in keys]
    return [key for key in keys if key.startswith(tuple(f"{prefix}{name}." for name in linear))]
