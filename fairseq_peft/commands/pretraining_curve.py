"""The loss curve of a pre-training as JSON lines, in nats, from fairseq's logs.

A row: phase, tokens_per_sample, num_updates, num_tokens, seconds, train_loss, valid_loss. The logs
come from `fairseq-train --log-format json`; each is named after the length of its blocks.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)


def add_arguments(parser):
    parser.add_argument(
        "logs", nargs="+", metavar="LENGTH:LOG", help="64:short/train.log, in order"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .jsonl to write")


def run(args) -> int:
    from fairseq_peft.report.pretraining import read_logs, write_curve

    phases = []
    for text in args.logs:
        length, _, path = text.partition(":")
        if not length.isdigit() or not Path(path).is_file():
            raise InputError(
                f"'{text}' is no LENGTH:LOG with a file LOG, such as 64:short/train.log."
            )
        phases.append((int(length), Path(path)))
    rows = read_logs(phases)
    if not rows:
        raise InputError(f"No losses in {', '.join(args.logs)}. Train with --log-format json.")
    write_curve(rows, args.out)
    logger.info("%s: %d rows, %d updates", args.out, len(rows), rows[-1]["num_updates"])
    return 0
