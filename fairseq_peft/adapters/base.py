"""The base that an adapter belongs to: recognised by the SHA-256 of its tensors."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch

from fairseq_peft.digests import combine, digest
from fairseq_peft.errors import InputError
from fairseq_peft.keys import DUPLICATES

logger = logging.getLogger(__name__)

_BODY = "encoder.sentence_encoder."
#: A buffer without content that stock fairseq writes, and other writers leave out.
_VERSION = _BODY + "version"


def renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state`` by today's names, without second copies."""
    found = {}
    for key, tensor in state.items():
        if not DUPLICATES.search(key):
            name = re.sub(r"^decoder\.", "encoder.", key)
            found[name.replace(".emb_layer_norm.", ".layernorm_embedding.")] = tensor
    return found


def body(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the encoder by today's names: no heads, no second copies."""
    return {
        name: tensor
        for name, tensor in renamed(state).items()
        if name.startswith(_BODY) and name != _VERSION
    }


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a base checkpoint: names, types, shapes and bytes of its encoder's tensors.

    The same whatever their order, fairseq's older names and second copies, and heads: classifiers
    and the LM head are no part of it.
    """
    return combine({name: digest(name, tensor) for name, tensor in body(state).items()})


def check_base(
    description: dict, state: Mapping[str, torch.Tensor], allow_other: bool = False
) -> None:
    """Raise InputError unless ``state`` is the base that the adapter was trained on; with
    ``allow_other`` (``--allow-other-base``) only warn."""
    if description["base"] is not None:
        check_fingerprint(description, fingerprint(state), allow_other)


def check_fingerprint(description: dict, found: str, allow_other: bool = False) -> None:
    """As ``check_base``, for a base whose fingerprint is known."""
    expected = description["base"]
    if expected is None:
        return
    if found == expected["sha256"]:
        return
    text = (
        f"This is not the base that the adapter was trained on: the sha256 of its tensors is "
        f"{found[:12]}, expected {expected['sha256'][:12]} (then {expected['path']})"
    )
    if not allow_other:
        raise InputError(f"{text}. Give that base, or --allow-other-base if you know better.")
    logger.warning(
        "WARNING: %s. --allow-other-base was given, so it is used all the same: what it predicts "
        "has never been measured.",
        text,
    )
