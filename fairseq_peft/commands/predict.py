"""Classify raw text: a text a line in, a label and its probability a line out, in order.

TSV: the label, a tab, its probability. JSON lines (--format jsonl): label, probability, and the
probabilities of all classes. Row n of the output belongs to line n of the input, whatever that line
holds: an empty one is classified, too. A line ends at LF or CR LF. For a model of text pairs a line
is a text, a tab, and the second text. Bytes that are not UTF-8 become U+FFFD, and are counted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fairseq_peft.errors import InputError

BOM = b"\xef\xbb\xbf"


def add_arguments(parser):
    parser.add_argument("file", nargs="?", default="-", help="text, a line a row; - for stdin (-)")
    parser.add_argument(
        "--base", type=Path, help="the base checkpoint, or one fine-tuned as a whole"
    )
    parser.add_argument("--adapter", type=Path, help="adapter folder that training wrote")
    parser.add_argument(
        "--data", type=Path, help="without --adapter: folder with dict.txt and sentencepiece model"
    )
    parser.add_argument("--format", choices=["tsv", "jsonl"], default="tsv", help="(%(default)s)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="(as in training)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows at once (%(default)s)")
    parser.add_argument(
        "--window",
        type=int,
        default=2048,
        help="lines read ahead and sorted by length; 1 answers each line at once (%(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--allow-other-base",
        action="store_true",
        help="take a base that the adapter was not trained on",
    )


def run(args) -> int:
    if args.base is None and args.adapter is None:
        raise InputError("Neither --base nor --adapter was given. Give at least one.")
    for flag, value in (("--batch-size", args.batch_size), ("--window", args.window)):
        if value < 1:
            raise InputError(f"{flag} {value}: give 1 or more.")
    source = open_source(args.file)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # as the input, whatever the locale
    classifier = load(args)
    lines = Lines(source, classifier.num_texts)
    progress = Progress(lines, args.file)
    rows = classifier.stream(lines, batch_size=args.batch_size, window=args.window)
    shown = {"tsv": tsv, "jsonl": jsonl}[args.format]
    try:
        for row in rows:
            lines.answered += 1
            # With the last row of those that were read, all of them go out.
            put(shown(row), flush=lines.answered == lines.number)
            progress.show()
    except BrokenPipeError:
        pass  # whoever reads has had enough
    finally:
        progress.end()
        lines.report()
    return 0


def put(text: str, flush: bool) -> None:
    """Write to stdout.

    Raises:
        BrokenPipeError: nobody reads any more.
        InputError: it cannot be written.
    """
    try:
        sys.stdout.write(text)
        if flush:
            sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer goes nowhere; at exit, Python would try once more and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(
            f"The output cannot be written: {error.strerror}. Make room, or write it elsewhere."
        ) from error


def open_source(name: str):
    """The input as a file of bytes.

    Raises:
        InputError: it cannot be opened.
    """
    if name == "-":
        return sys.stdin.buffer
    try:
        return open(name, "rb")
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}. Give a text file.") from error


def check_device(name: str) -> None:
    """Raise InputError unless this machine has the device."""
    import torch

    try:
        torch.empty(1, device=name)
    except Exception as error:  # what is raised depends on the device and on how torch was built
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"--device {name} cannot be used ({reason}). Give cpu or cuda.") from error


def load(args):
    """The classifier of the flags."""
    import logging

    # What is logged when a model is built for training is of no use here.
    logging.getLogger().setLevel(logging.WARNING)
    from fairseq_peft.serving.predict import Classifier

    check_device(args.device)
    return Classifier.load(
        args.base,
        args.adapter,
        data=args.data,
        precision=args.precision,
        device=args.device,
        allow_other_base=args.allow_other_base,
    )


class Lines:
    """The lines of a file as rows of one or two texts.

    Attributes:
        number: lines read. answered: lines whose row was written. num_bytes: bytes read.
    """

    def __init__(self, source, num_texts: int):
        self.source = source
        self.num_texts = num_texts
        self.number = self.answered = self.num_bytes = 0
        self.undecodable = self.without_tab = 0

    def __iter__(self) -> Iterator:
        for line in self.source:
            self.number += 1
            self.num_bytes += len(line)
            yield self.row(line)

    def row(self, line: bytes):
        """A line's text, or its two texts."""
        if self.number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
        line = line[:-1] if line.endswith(b"\n") else line
        line = line[:-1] if line.endswith(b"\r") else line
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            self.undecodable += 1
            text = line.decode("utf-8", "replace")
        if self.num_texts == 1:
            return text
        first, tab, second = text.partition("\t")
        self.without_tab += not tab
        return first, second

    def report(self) -> None:
        """Say what was odd."""
        if self.undecodable:
            warn(
                f"{count(self.undecodable)} not UTF-8: what could not be decoded was read as "
                "U+FFFD. Convert the text, for example with iconv -f WINDOWS-1252 -t UTF-8."
            )
        if self.without_tab:
            warn(f"{count(self.without_tab)} without a tab: the second text was taken to be empty.")


def count(number: int) -> str:
    return f"{number:,} of the lines {'is' if number == 1 else 'are'}"


def warn(text: str) -> None:
    sys.stderr.write(f"fairseq-peft predict: warning: {text}\n")


class Progress:
    """A line on the terminal while the output goes elsewhere; without a terminal nothing."""

    def __init__(self, lines: Lines, name: str):
        self.lines = lines
        self.shows = sys.stderr.isatty() and not sys.stdout.isatty()
        self.size = os.path.getsize(name) if name != "-" and os.path.isfile(name) else 0
        self.start = self.last = time.monotonic()

    def show(self) -> None:
        now = time.monotonic()
        if self.shows and now - self.last > 0.2:
            self.last = now
            self.write()

    def write(self, end: str = "") -> None:
        lines, seconds = self.lines, max(time.monotonic() - self.start, 1e-9)
        done = f", {self.lines.num_bytes / self.size:.0%} read" if self.size else ""
        text = f"{lines.answered:,} rows, {lines.answered / seconds:,.0f} a second{done}"
        sys.stderr.write(f"\r{text:<60}{end}")
        sys.stderr.flush()

    def end(self) -> None:
        if self.shows and self.lines.number:
            self.write("\n")


def tsv(row) -> str:
    return f"{row.label}\t{row.probability:.6f}\n"


def jsonl(row) -> str:
    return json.dumps(row._asdict(), ensure_ascii=False) + "\n"
