"""A run with Hugging Face's Trainer from its options to its result, as ``finetune.py`` has one of
fairseq: planned, locked, trained, and summed up."""

from __future__ import annotations

import contextlib
import importlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.report.result import conclude, summarise
from fairseq_peft.runs import lock, plan
from fairseq_peft.runs.log import logging_to
from fairseq_peft.sweeps import finetune
from fairseq_peft.sweeps.bases import num_rows
from fairseq_peft.sweeps.knobs import check_label
from fairseq_peft.text.kinds import check_classes

logger = logging.getLogger(__name__)

#: Options that do not change what a run computes, and those that a plan has fields for.
_PLACES = ("save_dir", "label", "base_name", "log_interval")
_FIELDS = ("data", "base", "method", "seed", "lr", "epochs", "max_update", "batch_size", "subsets")
_FIELDS = (*_FIELDS, "metric")


def run(options, change: str | None = None, keep: str = "best") -> str:
    """Train a run to its result; one that was interrupted starts again.

    Args:
        options: an ``hf.train.Options``; ``base`` may be a checkpoint of fairseq's, too.
        change: ``redo`` throws a run of another plan away; None refuses.
        keep: best, or none: without its model.

    Returns:
        What has become of it, as a sentence.

    Raises:
        InputError: the run cannot be, or has failed.
    """
    if options.label:
        check_label(options.label)
    check_classes(options.data, "finetune-hf")
    num_rows(options.data)
    now, folder = make_plan(options), options.save_dir
    with finetune.owned(folder):
        lock.take(folder)
        if change == "redo":
            finetune.check_redo(folder, now, lambda: check_start(options))
        if finetune.adopt(folder, now, change, extends=False):
            return f"{folder} is done."
        logger.info(f"{folder}: {options.epochs} epochs; log: {folder / 'train.log'}")
        with _logging_to(folder / "train.log"), _base(options, folder) as base:
            from fairseq_peft.hf import train

            train.run(replace(options, base=base, base_name=options.base_name or str(options.base)))
        result = summarise(folder, 0 if options.max_update else options.epochs)
        result["ended_by"] = f"max_epoch: {options.epochs}"
        if options.max_update:
            result["ended_by"] = f"max_update: {options.max_update}"
        path = conclude(folder, result)
        if keep == "none":
            shutil.rmtree(folder / "checkpoint_best", ignore_errors=True)
        return f"{path}: {result['ended_by']}"


def check_start(options) -> None:
    """Raise InputError where a run with these options cannot start; nothing stays of it."""
    folder = options.save_dir
    with contextlib.ExitStack() as stack:
        beside = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent)
        place = stack.enter_context(beside)
        base = stack.enter_context(_base(options, Path(place)))
        from fairseq_peft.hf import train

        train.prepare(replace(options, base=base))


def make_plan(options) -> plan.Plan:
    """The plan of a run with these options."""
    other = {
        name: value
        for name, value in asdict(options).items()
        if name not in (*_PLACES, *_FIELDS, "precision")
    }
    return plan.Plan(
        data=str(options.data),
        data_sha256=plan.data_fingerprint(options.data),
        base=str(options.base),
        base_sha256=plan.base_fingerprint(options.base),
        arch="Hugging Face",
        peft=options.method,
        seed=options.seed,
        lr=f"{options.lr:g}",
        max_epoch=options.epochs,
        max_update=options.max_update,
        batch_size=options.batch_size,
        max_tokens=0,
        update_freq="1",
        world_size=1,
        scheduler="linear",
        warmup_updates=0,  # of the flags: per cent
        total_updates=0,
        metric=options.metric,
        subsets=",".join(options.subsets),
        precision=options.precision,
        flags=[f"--{name.replace('_', '-')} {value}" for name, value in sorted(other.items())],
        versions=plan.versions("fairseq_peft", "torch", "transformers", "peft"),
    )


@contextlib.contextmanager
def _base(options, place: Path) -> Iterator[Path]:
    """The folder to start from; a checkpoint is converted, for the time of the block, in
    ``place``."""
    importlib.import_module("fairseq_peft.plugin")  # registers the models with fairseq
    if options.base.is_dir():
        yield options.base
        return
    from fairseq_peft.hf import check, to_folder

    check.quiet()
    out = place / "base"
    try:
        to_folder.convert(
            options.base,
            out,
            options.data / "input0" / "dict.txt",
            bpe_dir=options.data,
        )
        yield out
    finally:
        shutil.rmtree(out, ignore_errors=True)


@contextlib.contextmanager
def _logging_to(path) -> Iterator[None]:
    """As ``runs.log.logging_to``; why the run fails is the last that is logged."""
    with logging_to(path):
        try:
            yield
        except InputError as error:
            logger.error(f"error: {error}")
            raise
        except Exception:
            logger.exception("training failed")
            raise InputError(finetune.failure(path)) from None
