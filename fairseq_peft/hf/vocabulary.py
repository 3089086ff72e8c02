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
from fairseq_peft.hf import encoder_decoder, tokenizer, weights

#: BERT's names of the five.
BERT = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
#: M2M-100's languages in the order of their rows, which today's library does not write down.
M2M_LANGUAGES = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl "
    "gu ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml "
    "mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th "
    "tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
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
    content, tokens = _tokens(path)
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


def _tokens(path):
    """The content of tokenizer.json, and token id -> token.

    Raises:
        InputError: it cannot be read.
    """
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
        raise _unreadable(path, error) from error
    return content, tokens


def _unreadable(path, error):
    return InputError(
        f"{path} cannot be read ({type(error).__name__}). Save the tokenizer there "
        "(AutoTokenizer.from_pretrained(...).save_pretrained)."
    )


def _listed(folder):
    """The same of a folder with vocab.json and no tokenizer.json, M2M-100's: languages follow the
    pieces, as its other files list them, or as ``M2M_LANGUAGES`` does."""
    path = folder / "vocab.json"
    try:
        vocab, more = json_of(path.read_bytes()), []
        tokens = {number: token for token, number in vocab.items()}
        for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
            told = json_of(path.read_bytes()) if path.is_file() else {}
            for key in ("additional_special_tokens", "extra_special_tokens"):
                more += [s if isinstance(s, str) else s["content"] for s in told.get(key) or ()]
        languages = [f"__{code}__" for code in M2M_LANGUAGES.split()]
        for token in dict.fromkeys(more if set(languages) <= set(more) else [*languages, *more]):
            if token not in vocab:
                tokens[len(tokens)] = token
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    return {"model": {}}, tokens


def in_order(folder: Path, num_rows: int) -> Vocabulary:
    """The vocabulary of an encoder-decoder's folder: ids are fairseq's rows as they are; a row that
    no token has is a ``madeupword``, as fairseq fills up dictionaries.

    Raises:
        InputError: there is no tokenizer, or its first tokens are not fairseq's.
    """
    path = folder / "tokenizer.json"
    if path.is_file() or not (folder / "vocab.json").is_file():
        content, tokens = _tokens(path)
        special = {added["content"] for added in content.get("added_tokens") or ()}
    else:
        content, tokens = _listed(folder)
        special = ()
    tokens = {n: encoder_decoder.our_symbol(t) if t in special else t for n, t in tokens.items()}
    first = tuple(tokens.get(number) for number in range(len(tokenizer.SPECIALS)))
    if first != tokenizer.SPECIALS:
        raise InputError(
            f"The tokenizer of {folder} begins with {', '.join(map(str, first))}, and fairseq's "
            f"dictionaries with {', '.join(tokenizer.SPECIALS)}. It cannot come here."
        )
    if max(tokens) >= num_rows:
        raise InputError(
            f"The tokenizer of {folder} has ids up to {max(tokens)}, its model {num_rows} rows. "
            "Give a folder whose tokenizer is the model's."
        )
    symbols = [tokens.get(number, f"madeupword{number:04d}") for number in range(num_rows)]
    return Vocabulary(symbols, list(range(num_rows)), content)


def check_pad(folder: Path, vocab: Vocabulary) -> None:
    """Raise InputError where RoBERTa's positions, which are numbered from ``<pad>``, begin
    elsewhere than fairseq's. (BERT's begin at 0 whatever its padding.)"""
    pad = tokenizer.SPECIALS.index("<pad>")
    if vocab.ids[pad] != pad:
        raise InputError(
            f"{folder / 'tokenizer.json'} has <pad> as token {vocab.ids[pad]}, and fairseq's "
            f"RoBERTa, which numbers positions from there, as {pad}."
        )
