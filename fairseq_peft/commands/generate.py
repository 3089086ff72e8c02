"""Write text for text: a text a line in, what the model writes a line out, in order.

For models of fairseq's tasks translation and language_modeling, and of text_to_text and causal_lm.
What is written is what fairseq-generate writes of the same rows; text is read as the data were
(sentencepiece or another bpe of the adapter folder; without one, a line is pieces with spaces).

Row n of the output belongs to line n of the input (with --nbest 3, three rows, the best first); an
empty line has an empty answer, and an end of line within an answer becomes a space. JSON lines
(--format jsonl): text, and score, the log likelihood in nats by the number of tokens to the power
of --lenpen. Flags of generation that are not given are those that the training run has kept
(--generation), or fairseq's own.

With several adapters, --adapter books=DIR --adapter films=DIR2, a line is the name of one, a tab,
and the text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.serving import flags
from fairseq_peft.text import generation, sources, streams


def add_arguments(parser):
    parser.add_argument("file", nargs="?", default="-", help="text, a line a row; - for stdin (-)")
    parser.add_argument(
        "--out", type=Path, help="write to this file, when all is done (default: to stdout)"
    )
    parser.add_argument(
        "--base",
        type=Path,
        help="the base checkpoint, a folder of Hugging Face's, or, without --adapter, a checkpoint "
        "that was trained",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="adapter folder that training wrote; with a name, once for each",
    )
    parser.add_argument(
        "--data", type=Path, help="without --adapter: the data folder, where it has moved"
    )
    for name in generation.LANGUAGES:
        text = "of a model of several (what training has kept)"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="LANG", help=text)
    for name, (kind, text) in generation.SEARCH.items():
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **how)
    parser.add_argument("--nbest", type=int, default=1, help="answers to a text (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of --sampling (%(default)s)")
    parser.add_argument(
        "--format", choices=["text", "jsonl"], default="text", help="of a row (%(default)s)"
    )
    flags.add_batch_arguments(parser, batch_size=16, window=512)


def run(args) -> int:
    flags.check_batch_arguments(args)
    folders = folders_of(args.adapter)
    given = {name: getattr(args, name) for name in generation.SEARCH}
    search = {name: value for name, value in given.items() if value is not None}
    generation.check_each(search)
    streams.check_output(args.out, args.file)
    file = streams.open_source(args.file)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    generator = load(args, folders)
    name = "stdin" if args.file == "-" else args.file
    lines = streams.Lines(sources.lines(file, name), 1)
    rows, adapter = lines, None
    if len(folders) > 1:
        lines = Named(sources.lines(file, name), name, list(folders))
        names, texts = itertools.tee(lines)
        rows, adapter = (text for _, text in texts), (name for name, _ in names)
    progress = streams.Progress(lines, file, args.out is None and sys.stdout.isatty())
    how = {"batch_size": args.batch_size, "window": args.window, "nbest": args.nbest}
    try:
        with streams.sink(args.out) as out:
            for beams in generator.beams(rows, adapter, **how, **search):
                lines.answered += 1
                text = "".join(shown(row, args.format) for row in beams)
                streams.put(out, text, flush=lines.answered == lines.number)
                progress.show()
            streams.put(out, "", flush=True)
    except BrokenPipeError:
        pass  # whoever reads has had enough
    finally:
        progress.end()
        lines.report("generate")
        if generator.num_cut:
            cut = streams.count(generator.num_cut, "texts")
            streams.warn(f"{cut} longer than the model reads, and cut.", "generate")
    return 0


class Named(streams.Lines):
    """The lines of a file, each for one of several adapters: (its name, the text).

    Args:
        place: what the file is called.
        names: of the adapters.
    """

    def __init__(self, source, place: str, names: list[str]):
        super().__init__(source, 1)
        self.place, self.names = place, names

    def row(self, line: bytes) -> tuple[str, str]:
        """
        Raises:
            InputError: the line does not begin with a name and a tab.
        """
        line = super().row(line)
        name, tab, text = line.partition("\t")
        if name in self.names and tab:
            return name, text
        wrong = f"there is no adapter {name[:40]!r}" if tab else f"{line[:40]!r} has no tab"
        raise InputError(
            f"{self.place}:{self.number}: {wrong}. With several adapters a line is the name of one "
            f"({', '.join(self.names)}), a tab, and the text, such as {self.names[0]}<tab>One "
            "text. Write that, or give one --adapter alone."
        )


def folders_of(given: list[str]) -> dict:
    """Name -> folder; one that stands alone needs no name."""
    if len(given) == 1 and (Path(given[0]).exists() or "=" not in given[0]):
        return {"default": Path(given[0])}
    return flags.named(given)


def load(args, folders):
    """The generator of the flags."""
    import logging

    # What is logged when a model is built for training is of no use here.
    logging.getLogger().setLevel(logging.WARNING)
    import torch

    from fairseq_peft.serving.generate import Generator

    torch.manual_seed(args.seed)
    languages = {name: getattr(args, name) for name in generation.LANGUAGES}
    common = {"device": args.device, "allow_other_base": args.allow_other_base, **languages}
    return Generator.of(args.base, folders, data=args.data, **common)


def shown(row, format: str) -> str:
    """What is written of an answer."""
    if format == "jsonl":
        return json.dumps(row.as_dict(), ensure_ascii=False) + "\n"
    return " ".join(row.text.splitlines()) + "\n"
