"""The ways to cut text into pieces that fairseq's ``--bpe`` names, one class each.

Pieces are what fairseq looks up in dict.txt. Each class cuts as fairseq's own encoder of that name
does (``fairseq.data.encoders``); byte pairs need no other library here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.text import raw_text

#: Words whose pieces are remembered.
NUM_WORDS = 2**16
LONE_SURROGATES = re.compile("[\ud800-\udfff]")
#: What sentencepiece puts in the place of a space, and how it calls a byte of what has no piece.
SPACE, BYTE = "\u2581", re.compile(r"<0x[0-9A-F]{2}>")


class Subwords:
    """How text becomes pieces.

    Attributes:
        kind: the name that ``--bpe`` gives it.
        names: its files, as they are called in a folder -> other names that they go by.
        files: name in a folder -> the file, for all that must be copied to read text elsewhere.
        options: what decides besides the files, as bpe.json has it.
    """

    kind = ""
    names: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, files: Mapping[str, Path], options: Mapping[str, object] = ()):
        """Raises InputError where a file is damaged, or an option is not one of this kind."""
        self.files, self.options = dict(files), dict(options)
        unknown = sorted(set(self.options) - set(self.default_options()))
        if unknown:
            raise InputError(f"--bpe {self.kind} has no option {unknown[0]!r}. Leave it out.")

    def default_options(self) -> dict:
        """Option -> its value where none is given."""
        return {}

    def encode(self, texts: Sequence[str], num_threads: int = 1) -> list[list[str]]:
        """The pieces of each text; fairseq cuts a line of pieces at any Unicode space, so none has
        one within. Half a surrogate pair, which no file of UTF-8 has, becomes U+FFFD."""
        texts = [LONE_SURROGATES.sub("\ufffd", text) for text in texts]
        return [" ".join(self._pieces(text)).split() for text in texts]

    def _pieces(self, text: str) -> Iterable[str]:
        raise NotImplementedError

    def decode(self, pieces: Sequence[str]) -> str:
        """The text of some pieces, as far as they tell."""
        raise NotImplementedError

    def vocabulary(self) -> list[str] | None:
        """The pieces in the order that a dict.txt made for them has; None where only a text says
        which there are."""
        return None

    def known(self) -> set[str]:
        """Pieces of which a dictionary that belongs to it has some; none where it may have any."""
        return set(self.vocabulary() or ())

    def fairseq_flags(self) -> dict:
        """fairseq's own flags for the same, by the names of their fields: ``{"bpe": "gpt2", ...}``;
        empty for a text that is cut already."""
        raise NotImplementedError


class Sentencepiece(Subwords):
    """A sentencepiece model.

    Attributes:
        processor: sentencepiece's own object, whose ids are faster than pieces.
    """

    kind = "sentencepiece"
    names = {raw_text.MODEL_NAME: ()}

    def __init__(self, files, options=()):
        super().__init__(files, options)
        self.processor = raw_text.load_tokenizer(self.files[raw_text.MODEL_NAME])

    def encode(self, texts, num_threads=1):
        return [" ".join(pieces).split() for pieces in self.cut(texts, str, num_threads)]

    def cut(self, texts: Sequence[str], kind: type, num_threads: int = 1) -> list[list]:
        """Pieces (``kind`` str) or sentencepiece's ids (int) of each text."""
        try:
            return self.processor.encode(list(texts), out_type=kind, num_threads=num_threads)
        except (UnicodeEncodeError, TypeError):  # half a surrogate pair
            texts = [LONE_SURROGATES.sub("\ufffd", text) for text in texts]
            return self.processor.encode(texts, out_type=kind, num_threads=num_threads)

    def decode(self, pieces):
        if any(map(BYTE.fullmatch, pieces)):
            return self.processor.decode(list(pieces))
        # As fairseq does it: what is unknown stays <unk>, and no space is left at the end.
        return "".join(pieces).replace(SPACE, " ").strip()

    def vocabulary(self):
        return raw_text.pieces_of(self.processor)

    def fairseq_flags(self):
        return {"bpe": self.kind, "sentencepiece_model": str(self.files[raw_text.MODEL_NAME])}


class Gpt2(Subwords):
    """GPT-2's byte pairs, as RoBERTa's: pieces are the numbers of encoder.json, written out.

    A text begins without a space, and is not stripped: `` world`` and ``world`` are two texts.
    """

    kind = "gpt2"
    names = {"encoder.json": (), "vocab.bpe": ()}

    def __init__(self, files, options=()):
        super().__init__(files, options)
        # A requirement of fairseq's; the class of letters \p{L} is not in Python's own module.
        import regex

        self.words = regex.compile(
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        )
        path, merges = self.files["encoder.json"], self.files["vocab.bpe"]
        self.encoder = read_table(path)
        # The first line is a comment (#version: 0.2).
        self.ranks = read_merges(merges, self.kind, _lines(merges)[1:])
        self.letters = byte_letters()
        lacking = {*self.letters, *map("".join, self.ranks)} - self.encoder.keys()
        if lacking:
            raise InputError(
                f"{path} lacks {len(lacking)} of the pieces of {merges}, {min(lacking)!r} for one. "
                "Give the two files that belong together."
            )
        self.cut_word = functools.lru_cache(NUM_WORDS)(self._cut)

    def _pieces(self, text):
        for word in self.words.findall(text):
            yield from self.cut_word(word)

    def _cut(self, word):
        found = merge([self.letters[byte] for byte in word.encode("utf-8")], self.ranks)
        return [str(self.encoder[piece]) for piece in found]

    def decode(self, pieces):
        names = {str(number): name for name, number in self.encoder.items()}
        values = {letter: byte for byte, letter in enumerate(self.letters)}
        letters = "".join(names.get(piece, "") for piece in pieces)
        found = bytes(values[letter] for letter in letters if letter in values)
        return found.decode("utf-8", "replace")

    def vocabulary(self):
        return [str(number) for number in sorted(self.encoder.values())]

    def fairseq_flags(self):
        names = {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"}
        return {"bpe": self.kind, **{flag: str(self.files[name]) for flag, name in names.items()}}


class Codes(Subwords):
    """Byte pairs of words between spaces: ``lower`` is ``low@@ er``."""

    separator = "@@"
    end = "</w>"
    names = {"bpecodes": ("code", "codes")}
    fields = 0  # of a line

    def __init__(self, files, options=()):
        super().__init__(files, options)
        path = self.files["bpecodes"]
        self.ranks, self.end_apart = self._read(path)
        if not self.ranks:
            raise InputError(f"{path} holds no pair. Give the codes of --bpe {self.kind}.")
        self.cut_word = functools.lru_cache(NUM_WORDS)(self._cut)

    def _read(self, path) -> tuple[dict[tuple[str, str], int], bool]:
        """The pairs by rank, and whether the end of a word is a letter of its own."""
        raise NotImplementedError

    def _pieces(self, text):
        for word in filter(None, text.split(" ")):
            yield from self.cut_word(word)

    def _cut(self, word):
        if len(word) == 1:
            return [word]
        letters = [*word, self.end] if self.end_apart else [*word[:-1], word[-1] + self.end]
        found = merge(letters, self.ranks)
        *found, last = found
        last = last[: -len(self.end)] if last.endswith(self.end) else last
        found = [*found, last] if last else found
        return [piece + self.separator for piece in found[:-1]] + found[-1:]

    def decode(self, pieces):
        return (" ".join(pieces) + " ").replace(self.separator + " ", "").rstrip()

    def known(self):
        products = map("".join, self.ranks)
        return {
            piece[: -len(self.end)] if piece.endswith(self.end) else piece + self.separator
            for piece in products
        }

    def fairseq_flags(self):
        return {"bpe": self.kind, "bpe_codes": str(self.files["bpecodes"])}


class SubwordNmt(Codes):
    """The codes of subword-nmt, version 0.1 or 0.2: a pair a line. The separator is ``@@``."""

    kind = "subword_nmt"

    def _read(self, path):
        lines = _lines(path)
        version = lines[0].split()[-1] if lines and lines[0].startswith("#version:") else None
        if version not in (None, "0.1", "0.2"):
            raise InputError(f"{path} is of version {version}; expected subword-nmt's 0.1 or 0.2.")
        pairs = lines if version is None else lines[1:]
        return read_merges(path, self.kind, pairs), version != "0.2"

    def fairseq_flags(self):
        return {**super().fairseq_flags(), "bpe_separator": self.separator}


class FastBpe(Codes):
    """The codes of fastBPE: a pair and its count a line."""

    kind = "fastbpe"

    def _read(self, path):
        return read_merges(path, self.kind, _lines(path), fields=3), False


class Bert(Subwords):
    """WordPiece with BERT's rules of words: pieces within a word begin with ``##``.

    Options:
        cased: keep case and accents; else both are folded.
    """

    kind = "bert"
    names = {"vocab.txt": ()}
    #: Rows of vocab.txt for which fairseq's dictionaries have rows of their own.
    SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def __init__(self, files, options=()):
        super().__init__(files, options)
        path = self.files["vocab.txt"]
        self.rows = _lines(path)
        for row in ("[UNK]", "[SEP]", "[CLS]"):  # the tokenizer wants them
            if row not in self.rows:
                raise InputError(f"{path} has no line {row}. Give the vocab.txt of a BERT.")
        try:
            from tokenizers import BertWordPieceTokenizer
        except ImportError as error:
            raise InputError(
                "--bpe bert needs tokenizers, which is not installed: pip install tokenizers."
            ) from error
        numbers = {row: number for number, row in enumerate(self.rows)}
        cased = {**self.default_options(), **self.options}["cased"]
        self.processor = BertWordPieceTokenizer(numbers, lowercase=not cased, strip_accents=None)

    def default_options(self):
        return {"cased": False}

    def _pieces(self, text):
        return self.processor.encode(text, add_special_tokens=False).tokens

    def decode(self, pieces):
        return " ".join(pieces).replace(" ##", "")

    def vocabulary(self):
        return [row for row in dict.fromkeys(self.rows) if row not in self.SPECIALS]

    def fairseq_flags(self):
        cased = bool(self.options.get("cased", False))
        return {
            "bpe": self.kind,
            "bpe_vocab_file": str(self.files["vocab.txt"]),
            "bpe_cased": cased,
        }


class Nothing(Subwords):
    """Text that is tokens with spaces between them already, such as the residues of a protein."""

    kind = "none"

    def _pieces(self, text):
        return [text]

    def decode(self, pieces):
        return " ".join(pieces)

    def fairseq_flags(self):
        return {}


#: ``--bpe`` -> its class.
KINDS = {found.kind: found for found in (Sentencepiece, Gpt2, SubwordNmt, FastBpe, Bert, Nothing)}


def merge(letters: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The pieces of a word: of the pairs that stand side by side, the one of the lowest rank is
    joined wherever it stands, from the left, until none is left that has a rank.

    Source: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1.
    """
    word = list(letters)
    while len(word) > 1:
        best = min(zip(word, word[1:]), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined, place = [], 0
        while place < len(word):
            if tuple(word[place : place + 2]) == best:
                joined.append("".join(best))
                place += 2
            else:
                joined.append(word[place])
                place += 1
        word = joined
    return word


def byte_letters() -> list[str]:
    """Byte -> the letter that stands for it in GPT-2's files: itself where it can be seen, else one
    from U+0100 on, in the order of the bytes."""
    seen = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def read_table(path: Path) -> dict[str, int]:
    """encoder.json: piece -> number.

    Raises:
        InputError: it is damaged.
    """
    try:
        table = json_of(_text(path))
    except ValueError:
        table = None
    if not isinstance(table, dict) or not all(type(number) is int for number in table.values()):
        raise InputError(
            f"{path} is damaged: expected GPT-2's table of pieces and numbers, as JSON. Copy it "
            "again."
        )
    return table


def read_merges(
    path: Path, kind: str, lines: Sequence[str], fields: int = 2
) -> dict[tuple[str, str], int]:
    """Pair -> rank of the lines of a file, of which each begins with a pair; the first counts of
    equal ones.

    Raises:
        InputError: a line does not have ``fields`` fields.
    """
    pairs = {}
    for line in lines:
        words = line.strip("\r\n ").split(" ")
        if len(words) != fields:
            expected = "a pair" if fields == 2 else "a pair and its count"
            raise InputError(
                f"{path} is not the file that --bpe {kind} reads: {line[:40]!r} is a line of it, "
                f"expected {expected}. Copy it again, or give another --bpe."
            )
        pairs.setdefault((words[0], words[1]), len(pairs))
    return pairs


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: no UTF-8 ({error.reason}). Copy it again.") from None


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without what ends them; none behind the last."""
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    return lines[:-1] if lines[-1] == "" else lines
