"""Raw text as token ids: what data preparation and ``SentenceDataset`` make of it, in memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq.data import Dictionary

from fairseq_peft.data.sentence_dataset import truncate
from fairseq_peft.errors import InputError
from fairseq_peft.text import bpe, raw_text
from fairseq_peft.text.rows import LINE_BREAKS
from fairseq_peft.text.subwords import Sentencepiece, Subwords

#: In ``TextEncoder.table``: how fairseq reads this piece takes the whole text to say.
LOOK = -1


class TextEncoder:
    """Texts -> token ids, as ``scripts/prepare_data.sh`` and ``SentenceDataset`` make them.

    Attributes:
        subwords: cuts text into pieces.
        table: sentencepiece id -> fairseq id, or ``LOOK``; None where pieces are looked up by name.
        num_cut, num_unknown: rows of ``items`` so far that were cut, or have unknown pieces.
    """

    num_cut = num_unknown = 0

    def __init__(self, subwords: Subwords, dictionary: Dictionary, begin: bool = True):
        self.subwords = subwords
        self.dictionary = dictionary
        self.begin = [dictionary.bos()] if begin else []
        self.table = None
        if isinstance(subwords, Sentencepiece):
            self.table = self._table(subwords.processor)
        known = subwords.known()
        if known and not any(self._index(piece) >= dictionary.nspecial for piece in known):
            files = " and ".join(map(str, subwords.files.values()))
            raise InputError(
                f"No piece of {files} is in the dictionary. Give the files of --bpe "
                f"{subwords.kind} that belong to it."
            )

    def _table(self, processor) -> list[int]:
        pieces = [processor.id_to_piece(i) for i in range(len(processor))]
        unknown = processor.unk_id()
        return [
            LOOK if i == unknown or piece.split() != [piece] else self._index(piece)
            for i, piece in enumerate(pieces)
        ]

    def _index(self, piece: str) -> int:
        # <mask> joins the dictionary after the data were made: there, the word was unknown.
        return self.dictionary.unk() if piece == "<mask>" else self.dictionary.index(piece)

    def __call__(
        self, texts: Sequence[str], limits: Sequence[int], num_threads: int = 1
    ) -> list[list[int]]:
        """Tokens of each text, without ``<s>`` and ``</s>``, of long ones no more than the limit.

        Args:
            texts: each a line of a file: what would break a line there becomes a space.
            limits: of each text, how many tokens are of use.
            num_threads: threads that cut texts into pieces.
        """
        texts = [LINE_BREAKS.sub(" ", text) for text in texts]
        if self.table is None:
            return self._by_name(texts, limits, num_threads)
        table, found = self.table, self.subwords.cut(texts, int, num_threads)
        rows = [[table[i] for i in ids[:limit]] for ids, limit in zip(found, limits)]
        looked = [number for number, row in enumerate(rows) if LOOK in row]
        if looked:
            # Unknown characters: their piece is the text itself.
            again = [[values[number] for number in looked] for values in (texts, limits)]
            for number, row in zip(looked, self._by_name(*again, num_threads)):
                rows[number] = row
        return rows

    def _by_name(self, texts, limits, num_threads):
        found = self.subwords.encode(texts, num_threads)
        return [[self._index(word) for word in row[:limit]] for row, limit in zip(found, limits)]

    def tokens(self, text: str) -> list[int]:
        """All tokens of one text, without ``<s>`` and ``</s>``."""
        (found,) = self([text], [sys.maxsize])
        return found

    def items(
        self, rows: Sequence[tuple[str, ...]], max_tokens: Sequence[int], num_threads: int = 1
    ) -> list[list[int]]:
        """Rows of one or two texts as the model reads them: ``<s> text </s>``, or
        ``<s> text </s> </s> text2 </s>``, cut to ``max_tokens`` (one for each row) as
        ``SentenceDataset`` cuts."""
        texts = [text for row in rows for text in row]
        # What is beyond the limit is cut anyway, whatever the other text of a pair is like.
        limits = [limit for row, limit in zip(rows, max_tokens) for _ in row]
        tokens = iter(self(texts, limits, num_threads))
        eos = [self.dictionary.eos()]
        found = []
        for row, limit in zip(rows, max_tokens):
            own = [next(tokens) for _ in row]
            num_special = len(self.begin) + (1 if len(own) == 1 else 3)
            self.num_cut += sum(map(len, own)) > limit - num_special
            first, *second = truncate(own, limit - num_special)
            item = self.begin + first + eos
            for text in second:
                item += eos + text + eos
            self.num_unknown += self.dictionary.unk() in item
            found.append(item)
        return found


def start_tokens(text: str, data: str, dictionary: Dictionary) -> list[int]:
    """The tokens of ``--prompt-init-text``, without ``<s>`` and ``</s>``, as those of the data
    folder were made.

    Raises:
        InputError: the folder does not say how it reads text.
    """
    subwords = bpe.find(data)
    if subwords is None:
        raise InputError(
            f"{Path(data) / raw_text.MODEL_NAME} does not exist: without the sentencepiece model "
            "of the data, or the files of another --bpe, the text of --prompt-init-text has no "
            "tokens. Copy them there (scripts/prepare_data.sh does), or give --prompt-init vocab."
        )
    return TextEncoder(subwords, dictionary).tokens(text)
