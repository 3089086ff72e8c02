"""Flags of every verb that answers texts: which adapters, on what device, how rows go through."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.precision import INT8, NAMES
from fairseq_peft.serving import names


def add_precision_argument(parser) -> None:
    """What layers compute in; int8 is answered with where it is."""
    parser.add_argument(
        "--precision", type=_not_int8, choices=NAMES, help="of the layers (as in training)"
    )


def _not_int8(name: str) -> str:
    if name == "int8":
        raise argparse.ArgumentTypeError(INT8)
    return name


def add_batch_arguments(parser, batch_size: int, window: int) -> None:
    """How rows go through a model: flags of every verb that reads a stream of them."""
    for flag, default, text in (
        ("--batch-size", batch_size, "rows at once (%(default)s)"),
        (
            "--window",
            window,
            "lines read ahead and sorted by length; 1 answers each line at once (%(default)s)",
        ),
    ):
        parser.add_argument(flag, type=int, default=default, help=text)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--allow-other-base",
        action="store_true",
        help="take a base that the adapter was not trained on",
    )


def check_batch_arguments(args) -> None:
    """Raise InputError where there is no model, or no row at once."""
    if args.base is None and not args.adapter:
        raise InputError("Neither --base nor --adapter was given. Give at least one.")
    for flag, value in (("--batch-size", args.batch_size), ("--window", args.window)):
        if value < 1:
            raise InputError(f"{flag} {value}: give 1 or more.")


def named(given: list[str]) -> dict[str, Path]:
    """Name -> folder.

    Raises:
        InputError: one has no name, or a name that another has, or that is no word.
    """
    found = {}
    for one in given:
        name, sign, folder = one.partition("=")
        if not sign or not folder or not names.is_name(name):
            raise InputError(
                f"--adapter {one}: expected NAME=DIR, with a name of {names.LETTERS}; such as "
                "books=runs/books/adapter."
            )
        if name in found:
            raise InputError(f"--adapter {name}=... was given twice. Take another name for one.")
        found[name] = Path(folder)
    return found
