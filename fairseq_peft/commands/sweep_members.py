"""Train many runs of fairseq-train in one process, on one frozen base.

`fairseq-peft sweep-members FILE` reads the arguments of one fairseq-train from each line of FILE.
The runs differ in --save-dir, and in seed, learning rate, rank, or other knobs of a method that
leaves the base frozen. Each leaves the files that its own process would leave, and its log in
SAVE_DIR/train.log; its adapters are the same up to rounding. A run that fails does not stop the
others. MEMBERS=N bash scripts/sweep.sh does all of it.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="one fairseq-train a line; - for standard input"
    )
    parser.add_argument(
        "--together",
        choices=("auto", "always", "never"),
        default="auto",
        help="which passes are computed for several runs at once: auto, what is quicker on this "
        "device; always; never (auto)",
    )


def run(args: argparse.Namespace) -> int:
    text = sys.stdin.read() if args.file == "-" else _read(args.file)
    commands = [shlex.split(line, comments=True) for line in text.splitlines()]
    commands = [words for words in commands if words]
    if not commands:
        raise InputError(
            f"{args.file} names no run. Write the arguments of one fairseq-train a line."
        )

    # The handler that fairseq-train has, whose stream follows the member that logs.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(LOG_FORMAT, "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    root.setLevel(logging.INFO)
    try:
        from fairseq_peft.sweeps.members import runs

        failed = runs.train_all(commands, args.together)
    finally:
        root.handlers = before
    for directory, error in failed.items():
        logger.error("failed: %s: %s", directory, error)
    return 1 if failed else 0


def _read(path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Give a file, or - for input."
        ) from error


def cli_main() -> None:
    """As a program of the worker: it stands where ``fairseq-peft`` would."""
    parser = argparse.ArgumentParser(prog="fairseq-peft sweep-members", description=__doc__)
    add_arguments(parser)
    try:
        sys.exit(run(parser.parse_args()))
    except InputError as error:
        sys.exit(f"fairseq-peft sweep-members: error: {error}")


if __name__ == "__main__":
    cli_main()
