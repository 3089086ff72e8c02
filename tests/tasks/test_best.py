"""One decision of the best validation: checkpoint, adapter folder, predictions, result follow it."""

from __future__ import annotations

import json
import random
import shutil
from math import nan

import pytest
from helpers import PACKAGE, TINY, random_rows, train_flags, write_data
from runs import metrics

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq_peft import cli  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.runs import predictions  # noqa: E402
from fairseq_peft.runs.choice import Best, Choice, choice  # noqa: E402
from fairseq_peft.runs.log import valid_lines  # noqa: E402

LABELS = ["bad", "good"]


def line(update, value, metric="accuracy"):
    return {"epoch": 1, "num_updates": update, "subsets": {"valid": {metric: value}}}


# ---- The decision --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric, values, expected",
    [
        ("accuracy", [0.5, 0.75, 0.6, 0.75, 0.7], 4),
        ("loss", [0.5, 0.3, 0.4, 0.3, nan], 4),
        ("mcc", [-0.5, -0.2, -0.3], 2),
        ("f1_good", [0.0, 0.0], 2),
        ("loss", [0.5000001, 0.5000002], 2),  # equal, as far as fairseq looks
        ("accuracy", [nan, 0.1], 2),
        ("accuracy", [nan], None),
    ],
)
def test_while_it_trains_and_afterwards_it_is_the_same(metric, values, expected):
    lines = [line(i, value, metric) for i, value in enumerate(values, start=1)]
    best = Best(Choice(metric), lines)
    assert best.update == expected
    found = Choice(metric).best_of(lines)
    assert found == (None if expected is None else lines[expected - 1])


def test_it_waits_for_a_strictly_better_one_as_patience_does():
    best = Best(Choice(), [line(1, 0.5), line(2, 0.5), line(3, 0.4)])
    assert (best.update, best.waited) == (2, 2)
    best.offer(0.6, 4)
    assert best.waited == 0


def test_what_was_repeated_counts_with_its_last_line():
    lines = [line(1, 0.1), line(2, 0.9), line(3, 0.2), line(2, 0.3)]
    assert valid_lines(lines) == [lines[0], lines[3]]


@pytest.mark.parametrize(
    "given, said",
    [
        (("accuracy", False, ["valid"]), "Give --best-checkpoint-metric accuracy --maximize-best"),
        (("loss", True, ["valid"]), "highest loss"),
        (("f1", True, ["valid"]), r"f1 is unknown; .* f1_good"),
        (("f1_none", True, ["valid"]), "f1_none is unknown"),
        (("accuracy", True, ["test", "valid"]), "Give --valid-subset valid,test"),
        (("accuracy", True, ["test1"]), "Give --valid-subset valid,test1"),
    ],
)
def test_flags_that_contradict_are_refused_with_the_line_to_type(given, said):
    with pytest.raises(InputError, match=said):
        choice(*given, labels=LABELS)


# ---- By fairseq-train ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def hard_data(tmp_path_factory):
    """Rows of which a third is mislabelled: scores go up and down, and metrics disagree."""
    rows, rng = random_rows(sizes=(("train", 67), ("valid", 41), ("test", 41))), random.Random(3)
    for items in rows.values():
        for i, (words, label) in enumerate(items):
            if rng.random() < 1 / 3:
                items[i] = (words, LABELS[label == "bad"])
    return write_data(tmp_path_factory.mktemp("hard") / "data", rows, LABELS)


@pytest.fixture(scope="session")
def train(fairseq, hard_data, base_checkpoint):
    def run(save_dir, ok=True, **more):
        given = {"finetune_from_model": base_checkpoint, "from_scratch": None, "lr": 3e-2}
        done = fairseq("train", *train_flags(hard_data, save_dir, **{**given, "max_epoch": 6, **more}))
        assert (done.returncode == 0) is ok, done.stderr
        return done.stderr if not ok else done.stdout

    return run


def chosen(lines, metric):
    """Computed here from the lines alone: the last of the best."""
    sign = -1 if metric == "loss" else 1
    return max(lines, key=lambda line: (sign * line["subsets"]["valid"][metric], line["num_updates"]))


def check(folder, expected):
    """Everything that a run keeps is of the line ``expected``."""
    update, subsets = expected["num_updates"], expected["subsets"]
    adapter = adapter_folder.read(folder / "adapter")
    assert adapter.description["metrics"]["num_updates"] == update
    best = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    assert best["optimizer_history"][-1]["num_updates"] == update
    assert all(torch.equal(best["model"][n], tensor) for n, tensor in adapter.tensors.items())
    assert cli.main(["result", str(folder)]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert (result["best_update"], result["best_epoch"]) == (update, expected["epoch"])
    assert result["test_accuracy"] == subsets["test"]["accuracy"]
    found = predictions.read(folder / predictions.NAME)
    assert found.num_correct("test") == subsets["test"]["num_correct"]


LOSS = {"best_checkpoint_metric": "loss", "maximize_best_checkpoint_metric": None}
CASES = {
    "accuracy": {},
    "macro_f1": {"best_checkpoint_metric": "macro_f1"},
    "mcc": {"best_checkpoint_metric": "mcc"},
    "f1_good": {"best_checkpoint_metric": "f1_good"},
    "loss": LOSS,
    "neither flag": {**LOSS, "best_checkpoint_metric": None},
    "within the epoch": {"validate_interval_updates": 4},
    "within the epoch, with checkpoints": {"validate_interval_updates": 4, "save_interval_updates": 2},
    "every second epoch": {"validate_interval": 2},
    "a checkpoint every third epoch": {"save_interval": 3},
    "the two best": {"keep_best_checkpoints": 2},
    "early stopping": {"patience": 2},
}


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", CASES)
def test_all_that_is_kept_is_of_one_validation(train, tmp_path, name):
    more = CASES[name]
    train(tmp_path / "run", **more)
    lines = metrics(tmp_path / "run")
    metric = more.get("best_checkpoint_metric", "accuracy") or "loss"
    expected = chosen(lines, metric)
    print(name, [(l["num_updates"], round(l["subsets"]["valid"][metric], 3)) for l in lines], expected["num_updates"], chosen(lines, "accuracy")["num_updates"])
    check(tmp_path / "run", expected)
    names = {path.name for path in (tmp_path / "run").glob("checkpoint.best_*")}
    assert len(names) == more.get("keep_best_checkpoints", 0)
