"""The flags of a base checkpoint: what to build so that its weights fit."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from fairseq_peft.architectures import SIZES
from fairseq_peft.errors import InputError

_BODY = "encoder.sentence_encoder."
_LAYER = re.compile(r"\.layers\.(\d+)\.")
#: Flags that weights do not tell, taken from the checkpoint where it has them.
_TOLD = (
    "activation_fn",
    "pooler_activation_fn",
    "encoder_normalize_before",
    "layernorm_embedding",
    "untie_weights_roberta",
)


def flags(path, state: dict, weights: Mapping[str, torch.Tensor]) -> dict:
    """Flag -> value; ``_name`` is the size's, without a method.

    Args:
        path: of the checkpoint, for messages.
        state: the checkpoint.
        weights: its tensors by today's names (``artifact.renamed``).

    Raises:
        InputError: it is no RoBERTa, or nothing tells its number of heads.
    """
    try:
        rows, dim = weights[_BODY + "embed_tokens.weight"].shape
        positions = len(weights[_BODY + "embed_positions.weight"]) - 2
        ffn = len(weights[_BODY + "layers.0.fc1.weight"])
    except KeyError as error:
        raise InputError(
            f"{path} has no {error.args[0]}: it is no RoBERTa of fairseq's. Give the base that the "
            "adapter belongs to."
        ) from error
    found = {
        "encoder_layers": len({layer[1] for layer in map(_LAYER.search, weights) if layer}),
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": ffn,
        "max_positions": positions,
    }
    cfg = state.get("cfg") if isinstance(state.get("cfg"), dict) else {}
    given = cfg.get("model") or vars(state.get("args") or object)
    sizes = {
        name: size
        for name, size in SIZES.items()
        if (size.num_layers, size.embed_dim, size.ffn_dim) == (found["encoder_layers"], dim, ffn)
    }
    heads = given.get("encoder_attention_heads")
    if heads is None and not sizes:
        raise InputError(
            f"{path} does not say how many attention heads it has. Give a checkpoint with its "
            "configuration, as fairseq-train writes it."
        )
    if heads is None:
        heads = next(iter(sizes.values())).num_heads
    told = {name: given[name] for name in _TOLD if given.get(name) is not None}
    name = next(iter(sizes), "roberta_small")
    return {"_name": name, **found, "encoder_attention_heads": heads, **told}
