"""A resumed run goes on with the schedule that it had, and not with a fresh one."""

from __future__ import annotations

import pytest
from helpers import train_flags

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

from runs import LAST, load, metrics, same  # noqa: E402

#: The rate falls to a tenth whenever an epoch is no better than the best so far, which only the
#: schedule knows. With rates like these no prediction changes, so that is after every epoch.
PLATEAU = {"lr_scheduler": "reduce_lr_on_plateau", "lr": 1e-7, "lr_shrink": 0.1, "lr_patience": 0}


@pytest.fixture
def train(fairseq, data_folder, base_checkpoint, tmp_path):
    def run(folder, **more):
        given = {"from_scratch": None, "finetune_from_model": base_checkpoint, **PLATEAU, **more}
        done = fairseq("train", *train_flags(data_folder, tmp_path / folder, **given))
        assert done.returncode == 0, done.stderr
        return tmp_path / folder

    return run


def rates(folder):
    """The learning rate at the end of each epoch; of an epoch that was run again, the last."""
    return {line["epoch"]: line["lr"] for line in metrics(folder)}


def schedule(folder):
    return load(folder / LAST)["optimizer_history"][-1]["lr_scheduler_state"]


@pytest.mark.parametrize("full_checkpoints", [False, True], ids=["slim", "whole"])
def test_a_run_stopped_in_an_epoch_goes_on_with_its_schedule(train, full_checkpoints):
    """9 updates an epoch: stopped in the second one, when the first has told the schedule what is
    best so far. Without that, the second would seem better, and the third keep its rate."""
    more = {"max_epoch": 3, "full_checkpoints": full_checkpoints}
    whole = train("whole", **more)
    first, second, third = rates(whole).values()
    assert first == second and third == pytest.approx(0.1 * second)
    train("parts", max_update=14, **more)
    parts = train("parts", **more)
    assert rates(parts) == rates(whole)
    assert schedule(parts) == schedule(whole)
    assert same(parts / LAST, whole / LAST)


def test_a_run_stopped_between_two_epochs_goes_on_with_its_schedule(train):
    """The rate falls behind two epochs in a row that are no better, which are the second and the
    third: the checkpoint of the third holds one of them, and was written before the schedule heard
    of the other."""
    whole = train("whole", max_epoch=4, lr_patience=1)
    first, second, third, fourth = rates(whole).values()
    assert first == second == third and fourth == pytest.approx(0.1 * third)
    train("parts", max_epoch=3, lr_patience=1)
    parts = train("parts", max_epoch=4, lr_patience=1)
    assert rates(parts) == rates(whole)
    assert schedule(parts) == schedule(whole)
    assert same(parts / LAST, whole / LAST)
