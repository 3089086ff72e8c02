"""Texts of two languages, line by line, as the data folder of fairseq's task translation."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Optional

import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import make_builder

from fairseq_peft.errors import InputError
from fairseq_peft.text import rows


class Source(NamedTuple):
    """Two files of as many lines; the word ``tag`` stands in front of each line of the first."""

    source: Path
    target: Path
    tag: Optional[str] = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """``SOURCE:TARGET`` or ``SOURCE:TARGET:TAG``."""
        words = text.split(":")
        if len(words) not in (2, 3) or not all(words):
            raise InputError(f"{text!r} is not SOURCE:TARGET or SOURCE:TARGET:TAG, two files.")
        return cls(Path(words[0]), Path(words[1]), *words[2:])

    def read(self, most: Optional[int] = None) -> list[tuple[str, str]]:
        """The pairs, the first ``most`` of them.

        Raises:
            InputError: a file cannot be read, is not UTF-8 or has empty lines, or the files are of
                different lengths.
        """
        sides = [_lines(path) for path in (self.source, self.target)]
        if len(sides[0]) != len(sides[1]):
            raise InputError(
                f"{self.source} has {len(sides[0])} lines, {self.target} {len(sides[1])}. Expected "
                "files that are translations line by line."
            )
        pairs = list(zip(*sides))[:most]
        return [(f"{self.tag} {one}" if self.tag else one, other) for one, other in pairs]


def _lines(path: Path) -> list[str]:
    reader = rows.Reader()
    lines = [reader.clean(line) for line in reader.lines(path)]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InputError(f"{path}, line {number}: empty. Expected a sentence a line.")
    return lines


def write(folder: Path, subwords, splits: dict[str, list], languages: tuple[str, str]) -> None:
    """``<split>.<source>-<target>.<language>`` of fairseq for every split, beside dict.txt, which
    becomes the dictionary of both languages.

    Args:
        subwords: what cuts the texts (``text.subwords``).
        splits: name -> pairs of texts.
    """
    pair = "-".join(languages)
    for language in languages:
        (folder / f"dict.{language}.txt").write_bytes((folder / "dict.txt").read_bytes())
    words = Dictionary.load(str(folder / "dict.txt"))
    for split, pairs in splits.items():
        for language, texts in zip(languages, zip(*pairs)):
            prefix = folder / f"{split}.{pair}.{language}"
            builder = make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(words))
            for pieces in subwords.encode(list(texts)):
                ids = [words.index(piece) for piece in pieces]
                builder.add_item(torch.IntTensor([*ids, words.eos()]))
            builder.finalize(f"{prefix}.idx")
