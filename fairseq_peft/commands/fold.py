"""Put what the MLP of a prompt or prefix computes in its place, in a checkpoint.

The folded checkpoint stays one of this plugin, with the same logits; a run cannot go on from it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import InputError

#: How far folding may move a logit, relative to the largest.
LIMIT = 1e-4


def add_arguments(parser):
    parser.add_argument("checkpoint", type=Path, help="checkpoint_best.pt, for example")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--force", action="store_true", help="write over the file, if it exists")
    finetuned.add_trust_argument(parser)


def run(args) -> int:
    if args.checkpoint.is_dir():
        raise InputError(
            f"{args.checkpoint} is a folder. Give a checkpoint; adapter folders are folded already."
        )
    state, model, batches, head, expected = finetuned.load(args)
    before = model.setting
    model.fold()
    changed = model.setting.changed_flags(before)
    if not changed:
        raise InputError(
            f"{args.checkpoint}: --peft {before.name} has nothing to fold here. What can be folded "
            "is the MLP of --prompt-mlp and --prefix-mlp."
        )
    difference = (finetuned.logits(model, batches, head) - expected).abs().max()
    if not difference <= LIMIT * expected.abs().max().clamp(min=1):
        raise RuntimeError(f"the folded model's logits are {difference:.1e} off; nothing written")
    cfg = {**state["cfg"], "model": {**state["cfg"]["model"], **changed}}
    weights = model.state_dict()
    finetuned.write(args.out, state, cfg, weights)
    sys.stdout.write(
        f"{args.out}: {len(weights)} tensors; on {len(batches)} random batches its logits differ "
        f"from the unfolded model's by {difference:.1e} at most\n"
    )
    return 0
