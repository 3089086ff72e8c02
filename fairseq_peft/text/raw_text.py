"""Raw text for pre-training: read it, hold lines out, train or apply a sentencepiece model."""

from __future__ import annotations

import io
import lzma
import math
import random
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole
from fairseq_peft.text.sources import BOM

# sentencepiece's own ids 0, 1, 2 are <unk>, <s>, </s>; fairseq has its own rows for them.
NUM_SPM_SPECIALS = 3
#: Characters of a text that may be in train and held out, too: by chance.
SHORT_CHARS = 100
MODEL_NAME, DICT_NAME = "sentencepiece.bpe.model", "dict.txt"


class TooManyPieces(InputError):
    """A text has fewer pieces than were asked for.

    Attributes:
        most: how many it has.
    """

    def __init__(self, message: str, most: int):
        super().__init__(message)
        self.most = most


def read_lines(paths: Iterable[str | Path]) -> Iterator[str]:
    """The lines of UTF-8 text files (``.xz`` ones too) that are not blank, ends stripped.

    Raises:
        InputError: a file is missing, not an .xz file, or not UTF-8 (with file and line).
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"{path} does not exist. Expected a text file, or one ending in .xz.")
        number = 0
        try:
            with (lzma.open if path.suffix == ".xz" else open)(path, "rb") as file:
                for line in file:
                    number += 1
                    text = line.removeprefix(BOM).decode("utf-8").strip()
                    if text:
                        yield text
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: {error.reason} (byte {error.object[error.start]:#04x}). "
                f"Expected UTF-8; convert it, for example with iconv -f latin1 -t utf-8."
            ) from None
        except (lzma.LZMAError, EOFError) as error:
            raise InputError(f"{path} is not a whole .xz file ({error}).") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def read_weighted(texts: Iterable[str], excluded: Iterable[str | Path] = (), num_ends: int = 0):
    """``(lines, left_out)`` of texts given as FILE or FILE:N: pairs (line, N), and how many lines
    were left out because they, or one of their columns, are a line of the files ``excluded`` or
    the longest column of one, as the text is that stands there beside its label.

    Args:
        num_ends: above 0, a line is left out as well where it or a column begins or ends with the
            same so many characters as an excluded text: another copy of it, cut or corrected.

    Raises:
        InputError: as ``read_lines``; N is 0.
    """
    banned = set()
    for line in read_lines(excluded):
        banned |= {spaced(line), longest_column(line)}
    banned |= {end for text in list(banned) for end in ends(text, num_ends)}
    lines, left_out = [], 0
    for text in texts:
        path, num_copies = split_weight(str(text))
        for line in read_lines([path]):
            found = {spaced(line), *columns(line)}
            found |= {end for text in list(found) for end in ends(text, num_ends)}
            if not banned.isdisjoint(found):
                left_out += 1
            else:
                lines.append((line, num_copies))
    return lines, left_out


def ends(text: str, length: int) -> list[tuple[str, str]]:
    """What tells a text by its first and by its last ``length`` characters; nothing of a shorter
    one."""
    if not 0 < length <= len(text):
        return []
    return [("begins", text[:length]), ("ends", text[-length:])]


def spaced(text: str) -> str:
    """The text with one space between words: what counts as the same text."""
    return " ".join(text.split())


def columns(line: str) -> list[str]:
    """What stands between the tabs of a line."""
    return [spaced(column) for column in line.split("\t")]


def longest_column(line: str) -> str:
    """The first of the longest ones."""
    return max(columns(line), key=len)


def split_weight(text: str) -> tuple[str, float]:
    """The file and the number of copies of ``FILE`` (1) or ``FILE:N``; a file named so comes first.

    Raises:
        InputError: N is 0.
    """
    path, colon, number = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d+(\.\d+)?", number, re.ASCII) or Path(text).is_file():
        return text, 1
    if float(number) == 0:
        raise InputError(f"{text}: 0 copies. Expected FILE or FILE:N with N above 0.")
    return path, float(number) if "." in number else int(number)


def repeat(lines: list[tuple[str, float]], seed: int = 1) -> list[str]:
    """Each line as often as it counts: all once, then again those that count more, so that copies
    of a line stand far from each other. Of 1.5 copies the half is there for every second line or
    so, drawn by ``seed``."""
    most, rng = max(num_copies for _, num_copies in lines), random.Random(seed)
    return [
        line
        for copy in range(math.ceil(most))
        for line, num_copies in lines
        if num_copies >= copy + 1 or (num_copies > copy and rng.random() < num_copies - copy)
    ]


def hold_out(lines: list, num_valid: int, seed: int) -> tuple[list, list]:
    """``(train, valid)``: `num_valid` random lines are taken out; both keep their order.

    Raises:
        InputError: nothing would be left to train on.
    """
    if not 0 < num_valid < len(lines):
        raise InputError(
            f"{num_valid} lines to hold out of {len(lines)}. Expected at least 1, and less than "
            f"the text has."
        )
    import numpy as np  # here, as flags of commands come from this room

    chosen = set(np.random.default_rng(seed).choice(len(lines), num_valid, replace=False).tolist())
    train = [line for i, line in enumerate(lines) if i not in chosen]
    return train, [lines[i] for i in sorted(chosen)]


def without_copies(train: list, valid: list) -> list:
    """The pairs (line, N) of ``train`` that hold no text of ``valid``: no column of theirs is the
    longest of a line there, as a review's is that stands in the text once with its headline and
    once without. Novels repeat short lines: up to ``SHORT_CHARS`` they stay.

    Raises:
        InputError: nothing would be left to train on.
    """
    longest = {longest_column(line) for line, _ in valid}
    held_out = {text for text in longest if len(text) > SHORT_CHARS}
    kept = [pair for pair in train if held_out.isdisjoint(columns(pair[0]))]
    if not kept:
        raise InputError(
            f"All lines to train on are copies of the {len(valid)} that are held out. Expected "
            "different lines; hold out fewer (--valid-lines)."
        )
    return kept


def train_tokenizer(
    lines: list[str], out: Path, vocab_size: int, num_threads: int = 2, symbols: Iterable[str] = ()
) -> None:
    """A unigram model of `vocab_size` pieces in ``out/``, and the dict.txt in the same order.

    Args:
        symbols: words that are always one piece, such as those that name a language.

    Raises:
        InputError: the text is too small for so many pieces (sentencepiece says how many it has).
    """
    import sentencepiece

    model = io.BytesIO()  # no path, which may hold bytes that sentencepiece does not take
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            character_coverage=0.9999,
            input_sentence_size=1_000_000,
            shuffle_input_sentence=True,
            max_sentence_length=65_536,  # bytes; longer lines are skipped, and paragraphs are long
            num_threads=num_threads,
            user_defined_symbols=list(symbols),
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rsplit("] ", 1)[-1].strip()
        most = re.search(r"Vocabulary size too high .*<= (\d+)", reason)
        if most:
            message = f"No tokenizer of {vocab_size} pieces: {reason}"
            raise TooManyPieces(message, int(most.group(1))) from None
        raise InputError(f"No tokenizer of {vocab_size} pieces: {reason}") from None
    with whole(out / MODEL_NAME) as temporary:
        temporary.write_bytes(model.getvalue())
    write_dictionary(load_tokenizer(out / MODEL_NAME), out / DICT_NAME)


def load_tokenizer(path: Path):
    """The sentencepiece processor of a model file."""
    import sentencepiece

    if not path.is_file():
        raise InputError(f"{path} does not exist. Expected a sentencepiece model.")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
        return processor
    except (RuntimeError, OSError):
        raise InputError(f"{path} is not a sentencepiece model.") from None


def pieces_of(tokenizer) -> list[str]:
    """The pieces that get a line in dict.txt, in sentencepiece's order."""
    return [tokenizer.id_to_piece(i) for i in range(NUM_SPM_SPECIALS, len(tokenizer))]


def write_dictionary(tokenizer, path: Path) -> None:
    """fairseq's dict.txt in sentencepiece's order: fairseq id = sentencepiece id + 1."""
    text = "".join(f"{piece} 1\n" for piece in pieces_of(tokenizer))
    with whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def copy_tokenizer(model: Path, dictionary: Path | None, out: Path) -> None:
    """Put a given model and its dict.txt (in the model's order if None) into ``out/``.

    Raises:
        InputError: they do not belong together (a piece of the model is not in the dictionary).
    """
    tokenizer = load_tokenizer(model)
    if dictionary is None:
        write_dictionary(tokenizer, out / DICT_NAME)
    else:
        if not dictionary.is_file():
            raise InputError(f"{dictionary} does not exist. Expected the dict.txt of {model}.")
        lines = dictionary.read_bytes().decode("utf-8", "replace").split("\n")
        known = {line.split(" ")[0] for line in lines}
        pieces = pieces_of(tokenizer)
        missing = [piece for piece in pieces if piece not in known]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(pieces)} pieces of {model} are not in {dictionary}, "
                f"'{missing[0]}' for one. Give the dict.txt that was made with this model."
            )
        copy(dictionary, out / DICT_NAME)
    copy(model, out / MODEL_NAME)


def copy(source: Path, target: Path) -> None:
    """Copy a file, which is there whole or not at all; a file is its own copy."""
    if source.resolve() != target.resolve():
        with whole(target) as temporary:
            shutil.copyfile(source, temporary)


def write_pieces(subwords, lines: list[str], path: Path, num_threads: int = 2) -> int:
    """One line of pieces, joined by spaces, for each line; returns the number of pieces.

    Args:
        subwords: what cuts them (``subwords.Subwords``).
    """
    total = 0
    with whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for start in range(0, len(lines), 10_000):
            batch = lines[start : start + 10_000]
            for pieces in subwords.encode(batch, num_threads):
                file.write(" ".join(pieces) + "\n")
                total += len(pieces)
    return total
