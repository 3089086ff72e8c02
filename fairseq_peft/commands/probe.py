"""What a checkpoint's frozen features know of a task, layer by layer and pooling by pooling.

Logistic regression on the features of train, its C chosen on valid; nothing of the model trains.
Rows of the table: tokens (token embeddings), embedding (with positions and layer norm), layer 1 to
the last. Columns: what --pooler chooses from, <s> (first), and mean and max over the text. It is
quick where fine-tuning is not, and says less: features can be good to start from where nothing
linear reads them. The best cell is chosen from many on valid: what it is worth, test says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import InputError
from fairseq_peft.precision import NAMES, resolve

ARCH, SEED = "roberta_small", 1


def add_arguments(parser):
    parser.add_argument(
        "model", metavar="MODEL.pt", type=Path, nargs="?", help="checkpoint of fairseq's"
    )
    parser.add_argument(
        "data", metavar="DATA_BIN", type=Path, help="folder that scripts/prepare_data.sh made"
    )
    parser.add_argument(
        "--init-embeddings",
        metavar="FILE.npz",
        default="",
        help="instead of MODEL.pt: what fairseq-peft svd-embeddings wrote, under random layers",
    )
    parser.add_argument(
        "--random", action="store_true", help="instead of MODEL.pt: random weights, the floor"
    )
    parser.add_argument("--arch", help=f"without MODEL.pt: the model's size ({ARCH})")
    parser.add_argument("--seed", type=int, help=f"without MODEL.pt: of random weights ({SEED})")
    parser.add_argument(
        "--precision", choices=NAMES, default="auto", help="of the layers (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there, too")
    finetuned.add_trust_argument(parser)


def run(args) -> int:
    check(args)
    args.precision = resolve(args.precision)

    import logging

    import fairseq_peft.plugin  # noqa: F401
    from fairseq_peft.serving import probe

    logging.getLogger("fairseq.data.data_utils").setLevel(logging.WARNING)  # each file it opens
    words = probe.read_dictionary(args.data)
    if args.model is not None:
        model = probe.read(args.model, words, args.data, args.trust_checkpoint, args.precision)
    else:
        model = probe.untrained(args.arch, words, args.seed, args.init_embeddings, args.precision)
    labels, datasets = probe.load_data(args.data, words, model.max_positions())
    cells = probe.run(model, datasets)
    best, chance = probe.best_of(cells), probe.majority(datasets)
    cut = sum(dataset.num_truncated for dataset in datasets.values())
    if args.json is not None:
        from fairseq_peft.report.result import write_atomic

        found = {
            "model": args.model and str(args.model),
            "init_embeddings": args.init_embeddings or None,
            "arch": args.arch,
            "seed": args.seed,
            "precision": args.precision,
            "data": str(args.data),
            "labels": labels,
            "rows": {split: len(dataset) for split, dataset in datasets.items()},
            "max_tokens": model.max_positions(),
            "num_truncated": cut,
            "majority": chance,
            "cells": [described(cell) for cell in cells],
            "best": described(best),
        }
        write_atomic(args.json, json.dumps(found, indent=1, allow_nan=False) + "\n")
    rows = sum(map(len, datasets.values()))
    lines = [
        *table(cells, best),
        "",
        "Accuracy in per cent. Best on valid: "
        f"{best.level}, {best.pooler} (C = {best.strength:g}). The most frequent class alone: "
        f"{', '.join(f'{split} {percent(share)}' for split, share in chance.items())}. "
        f"{cut:,} of {rows:,} rows cut to {model.max_positions()} tokens.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def check(args) -> None:
    """Complete the flags, and raise InputError where they cannot be meant."""
    from fairseq_peft.architectures import SIZES

    given = {
        str(args.model): args.model is not None,
        f"--init-embeddings {args.init_embeddings}": bool(args.init_embeddings),
        "--random": args.random,
    }
    named = [name for name, is_given in given.items() if is_given]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} exclude each other. Leave one out.")
    if not named:
        raise InputError(
            "Nothing to probe. Give MODEL.pt DATA_BIN, or DATA_BIN with --init-embeddings or "
            "--random."
        )
    if args.model is not None:
        finetuned.check_file(args.model)
        for flag, value in (("--arch", args.arch), ("--seed", args.seed)):
            if value is not None:
                raise InputError(
                    f"{flag} {value} would be ignored: {args.model} is no random model. Leave it "
                    "out."
                )
    else:
        if args.trust_checkpoint:
            raise InputError(f"--trust-checkpoint would be ignored with {named[0]}. Leave it out.")
        args.arch = ARCH if args.arch is None else args.arch
        args.seed = SEED if args.seed is None else args.seed
        if args.arch not in SIZES:
            raise InputError(f"--arch {args.arch} is none of {', '.join(SIZES)}. Give one.")
    if args.json is not None:
        if args.json.is_dir():
            raise InputError(f"--json {args.json} is a folder. Give the name of the file to write.")
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--json {args.json} cannot be written: {error.strerror}. Give another place."
            ) from error


def described(cell) -> dict:
    """A cell as the JSON has it."""
    accuracy = {f"{split}_accuracy": value for split, value in cell.accuracy.items()}
    return {"features": cell.level, "pooler": cell.pooler, "C": cell.strength, **accuracy}


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def table(cells, best) -> list[str]:
    """Lines of Markdown, aligned; ``best`` is in bold, and "-" where there is nothing to learn."""
    from fairseq_peft.models.heads import POOLERS

    found = {(cell.level, cell.pooler): cell for cell in cells}
    levels = list(dict.fromkeys(cell.level for cell in cells))
    columns = [(pooler, split) for pooler in POOLERS for split in best.accuracy]

    def show(level, pooler, split):
        cell = found.get((level, pooler))
        if cell is None:
            return "-"
        text = percent(cell.accuracy[split])
        return f"**{text}**" if cell is best else text

    lines = [["features", *(f"{pooler} {split}" for pooler, split in columns)]]
    lines += [[level, *(show(level, *column) for column in columns)] for level in levels]
    widths = [max(map(len, column)) for column in zip(*lines)]

    def aligned(line):
        first, *rest = line
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:])]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [aligned(lines[0]), aligned(rule), *map(aligned, lines[1:])]
