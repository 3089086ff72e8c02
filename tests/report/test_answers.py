"""The confusion matrix of a row and the figures of its classes, in every form of the report."""

import csv
import json

import numpy as np
import pytest

from fairseq_peft.cli import main
from fairseq_peft.report.answers import Answers, per_class
from fairseq_peft.runs import predictions


def test_by_hand():
    target = np.array([0, 0, 0, 0, 1, 1])
    first = Answers(["bad", "good", "none"], target, np.array([0, 0, 1, 0, 1, 0]))
    # the same classes, numbered in another way: all good
    second = Answers(["good", "bad", "none"], 1 - target, np.array([0, 0, 0, 0, 0, 0]))
    bad, good, none = per_class([first, second])
    assert bad == {
        "class": "bad",
        "rows": 8,
        "precision": 3 / 4,
        "recall": 3 / 8,
        "f1": 6 / (8 + 4),
        "predicted_as": {"bad": 3, "good": 5},
    }
    assert good["predicted_as"] == {"bad": 1, "good": 3}
    assert (good["precision"], good["recall"], good["f1"]) == (3 / 8, 3 / 4, 6 / 12)
    assert none["rows"] == 0 and none["precision"] is none["recall"] is none["f1"] is None


def test_runs_that_name_other_classes_are_not_added():
    one = np.array([0])
    assert per_class([Answers(["a", "b"], one, one), Answers(["a", "c"], one, one)]) is None


@pytest.fixture
def many(make_run):
    """Five classes, one of them never found."""
    labels = ["a", "b", "c", "d", "e"]
    target = np.arange(2000) % 5
    predicted = np.where(target == 3, 1, target)
    predicted[:10] = 0
    right = int((target == predicted).sum())
    folder = make_run("lora", 1, [(300, right)], labels=labels)
    found = predictions.Predictions(epoch=1)
    found.add("test", target, predicted)
    predictions.write(folder / predictions.NAME, found)
    make_run("full", 1)
    return make_run.root


def test_every_form_has_the_classes(many, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["report", str(many), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    block = text.split("books: the 3 of 5 classes with the lowest F1 on test")[1].split("\n\n")[0]
    lines = [line.split() for line in block.splitlines() if line.startswith("pretrained")]
    assert [line[2] for line in lines] == ["a", "b", "d"]  # the weakest, in the order of the data
    assert lines[2][3:] == ["400", "-", "0.00", "0.00", "b", "99.50"]
    assert (
        "| pretrained | lora | d | 400 | - | 0.00 | 0.00 | b | 99.50 |"
        in (out / "report.md").read_text()
    )
    full, lora = json.loads((out / "report.json").read_text())
    assert full["classes"] is None
    assert lora["classes"][3]["predicted_as"] == {"a": 2, "b": 398}
    with (out / "report-classes.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == ["a", "b", "c", "d", "e"]
    assert json.loads(table[3]["predicted_as"]) == {"a": 2, "b": 398}
    assert float(table[0]["recall"]) == 1.0 and table[3]["precision"] == ""
