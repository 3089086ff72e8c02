"""Write short reviews with a hidden sentiment: much unlabelled text, few labels (seeded)."""

from __future__ import annotations

import logging
from pathlib import Path

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)


def add_arguments(parser) -> None:
    parser.add_argument("directory", type=Path, help="gets unlabelled.txt, train.review, ...")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--unlabelled", type=int, default=30000, help="reviews (%(default)s)")
    parser.add_argument("--train", type=int, default=400, help="labelled reviews (%(default)s)")
    parser.add_argument("--valid", type=int, default=200, help="labelled reviews (%(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="labelled reviews (%(default)s)")


def run(args) -> int:
    from fairseq_peft.text import demo

    data = demo.make_demo_data(args.seed, args.unlabelled, args.train, args.valid, args.test)
    try:
        demo.write_demo_data(data, args.directory)
    except OSError as error:
        raise InputError(f"{args.directory} cannot be written: {error.strerror}.") from None
    logger.info(
        "%s: %d unlabelled reviews; labelled: %s",
        args.directory,
        len(data.unlabelled),
        ", ".join(f"{split} {len(rows)}" for split, rows in data.labelled.items()),
    )
    return 0
