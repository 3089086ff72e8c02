"""Which checkpoint a run begins from, as fairseq-train chooses it by its flags."""

from __future__ import annotations

import os
from collections.abc import Iterable

from fairseq.file_io import PathManager

from fairseq_peft.errors import InputError

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


def _lacks(path: str) -> str:
    """What ``path`` is in place of a file, which may be on a store that fairseq knows; "" if it is
    one."""
    if os.path.isfile(path) or ("://" in path and PathManager.exists(path)):
        return ""
    return "is a folder" if os.path.isdir(path) else "does not exist"


def check_paths(paths: Iterable[str]) -> None:
    """Raise InputError where one of ``--path`` of fairseq's tools is no file."""
    for path in paths:
        if seen := _lacks(path):
            raise InputError(
                f"--path {path} {seen}: expected a checkpoint of fairseq's, such as "
                f"{os.path.join(path if os.path.isdir(path) else 'run', 'checkpoint_best.pt')}."
            )


def check_one(flags) -> None:
    """Raise InputError where the ``checkpoint`` group names a base, and a run to go on with."""
    base, named = flags.finetune_from_model, flags.restore_file
    if base is not None and named != LAST:
        raise InputError(
            f"--finetune-from-model {base} and --restore-file {named} exclude each other: the "
            "first starts a run from a base, the second goes on with a run. Leave one out."
        )


def resets(flags) -> list[str]:
    """The flags that were given of those by which a run goes on without a part of its state."""
    names = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(flags, name)]


def check(flags) -> None:
    """Raise InputError where fairseq-train would not find the file that ``flags`` of its
    ``checkpoint`` group name: it would fail once the model is built, or train one of random
    weights; or where they name two, or one to go on from without its state."""
    check_one(flags)
    base = flags.finetune_from_model
    if base is not None and (given := resets(flags)):
        raise InputError(
            f"{', '.join(given)} and --finetune-from-model exclude each other: a run from a base "
            f"begins with everything but the weights anew. Leave {' and '.join(given)} out."
        )
    path = chosen(flags)
    if path is None or not (seen := _lacks(path)):
        return
    flag = "--finetune-from-model" if path == base else "--restore-file"
    flag = "--continue-once" if path == getattr(flags, "continue_once", None) else flag
    raise InputError(
        f"{flag} {path} {seen}: expected a checkpoint of fairseq's. Give the path of one, or leave "
        "the flag out to train from random weights."
    )
