"""Rows of two texts, what is asked and what is answered, from JSON lines or TSV."""

from __future__ import annotations

import csv
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.text.rows import Reader

ENDS = (".jsonl", ".tsv")
#: Task -> what its two texts are called.
COLUMNS = {"causal_lm": ("prompt", "answer"), "text_to_text": ("input", "target")}


def read(folder: str | Path, split: str, names: tuple[str, str]) -> list[tuple[str, str]]:
    """The rows of ``split``, from ``<split>.jsonl`` or ``<split>.tsv`` of ``folder``.

    Args:
        names: of the two keys, or columns; the first line of a TSV has them.

    Raises:
        InputError: there is no such file, a row is not as it should be, or there is none.
    """
    paths = [Path(folder) / f"{split}{end}" for end in ENDS]
    found = [path for path in paths if path.is_file()]
    if len(found) != 1:
        seen = " and ".join(path.name for path in found) if found else "neither"
        raise InputError(
            f"{folder} has {seen} of {' and '.join(path.name for path in paths)}. Expected one of "
            f"them, with {names[0]} and {names[1]}, or other splits with --valid-subset "
            "(finetune and sweep: --subsets)."
        )
    (path,) = found
    reader = Reader()
    lines = reader.lines(path)
    try:
        # csv would end a row at a CR.
        tsv = path.suffix == ".tsv"
        rows = _tsv_rows(map(reader.clean, lines)) if tsv else _json_rows(lines)
        pairs = [_pair(row, names, f"{path}, line {number}") for number, row in rows]
    except InputError:  # which is a ValueError, too
        raise
    except ValueError as error:
        raise InputError(f"{path} has a line that is no JSON ({error}).") from None
    except csv.Error as error:
        raise InputError(f"{path} is no TSV ({error}).") from None
    if not pairs:
        raise InputError(f"{path} has no rows.")
    return pairs


def _json_rows(lines):
    return [(number, json_of(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _tsv_rows(lines):
    return list(enumerate(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), 2))


def _pair(row, names, place):
    for others in COLUMNS.values():
        if isinstance(row, dict) and set(others) <= row.keys() and not set(names) <= row.keys():
            raise InputError(
                f"{place} has {' and '.join(others)}; expected {' and '.join(names)}. "
                "Encoder-decoders (T5, BART) read input and target, models of one stack (GPT-2, "
                "BLOOM, Llama) prompt and answer: rename them, or give a model of the other kind."
            )
    values = [row.get(name) for name in names] if isinstance(row, dict) else [None, None]
    for name, value in zip(names, values):
        if not isinstance(value, str) or (name == names[1] and not value.strip()):
            raise InputError(
                f"{place}: expected the texts {names[0]} and {names[1]}, and {name} is {value!r}."
            )
    return tuple(values)
