"""What a sweep does around its runs: checks before the first, another launcher, what it shows."""

from __future__ import annotations

import io
import json
import shutil
from types import SimpleNamespace

import pytest
from helpers import TINY_FLAGS

pytest.importorskip("fairseq")

import fairseq_peft.plugin  # noqa: E402, F401
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.report import runs  # noqa: E402
from fairseq_peft.runs import plan  # noqa: E402
from fairseq_peft.sweeps import cells, check, finetune, progress  # noqa: E402
from fairseq_peft.sweeps.epochs import Epochs  # noqa: E402
from fairseq_peft.sweeps.knobs import Knobs, command  # noqa: E402
from fairseq_peft.sweeps.sweep import Sweep  # noqa: E402


@pytest.fixture
def sweep(data_folder, base_checkpoint, tmp_path):
    """``sweep(names, flags={...}, jobs=2, base=...)``; what is no argument is a knob."""

    def make(
        names=("pretrained/lora",),
        flags=None,
        seeds=(1, 2),
        jobs=1,
        rates=None,
        flags_of_all=(),
        **more,
    ):
        given = {
            **{"method": "", "label": "", "seed": 0, "lr": "", "size": "roberta_small"},
            **{"epochs": 3, "batch_size": 8, "warmup": 10, "precision": "fp32"},
            **{"subsets": "valid,test", "threads": 1, "arch_args": TINY_FLAGS},
            **{"flags": list(flags_of_all)},
            **{"data": str(data_folder), "runs": str(tmp_path / "runs")},
            **{"base": str(base_checkpoint), **more},
        }
        usual = {"SCRATCH": "1e-3", **({"LORA": "1e-3"} if "pretrained/lora" in names else {})}
        read = cells.read(list(names), flags or {}, rates or usual)
        return Sweep(Knobs(**given), read, list(seeds), jobs)

    return make


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"flags": {"lora": "--lora-rnk 4"}}, "unrecognized arguments: --lora-rnk 4"),
        ({"flags": {"lora": "--adapter-style parallel"}}, "--adapter-style would be ignored"),
        ({"flags": {"lora": "--log-interval 0"}}, "--log-interval 0: expected 1 or more"),
        ({"flags": {"lora": "--update-freq 0"}}, "--update-freq 0: expected 1 or more"),
        ({"metric": "macro"}, "--best-checkpoint-metric macro is unknown"),
        ({"class_weights": "1,2,3"}, "expected none, balanced, or 2 positive numbers"),
        ({"subsets": "valid,tset"}, "has no split 'tset'"),
        (
            {"arch_args": [*TINY_FLAGS[2:], "--encoder-layers", "3"]},
            "encoder_layers 3 .the base has 2",
        ),
        ({"names": ["scratch/lora", "pretrained/lora"], "base": None}, "needs a base"),
        ({"base": "nowhere.pt"}, "nowhere.pt does not exist"),
        ({"data": "nowhere"}, "nowhere/label/train.idx does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_would_not_start_is_said_and_nothing_is_written(sweep, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        one = sweep(**more)
        one.check(one.schedule())
    assert not (tmp_path / "runs").exists()


def test_a_base_of_another_dictionary_is_refused(sweep, base_checkpoint, data_folder, tmp_path):
    shutil.copy(base_checkpoint, tmp_path / "model.pt")
    lines = (data_folder / "input0" / "dict.txt").read_text().splitlines()
    (tmp_path / "dict.txt").write_text("\n".join(reversed(lines)) + "\n")
    one = sweep(base=str(tmp_path / "model.pt"))
    with pytest.raises(InputError, match="The cell pretrained/lora cannot start: .*dictionary"):
        one.check(one.schedule())


def test_what_would_start_has_a_place_and_room(sweep, tmp_path, monkeypatch):
    one = sweep(names=["scratch/full", "pretrained/lora"])
    one.check(one.schedule())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="GB free. Make room"):
        one.check(one.schedule())
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match="is a file. Give another --runs"):
        check.places([tmp_path / "runs" / "below"])


class Launcher:
    """Runs nothing: a job ends when it is looked at for the second time."""

    def __init__(self, errors=()):
        self.errors, self.started, self.at_once, self.most = dict(errors), [], 0, 0

    def start(self, job):
        (knobs,) = job.runs
        self.started.append(f"{knobs.label} {knobs.seed}")
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        answers = iter([None, [self.errors.get(self.started[-1])]])

        def poll():
            found = next(answers)
            self.at_once -= found is not None
            return found

        return SimpleNamespace(poll=poll, stop=lambda: None)


def test_another_launcher_is_a_class_with_start(sweep):
    one = sweep(
        names=["scratch/lora", "scratch/full", "scratch/head_only"], seeds=(1, 2, 3), jobs=2
    )
    schedule = one.schedule()
    launcher = Launcher({"full 1": "no room"})
    said = io.StringIO()
    one.run(schedule, launcher, progress.Lines(schedule, 10, said))
    assert launcher.started[:3] == ["lora 1", "full 1", "head_only 1"] and launcher.most == 2
    assert len(launcher.started) == 7 and "full 2" not in launcher.started
    assert [str(run) for run in schedule.failed] == ["scratch/full seed 1 lr 1e-3"]
    assert "failed: scratch/full seed 1 lr 1e-3: no room" in said.getvalue()
    assert "7 of 9 done, 0 running, 1 failed" in said.getvalue()


class Trained:
    """Trains nothing: a job's runs are done when it is looked at, with the accuracy of their rate
    after so many epochs."""

    def __init__(self, accuracies):
        self.accuracies, self.started = accuracies, []

    def start(self, job):
        for knobs in job.runs:
            finetune.adopt(knobs.folder, plan.make(command(knobs)), job.change)
            self.started.append(f"seed {knobs.seed} lr {knobs.lr} epochs {knobs.epochs}")
            (knobs.folder / "checkpoint_last.pt").touch()
            result = dict.fromkeys(runs.RESULT_FIELDS)
            names = ("data", "init", "method", "seed", "rows", "hyperparameters", "method_config")
            values = ("tiny", "pretrained", "lora", knobs.seed, {}, {}, {})
            result.update(zip(names, values))
            result.update(schema=1, trainable_parameters=1, total_parameters=1, curve=[])
            accuracy = self.accuracies[knobs.lr, knobs.epochs]
            result.update(valid_accuracy=accuracy, ended_by=f"max_epoch: {knobs.epochs}")
            (knobs.folder / "result.json").write_text(json.dumps(result))
        return SimpleNamespace(poll=lambda: [None] * len(job.runs), stop=lambda: None)


def test_more_epochs_may_pick_another_rate(sweep, tmp_path):
    """A seed that was trained with the old one is told, and nothing is lost: a cell mixes none."""
    given = {"warmup": 0, "flags_of_all": ["--lr-scheduler", "fixed"]}
    launcher = Trained({("1e-3", 1): 0.7, ("1e-2", 1): 0.6, ("1e-3", 2): 0.8, ("1e-2", 2): 0.9})

    def run(epochs, change=None):
        one = sweep(rates={"LORA": "1e-3 1e-2"}, epochs=epochs, **given)
        one.change = change
        schedule = one.schedule()
        one.pick(schedule)
        one.run(schedule, launcher, progress.Lines(schedule, 10, io.StringIO()))
        return schedule

    run(1)
    assert launcher.started[-1] == "seed 2 lr 1e-3 epochs 1"
    before = len(launcher.started)
    schedule = run(2, "extend")
    assert launcher.started[before:] == ["seed 1 lr 1e-3 epochs 2", "seed 1 lr 1e-2 epochs 2"]
    (why,) = schedule.failed.values()
    assert why.startswith("lr 0.01 is the best on valid now, and ") and "with lr 0.001. " in why
    folder = tmp_path / "runs" / "tiny" / "pretrained" / "lora"
    assert [plan.read(folder / f"seed{seed}").lr for seed in (1, 2)] == ["0.001", "0.001"]
    run(2, "redo")
    assert launcher.started[before + 2 :] == ["seed 2 lr 1e-2 epochs 2"]
    assert [plan.read(folder / f"seed{seed}").lr for seed in (1, 2)] == ["0.01", "0.01"]


def test_a_result_without_a_plan_is_not_thrown_away(sweep, tmp_path):
    """As an earlier version has left it: nothing says how it was trained."""
    one = sweep(rates={"LORA": "1e-3 1e-2"})
    picked, there = tmp_path / "grid" / "seed1", tmp_path / "runs" / "seed1"
    for folder in (picked, there):
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(folder.parent.name)
    with pytest.raises(InputError, match=r"it has no plan that says how\. Give --redo"):
        one._adopt(picked, there)
    assert (there / "result.json").read_text() == "runs"
    one.change = "redo"
    one._adopt(picked, there)
    assert (there / "result.json").read_text() == "grid"


def test_cells_that_a_variable_would_not_tell_apart():
    names = ["pretrained/lora-a", "scratch/full", "pretrained/lora_A"]
    flags = {"lora-a": "--peft lora --lora-rank 2"}
    with pytest.raises(InputError, match=r"'lora-a' and 'lora_A' would share .*FLAGS_LORA_A"):
        cells.read(names, flags, {})
    flags["lora_A"] = "--peft lora --lora-rank 16"
    with pytest.raises(InputError, match=r"FLAGS_LORA_A.* was given twice: lora-a, lora_A"):
        cells.read(names, flags, {})
    assert len(cells.read(["scratch/full", "pretrained/full"], {}, {})) == 2


def test_what_is_shown_is_what_chooses(tmp_path):
    subset = {"accuracy": 0.75, "macro_f1": 0.5, "mcc": -0.25, "loss": 0.7}
    epochs = Epochs(tmp_path, 3)
    assert epochs.shown(subset) == "75.00 %"
    for metric, text in (("macro_f1", "macro_f1 50.00 %"), ("mcc", "mcc -0.2500")):
        chosen_by = {"metric": metric, "subset": "valid", "maximize": True}
        (tmp_path / "run.json").write_text(json.dumps({"chosen_by": chosen_by}))
        assert epochs.shown(subset) == text


def test_the_table_shows_epochs_and_the_time_left(sweep, tmp_path):
    from rich.console import Console

    one = sweep()
    schedule = one.schedule()
    (run,) = schedule.next()
    watched = progress.Watched(run, Epochs(tmp_path, 3))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with progress.Table(schedule, console=console) as table:
        table.say("", [watched])
        line = {
            **{"epoch": 1, "num_updates": 9, "train": {"seconds": 50.0, "loss": 1.0}},
            "subsets": {"valid": {"accuracy": 0.75, "seconds": 1.0}},
        }
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n" + '{"epoch": 2, "tr')
        watched.look()
        table.say("started something", [watched])
        table.end()
    shown = screen.getvalue()
    for text in ("pretrained/lora", "0 of 3", "1 of 3", "75.00 %", "102 s", "started something"):
        assert text in shown, text
