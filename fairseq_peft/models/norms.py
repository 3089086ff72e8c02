"""The eps of layer norms: fairseq's own models have one, those from elsewhere another.

``y = w (x - mean) / sqrt(variance + eps) + b``. BERT's kin were trained with 1e-12, and computed
with fairseq's 1e-5 their features are off by a hundredth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from fairseq_peft.errors import InputError

#: What fairseq's layer norms have, without a flag for another.
STOCK_EPS = 1e-5

_BODY = "encoder.sentence_encoder."


def eps_of(args) -> float:
    """``--layer-norm-eps`` of a model's args; a checkpoint from before this flag has fairseq's.

    Raises:
        InputError: it is no variance.
    """
    eps = getattr(args, "layer_norm_eps", None)
    eps = STOCK_EPS if eps is None else eps
    if not 0 < eps < math.inf:
        raise InputError(f"--layer-norm-eps {eps} cannot be: give a number above 0, {STOCK_EPS}.")
    return eps


def set_eps(module: nn.Module, eps: float) -> None:
    """Give all layer norms of ``module`` that eps: torch's, and apex's, which fairseq takes on a
    GPU and which are of another class."""
    for norm in module.modules():
        if hasattr(norm, "normalized_shape"):
            norm.eps = eps


def for_stock(weights: Mapping[str, torch.Tensor], args) -> dict[str, torch.Tensor]:
    """The weights of a RoBERTa with which fairseq's eps computes what the model's own does.

    A norm does not see how large its input is but for eps: of ``s x`` with ``s^2 eps`` it makes
    what it makes of ``x`` with ``eps``. So with ``s = sqrt(1e-5 / eps)`` all that is added to the
    stream of the layers becomes ``s`` times as large, and where a layer reads that stream without a
    norm between, its weight ``s`` times as small. The LM head keeps its own norm, whose input a
    gelu stands before: its logits move a little.

    Args:
        weights: by today's names; the LM head's matrix is the embedding's, or its own.
    """
    scale = math.sqrt(STOCK_EPS / eps_of(args))
    if scale == 1:
        return dict(weights)
    last = _BODY + f"layers.{args.encoder_layers - 1}.final_layer_norm."
    tied = not getattr(args, "untie_weights_roberta", False)
    # What adds to the stream; the last norm leaves it.
    adds = ("embed_tokens", "embed_positions", "layernorm_embedding", "out_proj", "fc2")
    reads = ()
    if not args.encoder_normalize_before:  # norms stand within the stream
        adds += ("self_attn_layer_norm", "final_layer_norm")
        reads = ("q_proj", "k_proj", "v_proj", "fc1")

    def factor(name):
        module, _, kind = name.rpartition(".")
        part = module.rpartition(".")[2]
        if name == "encoder.lm_head.weight":
            return scale if tied else 1
        if module == "encoder.lm_head.layer_norm":
            return 1 / scale if tied else 1
        if not name.startswith(_BODY) or name.startswith(last):
            return 1
        if part in reads and kind == "weight":
            return 1 / scale
        return scale if part in adds else 1

    return {
        name: tensor if factor(name) == 1 else (tensor.double() * factor(name)).to(tensor.dtype)
        for name, tensor in weights.items()
    }
