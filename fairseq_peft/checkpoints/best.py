"""fairseq's own idea of the best validation, made to follow that of the task.

fairseq keeps its best score, and how long it waits for a better one, as attributes of two
functions: from one job of ``fairseq-hydra-train --multirun`` to the next. And it looks for a best
only where it writes a checkpoint anyway. A task with a run (``runs.choice.Best``) decides itself.
Of fairseq's own tasks checkpoints hold how long the run has waited, which fairseq forgets.

Of ``--keep-best-checkpoints`` fairseq finds the files again by their names, which hold the metric's
value: not below zero, and not told apart where values are equal. Here they are those of the run's
best validations, called ``checkpoint.best_<metric>_<value>_<updates>.pt``.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from fairseq_peft.checkpoints import last_test, start

#: Where fairseq-train's own functions are: as a command, as a program, or in a spawned process.
TRAIN = ("fairseq_cli.train", "__main__", "__mp_main__")
#: Attributes of fairseq's ``should_stop_early``: the best value, and validations since then.
WAITED = ("best", "num_runs")


def install() -> None:
    """Wrap fairseq's functions; once, says ``saving.install``."""
    checkpoint_utils.load_checkpoint = _load_checkpoint(checkpoint_utils.load_checkpoint)
    checkpoint_utils.save_checkpoint = _save_checkpoint(checkpoint_utils.save_checkpoint)


def _load_checkpoint(original):
    """Called once a job, before its first update: what the job before has left is forgotten, and a
    run that goes on knows how long it has waited for a better validation."""

    @functools.wraps(original)
    def load_checkpoint(cfg, trainer, **more):
        forget()
        remembers = _remembers(cfg, trainer.checkpoint_suffix)
        for module in _train_modules():
            if not hasattr(module.validate_and_save, "__wrapped__"):
                module.validate_and_save = _validate_and_save(module.validate_and_save)
            last_test.at_end_of(module)
        found = original(cfg, trainer, **more)
        last_test.begin(trainer)
        best, waited = _best(trainer.task), {}
        if best is None and remembers:
            waited = (found[0] or {}).get("waited") or {}
        elif best is not None and best.value is not None:
            waited = dict(zip(WAITED, (best.value, best.waited)))
        for module in _train_modules():
            vars(module.should_stop_early).update(waited)
        trainer.is_over = last_test.has_ended(trainer, *found, waited.get("num_runs", 0))
        if trainer.is_over:  # perhaps it was killed before its test
            last_test.test(trainer, _train_modules()[0].validate)
        return found

    return load_checkpoint


def _remembers(cfg, suffix):
    """Whether the checkpoint that is about to be loaded is one that the run goes on from, and not
    its base: where fairseq takes its best score from it, too."""
    starts = (
        cfg.restore_file == start.LAST
        and cfg.finetune_from_model is not None
        and getattr(cfg, "continue_once", None) is None
        and not PathManager.exists(start.last(cfg.save_dir, suffix))
    )
    return not (starts or cfg.reset_optimizer or cfg.reset_meters)


def to_remember(task) -> dict:
    """How long a run of one of fairseq's own tasks has waited for a better validation, for its
    checkpoint's ``extra_state``; nothing without ``--patience``."""
    if _best(task) is not None:  # its metrics.jsonl tells
        return {}
    found = {}
    for module in _train_modules():
        found.update(vars(module.should_stop_early))
    return {"waited": {name: found[name] for name in WAITED}} if "num_runs" in found else {}


def _save_checkpoint(original):
    """Called after a validation, or with None for its score after none."""

    @functools.wraps(original)
    def save_checkpoint(cfg, trainer, epoch_itr, val_loss):
        best, function = _best(trainer.task), checkpoint_utils.save_checkpoint
        if best is None:
            return original(cfg, trainer, epoch_itr, val_loss)
        update, number = trainer.get_num_updates(), cfg.keep_best_checkpoints
        trainer.task.run.saved_update = update
        if val_loss is not None:
            chosen = best.update == update
            function.best = val_loss if chosen or best.value is None else best.value
        cfg.keep_best_checkpoints = 0
        try:
            saved = original(cfg, trainer, epoch_itr, val_loss)
        finally:
            cfg.keep_best_checkpoints = number
        keeps = number > 0 and not cfg.no_save and trainer.should_save_checkpoint_on_current_rank
        if keeps and val_loss is not None:
            _keep_best(cfg, trainer, saved, best.best_updates(number), epoch_itr, val_loss)
        return saved

    return save_checkpoint


def _keep_best(cfg, trainer, saved, updates, epoch_itr, value):
    """Keep the checkpoint that has been written, or is written here, if it is of one of the best
    ``updates``; and no longer those that are not."""
    update, suffix = trainer.get_num_updates(), trainer.checkpoint_suffix
    metric = re.sub(r"[^\w.-]", "_", cfg.best_checkpoint_metric)  # of a class, whatever its name
    begin = f"checkpoint.best_{metric}_"
    if update in updates:
        path = os.path.join(cfg.save_dir, f"{begin}{value:.6f}_{update}{suffix}.pt")
        if saved is None:  # --no-last-checkpoints, and no other is due
            state = {"train_iterator": epoch_itr.state_dict(), "val_loss": value}
            trainer.save_checkpoint(path, state)
        else:
            PathManager.copy(saved, path, overwrite=True)
    for path in Path(cfg.save_dir).glob("checkpoint.best_*.pt"):
        found = re.fullmatch(rf"{re.escape(begin)}.*_(\d+){re.escape(suffix)}\.pt", path.name)
        if found and int(found[1]) not in updates:
            path.unlink()


def _validate_and_save(original):
    """A validation that finds a new best has its checkpoint, also where fairseq would write none:
    within an epoch (``--validate-interval-updates``), or with ``--save-interval``."""

    @functools.wraps(original)
    def validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch):
        if _best(task) is not None:
            valid_subsets = Subsets(valid_subsets, task.run, trainer)
        found = original(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        (score, *_), _ = found
        best, update = _best(task), trainer.get_num_updates()
        number = max(1, cfg.checkpoint.keep_best_checkpoints)
        chosen = score is not None and best is not None and update in best.best_updates(number)
        if chosen and task.run.saved_update != update:
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, score)
        return found

    return validate_and_save


class Subsets(list):
    """The splits of a validation; those behind the first only if it goes on (``--eval-test``)."""

    def __init__(self, names, run, trainer):
        super().__init__(names)
        self.run = run
        self.trainer = trainer

    def __iter__(self):
        names = super().__iter__()
        yield next(names)
        if self.run.goes_on(self.trainer.get_num_updates()):
            yield from names


def _train_modules():
    modules = (sys.modules.get(name) for name in TRAIN)
    return [module for module in modules if hasattr(module, "validate_and_save")]


def _best(task):
    return getattr(getattr(task, "run", None), "best", None)


def forget() -> None:
    """Forget the best score of an earlier run of this process, and how long it has waited."""
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    for module in _train_modules():
        for name in WAITED:
            vars(module.should_stop_early).pop(name, None)
