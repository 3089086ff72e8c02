"""Programs that take turns in one process: what fairseq keeps in its modules is each one's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("fairseq")

from fairseq.logging import progress_bar  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.sweeps.members import runs  # noqa: E402
from fairseq_peft.sweeps.members.turns import Turn  # noqa: E402


def logged(folder):
    """(step, value) of the loss in a folder of TensorBoard."""
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


@pytest.fixture
def log(tmp_path):
    with open(tmp_path / "log", "w", encoding="utf-8") as file:
        yield file


def test_each_writes_its_own_tensorboard(tmp_path, log):
    """In turns, into folders of one name below their own ones; another's writers stay open."""
    before = progress_bar._tensorboard_writers
    turns = []

    def member(number):
        bar = progress_bar.BaseProgressBar([])
        bar = progress_bar.TensorboardProgressBarWrapper(bar, str(tmp_path / str(number)))
        for step in range(3):
            bar._log_to_tensorboard({"loss": 10.0 * number + step}, "valid", step)
            turns[number].ask(step)

    turns += [Turn(lambda number=number: member(number), [f"{number}"], log) for number in range(2)]
    opened = []
    for turn in turns:
        turn.resume()
    while any(turn.request is not None for turn in turns):
        for turn in turns:
            opened += [w for w in turn._mine["writers"].values() if w not in opened]
            turn.resume()
    assert [turn.error for turn in turns] == [None, None]
    for number in range(2):
        values = [(step, 10.0 * number + step) for step in range(3)]
        assert logged(tmp_path / str(number) / "valid") == values
    assert progress_bar._tensorboard_writers is before
    assert len(opened) == 2 and all(writer.all_writers is None for writer in opened)


def test_one_that_fails_closes_its_own(tmp_path, log):
    def member():
        bar = progress_bar.BaseProgressBar([])
        bar = progress_bar.TensorboardProgressBarWrapper(bar, str(tmp_path / "own"))
        bar._log_to_tensorboard({"loss": 1.0}, "valid", 1)
        opened.extend(progress_bar._tensorboard_writers.values())
        raise RuntimeError("its loss is lost")

    opened, turn = [], Turn(member, [], log)
    turn.resume()
    assert turn.error == "RuntimeError: its loss is lost"
    (writer,) = opened
    assert writer.all_writers is None and logged(tmp_path / "own" / "valid") == [(1, 1.0)]


def test_a_disk_that_fills_at_the_end_holds_nobody_up(log):
    class Full:
        def close(self):
            raise OSError(28, "No space left on device")

    turn = Turn(lambda: progress_bar._tensorboard_writers.update(valid=Full()), [], log)
    turn.resume()  # it would wait for ever
    assert turn.error == "OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("wandb_project", "mine", "--wandb-project mine"),
        ("azureml_logging", True, "--azureml-logging"),
        ("aim_repo", "here", "--aim-repo here"),
    ],
)
def test_a_service_of_one_run_a_process_is_refused(tmp_path, name, value, said):
    cfg = SimpleNamespace(
        checkpoint=SimpleNamespace(save_dir=str(tmp_path)),
        task=SimpleNamespace(_name="sentence_classification"),
        model=SimpleNamespace(),
        common=SimpleNamespace(tensorboard_logdir=str(tmp_path)),
        distributed_training=SimpleNamespace(distributed_world_size=1),
    )
    runs.check([cfg])
    setattr(cfg.common, name, value)
    with pytest.raises(InputError, match=f"{said} knows one run a process"):
        runs.check([cfg])
