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

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from fairseq_peft import compiling
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_text
from fairseq_peft.precision import resolve
from fairseq_peft.scores import CLASSES, NUMBER
from fairseq_peft.serving import flags
from fairseq_peft.text import bpe, sources, streams, tables
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
    flags.add_precision_argument(parser)
    parser.add_argument(
        "--compile",
        choices=compiling.NAMES,
        default="off",
        help="run layers as graphs of torch.compile; graphs: CUDA graphs, too (%(default)s)",
    )
    flags.add_batch_arguments(parser, batch_size=64, window=2048)


def run(args) -> int:
    flags.check_batch_arguments(args)
    is_table = tables.split_suffix(Path(args.file))[1] in tables.SUFFIXES
    check_table_flags(args, is_table)
    file = streams.open_source(args.file)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # as the input, whatever the locale
    classifier = load(args)
    if is_table:
        file.close()
        columns = tables.columns_of(args)
        lines = TableRows(Path(args.file), columns, classifier.num_texts, classifier.kind)
    else:
        name = "stdin" if args.file == "-" else args.file
        lines = Lines(sources.lines(file, name), classifier.num_texts)
        lines.shown = jsonl if args.format == "jsonl" else tsv
    progress = streams.Progress(lines, file, args.out is None and sys.stdout.isatty())
    rows = classifier.stream(lines, batch_size=args.batch_size, window=args.window)
    try:
        with streams.sink(args.out) as out:
            streams.put(out, lines.header, flush=False)
            for row in rows:
                lines.answered += 1
                # With the last row of those that were read, all of them go out.
                streams.put(out, lines.shown(row), flush=lines.answered == lines.number)
                progress.show()
            streams.put(out, "", flush=True)
    except BrokenPipeError:
        pass  # whoever reads has had enough
    finally:
        progress.end()
        lines.report("predict")
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
    streams.check_output(args.out, args.file)


def load(args):
    """The classifier of the flags."""
    import logging

    # What is logged when a model is built for training is of no use here.
    logging.getLogger().setLevel(logging.WARNING)
    from fairseq_peft.serving.predict import Classifier

    if args.adapter is not None and is_of_folder(args.adapter):
        return Labels(args)
    return Classifier.load(
        args.base,
        args.adapter,
        data=args.data,
        bpe=args.bpe,
        precision=args.precision and resolve(args.precision),
        device=args.device,
        compile=args.compile,
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
        if args.compile != "off":
            raise InputError(
                f"--compile {args.compile} is not for a folder of Hugging Face's, whose layers are "
                "another library's. Leave it out."
            )
        common = {"device": args.device, "allow_other_base": args.allow_other_base}
        self.generator = Generator.load(args.base, args.adapter, **common)

    @property
    def num_cut(self):
        return self.generator.num_cut

    def stream(self, texts, batch_size, window):
        return self.generator.predictions(texts, batch_size=batch_size, window=window)


class Lines(streams.Lines):
    """The lines of a file; ``header`` comes before the rows, ``shown`` is what is written of one's
    prediction."""

    header = ""


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
        self.check_columns(path)
        self.table.records = [self.as_text(record) for record in self.table.records]
        self.needs = needs
        self.number = self.answered = 0
        header = self.table.header
        self.header = "" if header is None else self.line(header, self.new_columns)

    def check_columns(self, path: Path) -> None:
        """Raise InputError where a row would not come back as it is."""
        places = [(path, self.table.names)]
        places += [(row.where, row.raw) for row in self.table.records if isinstance(row.raw, dict)]
        for where, names in places:
            taken = [name for name in self.new_columns if name in names]
            if taken:
                raise InputError(f"{where} has a column {taken[0]!r} already. Rename it.")

    def as_text(self, record):
        """The record, its row as text, which JSON is made of once.

        Raises:
            InputError: JSON cannot hold it.
        """
        if self.table.delimiter is not None:
            return record
        try:
            return record._replace(raw=json_text(record.raw, allow_nan=False))
        except ValueError:
            raise InputError(
                f"{record.where} has a number that JSON cannot hold: NaN, or one beyond 1e308. "
                "Write null, or a string."
            ) from None

    def __iter__(self) -> Iterator:
        for record in self.table.records:
            self.number += 1
            texts = tuple(record.fields[need] for need in self.needs)
            yield texts if len(texts) > 1 else texts[0]

    def shown(self, row) -> str:
        """The row that ``answered`` counts last, with its prediction."""
        raw = self.table.records[self.answered - 1].raw
        if self.table.delimiter is None:
            found = row.label if row.value is None else row.value
            new = dict(zip(self.new_columns, (found, row.probability)))
            return f"{raw[:-1]}, {json_text(new)[1:]}\n"  # an object has its text, at least
        if row.value is not None:
            return self.line(raw, (f"{row.value:.6g}",))
        return self.line(raw, (row.label, f"{row.probability:.6f}"))

    def line(self, raw: str, fields) -> str:
        """A row as it stands in the file, and more fields."""
        more = io.StringIO(newline="")
        csv.writer(more, delimiter=self.table.delimiter, lineterminator="\n").writerow(fields)
        return f"{raw}{self.table.delimiter}{more.getvalue()}"

    def report(self, verb: str) -> None:
        """Say what was odd."""
        if self.reader.notes["tables_whose_quotes_are_text"]:
            text = "quotes were read as text: not all fields that begin with one end with one."
            streams.warn(text, verb)


def report_texts(classifier) -> None:
    """Say how many texts the model did not read as they are."""
    if classifier.num_cut:
        cut = streams.count(classifier.num_cut, "texts")
        streams.warn(f"{cut} longer than the model reads, and cut.", "predict")
    if classifier.num_unknown:
        unknown = classifier.num_unknown
        streams.warn(
            f"{unknown:,} of the texts {'has' if unknown == 1 else 'have'} pieces that the model "
            "does not know.",
            "predict",
        )


def tsv(row) -> str:
    if row.value is not None:
        return f"{row.value:.6g}\n"
    return f"{row.label}\t{row.probability:.6f}\n"


def jsonl(row) -> str:
    return json.dumps(row.as_dict(), ensure_ascii=False) + "\n"
