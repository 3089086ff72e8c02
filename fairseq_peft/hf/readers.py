"""How a folder of Hugging Face's reads text, as the files of one of fairseq's ``--bpe``.

A sentencepiece model lies beside tokenizer.json where there is one, and a folder that
``fairseq-peft to-hf`` wrote holds the files themselves. WordPiece and GPT-2's byte pairs are whole
in tokenizer.json; from there they are written as vocab.txt, and as encoder.json and vocab.bpe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fairseq_peft.files import whole
from fairseq_peft.hf import tokenizer, vocabulary
from fairseq_peft.hf.vocabulary import Vocabulary
from fairseq_peft.text import bpe, raw_text, spm_file, subwords

#: tokenizer.json's part -> what it has to say for text to be read as fairseq's ``--bpe bert`` does.
WORDPIECE = {
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
}
#: The same for ``--bpe gpt2``.
BYTE_PAIRS = {
    "normalizer": {},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "model": {"dropout": None, "ignore_merges": False, "byte_fallback": False},
}


class Reader(NamedTuple):
    """A way to read text.

    Attributes:
        kind: of ``subwords.KINDS``; None where there is none here.
        reason: why there is none.
        symbols: fairseq's dictionary, which names some rows otherwise than the tokenizer does.
    """

    kind: str | None
    reason: str
    symbols: list[str]


def write(folder: Path, vocab: Vocabulary, out: Path, strict: bool = True) -> Reader:
    """Put the files that read text as ``folder`` does into ``out``.

    Args:
        strict: whether each piece must have a row of its own; else it is ``<unk>`` on both sides.

    Raises:
        InputError: a file is damaged, or does not belong to the tokenizer.
    """
    found = bpe.find(folder) if (folder / bpe.TOLD).is_file() else None
    if found is None and (folder / raw_text.MODEL_NAME).is_file():
        found = bpe.sentencepiece(folder / raw_text.MODEL_NAME)
    if found is not None:
        symbols = numbered(vocab.symbols, found.encoder) if found.kind == "gpt2" else vocab.symbols
        if strict:
            check_pieces(found, symbols)
        bpe.write(found, out)
        return Reader(found.kind, "", symbols)
    kind = vocab.content["model"].get("type")
    if kind == "WordPiece":
        reason = lacking(vocab.content, WORDPIECE)
        return Reader(None, reason, vocab.symbols) if reason else _word_pieces(vocab, out)
    if kind == "BPE":
        reason = lacking(vocab.content, BYTE_PAIRS)
        return Reader(None, reason, vocab.symbols) if reason else _byte_pairs(vocab, out)
    return Reader(None, f"it has no {raw_text.MODEL_NAME}", vocab.symbols)


def lacking(content: dict, wanted: dict) -> str:
    """What tokenizer.json says otherwise than ``wanted``; empty if nothing."""
    for part, values in wanted.items():
        told = content.get(part) or {}
        if not values and told:
            return f"its tokenizer.json has a {part} ({told.get('type')})"
        for name, value in values.items():
            if told.get(name, value) != value:
                return f"its tokenizer.json has {part} {name} {told[name]!r}, expected {value!r}"
    return ""


def check_pieces(found: subwords.Subwords, symbols: Sequence[str]) -> None:
    """Raise InputError where text may be cut into a piece that has no row of its own."""
    files = " and ".join(str(path) for name, path in found.files.items() if name != bpe.TOLD)
    pieces = found.known()
    if found.kind == "sentencepiece":
        pieces = spm_file.read(found.files[raw_text.MODEL_NAME]).scores
    tokenizer.check_pieces(files, pieces, symbols)


def numbered(symbols: Sequence[str], numbers: Mapping[str, int]) -> list[str]:
    """Tokens by GPT-2's numbers, as fairseq's dict.txt names them; the specials, and what GPT-2 has
    not, keep their names."""
    kept = (*tokenizer.SPECIALS, tokenizer.MASK)
    return [s if s in kept or s not in numbers else str(numbers[s]) for s in symbols]


def _word_pieces(vocab: Vocabulary, out: Path) -> Reader:
    normalizer = vocab.content["normalizer"]
    cased = not normalizer.get("lowercase", True)
    if normalizer.get("strip_accents") not in (None, not cased):
        reason = "its tokenizer.json folds case without accents, or accents without case"
        return Reader(None, reason, vocab.symbols)
    rows = dict(zip(vocab.ids, vocab.symbols))
    names = dict(zip((*tokenizer.SPECIALS, tokenizer.MASK), vocabulary.BERT))
    text = "".join(f"{names.get(rows[row], rows[row])}\n" for row in sorted(rows))
    _write(out / "vocab.txt", text)
    _write(out / bpe.TOLD, json.dumps({"bpe": "bert", "cased": cased}) + "\n")
    return Reader("bert", "", vocab.symbols)


def _byte_pairs(vocab: Vocabulary, out: Path) -> Reader:
    merges = vocab.content["model"]["merges"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    numbers = gpt2_numbers(merges)
    missing = numbers.keys() - set(vocab.symbols)
    if missing:
        reason = f"its tokenizer.json has no token for {len(missing)} of its byte pairs"
        return Reader(None, reason, vocab.symbols)
    if "<|endoftext|>" in vocab.symbols:  # GPT-2's last
        numbers["<|endoftext|>"] = len(numbers)
    _write(out / "encoder.json", json.dumps(numbers) + "\n")
    _write(out / "vocab.bpe", "".join(f"{line}\n" for line in ("#version: 0.2", *merges)))
    _write(out / bpe.TOLD, json.dumps({"bpe": "gpt2"}) + "\n")
    return Reader("gpt2", "", numbered(vocab.symbols, numbers))


def gpt2_numbers(merges: list[str]) -> dict[str, int]:
    """Token -> number in the order of GPT-2's encoder.json: the bytes, those first that can be
    seen, and then what each merge makes."""
    letters = subwords.byte_letters()
    seen = [letter for byte, letter in enumerate(letters) if chr(byte) == letter]
    others = [letter for byte, letter in enumerate(letters) if chr(byte) != letter]
    tokens = [*seen, *others, *(merge.replace(" ", "") for merge in merges)]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _write(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
