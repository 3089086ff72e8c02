"""Which checkpoint a run begins from, as fairseq-train chooses it by its flags."""

from __future__ import annotations

import os

LAST = "checkpoint_last.pt"


def last(save_dir: str, suffix: str = "") -> str:
    """Where a run keeps its last checkpoint; ``suffix`` is a sharded process's own."""
    return os.path.join(save_dir, LAST.replace(".pt", f"{suffix}.pt"))


def is_last(path: str, save_dir: str, suffix: str = "") -> bool:
    """Whether ``path`` is the run's own last checkpoint, by whichever name, there or not."""
    return os.path.realpath(path) == os.path.realpath(last(save_dir, suffix))


def chosen(flags, suffix: str = "") -> str | None:
    """The file that fairseq-train will ask for, by ``flags`` of its ``checkpoint`` group; None for
    random weights. A base need not be there."""
    if flags.restore_file != LAST:
        return flags.restore_file.replace(".pt", f"{suffix}.pt")  # as fairseq has it
    own = last(flags.save_dir, suffix)
    if os.path.isfile(own):
        return own
    return getattr(flags, "continue_once", None) or getattr(flags, "finetune_from_model", None)
