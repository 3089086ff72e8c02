"""``--lr-scheduler reduce_lr_on_plateau`` in a run that goes on.

fairseq writes an epoch's checkpoint before it tells the schedule how the validation went, and of
the schedule's state it leaves out how many epochs in a row were no better. So a run that was
stopped between two epochs would go on with a rate that should have fallen.
"""

from __future__ import annotations

import functools

from fairseq import checkpoint_utils
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule


def install() -> None:
    """Mend the schedule, and how it is restored; once."""
    if hasattr(checkpoint_utils.load_checkpoint, "tells_the_plateau"):
        return
    schedule = ReduceLROnPlateauLRSchedule
    schedule.state_dict = _state_dict(schedule.state_dict)
    schedule.load_state_dict = _load_state_dict(schedule.load_state_dict)
    checkpoint_utils.load_checkpoint = _load_checkpoint(checkpoint_utils.load_checkpoint)
    checkpoint_utils.load_checkpoint.tells_the_plateau = True


def _state_dict(original):
    @functools.wraps(original)
    def state_dict(schedule):
        return {**original(schedule), "num_bad_epochs": schedule.lr_scheduler.num_bad_epochs}

    return state_dict


def _load_state_dict(original):
    @functools.wraps(original)
    def load_state_dict(schedule, state):
        original(schedule, state)
        # A checkpoint from before this has none.
        schedule.lr_scheduler.num_bad_epochs = state.get("num_bad_epochs", 0)
        schedule.is_restored = True

    return load_state_dict


def _load_checkpoint(original):
    """Called once, by fairseq-train, before the first epoch of a launch."""

    @functools.wraps(original)
    def load_checkpoint(cfg, trainer, **kwargs):
        extra_state, batches = original(cfg, trainer, **kwargs)
        schedule = trainer.lr_scheduler
        # Another schedule, or one that starts afresh (--finetune-from-model, --reset-lr-scheduler).
        if not getattr(schedule, "is_restored", False):
            return extra_state, batches
        place = extra_state["train_iterator"]
        if place["iterations_in_epoch"] == 0:  # written at the end of the epoch before this one
            ended = place["epoch"] - 1
            schedule.lr_scheduler.last_epoch = ended
            trainer.lr_step(ended, extra_state["val_loss"])
        return extra_state, batches

    return load_checkpoint
