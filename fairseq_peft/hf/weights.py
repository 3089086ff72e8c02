"""A RoBERTa's tensors by fairseq's names and by Hugging Face's: one table, read in both directions.

No value changes on the way but for segment embeddings, which fairseq has not: of a Hugging Face
model their first row, that of a text by itself, is added to every position. Both sides number
positions from padding + 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from fairseq_peft.errors import InputError

#: fairseq -> Hugging Face, module by module: weight and bias keep their names. {i} is a layer,
#: {head} a classification head; None: dropped.
TABLE = {
    "encoder.sentence_encoder.embed_tokens": "roberta.embeddings.word_embeddings",
    "encoder.sentence_encoder.embed_positions": "roberta.embeddings.position_embeddings",
    "encoder.sentence_encoder.layernorm_embedding": "roberta.embeddings.LayerNorm",
    "encoder.sentence_encoder.layers.{i}.self_attn.q_proj": (
        "roberta.encoder.layer.{i}.attention.self.query"
    ),
    "encoder.sentence_encoder.layers.{i}.self_attn.k_proj": (
        "roberta.encoder.layer.{i}.attention.self.key"
    ),
    "encoder.sentence_encoder.layers.{i}.self_attn.v_proj": (
        "roberta.encoder.layer.{i}.attention.self.value"
    ),
    "encoder.sentence_encoder.layers.{i}.self_attn.out_proj": (
        "roberta.encoder.layer.{i}.attention.output.dense"
    ),
    "encoder.sentence_encoder.layers.{i}.self_attn_layer_norm": (
        "roberta.encoder.layer.{i}.attention.output.LayerNorm"
    ),
    "encoder.sentence_encoder.layers.{i}.fc1": "roberta.encoder.layer.{i}.intermediate.dense",
    "encoder.sentence_encoder.layers.{i}.fc2": "roberta.encoder.layer.{i}.output.dense",
    "encoder.sentence_encoder.layers.{i}.final_layer_norm": (
        "roberta.encoder.layer.{i}.output.LayerNorm"
    ),
    "encoder.lm_head.dense": "lm_head.dense",
    "encoder.lm_head.layer_norm": "lm_head.layer_norm",
    "encoder.lm_head": "lm_head.decoder",
    "classification_heads.{head}.dense": "classifier.dense",
    "classification_heads.{head}.out_proj": "classifier.out_proj",
    # A number that says which fairseq wrote the file.
    "encoder.sentence_encoder.version": None,
}
#: What only Hugging Face has -> why fairseq does without.
ONLY_THERE = {
    "roberta.embeddings.token_type_embeddings.weight": "added to the positions",
    "roberta.embeddings.position_ids": "a table of integers, in older versions",
    "roberta.embeddings.token_type_ids": "the same",
    "lm_head.bias": "the same tensor as lm_head.decoder.bias",
    "roberta.pooler.dense.weight": "no head of either side reads it",
    "roberta.pooler.dense.bias": "the same",
}
SEGMENTS = "roberta.embeddings.token_type_embeddings.weight"
WORDS = "encoder.sentence_encoder.embed_tokens.weight"
POSITIONS = "encoder.sentence_encoder.embed_positions.weight"

_REVERSED = {theirs: ours for ours, theirs in TABLE.items() if theirs is not None}
_LAYER = re.compile(r"\.(layers?)\.(\d+)\.")
_HEAD = "classification_heads.{head}."


def to_hf(name: str, head: str | None = None) -> str | None:
    """Hugging Face's name of a module or a tensor of fairseq's; None if it is dropped.

    Args:
        head: the classification head that is ``classifier`` there.

    Raises:
        KeyError: the table does not have it.
    """
    own = None if head is None else _HEAD.format(head=head)
    if own is not None and name.startswith(own):
        name = _HEAD + name[len(own) :]
    return _translate(name, TABLE)


def from_hf(name: str, head: str | None = None) -> str:
    """fairseq's name of a module or a tensor of Hugging Face's; arguments and errors as
    ``to_hf``."""
    found = _translate(name, _REVERSED)
    if found.startswith(_HEAD):
        if head is None:
            raise KeyError(name)
        found = found.replace("{head}", head)
    return found


def _translate(name, table):
    layer = _LAYER.search(name)
    key = _LAYER.sub(r".\1.{i}.", name, count=1)
    module, _, kind = key.rpartition(".")
    if key in table:
        found = table[key]
    elif kind in ("weight", "bias"):
        found = table[module]
        found = found and f"{found}.{kind}"
    else:
        raise KeyError(name)
    return found.replace("{i}", layer[2]) if found and layer else found


def convert_to_hf(
    state: Mapping[str, torch.Tensor], head: str | None = None
) -> dict[str, torch.Tensor]:
    """The weights of ``RobertaForSequenceClassification`` with ``head``, else of
    ``RobertaForMaskedLM``, as their own files hold them: of tied tensors, one. Without an LM head
    they are those of ``RobertaModel``.

    Args:
        state: fairseq's weights by today's names (``adapters.folder.renamed``).

    Raises:
        InputError: a tensor has no counterpart.
    """
    found = {}
    for name, tensor in state.items():
        if not _belongs(name, head):
            continue
        try:
            theirs = to_hf(name, head)
        except KeyError as error:
            raise InputError(
                f"{name} has no counterpart in Hugging Face's RoBERTa, so the model cannot be "
                "converted. Merge what a method has added first (fairseq-peft merge), or give the "
                "run's adapter folder."
            ) from error
        if theirs is not None:
            found[theirs] = tensor
    words = found["roberta.embeddings.word_embeddings.weight"]
    found[SEGMENTS] = words.new_zeros(1, words.shape[1])
    if head is None and has_lm_head(state):
        found["lm_head.bias"] = found["lm_head.decoder.bias"].clone()
        if is_tied(state):
            del found["lm_head.decoder.weight"], found["lm_head.decoder.bias"]
    return found


def has_lm_head(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether fairseq's weights have a head for masked words."""
    return "encoder.lm_head.dense.weight" in state


def is_tied(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the LM head's matrix is the token embedding."""
    output = state.get("encoder.lm_head.weight")
    return output is None or torch.equal(output, state[WORDS])


def _belongs(name, head):
    """Whether a tensor is one of the body or of the head that is converted."""
    if name.startswith("encoder.lm_head."):
        return head is None
    if name.startswith("classification_heads."):
        return head is not None and name.startswith(_HEAD.format(head=head))
    return True


def convert_from_hf(
    state: Mapping[str, torch.Tensor], head: str | None = None
) -> dict[str, torch.Tensor]:
    """fairseq's weights of a RoBERTa of Hugging Face's; its classifier becomes ``head``.

    Raises:
        InputError: a tensor has no counterpart, or the embeddings are missing.
    """
    found = {}
    for name, tensor in state.items():
        if name in ONLY_THERE:
            continue
        try:
            found[from_hf(name, head)] = tensor
        except KeyError as error:
            raise InputError(
                f"{name} has no counterpart in fairseq's RoBERTa. Give the folder of a "
                "RobertaForMaskedLM or a RobertaForSequenceClassification."
            ) from error
    for name in (WORDS, POSITIONS):
        if name not in found:
            raise InputError(
                f"There is no {to_hf(name)} among the weights. Give the folder of a "
                "RobertaForMaskedLM or a RobertaForSequenceClassification."
            )
    if "lm_head.bias" in state:
        found.setdefault("encoder.lm_head.bias", state["lm_head.bias"])
        found.setdefault("encoder.lm_head.weight", found[WORDS])
    segments = state.get(SEGMENTS)
    if segments is not None and segments[0].any():
        # In double precision: a half would lose the last bits of the sum.
        found[POSITIONS] = (found[POSITIONS].double() + segments[0]).float()
    return found
