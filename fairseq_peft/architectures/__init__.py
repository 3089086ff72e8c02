"""The sizes of the architectures, as numbers: no torch, no fairseq.

``SIZES`` are the models that ``models/`` builds, ``COUNTED`` those and more, whose parameters are
counted only. Sizes of every architecture know ``embed_dim``, ``linears()``, ``embeddings()``,
``tensors()``, ``num_blocks(place)``, ``attentions()``, ``body()``, ``head(num_classes)`` and
``sections()``; what an architecture has not raises ``Undefined``.
"""

from fairseq_peft.architectures import decoder_only, t5
from fairseq_peft.architectures.counting import Count, Section, Term, Undefined, evaluate
from fairseq_peft.architectures.roberta import (
    SIZES,
    Dims,
    classification_head,
    encoder_rest,
    layer_matrices,
    lm_head,
    matrices,
)

COUNTED = {**SIZES, **t5.SIZES, **decoder_only.SIZES}

__all__ = [
    "COUNTED",
    "SIZES",
    "Count",
    "Dims",
    "Section",
    "Term",
    "Undefined",
    "classification_head",
    "encoder_rest",
    "evaluate",
    "layer_matrices",
    "lm_head",
    "matrices",
]
