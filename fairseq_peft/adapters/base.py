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

_ROBERTA = "encoder.sentence_encoder."
_HEADS = "classification_heads."
#: Buffers without content, which stock fairseq writes, and other writers leave out: of a version,
#: of sinusoids.
_NO_CONTENT = re.compile(r"(^|\.)(version|embed_positions\.(_float_tensor|weights))$")
#: What may be one tensor with another, or a copy of it: the words of one half, and the output.
_MAY_BE_TIED = re.compile(r"(^|\.)(embed_tokens|output_projection)\.weight$")


def renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state`` by today's names, without second copies."""
    found = {key: tensor for key, tensor in state.items() if not DUPLICATES.search(key)}
    if not _is_roberta(found):  # whose decoder is one, and no older name of the encoder
        return found
    return {
        re.sub(r"^decoder\.", "encoder.", key).replace(
            ".emb_layer_norm.", ".layernorm_embedding."
        ): tensor
        for key, tensor in found.items()
    }


def body(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that make a base, by today's names: no heads, no second copies, no buffers
    without content. Of a RoBERTa those of the encoder, of the other families all, tied ones
    once."""
    tensors = renamed(state)
    found = {name: tensors[name] for name in tensors if not _NO_CONTENT.search(name)}
    if _is_roberta(found):
        return {name: tensor for name, tensor in found.items() if name.startswith(_ROBERTA)}
    kept = []
    for name in sorted(filter(_MAY_BE_TIED.search, found), key=_first_of_tied):
        if any(torch.equal(found[name], other) for other in kept):
            del found[name]
        else:
            kept.append(found[name])
    return {name: t for name, t in found.items() if not name.startswith(_HEADS)}


def _first_of_tied(name):
    """Sorts names such that the first is that of a tied tensor, by which every file has it."""
    return "output_projection" in name, not name.startswith("encoder."), name


def _is_roberta(names) -> bool:
    return any("sentence_encoder." in name for name in names)


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a base checkpoint: names, types, shapes and bytes of the tensors of its ``body``.

    The same whatever their order, fairseq's older names and second copies, and heads: classifiers
    and a RoBERTa's LM head are no part of it.

    Raises:
        InputError: there is no such tensor.
    """
    found = body(state)
    if not found:
        raise InputError(
            f"A base has tensors of a model, and this one has {', '.join([*state][:3]) or 'none'}. "
            "Give a checkpoint of a model that was trained."
        )
    return combine({name: digest(name, tensor) for name, tensor in found.items()})


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
