"""A stream of rows: lines in, from a file or stdin, and what is written of each of them out.

For the verbs that read text and answer it. Nothing here knows what the answer is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fairseq_peft.errors import InputError, advice, unwritten
from fairseq_peft.files import whole
from fairseq_peft.text import sources


def check_output(out: Path | None, file: str) -> None:
    """Refuse an output that is the input."""
    if out is not None and out.exists() and file != "-":
        with contextlib.suppress(OSError):
            if out.samefile(file):
                raise InputError(f"--out {out} is the input itself. Give another name.")


@contextlib.contextmanager
def sink(path: Path | None):
    """What the rows are written to: stdout, or a file that is there whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        yield sys.stdout
        return
    if path.is_dir():
        raise InputError(f"--out {path} is a folder. Give the name of a file.")
    try:
        with whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
            yield out
            out.flush()
    except OSError as error:
        raise unwritten(path, error) from error


def put(out, text: str, flush: bool) -> None:
    """Write to stdout, or to the file of ``sink``.

    Raises:
        BrokenPipeError: nobody reads any more.
        InputError: it cannot be written.
    """
    try:
        out.write(text)
        if flush:
            out.flush()
    except OSError as error:
        if out is not sys.stdout:
            raise
        # What is left in the buffer goes nowhere; at exit, Python would try once more and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(
            f"The output cannot be written: {error.strerror}. {advice(error)}"
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


class Lines:
    """The lines of a file as rows of one or two texts.

    Attributes:
        number: lines read. answered: lines whose row was written.
    """

    def __init__(self, source, num_texts: int):
        self.source = source
        self.num_texts = num_texts
        self.number = self.answered = 0
        self.undecodable = self.without_tab = self.marks = 0

    def __iter__(self) -> Iterator:
        for line in self.source:
            self.number += 1
            yield self.row(line)

    def row(self, line: bytes):
        """A line's text, or its two texts."""
        if line.startswith(sources.BOM):  # within a file where files were joined
            self.marks += self.number > 1
            line = line[len(sources.BOM) :]
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

    def report(self, verb: str) -> None:
        """Say what was odd."""
        if self.undecodable:
            warn(
                f"{count(self.undecodable)} not UTF-8: what could not be decoded was read as "
                "U+FFFD. Convert the text, for example with iconv -f WINDOWS-1252 -t UTF-8.",
                verb,
            )
        if self.marks:
            marks = count(self.marks)
            warn(f"{marks} begun by a byte order mark in mid-file, which was removed.", verb)
        if self.without_tab:
            lines = count(self.without_tab)
            warn(f"{lines} without a tab: the second text was taken to be empty.", verb)


class Progress:
    """A line on the terminal while the output goes elsewhere; without a terminal nothing.

    Args:
        lines: counts rows, as ``Lines`` does. file: the input, of bytes.
    """

    def __init__(self, lines, file, on_terminal: bool):
        self.lines, self.file = lines, file
        self.shows = sys.stderr.isatty() and not on_terminal
        is_file = not file.closed and os.path.isfile(file.name)
        self.size = os.path.getsize(file.name) if is_file else 0
        self.start = self.last = time.monotonic()

    def show(self) -> None:
        now = time.monotonic()
        if self.shows and now - self.last > 0.2:
            self.last = now
            self.write()

    def write(self, end: str = "") -> None:
        lines, seconds = self.lines, max(time.monotonic() - self.start, 1e-9)
        known = self.size and not self.file.closed
        done = f", {self.file.tell() / self.size:.0%} read" if known else ""
        text = f"{lines.answered:,} rows, {lines.answered / seconds:,.0f} a second{done}"
        sys.stderr.write(f"\r{text:<60}{end}")
        sys.stderr.flush()

    def end(self) -> None:
        if self.shows and self.lines.number:
            self.write("\n")


def count(number: int, name: str = "lines") -> str:
    """Such as: 3 of the lines are."""
    return f"{number:,} of the {name} {'is' if number == 1 else 'are'}"


def warn(text: str, verb: str) -> None:
    """Tell whoever watches ``fairseq-peft VERB``."""
    sys.stderr.write(f"fairseq-peft {verb}: warning: {text}\n")
