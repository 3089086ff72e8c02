"""One decision of the best validation: checkpoint, adapter, predictions, result follow it."""

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


def test_the_best_few_are_told_below_zero_and_where_they_are_equal():
    values = [-0.5, -0.2, nan, -0.2, -0.3]
    best = Best(Choice("mcc"), [line(i, value, "mcc") for i, value in enumerate(values)])
    assert best.best_updates(3) == [3, 1, 4] and best.best_updates(9) == [3, 1, 4, 0]
    best = Best(Choice("loss"), [line(i, value, "loss") for i, value in enumerate([2, 1, 3])])
    assert best.best_updates(2) == [1, 0]


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
    """Unequal classes, and a fifth of the rows mislabelled: the metrics choose differently."""
    rng, rows = random.Random(3), {}
    for split, items in random_rows(sizes=(("train", 200), ("valid", 120), ("test", 61))).items():
        items = [item for i, item in enumerate(items) if item[1] == "bad" or i % 3 == 0]
        rows[split] = [
            (words, LABELS[label == "bad"] if rng.random() < 0.2 else label)
            for words, label in items
        ]
    return write_data(tmp_path_factory.mktemp("hard") / "data", rows, LABELS)


@pytest.fixture(scope="session")
def train(fairseq, hard_data, base_checkpoint):
    def run(save_dir, ok=True, **more):
        given = {"finetune_from_model": base_checkpoint, "from_scratch": None, "lr": 2e-2}
        given = {**given, "max_epoch": 7, **more}
        done = fairseq("train", *train_flags(hard_data, save_dir, **given))
        assert (done.returncode == 0) is ok, done.stderr
        return done.stdout if ok else done.stderr

    return run


def chosen(lines, metric):
    """Computed here from the lines alone: the last of the best."""
    sign = -1 if metric == "loss" else 1
    return max(lines, key=lambda at: (sign * at["subsets"]["valid"][metric], at["num_updates"]))


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
    curve = tensorboard(folder, f"{result['chosen_by']['metric']}/valid")
    assert curve == {
        at["num_updates"]: pytest.approx(at["subsets"]["valid"][result["chosen_by"]["metric"]])
        for at in metrics(folder)
    }
    assert curve[update] == pytest.approx(result["best_value"], abs=1e-6)
    assert tensorboard(folder, "final/best_update") == {update: update}


def tensorboard(folder, tag):
    """Step -> number of what TensorBoard shows; a step has one."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    scalars = events.Scalars(tag)
    assert len({event.step for event in scalars}) == len(scalars)
    return {event.step: event.value for event in scalars}


#: What fairseq does where neither flag is given: the lowest loss.
LOSS = {"best_checkpoint_metric": None, "maximize_best_checkpoint_metric": None}
CASES = {
    "accuracy": {},
    "macro_f1": {"best_checkpoint_metric": "macro_f1"},
    "f1_good": {"best_checkpoint_metric": "f1_good"},
    "neither flag": LOSS,
    "within the epoch": {"validate_interval_updates": 4, "best_checkpoint_metric": "macro_f1"},
    "every second epoch": {"validate_interval": 2},
    "a checkpoint every third epoch": {"save_interval": 3},
    "the two best, stopped early": {"keep_best_checkpoints": 2, "patience": 2},
    "the three best by mcc": {"keep_best_checkpoints": 3, "best_checkpoint_metric": "mcc"},
}


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", CASES)
def test_all_that_is_kept_is_of_one_validation(train, tmp_path, name):
    more = CASES[name]
    train(tmp_path / "run", **more)
    lines = metrics(tmp_path / "run")
    metric = "loss" if more is LOSS else more.get("best_checkpoint_metric", "accuracy")
    expected = chosen(lines, metric)
    print(name, [(at["num_updates"], round(at["subsets"]["valid"][metric], 3)) for at in lines])
    if "within" in name:
        assert expected["num_updates"] % 17  # not at the end of one
    if metric != "accuracy":  # else any of them could have chosen
        assert expected != chosen(lines, "accuracy")
    check(tmp_path / "run", expected)
    kept = {int(p.stem.split("_")[-1]) for p in (tmp_path / "run").glob("checkpoint.best_*.pt")}
    number = more.get("keep_best_checkpoints", 0)
    ranked = sorted(lines, key=lambda at: (at["subsets"]["valid"][metric], at["num_updates"]))
    assert kept == {at["num_updates"] for at in ranked[-number:] if number}


def without_times(line):
    return {
        name: {key: value for key, value in scores.items() if key != "seconds"}
        for name, scores in line["subsets"].items()
    }


@pytest.mark.end_to_end
@pytest.mark.parametrize("peft", ["lora", "full", "compacter"])
def test_test_may_be_evaluated_once_at_the_end(train, tmp_path, peft):
    """With the weights of the best validation, which is not the last. Nothing else changes: valid,
    the choice, the weights; the report has no best test epoch."""
    more = {"peft": peft, **LOSS, "max_epoch": 6, "lr": {"full": 3e-3}.get(peft, 3e-2)}
    logs = {name: train(tmp_path / name, eval_test=name, **more) for name in ("each", "best")}
    each, best = (metrics(tmp_path / name) for name in ("each", "best"))
    expected = chosen(each, "loss")
    print([(at["num_updates"], round(at["subsets"]["valid"]["loss"], 4)) for at in each])
    assert expected != each[-1] and len(each) == len(best)
    for one, two in zip(each, best):
        subsets = without_times(one)
        if one is not expected:
            subsets.pop("test")
        assert without_times(two) == subsets
    assert logs["best"].count("on 'test' subset") == logs["each"].count("on 'test' subset") / 6 > 0
    for name in ("each", "best"):
        check(tmp_path / name, expected)
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("each", "best")
    ]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    assert results[0]["best_test_epoch"] and results[1]["best_test_epoch"] is None
    folders = [adapter_folder.read(tmp_path / name / "adapter") for name in ("each", "best")]
    tensors = [found.tensors for found in folders]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    told = [found.description["metrics"] for found in folders]
    assert [without_times(found) for found in told] == [without_times(expected)] * 2
    shown = tensorboard(tmp_path / "best", "accuracy/test")
    assert list(shown) == [expected["num_updates"]]


@pytest.mark.end_to_end
def test_a_run_that_was_killed_before_its_test_makes_it_when_it_is_started_again(train, tmp_path):
    """No result is told of it in between, and nothing is trained."""
    folder = tmp_path / "run"
    train(folder, eval_test="best", max_epoch=3)
    lines = metrics(folder)
    expected = without_times(chosen(lines, "accuracy"))
    before = {path.name: path.read_bytes() for path in folder.glob("checkpoint*.pt")}
    for line in lines:
        line["subsets"].pop("test", None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["result", str(folder)]) != 0
    shutil.rmtree(folder / "adapter")  # the test writes it, too
    train(folder, eval_test="best", max_epoch=3)
    assert chosen(metrics(folder), "accuracy")["subsets"].keys() == {"valid", "test"}
    assert without_times(chosen(metrics(folder), "accuracy")) == expected
    assert before == {path.name: path.read_bytes() for path in folder.glob("checkpoint*.pt")}
    check(folder, chosen(metrics(folder), "accuracy"))


@pytest.mark.end_to_end
@pytest.mark.parametrize("more", [{"max_update": 40}, {"patience": 1}, {"stop_min_lr": 0}])
def test_however_training_ends_the_best_is_tested(train, tmp_path, more):
    """Where fairseq does not tell that it ends, at each new best."""
    train(tmp_path / "run", eval_test="best", **more)
    lines = metrics(tmp_path / "run")
    expected = chosen(lines, "accuracy")
    check(tmp_path / "run", expected)
    tested = [line for line in lines if "test" in line["subsets"]]
    so_far = Best(Choice())
    bests = [
        at for at in lines if so_far.offer(at["subsets"]["valid"]["accuracy"], at["num_updates"])
    ]
    assert tested == (bests if "stop_min_lr" in more else [expected]) and bests != [expected]


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flag", "limit", "more"),
    [
        ("max_update", 20, 21),  # within the second epoch
        ("patience", 1, 7),
        ("stop_time_hours", 1e-9, 0),
    ],
)
def test_a_run_that_has_ended_stays_as_it_is_when_it_is_started_again(
    train, tmp_path, flag, limit, more
):
    """fairseq would train an update more each time. With a larger limit it goes on."""
    folder = tmp_path / "run"
    given = {"max_epoch": 4, "eval_test": "best"}
    train(folder, **given, **{flag: limit})
    paths = [*folder.glob("*.pt"), *folder.glob("*.json*"), *folder.glob("adapter/*")]
    before = {path: path.read_bytes() for path in paths}
    said = train(folder, **given, **{flag: limit})
    assert "the run has ended: --" + flag.replace("_", "-") in said
    assert before == {path: path.read_bytes() for path in before}
    train(folder, **given, **{flag: more})
    assert len(metrics(folder)) > before[folder / "metrics.jsonl"].count(b"\n")


@pytest.mark.end_to_end
def test_a_test_of_other_weights_is_refused(train, tmp_path):
    folder = tmp_path / "run"
    train(folder, eval_test="best", max_epoch=3)
    lines = metrics(folder)
    chosen(lines, "accuracy")["subsets"].pop("test")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = torch.load(folder / "checkpoint_best.pt", weights_only=False)
    other["optimizer_history"][-1]["num_updates"] += 1
    torch.save(other, folder / "checkpoint_best.pt")
    refused = train(folder, ok=False, eval_test="best", max_epoch=3)
    assert "checkpoint_best.pt was written after" in refused and "Traceback" not in refused


@pytest.mark.end_to_end
def test_a_run_that_goes_on_decides_as_one_in_one_go(train, tmp_path):
    """Within the epoch, and with --patience, whose count fairseq forgets when it ends."""
    more = {"validate_interval_updates": 5, "patience": 4}
    train(tmp_path / "one", **more)
    train(tmp_path / "two", **more, max_epoch=1)
    train(tmp_path / "two", **more)
    lines = metrics(tmp_path / "one")
    assert lines[-1]["epoch"] < 7  # it stopped early
    updates = [[at["num_updates"] for at in metrics(tmp_path / name)] for name in ("one", "two")]
    assert updates[0] == updates[1]
    for name in ("one", "two"):
        check(
            tmp_path / name,
            chosen(lines, "accuracy")
            if name == "one"
            else chosen(metrics(tmp_path / name), "accuracy"),
        )
    refused = train(tmp_path / "two", ok=False, best_checkpoint_metric="mcc", max_epoch=9)
    assert "was the highest accuracy on valid so far" in refused


@pytest.mark.end_to_end
def test_a_run_whose_updates_would_be_counted_anew_does_not_go_on(train, tmp_path):
    """They tell its validations apart: the new update 17 would take the place of the old one."""
    folder = tmp_path / "run"
    train(folder, max_epoch=1, no_save_optimizer_state=True)
    before = (folder / "metrics.jsonl").read_bytes()
    refused = train(folder, ok=False, finetune_from_model=None, reset_optimizer=True)
    assert "cannot go on with --reset-optimizer" in refused and "another --save-dir" in refused
    refused = train(folder, ok=False)
    assert "without a state of the optimizer (--no-save-optimizer-state)" in refused
    assert "Traceback" not in refused and before == (folder / "metrics.jsonl").read_bytes()


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("flag", "limit", "more"), [("max_epoch", 2, 3), ("max_update", 20, 21), ("patience", 1, 9)]
)
def test_a_run_that_has_ended_needs_no_state_of_the_optimizer(train, tmp_path, flag, limit, more):
    """It says so, and makes the test that it may lack; only more of it is refused."""
    folder, given = tmp_path / "run", {"eval_test": "best", "no_save_optimizer_state": True}
    train(folder, **given, **{flag: limit})
    expected = metrics(folder)
    lines = json.loads(json.dumps(expected))
    chosen(lines, "accuracy")["subsets"].pop("test")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = [*folder.glob("*.pt"), folder / "run.json"]
    before = {path: path.read_bytes() for path in paths}
    said = train(folder, **given, **{flag: limit})
    assert f"the run has ended: --{flag.replace('_', '-')} {limit}" in said
    assert before == {path: path.read_bytes() for path in before}
    found = metrics(folder)
    assert list(map(without_times, found)) == list(map(without_times, expected))
    refused = train(folder, ok=False, **given, **{flag: more})
    assert "without a state of the optimizer (--no-save-optimizer-state)" in refused
    assert "Traceback" not in refused


@pytest.mark.end_to_end
def test_jobs_of_a_multirun_know_nothing_of_each_other(fairseq, hard_data, tmp_path):
    """fairseq keeps the best score, and how long it waits, in functions, from job to job."""
    words = [f"common.user_dir={PACKAGE}", "common.cpu=true", f"+task.data={hard_data}"]
    words += ["+task._name=sentence_classification", "+task.from_scratch=true"]
    words += ["+model._name=roberta_small_lora", "optimization.max_epoch=3"]
    words += [f"+model.{name}={value}" for name, value in TINY.items()]
    words += ["~criterion", "+criterion._name=sentence_classification"]
    words += ["+optimizer._name=peft_adamw", "optimization.lr=[0.02],[1e-7]"]
    words += ["dataset.batch_size=8", "dataset.valid_subset='valid,test'", "dataset.num_workers=0"]
    words += ["checkpoint.save_dir=run", "checkpoint.no_epoch_checkpoints=true"]
    words = ["--multirun", *words, "checkpoint.patience=1"]
    words += ["hydra.sweep.dir=jobs", "hydra.sweep.subdir=${hydra.job.num}"]
    done = fairseq("hydra-train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = sorted(path.parent for path in tmp_path.rglob("run.json"))
    assert len(jobs) == 2, list(tmp_path.rglob("*"))
    for job in jobs:
        check(job, chosen(metrics(job), "loss"))
