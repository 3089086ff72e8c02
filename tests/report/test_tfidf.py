"""The TF-IDF baseline: tuned on valid, measured on test, the same schema as a run."""

import json
import random

import pytest

from fairseq_peft.cli import main
from fairseq_peft.report import tfidf
from fairseq_peft.report.runs import find_runs
from fairseq_peft.runs import predictions
from fairseq_peft.text import bpe, corpus, raw_text

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


@pytest.mark.parametrize("split", ["valid", "test"])
def test_nothing_is_fitted_on_what_it_is_measured_on(raw, tmp_path, split):
    """Words that only valid or only test has, many times: they are in no vocabulary, and the words
    of train keep their weights."""
    command = ["tfidf", str(raw), "--runs", str(tmp_path / "runs"), "--name"]
    assert main([*command, "before"]) == 0
    path = raw / f"{split}.review"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line} page inconnu ailleurs\n" for line in lines), encoding="utf-8")
    assert main([*command, "after"]) == 0
    runs = {run.result["data"]: run.result for run in find_runs(tmp_path / "runs")[0]}
    before, after = runs["before"], runs["after"]
    assert after["trainable_parameters"] == len(GOOD + BAD + NEUTRAL) + 1
    # The vocabulary with its weights, and the classifier.
    assert after["task_bytes"] == before["task_bytes"]
    assert after["method_config"] == before["method_config"]
    assert after["rows"] == {"train": 60, "valid": 20, "test": 40}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_classifier_learns_from_the_labels_of_train_alone(raw, split):
    """Labels turned around in another split: the weights are the same to the last bit."""
    found = []
    for _ in range(2):
        data = tfidf.read_data(raw)
        best = tfidf._tune(data, {})
        found.append((best["vectorizer"], best["classifier"]))
        path = raw / f"{split}.label"
        path.write_text(path.read_text().translate(str.maketrans("01", "10")))
    (one, first), (other, second) = found
    assert one.vocabulary_ == other.vocabulary_ and (one.idf_ == other.idf_).all()
    assert (first.coef_ == second.coef_).all()


def test_drop_duplicates(raw, tmp_path):
    first = (raw / "test.review").read_text(encoding="utf-8").split("\n")[0]
    lines = (raw / "train.review").read_text(encoding="utf-8").split("\n")
    (raw / "train.review").write_text("\n".join([first, *lines[1:]]), encoding="utf-8")
    runs = tmp_path / "runs"
    command = ["tfidf", str(raw), "--runs", str(runs), "--drop-duplicates", "train"]
    assert main(command) == 0
    result = json.loads((runs / "raw/baseline/tfidf/seed1/result.json").read_text())
    assert result["rows"]["train"] == 59


@pytest.mark.parametrize("classes", [2, 3])
def test_drop_duplicates_that_leave_a_class_without_rows(raw, tmp_path, capsys, classes):
    """Refused as prepare-data does it, whether one class is left or more."""
    if classes == 3:
        for split in ("train", "valid"):
            for part, line in zip(PARTS, ("un roman moyen", "2")):
                with open(raw / f"{split}.{part}", "a") as file:
                    file.write(f"{line}\n")
    else:
        rows = list(zip(*((raw / f"train.{part}").read_text().splitlines() for part in PARTS)))
        held_out = [text for text, label in rows if label == "1"]
        for part, more in zip(PARTS, (held_out, ["1"] * len(held_out))):
            with open(raw / f"valid.{part}", "a") as file:
                file.write("".join(f"{line}\n" for line in more))
    runs = tmp_path / "runs"
    command = ["tfidf", str(raw), "--runs", str(runs), "--drop-duplicates", "train"]
    assert main(command) == 1
    label = "2" if classes == 3 else "1"
    assert f"--drop-duplicates leaves no row of {label} in train" in capsys.readouterr().err
    assert not runs.exists()


PARTS = ("review", "label")


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
    assert "does not exist" in capsys.readouterr().err


def as_rows(raw):
    for split in ("train", "valid", "test"):
        texts = (raw / f"{split}.review").read_text(encoding="utf-8").splitlines()
        labels = (raw / f"{split}.label").read_text().splitlines()
        yield from ((text, label, split) for text, label in zip(texts, labels))


def write_tsv(raw, path):
    lines = ["text\tlabel\tsplit", *("\t".join(row) for row in as_rows(raw))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_jsonl(raw, path):
    names = ("text", "label", "split")
    lines = [json.dumps(dict(zip(names, row))) for row in as_rows(raw)]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("kind", "write"), [("tsv", write_tsv), ("jsonl", write_jsonl)])
def test_a_file_is_read_as_its_folder(raw, tmp_path, kind, write):
    path, runs = tmp_path / f"my.books.{kind}", tmp_path / "runs"
    write(raw, path)
    for source in (raw, path):
        assert main(["tfidf", str(source), "--runs", str(runs)]) == 0
    folder, file = (
        json.loads((runs / name / "baseline/tfidf/seed1/result.json").read_text())
        for name in ("raw", "my.books")
    )
    for key in ("rows", "labels", "test_accuracy", "trainable_parameters", "task_bytes"):
        assert folder[key] == file[key]


def test_a_file_without_splits_is_split_as_for_training(raw, tmp_path):
    path = tmp_path / "books.tsv"
    lines = ["text\tlabel", *("\t".join(row[:2]) for row in as_rows(raw))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = corpus.read_corpus(path, seed=7, test_share=0.2)
    data = tfidf.read_data(path, reading={"seed": 7, "test_share": 0.2})
    assert data["test"][0] == [row.text for row in expected.rows["test"]]
    path.write_text(path.read_text(encoding="utf-8").replace("label", "mark", 1), encoding="utf-8")
    words = ["--seed", "7", "--test-share", "0.2", "--label-column", "mark"]
    assert main(["tfidf", str(path), "--runs", str(tmp_path / "runs"), *words]) == 0
    result = json.loads((tmp_path / "runs/books/baseline/tfidf/seed1/result.json").read_text())
    assert result["rows"] == {"train": 84, "valid": 12, "test": 24}


@pytest.fixture
def spm(raw, tmp_path):
    """A sentencepiece model of the words of ``raw``."""
    lines = 5 * (raw / "train.review").read_text(encoding="utf-8").splitlines()
    raw_text.train_tokenizer(lines, tmp_path, vocab_size=35)
    return tmp_path / raw_text.MODEL_NAME


def test_pieces_as_a_model_reads_them(raw, spm, tmp_path):
    """The word that tells the classes apart is the last: a text that is cut has lost it."""
    runs, given = tmp_path / "runs", ["--name", "mine", "--spm", str(spm)]
    for more in ([], ["--max-tokens", "5"]):
        assert main(["tfidf", str(raw), "--runs", str(runs), *given, *more]) == 0
    found = {run.result["method"]: run.result for run in find_runs(runs)[0]}
    assert set(found) == {"tfidf-pieces", "tfidf-pieces-5"}
    assert found["tfidf-pieces"]["test_accuracy"] == 1.0
    assert found["tfidf-pieces-5"]["test_accuracy"] < 0.8
    assert main(["report", str(runs)]) == 0
    text = "roman Ennuyeux touchant"
    whole = tfidf.Pieces(bpe.sentencepiece(spm))([text])[0].split(" ")
    assert "".join(whole).replace("▁", " ").strip() == text
    assert tfidf.Pieces(bpe.sentencepiece(spm), 5)([text])[0].split(" ") == whole[:3]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--max-tokens", "5"], "--max-tokens would be ignored"),
        (["--spm", "nowhere.model"], "nowhere.model does not exist"),
        (["--bpe", "none", "--max-tokens", "2"], "--max-tokens 2 leaves no piece"),
    ],
)
def test_bad_flags_of_pieces(raw, tmp_path, capsys, flags, said):
    assert main(["tfidf", str(raw), "--runs", str(tmp_path / "runs"), *flags]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def write_kind(folder, kind, separator="|"):
    """What the words of a text say: GOOD and BAD are labels of their own, or add to a number."""
    rng = random.Random(2)
    folder.mkdir()
    for split, size in {"train": 80, "valid": 30, "test": 40}.items():
        lines = ["text\tlabel"]
        for number in range(size):
            chosen = [name for bit, name in ((1, "good"), (2, "bad")) if number & bit]
            words = rng.choices(NEUTRAL, k=6) + [f"{split}{number}x"]
            words += [rng.choice(GOOD if name == "good" else BAD) for name in chosen]
            value = 3.0 + 1.5 * ("good" in chosen) - 2 * ("bad" in chosen)
            label = separator.join(chosen) if kind == "labels" else f"{value}"
            lines.append(" ".join(words) + f"\t{label}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("kind", "separator", "metric", "trained"),
    [("labels", "|", "micro_f1", 2), ("labels", ";", "micro_f1", 2), ("number", "|", "pearson", 1)],
)
def test_labels_and_numbers(raw, tmp_path, capsys, kind, separator, metric, trained):
    """Read as prepare-data reads them, chosen by what chooses a run, and shown by the same
    scores."""
    folder, runs = write_kind(tmp_path / "d", kind, separator), tmp_path / "runs"
    words = ["tfidf", str(folder), "--runs", str(runs), "--kind", kind]
    words += [] if separator == "|" else ["--label-separator", separator]
    assert main(words) == 0
    (run,), _ = find_runs(runs)
    result = run.result
    assert result["kind"] == kind and result["chosen_by"]["metric"] == metric
    assert result["labels"] == (["bad", "good"] if kind == "labels" else [])
    assert result["best_value"] > 0.95 and result[f"test_{metric}"] > 0.95
    assert (result["test_accuracy"] is None) == (kind == "number")
    vocabulary = len(GOOD + BAD + NEUTRAL) + 80
    assert result["trainable_parameters"] == trained * (vocabulary + 1)
    found = predictions.read(run.path / predictions.NAME)
    target, predicted = found.target["test"], found.predicted["test"]
    assert target.shape == predicted.shape == ((40, 2) if kind == "labels" else (40,))
    capsys.readouterr()
    assert main(["report", str(runs)]) == 0
    told = capsys.readouterr().out
    titles = {"labels": "d: F1 of labels", "number": "d: correlation and error"}
    assert titles[kind] in told and "macro-F1 and MCC" not in told


def test_a_label_that_all_rows_of_train_have(tmp_path, raw):
    folder = write_kind(tmp_path / "d", "labels")
    for path in folder.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([lines[0], *(f"{line}|all" for line in lines[1:])]) + "\n")
    assert main(["tfidf", str(folder), "--runs", str(tmp_path / "runs"), "--kind", "labels"]) == 0
    (run,), _ = find_runs(tmp_path / "runs")
    assert run.result["labels"] == ["all", "bad", "good"]
    found = predictions.read(run.path / predictions.NAME)
    assert found.predicted["test"][:, 0].all() and run.result["test_micro_f1"] > 0.95


def test_kinds_of_one_data_set_have_tables_of_their_own(raw, tmp_path, capsys):
    """A baseline of one class a row beside runs with labels: two things, not two methods."""
    folder, runs = write_kind(tmp_path / "d", "labels"), tmp_path / "runs"
    assert main(["tfidf", str(folder), "--runs", str(runs), "--kind", "labels"]) == 0
    (runs / "d/baseline/tfidf").rename(runs / "d/baseline/of-labels")
    path = runs / "d/baseline/of-labels/seed1/result.json"
    path.write_text(path.read_text().replace('"method": "tfidf"', '"method": "of-labels"'))
    assert main(["tfidf", str(raw), "--runs", str(runs), "--name", "d"]) == 0
    capsys.readouterr()
    assert main(["report", str(runs)]) == 0
    told = capsys.readouterr().out
    for title in ("d (labels): F1 of labels", "d (classes): macro-F1 and MCC"):
        assert title in told
    table = told[told.index("d (labels): F1 of labels") :].split("\n\n")[0]
    assert "of-labels" in table and "tfidf" not in table


def test_a_separator_that_would_be_ignored(raw, tmp_path, capsys):
    words = ["tfidf", str(raw), "--runs", str(tmp_path / "runs"), "--label-separator", ";"]
    assert main(words) == 1
    assert "--label-separator has no effect with --kind classes" in capsys.readouterr().err
