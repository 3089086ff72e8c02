"""Classify raw text: a text a line in, a label and its probability a line out, in order.

TSV: the label, a tab, its probability; where a row has any number of labels, those with | between
them, and the probability of just these; where it has a number, that number alone. JSON lines
(--format jsonl): label, probability, and the probabilities of all classes; or value, the number.
Row n of the output belongs to line n of the input, whatever that line
holds: an empty one is classified, too. A line ends at LF or CR LF. For a model of text pairs a line
is a text, a tab, and the second text. Bytes that are not UTF-8 become U+FFFD, and are counted.

A file named .csv, .tsv, .jsonl or .json is a table: its rows are written as they stand, with the
prediction and its probability behind. Its texts are in the column `text` (and `text2`), or in those
that --text-column and --text2-column name; to classify its lines instead, give it as stdin (-).

What is packed (.gz, .xz) is unpacked, and UTF-16 with a byte order mark is read.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole
from fairseq_peft.precision import NAMES, resolve
from fairseq_peft.scores import CLASSES, NUMBER
from fairseq_peft.text import bpe, sources, tables
from fairseq_peft.text.rows import Reader

#: The columns that a table gets.
NEW_COLUMNS = ("prediction", "probability")


def add_arguments(parser):
    parser.add_argument(
        "file", nargs="?", default="-", help="text, a line a row, or a table; - for stdin (-)"
    )
    tables.add_arguments(parser, label=False)
    parser.add_argument(
        "--out", type=Path, help="write to this file, when all is done (default: to stdout)"
    )
    parser.add_argument(
        "--base",
        type=Path,
        help="the base checkpoint, or one fine-tuned as a whole; a folder of Hugging Face's for an "
        "adapter of text_to_text or causal_lm with --labels",
    )
    parser.add_argument("--adapter", type=Path, help="adapter folder that training wrote")
    parser.add_argument(
        "--data", type=Path, help="without --adapter: folder with dict.txt and sentencepiece model"
    )
    parser.add_argument(
        "--bpe",
        choices=list(bpe.KINDS),
        help="without --adapter: how that folder's text is cut into pieces (what the folder says)",
    )
    parser.add_argument("--format", choices=["tsv", "jsonl"], help="of lines (tsv)")
    parser.add_argument("--precision", choices=NAMES, help="(as in training)")
    add_batch_arguments(parser, batch_size=64, window=2048)


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


def run(args) -> int:
    check_batch_arguments(args)
    is_table = tables.split_suffix(Path(args.file))[1] in tables.SUFFIXES
    check_table_flags(args, is_table)
    file = open_source(args.file)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # as the input, whatever the locale
    classifier = load(args)
    if is_table:
        file.close()
        columns = tables.columns_of(args)
        lines = TableRows(Path(args.file), columns, classifier.num_texts, classifier.kind)
    else:
        name = "stdin" if args.file == "-" else args.file
        lines = Lines(sources.lines(file, name), classifier.num_texts, args.format or "tsv")
    progress = Progress(lines, file, args.out is None and sys.stdout.isatty())
    rows = classifier.stream(lines, batch_size=args.batch_size, window=args.window)
    try:
        with sink(args.out) as out:
            put(out, lines.header, flush=False)
            for row in rows:
                lines.answered += 1
                # With the last row of those that were read, all of them go out.
                put(out, lines.shown(row), flush=lines.answered == lines.number)
                progress.show()
            put(out, "", flush=True)
    except BrokenPipeError:
        pass  # whoever reads has had enough
    finally:
        progress.end()
        lines.report()
        report_texts(classifier)
    return 0


def check_table_flags(args, is_table: bool) -> None:
    """Refuse what would be ignored, and an output that is the input."""
    columns = tables.columns_of(args)
    if is_table and args.format is not None:
        raise InputError(
            f"--format {args.format} would be ignored: {args.file} is a table, and is written as "
            "one. Leave it out."
        )
    if not is_table and columns != tables.DEFAULT_COLUMNS:
        raise InputError(
            f"{args.file} is no table, so flags of columns would be ignored. Give a file named "
            f"{', '.join(tables.SUFFIXES)}."
        )
    check_output(args.out, args.file)


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
        raise InputError(
            f"{path} cannot be written: {error.strerror}. Make room, or write it elsewhere."
        ) from error


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
    if args.adapter is not None and is_of_folder(args.adapter):
        return Labels(args)
    return Classifier.load(
        args.base,
        args.adapter,
        data=args.data,
        bpe=args.bpe,
        precision=args.precision and resolve(args.precision),
        device=args.device,
        allow_other_base=args.allow_other_base,
    )


def is_of_folder(adapter: Path) -> bool:
    """Whether an adapter folder belongs to a model of Hugging Face's, which answers with words."""
    from fairseq_peft.adapters import folder as adapter_folder

    return adapter_folder.read(adapter, of_any_task=True).is_of_folder


class Labels:
    """A model of Hugging Face's whose answers are labels, as a classifier."""

    num_texts, kind, num_unknown = 1, CLASSES, 0

    def __init__(self, args):
        from fairseq_peft.serving.generate import Generator

        for flag in ("data", "bpe", "precision"):
            if getattr(args, flag) is not None:
                raise InputError(
                    f"--{flag} {getattr(args, flag)} would be ignored: {args.adapter} belongs to a "
                    "folder of Hugging Face's, with a tokenizer, and is in fp32. Leave it out."
                )
        common = {"device": args.device, "allow_other_base": args.allow_other_base}
        self.generator = Generator.load(args.base, args.adapter, **common)

    @property
    def num_cut(self):
        return self.generator.num_cut

    def stream(self, texts, batch_size, window):
        return self.generator.predictions(texts, batch_size=batch_size, window=window)


class Lines:
    """The lines of a file as rows of one or two texts.

    Attributes:
        number: lines read. answered: lines whose row was written. header: before the rows.
        shown: a prediction -> what is written of it.
    """

    header = ""

    def __init__(self, source, num_texts: int, format: str = "tsv"):
        self.source = source
        self.num_texts = num_texts
        self.shown = {"tsv": tsv, "jsonl": jsonl}[format]
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

    def report(self, verb: str = "predict") -> None:
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


class TableRows:
    """The rows of a table; as ``Lines``, but the whole file is read first."""

    def __init__(self, path: Path, columns, num_texts: int, kind: str):
        self.new_columns = NEW_COLUMNS[:1] if kind == NUMBER else NEW_COLUMNS
        needs = ("text", "text2")[:num_texts]
        if num_texts == 1 and columns.text2 is not None:
            raise InputError(
                f"--text2-column {columns.text2} would be ignored: the model reads one text. Leave "
                "it out."
            )
        self.reader = Reader()
        self.table = tables.read(path, self.reader, columns, needs)
        taken = [name for name in self.new_columns if name in self.table.names]
        if taken:
            raise InputError(f"{path} has a column {taken[0]!r} already. Rename it.")
        self.needs = needs
        self.number = self.answered = 0
        header = self.table.header
        self.header = "" if header is None else self.line(header, self.new_columns)

    def __iter__(self) -> Iterator:
        for record in self.table.records:
            self.number += 1
            texts = tuple(record.fields[need] for need in self.needs)
            yield texts if len(texts) > 1 else texts[0]

    def shown(self, row) -> str:
        """The row that ``answered`` counts last, with its prediction."""
        raw = self.table.records[self.answered - 1].raw
        if isinstance(raw, dict):
            found = row.label if row.value is None else row.value
            new = dict(zip(self.new_columns, (found, row.probability)))
            return json.dumps({**raw, **new}, ensure_ascii=False) + "\n"
        if row.value is not None:
            return self.line(raw, (f"{row.value:.6g}",))
        return self.line(raw, (row.label, f"{row.probability:.6f}"))

    def line(self, raw: str, fields) -> str:
        """A row as it stands in the file, and more fields."""
        more = io.StringIO(newline="")
        csv.writer(more, delimiter=self.table.delimiter, lineterminator="\n").writerow(fields)
        return f"{raw}{self.table.delimiter}{more.getvalue()}"

    def report(self) -> None:
        """Say what was odd."""
        if self.reader.notes["tables_whose_quotes_are_text"]:
            warn("quotes were read as text: not all fields that begin with one end with one.")


def report_texts(classifier) -> None:
    """Say how many texts the model did not read as they are."""
    if classifier.num_cut:
        warn(f"{count(classifier.num_cut, 'texts')} longer than the model reads, and cut.")
    if classifier.num_unknown:
        unknown = classifier.num_unknown
        warn(
            f"{unknown:,} of the texts {'has' if unknown == 1 else 'have'} pieces that the model "
            "does not know."
        )


def count(number: int, name: str = "lines") -> str:
    return f"{number:,} of the {name} {'is' if number == 1 else 'are'}"


def warn(text: str, verb: str = "predict") -> None:
    sys.stderr.write(f"fairseq-peft {verb}: warning: {text}\n")


class Progress:
    """A line on the terminal while the output goes elsewhere; without a terminal nothing."""

    def __init__(self, lines: Lines | TableRows, file, on_terminal: bool):
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


def tsv(row) -> str:
    if row.value is not None:
        return f"{row.value:.6g}\n"
    return f"{row.label}\t{row.probability:.6f}\n"


def jsonl(row) -> str:
    return json.dumps(row.as_dict(), ensure_ascii=False) + "\n"
