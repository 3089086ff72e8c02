"""fairseq's memory of the best score, which it keeps in two functions from run to run.

A second run in one process (``fairseq-hydra-train --multirun``) would be measured against the first
one: no checkpoint_best.pt unless it is better, and the first one's patience.
"""

from __future__ import annotations

import sys

from fairseq import checkpoint_utils


def forget() -> None:
    """Forget the scores of an earlier run of this process; a checkpoint that is loaded brings its
    own."""
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    train = sys.modules.get("fairseq_cli.train")
    if train is not None:
        for name in ("best", "num_runs"):
            vars(train.should_stop_early).pop(name, None)
