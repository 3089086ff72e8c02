"""Models that are no RoBERTa by name and compute what one does: brought to RoBERTa's names.

BERT numbers positions from 0, where RoBERTa leaves two rows for padding, and has two segments, of
which a text by itself is the first (``weights.convert_from_hf`` folds it in). Its pooler stands
where RoBERTa's classification head has a dense layer. Files of a model without a head leave the
family's name out of the names of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

#: BERT -> RoBERTa: what a name begins with; None: dropped.
BERT = {
    "bert.pooler.dense.": "classifier.dense.",
    "bert.": "roberta.",
    "cls.predictions.transform.dense.": "lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
    "cls.predictions.decoder.": "lm_head.decoder.",
    "cls.predictions.bias": "lm_head.bias",
    # Of two sentences, whether one follows the other.
    "cls.seq_relationship.": None,
    "classifier.": "classifier.out_proj.",
}
#: Names of older versions.
OLDER = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
POSITIONS = "roberta.embeddings.position_embeddings.weight"

_BARE = re.compile(r"(embeddings|encoder|pooler)\.")


def as_roberta(
    kind: str, state: Mapping[str, torch.Tensor], classifies: bool
) -> dict[str, torch.Tensor]:
    """The tensors of a folder by the names, and with the positions, of RoBERTa.

    Args:
        kind: ``model_type`` of its configuration.
        classifies: whether it has a head for classes of texts, which reads BERT's pooler.
    """
    family = "bert" if kind == "bert" else "roberta"
    found = {}
    for name, tensor in state.items():
        for old, new in OLDER.items():
            name = name.replace(old, new)
        if _BARE.match(name):
            name = f"{family}.{name}"
        if family == "bert":
            name = _of_bert(name, classifies)
        if name is not None:
            found[name] = tensor
    if family == "bert" and POSITIONS in found:
        rows = found[POSITIONS]
        found[POSITIONS] = torch.cat([rows.new_zeros(2, rows.shape[1]), rows])
    return found


def _of_bert(name, classifies):
    """RoBERTa's name of a tensor of BERT's; None where it is dropped."""
    if name.startswith("bert.pooler.") and not classifies:
        return None
    for theirs, ours in BERT.items():
        if name.startswith(theirs):
            return ours and ours + name[len(theirs) :]
    return name
