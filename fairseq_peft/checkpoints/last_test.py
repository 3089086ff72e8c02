"""``--eval-test best``: the splits that do not choose are evaluated once, when training has ended.

checkpoint_best.pt -> the model's trained tensors -> a validation of those splits -> the line of
metrics.jsonl that lacks them, its predictions, and the adapter folder's figures. A run that was
killed within it does it when it is started again.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from pathlib import Path
from types import SimpleNamespace

from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils

from fairseq_peft.checkpoints import file as checkpoint_file
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
    an epoch, and change its result.

    Args:
        extra_state: what fairseq returns of the checkpoint; None where there is none.
        waited: validations in a row that have not been better.
    """
    cfg, updates = trainer.cfg, trainer.get_num_updates()
    if is_over(cfg, epoch_itr):
        return True
    name, restored = "checkpoint_last.pt", cfg.checkpoint.restore_file
    last = os.path.realpath(os.path.join(cfg.checkpoint.save_dir, name))
    is_own = restored == name or os.path.realpath(restored) == last
    if extra_state is None or updates == 0 or not is_own:
        return False
    hours = extra_state.get("previous_training_time", 0) / 3600  # the same in every process
    for flag, limit, found in (
        ("--max-update", cfg.optimization.max_update, updates),
        ("--stop-time-hours", cfg.optimization.stop_time_hours, hours),
        ("--patience", cfg.checkpoint.patience, waited),
    ):
        if 0 < limit <= found:
            logger.info(f"the run has ended: {flag} {limit}, found {found:g}; nothing is trained")
            return True
    return False


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
