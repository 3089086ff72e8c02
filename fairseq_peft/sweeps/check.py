"""What a sweep checks before its first run: that every cell would start, and has room."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
from pathlib import Path

from fairseq_peft.errors import InputError

#: Bytes of a trained parameter in a checkpoint, in fp32: itself, and with two moments.
ALONE, WITH_MOMENTS = 4, 12


def cell(name: str, words: list[str], with_data: bool) -> int:
    """As ``start``; ``name`` is that of the cell, for the message."""
    try:
        return start(words, with_data)
    except InputError as error:
        raise InputError(f"The cell {name} cannot start: {error}") from error


def start(words: list[str], with_data: bool) -> int:
    """Whether a run would start: all that fairseq-train looks at before its first update, with
    nothing written.

    Args:
        words: of fairseq-train, behind the program.
        with_data: whether to look at every row of the data, too.

    Returns:
        Bytes of a checkpoint, about.

    Raises:
        InputError: why it would not.
    """
    from fairseq import tasks

    from fairseq_peft.fairseq_fixes import processes
    from fairseq_peft.tasks import launch

    logging.disable(logging.WARNING)  # the run says it again
    try:
        cfg = parse(words)
        processes.check_numbers(cfg)
        task = tasks.setup_task(cfg.task)
        model = task.prepare(cfg.model)
        task.build_criterion(cfg.criterion)
        if with_data:
            launch.load_data(task)
    finally:
        logging.disable(logging.NOTSET)
    if cfg.checkpoint.no_save:
        return 0
    bytes_each = ALONE if cfg.checkpoint.no_save_optimizer_state else WITH_MOMENTS
    return bytes_each * sum(p.numel() for p in model.parameters() if p.requires_grad)


def parse(words: list[str]):
    """fairseq's config of a command line, read by fairseq's own parser.

    Raises:
        InputError: it does not take it.
    """
    from fairseq_peft.sweeps.members import runs

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return runs.parse(words)
    except SystemExit:
        lines = said.getvalue().strip().splitlines() or ["error: flags cannot be read"]
        text = lines[-1].rpartition("error: ")[2][:400]
        raise InputError(f"fairseq-train does not take its flags: {text}. See --help.") from None


def places(folders: list[Path]) -> None:
    """Raise InputError where a folder cannot be made, or written."""
    for folder in folders:
        there = _existing(folder)
        if not there.is_dir():
            raise InputError(
                f"{folder} cannot be made: {there} is a file. Give another --runs (RUNS)."
            )
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(
                f"{there} is not writable. Give rights there, or another --runs (RUNS)."
            )


def room(folder: Path, num_bytes: int) -> None:
    """Raise InputError where the disk of ``folder`` has not so many free bytes."""
    free = shutil.disk_usage(_existing(folder)).free
    if free < num_bytes:
        raise InputError(
            f"The checkpoints of this sweep take about {num_bytes / 1e9:.1f} GB, and the disk of "
            f"{folder} has {free / 1e9:.1f} GB free. Make room, give --runs (RUNS) on another "
            "disk, or --keep none (KEEP)."
        )


def _existing(folder):
    folder = Path(os.path.abspath(folder))
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))
