"""Write a small data set that is made up: short reviews, or sentences in two languages (seeded).

--task classification: unlabelled.txt and {train,valid,test}.{review,label}; a review's hidden
sentiment is its label, and there is much unlabelled text. --task translation: {general,court}/
{train,valid,test}.{en,xx}, a small English and an invented language, in which words have another
order and agree; the court is another domain, with words, meanings and forms of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairseq_peft.errors import InputError, unwritten

logger = logging.getLogger(__name__)

#: What a task writes -> its size, unless a flag says another.
SIZES = {
    "classification": {"unlabelled": 30000, "train": 400, "valid": 200, "test": 1000},
    "translation": {"general": 12000, "train": 600, "valid": 100, "test": 300},
}


def add_arguments(parser) -> None:
    parser.add_argument("directory", type=Path, help="gets unlabelled.txt, train.review, ...")
    parser.add_argument(
        "--task", choices=SIZES, default="classification", help="what for (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (%(default)s)")
    parser.add_argument("--unlabelled", type=int, help="reviews (30000)")
    parser.add_argument("--general", type=int, help="sentences of the general train (12000)")
    parser.add_argument(
        "--train", type=int, help="labelled reviews of train, or court sentences (400, 600)"
    )
    parser.add_argument("--valid", type=int, help="of valid, of each domain (200, 100)")
    parser.add_argument("--test", type=int, help="of test, of each domain (1000, 300)")


def run(args) -> int:
    from fairseq_peft.text import demo, demo_translation

    sizes = dict(SIZES[args.task])
    for name in ("unlabelled", "general", "train", "valid", "test"):
        given = getattr(args, name)
        if given is not None and name not in sizes:
            raise InputError(
                f"--{name} {given} would be ignored: --task {args.task} writes {', '.join(sizes)}. "
                "Leave it out."
            )
        if given is not None:
            sizes[name] = given
    try:
        if args.task == "translation":
            data = demo_translation.make_demo_translation(args.seed, **sizes)
            demo_translation.write_demo_translation(data, args.directory)
        else:
            data = demo.make_demo_data(args.seed, **sizes)
            demo.write_demo_data(data, args.directory)
    except OSError as error:
        raise unwritten(args.directory, error) from None
    logger.info(
        "%s: %s", args.directory, ", ".join(f"{name} {size}" for name, size in sizes.items())
    )
    return 0
