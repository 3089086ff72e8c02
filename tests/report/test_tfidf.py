"""The TF-IDF baseline: tuned on valid, measured on test, the same schema as a run."""

import json
import random

import pytest

from fairseq_peft.cli import main
from fairseq_peft.report import tfidf
from fairseq_peft.report.runs import find_runs

GOOD, BAD = ["superbe", "magnifique", "touchant"], ["ennuyeux", "lourd", "raté"]
NEUTRAL = ["livre", "auteur", "histoire", "page", "roman", "style", "fin"]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Two classes that words tell apart; a grid of two settings, so that a test takes no time."""
    monkeypatch.setattr(
        tfidf,
        "GRID",
        {"ngram_range": ((1, 1),), "min_df": (1,), "sublinear_tf": (True,), "C": (1.0, 10.0)},
    )
    rng, folder = random.Random(1), tmp_path / "raw"
    folder.mkdir()
    for split, size in {"train": 60, "valid": 20, "test": 40}.items():
        labels = [number % 2 for number in range(size)]
        texts = [
            " ".join(rng.choices(NEUTRAL, k=8) + [rng.choice(GOOD if label else BAD)])
            for label in labels
        ]
        (folder / f"{split}.review").write_text("\n".join(texts) + "\n", encoding="utf-8")
        (folder / f"{split}.label").write_text("".join(f"{label}\n" for label in labels))
    return folder


def test_result(raw, tmp_path):
    runs = tmp_path / "runs"
    assert main(["tfidf", str(raw), "--runs", str(runs), "--name", "mine"]) == 0
    (run,), _ = find_runs(runs)
    assert run.path == runs / "mine" / "baseline" / "tfidf" / "seed1"
    result = run.result
    assert result["test_accuracy"] == 1.0
    assert (result["data"], result["init"], result["method"]) == ("mine", "baseline", "tfidf")
    assert result["rows"] == {"train": 60, "valid": 20, "test": 40}
    assert result["trainable_parameters"] == len(GOOD + BAD + NEUTRAL) + 1  # and the bias
    assert result["method_config"]["C"] == 1.0  # both are perfect: the first wins
    assert result["best_test_accuracy"] is None and result["curve"] == []
    assert main(["report", str(runs)]) == 0


def test_test_has_no_say(raw, tmp_path):
    """Turning the labels of test around must not change what is chosen."""
    for name in ("one", "two"):
        assert main(["tfidf", str(raw), "--runs", str(tmp_path / "runs"), "--name", name]) == 0
        labels = (raw / "test.label").read_text()
        (raw / "test.label").write_text(labels.translate(str.maketrans("01", "10")))
    one, two = (run.result for run in find_runs(tmp_path / "runs")[0])
    assert one["method_config"] == two["method_config"]
    assert one["valid_accuracy"] == two["valid_accuracy"] == 1.0
    assert (one["test_accuracy"], two["test_accuracy"]) == (1.0, 0.0)


def test_drop_duplicates(raw, tmp_path):
    first = (raw / "test.review").read_text(encoding="utf-8").split("\n")[0]
    lines = (raw / "train.review").read_text(encoding="utf-8").split("\n")
    (raw / "train.review").write_text("\n".join([first, *lines[1:]]), encoding="utf-8")
    runs = tmp_path / "runs"
    command = ["tfidf", str(raw), "--runs", str(runs), "--drop-duplicates", "train"]
    assert main(command) == 0
    result = json.loads((runs / "raw/baseline/tfidf/seed1/result.json").read_text())
    assert result["rows"]["train"] == 59


def break_encoding(raw):
    (raw / "valid.review").write_bytes(b"bon\n\xe9t\xe9\n")


def break_counts(raw):
    (raw / "test.label").write_text("0\n1\n")


def break_label(raw):
    (raw / "test.label").write_text("2\n" * 40)


def break_classes(raw):
    (raw / "train.label").write_text("1\n" * 60)


def break_line(raw):
    text = (raw / "train.review").read_text(encoding="utf-8").split("\n", 1)[1]
    (raw / "train.review").write_text("  \n" + text, encoding="utf-8")


def break_file(raw):
    (raw / "test.review").unlink()


def break_words(raw):
    (raw / "train.review").write_text("! ?\n" * 60)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_encoding, "valid.review:2 is not UTF-8"),
        (break_counts, "40 lines"),
        (break_label, "'2'"),
        (break_classes, "one class"),
        (break_line, ":1"),
        (break_file, "test"),
        (break_words, "no words"),
    ],
)
def test_bad_input(raw, tmp_path, capsys, damage, said):
    damage(raw)
    runs = tmp_path / "runs"
    assert main(["tfidf", str(raw), "--runs", str(runs)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fairseq-peft tfidf: error: ") and said in error
    assert error.count("\n") == 1
    assert not runs.exists()


def test_no_folder(tmp_path, capsys):
    assert main(["tfidf", str(tmp_path / "no"), "--runs", str(tmp_path)]) == 1
    assert "is not a folder" in capsys.readouterr().err
