"""The tokens of a Hugging Face folder, in the order of fairseq's dictionary.

fairseq's dictionaries begin with ``<s>``, ``<pad>``, ``</s>``, ``<unk>`` and end with ``<mask>``.
So do the vocabularies of RoBERTa and XLM-R; CamemBERT's ``<s>`` and ``</s>`` are tokens 5 and 6,
behind others of no use, and BERT's five have other names. Here each of the five gets its row by its
name, and the rest keep their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.hf import tokenizer, weights

#: BERT's names of the five.
BERT = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
#: Tensors with a row a token.
PER_TOKEN = (weights.WORDS, "encoder.lm_head.weight", "encoder.lm_head.bias")


class Vocabulary(NamedTuple):
    """The rows of fairseq's dictionary.

    Attributes:
        symbols: all of them, ``<mask>`` too.
        ids: the token id there of each.
        content: tokenizer.json.
    """

    symbols: list[str]
    ids: list[int]
    content: dict

    def reorder(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """fairseq's weights whose rows are in the order of ids there, in that of the symbols. Rows
        that no token has, with which some models are filled up, are left out."""
        if self.ids == list(range(len(state[weights.WORDS]))):
            return dict(state)
        rows = torch.tensor(self.ids)
        found = {name: t[rows] if name in PER_TOKEN else t for name, t in state.items()}
        if "encoder.lm_head.weight" in state and weights.is_tied(state):
            found["encoder.lm_head.weight"] = found[weights.WORDS]  # one matrix in the file
        return found


def read(folder: Path) -> Vocabulary:
    """The vocabulary of the folder's tokenizer.json.

    Raises:
        InputError: there is none, ids are missing, or a special token is.
    """
    path = folder / "tokenizer.json"
    try:
        content = json_of(path.read_bytes())
        vocab = content["model"]["vocab"]
        if isinstance(vocab, dict):
            tokens = {number: token for token, number in vocab.items()}
        else:
            tokens = {number: token for number, (token, _) in enumerate(vocab)}
        for added in content.get("added_tokens") or ():
            tokens.setdefault(added["id"], added["content"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}). Save the tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained)."
        ) from error
    numbers = {token: number for number, token in tokens.items()}
    if sorted(tokens) != list(range(len(numbers))):
        raise InputError(
            f"{path} has {len(tokens)} ids up to {max(tokens, default=0)} for {len(numbers)} "
            "tokens, and each row of fairseq's dictionary is a token of its own. Give the "
            "tokenizer that the model was published with."
        )
    own = (*tokenizer.SPECIALS, tokenizer.MASK)
    names = BERT if numbers.keys() >= set(BERT) else own
    missing = [token for token in names if token not in numbers]
    if missing:
        raise InputError(
            f"{path} has no {', '.join(missing)}, which fairseq's dictionaries begin with "
            f"({', '.join(tokenizer.SPECIALS)}) or end with ({tokenizer.MASK}), and it has not "
            f"BERT's five either ({', '.join(BERT)})."
        )
    *first, last = (numbers[token] for token in names)
    named = {*first, last}
    rest = [number for number in range(len(tokens)) if number not in named]
    ids = [*first, *rest, last]
    symbols = [*tokenizer.SPECIALS, *(tokens[number] for number in rest), tokenizer.MASK]
    return Vocabulary(symbols, ids, content)


def check_pad(folder: Path, vocab: Vocabulary) -> None:
    """Raise InputError where RoBERTa's positions, which are numbered from ``<pad>``, begin
    elsewhere than fairseq's. (BERT's begin at 0 whatever its padding.)"""
    pad = tokenizer.SPECIALS.index("<pad>")
    if vocab.ids[pad] != pad:
        raise InputError(
            f"{folder / 'tokenizer.json'} has <pad> as token {vocab.ids[pad]}, and fairseq's "
            f"RoBERTa, which numbers positions from there, as {pad}."
        )
