"""``--eval-test best``: the splits that do not choose are evaluated once, when training has ended.

checkpoint_best.pt -> the model's trained tensors -> a validation of those splits -> the line of
metrics.jsonl that lacks them, its predictions, and the adapter folder's figures. A run that was
killed within it does it when it is started again.
"""

from __future__ import annotations

import functools
import logging
import math
from pathlib import Path
from types import SimpleNamespace

from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager

from fairseq_peft.checkpoints import file as checkpoint_file
from fairseq_peft.checkpoints import start
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery

logger = logging.getLogger(__name__)


def begin(trainer) -> None:
    """Before the first update: decide whether the run tests at its end, or at each new best."""
    run = getattr(trainer.task, "run", None)
    if run is not None:
        run.tests_at_end = run.eval_test == "best" and is_possible(trainer.cfg)


def is_possible(cfg) -> bool:
    """Whether the weights of the best validation are there, on one disk, whenever training ends.

    fairseq's end by a lowest learning rate is not told to anybody.
    """
    kept = not (cfg.checkpoint.no_save or cfg.checkpoint.write_checkpoints_asynchronously)
    alone = distributed_utils.get_global_world_size() == 1
    return kept and alone and cfg.optimization.stop_min_lr < 0


def at_end_of(module) -> None:
    """Let ``module``, which has fairseq-train's functions, test behind its last epoch."""
    if not hasattr(module.train, "tests_at_end"):
        module.train = _train(module.train, module)


def _train(original, module):
    """An epoch; behind the last one, the test. None of a run that had ended before."""

    @functools.wraps(original)
    def train(cfg, trainer, task, epoch_itr):
        if trainer.is_over:
            return [None], True
        found = original(cfg, trainer, task, epoch_itr)
        if found[1] or is_over(cfg, epoch_itr):
            test(trainer, module.validate)
        return found

    train.tests_at_end = True
    return train


def is_over(cfg, epoch_itr) -> bool:
    """Whether no epoch is left."""
    return epoch_itr.next_epoch_idx > (cfg.optimization.max_epoch or math.inf)


def has_ended(trainer, extra_state, epoch_itr, waited: int) -> bool:
    """Whether the checkpoint that was loaded is the last one of a run that had ended.

    fairseq looks behind an update, not before: started again, such a run would train one more, or
    an epoch, and change its result. Of a checkpoint without the optimizer's state it does not even
    know how many there were.

    Args:
        extra_state: what fairseq returns of the checkpoint; None where there is none.
        waited: validations in a row that have not been better.
    """
    cfg = trainer.cfg
    if is_over(cfg, epoch_itr):
        reason = f"--max-epoch {cfg.optimization.max_epoch}"
    elif extra_state is None or cfg.checkpoint.reset_optimizer or not _is_own(trainer):
        return False
    else:
        limits = SimpleNamespace(
            max_epoch=0,
            max_update=cfg.optimization.max_update,
            stop_time_hours=cfg.optimization.stop_time_hours,
            patience=cfg.checkpoint.patience,
        )
        updates = trainer._optim_history[-1]["num_updates"]
        reason = ended_by(limits, extra_state, updates, waited)
    if reason:
        logger.info(f"the run has ended: {reason}; nothing is trained")
    return reason is not None


def _is_own(trainer):
    """Whether what was loaded is the run's own last checkpoint."""
    cfg, suffix = trainer.cfg.checkpoint, trainer.checkpoint_suffix
    loaded = start.chosen(cfg, suffix)
    if loaded is None or not start.is_last(loaded, cfg.save_dir, suffix):
        return False
    return PathManager.isfile(loaded)


def ended_by(cfg, extra_state: dict, updates: int, waited: int) -> str | None:
    """What has ended the run of which this is the last checkpoint; None if it goes on.

    Args:
        cfg: has its limits, by the names of fairseq's flags.
        extra_state: of the checkpoint.
        updates: that it was written after.
        waited: as ``has_ended`` takes it.
    """
    hours = extra_state.get("previous_training_time", 0) / 3600  # the same in every process
    for flag, limit, found in (
        ("--max-epoch", cfg.max_epoch, extra_state["train_iterator"]["epoch"] - 1),
        ("--max-update", cfg.max_update, updates),
        ("--stop-time-hours", cfg.stop_time_hours, hours),
        ("--patience", cfg.patience, waited),
    ):
        if 0 < limit <= found:
            return f"{flag} {limit}, found {found:g}"
    return None


def test(trainer, validate) -> None:
    """Evaluate what the best validation lacks, by fairseq's own ``validate``.

    Raises:
        InputError: checkpoint_best.pt is not of that validation.
    """
    run = getattr(trainer.task, "run", None)
    splits = run.begin_test() if run is not None and run.tests_at_end else []
    if not splits:
        return
    line = run.tested
    logger.info(f"evaluating {', '.join(splits)} with the weights of epoch {line['epoch']}")
    load_best(trainer, line["num_updates"])
    # fairseq would log the better of the best score on valid and this one as best.
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    validate(trainer.cfg, trainer, trainer.task, SimpleNamespace(epoch=line["epoch"]), splits)


def load_best(trainer, num_updates: int) -> None:
    """Put the trained tensors of checkpoint_best.pt into the model.

    Raises:
        InputError: it was written after another number of updates.
    """
    name = f"checkpoint_best{trainer.checkpoint_suffix}.pt"
    path = Path(trainer.cfg.checkpoint.save_dir, name)
    state = checkpoint_file.read(str(path))
    found = state["optimizer_history"][-1]["num_updates"]
    if found != num_updates:
        raise InputError(
            f"{path} was written after {found} updates, and the best validation came after "
            f"{num_updates}: another program has changed it. Train again in another --save-dir."
        )
    model = surgery.unwrap(trainer.model)
    own = {name: state["model"][name] for name in model.own_names()}
    model.load_state_dict({**model.state_dict(), **own})
