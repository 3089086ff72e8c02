"""Rows with any number of labels, or with a number: training, choice, resume, checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import train_flags
from kinds import LABELS, write_labels, write_numbers
from runs import metrics, validate_flags, validated

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq_peft import cli, scores  # noqa: E402
from fairseq_peft.criterions import kinds  # noqa: E402
from fairseq_peft.data import checks, targets  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.runs import predictions  # noqa: E402
from fairseq_peft.runs.choice import choice  # noqa: E402
from fairseq_peft.text.kinds import kind_of  # noqa: E402

# ---- Scores --------------------------------------------------------------------------------------


def test_scores_of_labels_are_those_of_scikit_learn():
    metrics_of = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    target, predicted = rng.integers(0, 2, (2, 40, 5))
    predicted[:9] = target[:9]
    pairs = ((predicted[:7], target[:7]), (predicted[7:], target[7:]))
    counts = sum(kinds.Labels.counts(torch.tensor(p), torch.tensor(t), 5) for p, t in pairs)
    rows = counts.tolist()
    correct, examples, _ = (row.pop() for row in rows)
    found = scores.from_label_counts(*rows, correct, examples)
    assert found["num_examples"] == 40
    assert found["accuracy"] == metrics_of.accuracy_score(target, predicted)
    for name in ("micro", "macro"):
        expected = metrics_of.f1_score(target, predicted, average=name)
        assert found[f"{name}_f1"] == pytest.approx(expected, abs=1e-12)


def test_nothing_to_find_and_nothing_found_is_right():
    found = scores.from_label_counts([0, 0], [0, 0], [0, 0], 3, 3)
    assert (found["accuracy"], found["micro_f1"], found["macro_f1"]) == (1, 1, 1)


def test_scores_of_numbers_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    target = rng.integers(0, 9, 50) + 2000.0  # ties, and far from 0
    predicted = (target + rng.normal(size=50)).round(1)
    found = scores.of_numbers(predicted, target)
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, target)[0], abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, target)[0], abs=1e-12)
    assert found["mse"] == pytest.approx(((predicted - target) ** 2).mean(), abs=1e-12)
    pairs = ((predicted[:9], target[:9]), (predicted[9:], target[9:]))
    counts = sum(kinds.Number.counts(torch.tensor(p), torch.tensor(t), 1) for p, t in pairs)
    summed = scores.from_sums(*counts.tolist())
    assert summed["num_examples"] == 50
    for name in ("pearson", "mse"):
        assert summed[name] == pytest.approx(found[name], abs=1e-6)


@pytest.mark.parametrize("value", [3.0, 0.1, 0.0, 1e8 + 0.1])
def test_equal_numbers_correlate_with_nothing(value):
    target, numbers = np.array([1.0, 2.0, 4.0]), np.full(3, value)
    found = scores.of_numbers(numbers, target)
    assert (found["pearson"], found["spearman"]) == (0, 0)
    counts = kinds.Number.counts(torch.tensor(numbers), torch.tensor(target), 1)
    assert scores.from_sums(*counts.tolist())["pearson"] == 0


# ---- What is refused -----------------------------------------------------------------------------


def test_what_chooses_belongs_to_the_kind():
    subsets = ["valid"]
    assert choice("pearson", True, subsets, ["number"], scores.NUMBER).maximize
    assert not choice("mse", False, subsets, ["number"], scores.NUMBER).maximize
    assert choice("f1_bad", True, subsets, LABELS, scores.LABELS).f1_class == "bad"
    for kind, metric, said in (
        (scores.NUMBER, "accuracy", "expected pearson, spearman, mse, loss. Give one, such as"),
        (scores.LABELS, "mcc", "expected micro_f1, macro_f1, accuracy, loss or f1_<class>"),
        (scores.CLASSES, "pearson", "expected accuracy, macro_f1, mcc, loss or f1_<class>"),
    ):
        with pytest.raises(InputError, match=said):
            choice(metric, True, subsets, LABELS, kind)
    with pytest.raises(InputError, match="would keep the epoch of the highest mse"):
        choice("mse", True, subsets, ["number"], scores.NUMBER)


def test_bad_folders_are_refused(dictionary, tmp_path):
    folder = write_numbers(tmp_path / "numbers")
    path = folder / "label" / "valid.label"
    text = path.read_text()

    def load():
        return checks.load_split(str(folder), "valid", dictionary, ["number"], scores.NUMBER)

    assert len(load()[1]) == text.count("\n")
    path.write_text(text.replace("\n", "\nmuch\n", 1))
    with pytest.raises(InputError, match="valid.label:2: 'much' is no number"):
        load()
    path.write_text(text + "1\n")
    with pytest.raises(InputError, match="21 rows in input0 and 22 in label"):
        load()
    path.unlink()
    with pytest.raises(InputError, match="has no split 'valid'"):
        load()
    (folder / "kind.txt").write_text("regression")
    with pytest.raises(InputError, match="says 'regression'; expected one of classes, labels"):
        kind_of(folder)


# ---- Runs ----------------------------------------------------------------------------------------

CHOSEN = {scores.LABELS: "micro_f1", scores.NUMBER: "spearman"}


@pytest.fixture(scope="module", params=[scores.LABELS, scores.NUMBER])
def trained(request, fairseq, tmp_path_factory, base_checkpoint):
    """(kind, data, run in one go, the same run interrupted and resumed)."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = {scores.LABELS: write_labels, scores.NUMBER: write_numbers}[kind](folder / "data")
    flags = {"finetune_from_model": base_checkpoint, "from_scratch": None, "lr": 2e-2}
    flags |= {"best_checkpoint_metric": CHOSEN[kind], "arch": "roberta_small_lora"}
    for name, epochs in (("one", 6), ("two", 3), ("two", 6)):
        done = fairseq("train", *train_flags(data, folder / name, **flags, max_epoch=epochs))
        assert done.returncode == 0, done.stderr
    return kind, data, folder / "one", folder / "two"


def of_one_go(lines):
    keep = ("epoch", "num_updates", "subsets")
    found = [{key: line[key] for key in keep} for line in lines]
    for line in found:
        for subset in line["subsets"].values():
            subset.pop("seconds")
    return found


@pytest.mark.end_to_end
def test_a_run_learns_and_a_resumed_one_is_the_same(trained):
    kind, _, one, two = trained
    lines = metrics(one)
    values = [line["subsets"]["valid"][CHOSEN[kind]] for line in lines]
    print(kind, values)
    assert max(values) > 0.4 and len(lines) == 6
    assert of_one_go(lines) == of_one_go(metrics(two))


@pytest.mark.end_to_end
def test_scores_are_those_of_the_predictions(trained):
    kind, data, run, _ = trained
    assert cli.main(["result", str(run)]) == 0
    result = json.loads((run / "result.json").read_text())
    metric = CHOSEN[kind]
    best = max(metrics(run), key=lambda at: (at["subsets"]["valid"][metric], at["num_updates"]))
    assert result["kind"] == kind and result["best_update"] == best["num_updates"]
    assert result["best_value"] == pytest.approx(best["subsets"]["valid"][metric], abs=1e-6)
    found = predictions.read(run / predictions.NAME)
    target, predicted = found.target["test"], found.predicted["test"]
    at_best = best["subsets"]["test"]
    if kind == scores.NUMBER:
        expected = [float(x) for x in (data / "label" / "test.label").read_text().split()]
        assert target.tolist() == pytest.approx(expected)
        assert result["test_accuracy"] is None and result["valid_accuracy"] is None
        for name, value in scores.of_numbers(predicted, target).items():
            assert at_best[name] == pytest.approx(value, abs=1e-6)
    else:
        assert target.shape == (21, 3) and target.sum(1).min() == 0
        right = (target == predicted).all(1)
        assert at_best["num_correct"] == right.sum()
        assert result["test_accuracy"] == at_best["accuracy"] == right.mean()
        hits = 2 * (target & predicted).sum() / (target.sum() + predicted.sum())
        assert result["test_micro_f1"] == at_best["micro_f1"] == pytest.approx(hits)


@pytest.mark.end_to_end
def test_validate_says_the_same(trained, fairseq):
    kind, data, run, _ = trained
    words = validate_flags(data, run / "checkpoint_last.pt", "test")
    done = fairseq("validate", *words)
    assert done.returncode == 0, done.stderr
    found = validated(done.stdout)["test"]
    last = metrics(run)[-1]["subsets"]["test"]
    names = ("pearson", "mse") if kind == scores.NUMBER else ("micro_f1", "macro_f1", "accuracy")
    for name in names:
        assert found[name] == pytest.approx(last[name], abs=2e-5)


@pytest.mark.end_to_end
def test_a_checkpoint_of_another_kind_is_refused(trained, fairseq, data_folder, tmp_path):
    kind, _, run, _ = trained
    flags = {"finetune_from_model": run / "checkpoint_last.pt", "from_scratch": None}
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", **flags, max_epoch=1))
    assert done.returncode != 0
    said = f"has a class a row, the checkpoint was trained on {targets.DESCRIBED[kind]}"
    assert said in done.stderr + done.stdout
