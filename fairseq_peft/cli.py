"""`fairseq-peft VERB`: everything around `fairseq-train`."""

from __future__ import annotations

import argparse
import codecs
import importlib
import logging
import pkgutil
import re
import sys
import textwrap

from fairseq_peft import __version__, commands
from fairseq_peft.errors import InputError, sentence

#: What says something about training, or about fairseq's other tasks, to whoever reads a log of it.
QUIET = (
    "fairseq.tasks.text_to_speech",
    "fairseq_peft.models.roberta",
    "torch._subclasses.fake_tensor",
)
#: What is printed instead of a character, or an escape, to a terminal that has no such character.
ESCAPE = "fairseq_peft.escape"
IN_ASCII = {"±": "+-"}


def escape(error: UnicodeEncodeError) -> tuple[str | bytes, int]:
    """One character that the terminal's encoding does not have, such as ASCII's e with an accent.

    A byte of a file's name that Python could not read goes out as that byte. The rest is escaped as
    in Python: \\xe9.
    """
    error.end = error.start + 1
    character = error.object[error.start]
    if character in IN_ASCII:
        return IN_ASCII[character], error.end
    if "\udc80" <= character <= "\udcff":
        return codecs.lookup_error("surrogateescape")(error)
    return codecs.backslashreplace_errors(error)


codecs.register_error(ESCAPE, escape)


class HelpFormatter(argparse.HelpFormatter):
    """Fills each paragraph of a description to the terminal's width; what is indented is code or a
    list, and stays as it is."""

    def _fill_text(self, text, width, indent):
        blocks = re.split(r"\n\s*\n", text.strip("\n"))
        return "\n\n".join(
            textwrap.indent(
                block if block.startswith("    ") else self._filled(block, width), indent
            )
            for block in blocks
        )

    @staticmethod
    def _filled(block: str, width: int) -> str:
        # a flag or a file's name is one word, to be copied
        return textwrap.fill(
            " ".join(block.split()), width, break_long_words=False, break_on_hyphens=False
        )


def build_parser() -> argparse.ArgumentParser:
    """One sub-parser for each module of ``fairseq_peft.commands``."""
    parser = argparse.ArgumentParser(prog="fairseq-peft", description=__doc__)
    parser.add_argument("--version", action="version", version=f"fairseq_peft {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for info in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f"{commands.__name__}.{info.name}")
        summary = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        verb = verbs.add_parser(
            info.name.strip("_").replace("_", "-"),  # import_: a word of the language
            help=summary,
            description=module.__doc__,
            formatter_class=HelpFormatter,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse ``argv``, run the verb, return its exit status (1 for bad input, 130 for Ctrl-C)."""
    if hasattr(sys.stdout, "reconfigure"):  # not so in a notebook
        sys.stdout.reconfigure(errors=ESCAPE)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.name not in QUIET or record.levelno > logging.INFO)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:
        return 0
    except (InputError, OSError) as error:
        text = sentence(error)
        if text is None:
            raise
        sys.stderr.write(f"fairseq-peft {args.verb}: error: {text}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
