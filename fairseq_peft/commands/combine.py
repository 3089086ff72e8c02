"""Combine adapter folders of LoRA: weighted sums, differences, TIES, DARE; FOLDER=-1 negates.

    fairseq-peft combine runs/a/adapter=0.5 runs/b/adapter=0.5 --how svd --out both

A weight is 1 where none is given. The result is an adapter folder of the same base; head, labels
and how texts become tokens are the first folder's. Folders of models that write text add up, too.
docs/combine.md has the formulas.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fairseq_peft.errors import InputError


def add_arguments(parser):
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER[=WEIGHT]", help="an adapter folder and its weight (1)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--how",
        default="cat",
        help="cat: exact, ranks add up; svd: the best of --rank; linear, ties, dare_linear, "
        "dare_ties: on the factors; ties_svd, dare_linear_svd, dare_ties_svd: on the updates (cat)",
    )
    parser.add_argument(
        "--rank", type=int, help="rank of what ends with svd (the largest among the folders)"
    )
    parser.add_argument("--density", type=float, help="share of the values that ties and dare keep")
    parser.add_argument("--seed", type=int, help="of what dare keeps (1)")
    parser.add_argument(
        "--head", default="first", help="first: that of the first folder; mean: of all (first)"
    )
    parser.add_argument("--force", action="store_true", help="write over the folder, if it exists")


def run(args) -> int:
    from fairseq_peft.combining.combine import combine

    if os.path.lexists(args.out) and not args.force:
        raise InputError(f"{args.out} exists. Give another folder, or --force to write over it.")
    given = [parse(text) for text in args.folders]
    made = combine(
        given,
        args.out,
        args.how,
        rank=args.rank,
        density=args.density,
        seed=args.seed,
        head=args.head,
    )
    ranks = sorted(set(made.ranks.values()))
    several = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else str(ranks[0])
    whose = f"of {given[0][0]}" if args.head == "first" else "the weighted mean of all"
    head = f"  head: {whose}, {made.head_bytes:,} bytes\n" if made.head_bytes else ""
    sys.stdout.write(
        f"{args.out}: {' '.join(f'{weight:+g} {folder}' for folder, weight in given)}\n"
        f"  update: {args.how}, rank {several} in {len(made.ranks)} matrices, "
        f"{made.num_bytes:,} bytes; {made.error:.2%} off the weighted sum\n"
        f"{head}"
    )
    return 0


def parse(text: str) -> tuple[str, float]:
    """``FOLDER=WEIGHT`` or ``FOLDER``."""
    folder, _, weight = text.rpartition("=")
    if folder and not os.path.isdir(text):
        try:
            return folder, float(weight)
        except ValueError as error:
            raise InputError(
                f"{text!r}: {weight!r} is no weight. Give FOLDER or FOLDER=WEIGHT, such as "
                f"{folder}=0.5."
            ) from error
    return text, 1.0
