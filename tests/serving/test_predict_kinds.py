"""Rows with any number of labels, or a number, from raw text to predictions, as validation made."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from helpers import train_flags
from prediction import lines_of

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

from fairseq_peft import Classifier, cli, scores  # noqa: E402
from fairseq_peft.runs import predictions  # noqa: E402

FLAGS = {"max_epoch": 4, "arch": "roberta_small_lora", "lr": 2e-2, "from_scratch": None}


@pytest.fixture(scope="module")
def runs(prepare, raw_folder, base, fairseq, data, tmp_path_factory):
    """kind -> (raw table of test, data, run) on the texts of ``raw_folder``, and its dictionary."""
    folder, found = tmp_path_factory.mktemp("kinds"), {}
    for kind, metric in ((scores.LABELS, "macro_f1"), (scores.NUMBER, "pearson")):
        raw = folder / f"raw-{kind}"
        raw.mkdir()
        for split in ("train", "valid", "test"):
            texts = lines_of(raw_folder / f"{split}.review")
            labels = lines_of(raw_folder / f"{split}.label")
            with open(raw / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(["note", "avis"])
                for i, (text, label) in enumerate(zip(texts, labels)):
                    names = "|".join([label] * (i % 5 > 0) + [" long "] * (len(text) > 60))
                    number = len(text) / 50 + (label == "good")
                    rows.writerow([names if kind == scores.LABELS else number, text])
        flags = ["--text-column", "avis", "--label-column", "note", "--kind", kind]
        flags += ["--spm", data / "sentencepiece.bpe.model", "--dict", data / "dict.txt"]
        made = prepare(raw, folder / kind, *flags)
        words = {**FLAGS, "finetune_from_model": base, "best_checkpoint_metric": metric}
        done = fairseq("train", *train_flags(made, folder / f"run-{kind}", **words))
        assert done.returncode == 0, done.stderr
        run = folder / f"run-{kind}"
        assert cli.main(["result", str(run)]) == 0
        found[kind] = (raw / "test.csv", made, run)
    return found


def texts_of(table):
    with open(table, newline="", encoding="utf-8") as file:
        return [row["avis"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("whole", [False, True], ids=["folder", "checkpoint"])
def test_it_is_what_validation_predicted(runs, base, whole):
    for kind, (table, _, run) in runs.items():
        told = predictions.read(run / predictions.NAME).predicted["test"]
        if whole:
            classifier = Classifier.load(run / "checkpoint_best.pt")
        else:
            classifier = Classifier.load(base, run / "adapter")
        assert classifier.kind == kind
        found = classifier.predict(texts_of(table))
        if kind == scores.NUMBER:
            np.testing.assert_allclose([row.value for row in found], told, atol=1e-5)
            continue
        names = classifier.labels
        assert names == ["bad", "good", "long"] and {row.label for row in found} != {""}
        for row, line in zip(found, told):
            expected = [name for name, yes in zip(names, line) if yes]
            assert row.label == "|".join(expected)
            each = [p if name in expected else 1 - p for name, p in row.probabilities.items()]
            assert row.probability == pytest.approx(np.prod(each))
            assert all((p > 0.5) == (name in expected) for name, p in row.probabilities.items())


def test_both_on_one_base_in_one_batch(runs, base, train):
    classifier = Classifier.load(base, train("lora") / "adapter")
    for kind, (_, _, run) in runs.items():
        classifier.add(kind, run / "adapter")
    texts = texts_of(runs[scores.LABELS][0])[:9]
    names = ["default", *runs] * 3
    found = classifier.predict(texts, adapter=names)
    for text, name, row in zip(texts, names, found):
        alone = classifier.predict([text], adapter=name)[0]
        if name == scores.NUMBER:
            assert row.value == pytest.approx(alone.value, abs=1e-5)
        else:
            assert row.label == alone.label


def test_the_command_writes_them(runs, base, tmp_path, capfd):
    for kind, (table, _, run) in runs.items():
        words = ["predict", "--base", str(base), "--adapter", str(run / "adapter")]
        out = tmp_path / f"{kind}.csv"
        more = ["--text-column", "avis", "--out", str(out)]
        assert cli.main([*words, *more, str(table)]) == 0
        with open(out, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        new = ["prediction"] + ["probability"] * (kind == scores.LABELS)
        assert list(rows[0]) == ["note", "avis", *new] and len(rows) == 21
        lines = tmp_path / "lines.txt"
        lines.write_text("\n".join(texts_of(table)), encoding="utf-8")
        capfd.readouterr()
        assert cli.main([*words, str(lines)]) == 0
        shown = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
        assert [line[0] for line in shown] == [row["prediction"] for row in rows]
        assert {len(line) for line in shown} == {len(new)}
        assert cli.main([*words, "--format", "jsonl", str(lines)]) == 0
        first = json.loads(capfd.readouterr().out.splitlines()[0])
        assert list(first) == (
            ["value"] if kind == scores.NUMBER else ["label", "probability", "probabilities"]
        )


def test_merged_into_a_plain_checkpoint(runs, base, tmp_path):
    for kind, (table, made, run) in runs.items():
        merged = tmp_path / f"{kind}.pt"
        words = ["merge", str(run / "adapter"), str(merged), "--base", str(base)]
        assert cli.main(words) == 0
        task = torch.load(merged, weights_only=True)["cfg"]["task"]
        assert task["regression_target"] is (kind == scores.NUMBER)
        texts = texts_of(table)
        found = Classifier.load(merged, data=made).predict(texts)
        expected = Classifier.load(base, run / "adapter").predict(texts)
        if kind == scores.NUMBER:
            np.testing.assert_allclose(
                [row.value for row in found], [row.value for row in expected], atol=1e-5
            )
        else:
            assert found.labels == expected.labels


def test_the_report_has_their_scores(runs, tmp_path, capfd):
    root = runs[scores.LABELS][2].parent
    assert cli.main(["report", str(root), "--out", str(tmp_path / "report")]) == 0
    text = capfd.readouterr().out
    for word in ("correlation and error", "Pearson", "Spearman", "micro-F1", "F1 of labels"):
        assert word in text
    rows = json.loads((tmp_path / "report" / "report.json").read_text())
    by_kind = {row["kind"]: row for row in rows}
    assert by_kind[scores.NUMBER]["test_accuracy_mean"] is None
    assert -1 <= by_kind[scores.NUMBER]["test_pearson_mean"] <= 1
    assert [one["class"] for one in by_kind[scores.LABELS]["classes"]] == ["bad", "good", "long"]
    assert (tmp_path / "report" / "number-pearson.png").is_file()


def test_what_a_table_must_hold(raw_folder, tmp_path, capsys):
    def refused(kind, lines, *more):
        path = tmp_path / "data.csv"
        path.write_text("text,label,split\n" + "".join(f"{line}\n" for line in lines))
        words = ["prepare-data", str(path), str(tmp_path / "out"), "--kind", kind, *more]
        assert cli.main(words) == 1
        return capsys.readouterr().err

    train = ["a,1.5,train", "b,2.5,train", "c,2,valid"]
    assert "'2;5' is no number. Expected one such as 3.5" in refused(
        "number", [*train, "d,2;5,test"]
    )
    assert "all numbers of train are equal" in refused(
        "number", ["a,1,train", "b,1.0,train", *train[2:]]
    )
    assert "no row of train has a label" in refused("labels", ["a,,train", "b,|,train", "c,,valid"])
    assert "the label 'z' of valid never occurs in train" in refused(
        "labels", ["a,x|y,train", "b,,train", "c,z,valid"]
    )
    assert "--label-separator has no effect with --kind number" in refused(
        "number", train, "--label-separator", ";"
    )
    assert not (tmp_path / "out").exists()
