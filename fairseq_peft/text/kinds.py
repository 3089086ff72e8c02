"""Which kind of task a data folder is for (``scores``), told without reading its rows."""

from __future__ import annotations

from pathlib import Path

from fairseq_peft import scores
from fairseq_peft.errors import InputError

#: In a data folder: the kind, where it is not ``classes``.
KIND_NAME = "kind.txt"
#: The kinds that such a folder may be of.
KINDS = (scores.CLASSES, scores.LABELS, scores.NUMBER)


def add_arguments(parser) -> None:
    """What a row of raw data has."""
    parser.add_argument(
        "--kind",
        choices=list(KINDS),
        default=scores.CLASSES,
        help="what a row has: one class, any number of labels, or a number (%(default)s)",
    )
    parser.add_argument(
        "--label-separator",
        metavar="TEXT",
        help="between the labels of a row, with --kind labels (|)",
    )


def check_arguments(args) -> None:
    """Raise InputError where a separator would be ignored."""
    if args.label_separator is not None and args.kind != scores.LABELS:
        raise InputError(
            f"--label-separator has no effect with --kind {args.kind}. Give --kind "
            f"{scores.LABELS}, or drop it."
        )


def kind_of(data: str | Path) -> str:
    """The kind of the rows of a data folder.

    Raises:
        InputError: kind.txt names none.
    """
    data = Path(data)
    path = data / KIND_NAME
    if path.is_file():
        kind = path.read_text(encoding="utf-8", errors="replace").strip()
        if kind not in KINDS:
            raise InputError(f"{path} says {kind[:40]!r}; expected one of {', '.join(KINDS)}.")
        return kind
    has_numbers = (data / "label" / "train.label").is_file()
    return scores.NUMBER if has_numbers and not _has_classes(data) else scores.CLASSES


def check_classes(data: str | Path, what: str) -> None:
    """Raise InputError where the rows of a data folder have not a class each, which is all that
    ``what`` knows."""
    kind = kind_of(data)
    if kind != scores.CLASSES:
        raise InputError(
            f"{data} is of the kind {kind!r}, and {what} knows one class a row. Give data of the "
            f"kind {scores.CLASSES!r}."
        )


def _has_classes(data):
    return (data / "label" / "dict.txt").exists()
