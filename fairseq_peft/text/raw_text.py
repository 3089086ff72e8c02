"""Raw text for pre-training: read it, hold lines out, train or apply a sentencepiece model."""

from __future__ import annotations

import lzma
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole

# sentencepiece's own ids 0, 1, 2 are <unk>, <s>, </s>; fairseq has its own rows for them.
NUM_SPM_SPECIALS = 3
MODEL_NAME, DICT_NAME = "sentencepiece.bpe.model", "dict.txt"


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
                    text = line.decode("utf-8").strip()
                    if text:
                        yield text
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: {error.reason} (byte {error.object[error.start]:#04x}). "
                f"Expected UTF-8; convert it, for example with iconv -f latin1 -t utf-8."
            ) from None
        except (lzma.LZMAError, EOFError) as error:
            raise InputError(f"{path} is not a whole .xz file ({error}).") from None


def hold_out(lines: list[str], num_valid: int, seed: int) -> tuple[list[str], list[str]]:
    """``(train, valid)``: `num_valid` random lines are taken out; both keep their order.

    Raises:
        InputError: nothing would be left to train on.
    """
    if not 0 < num_valid < len(lines):
        raise InputError(
            f"{num_valid} lines to hold out of {len(lines)}. Expected at least 1, and less than "
            f"the text has."
        )
    chosen = set(np.random.default_rng(seed).choice(len(lines), num_valid, replace=False).tolist())
    train = [line for i, line in enumerate(lines) if i not in chosen]
    return train, [lines[i] for i in sorted(chosen)]


def train_tokenizer(lines: list[str], out: Path, vocab_size: int, num_threads: int = 2) -> None:
    """A unigram model of `vocab_size` pieces in ``out/``, and the dict.txt in the same order.

    Raises:
        InputError: the text is too small for so many pieces (sentencepiece says how many it has).
    """
    import sentencepiece

    prefix = out / ".tokenizer.tmp"
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(prefix),
            vocab_size=vocab_size,
            character_coverage=0.9999,
            input_sentence_size=1_000_000,
            shuffle_input_sentence=True,
            max_sentence_length=65_536,  # bytes; longer lines are skipped, and paragraphs are long
            num_threads=num_threads,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rsplit("] ", 1)[-1].strip()
        raise InputError(f"No tokenizer of {vocab_size} pieces: {reason}") from None
    Path(f"{prefix}.vocab").unlink()
    os.replace(f"{prefix}.model", out / MODEL_NAME)
    write_dictionary(load_tokenizer(out / MODEL_NAME), out / DICT_NAME)


def load_tokenizer(path: Path):
    """The sentencepiece processor of a model file."""
    import sentencepiece

    if not path.is_file():
        raise InputError(f"{path} does not exist. Expected a sentencepiece model.")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
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
        _copy(dictionary, out / DICT_NAME)
    _copy(model, out / MODEL_NAME)


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        with whole(target) as temporary:
            shutil.copyfile(source, temporary)


def write_pieces(tokenizer, lines: list[str], path: Path, num_threads: int = 2) -> int:
    """One line of pieces, joined by spaces, for each line; returns the number of pieces."""
    total = 0
    with whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for start in range(0, len(lines), 10_000):
            batch = lines[start : start + 10_000]
            for pieces in tokenizer.encode(batch, out_type=str, num_threads=num_threads):
                file.write(" ".join(pieces) + "\n")
                total += len(pieces)
    return total
