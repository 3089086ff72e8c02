"""Figures about a data set, on cases small enough to count by hand."""

import os
from pathlib import Path

import pytest

from fairseq_peft.errors import InputError
from fairseq_peft.text import checks
from fairseq_peft.text.corpus import Corpus, Row, read_corpus

SHARED = Path(os.environ.get("FAIRSEQ_PEFT_SHARED") or Path(__file__).parents[3] / "shared")


@pytest.fixture
def corpus():
    return Corpus(
        {
            "train": [Row("a", "0"), Row("b", "1"), Row("a ", "0"), Row("c", "1"), Row("d", "0")],
            "valid": [Row("c", "0"), Row("e", "0")],
            "test": [Row("a", "0"), Row(" a", "0"), Row("e", "0"), Row("f", "1")],
        }
    )


def test_duplicates(corpus):
    assert checks.duplicates(corpus) == {
        "test_in_train": {"texts": 1, "rows": 2, "other_label": 0},
        "valid_in_train": {"texts": 1, "rows": 1, "other_label": 1},
        "test_in_valid": {"texts": 1, "rows": 1, "other_label": 0},
    }


def test_pairs_are_duplicates_only_together():
    corpus = Corpus({"train": [Row("a", "0", "b")], "valid": [Row("a", "0", "c")]})
    assert checks.duplicates(corpus)["valid_in_train"]["texts"] == 0


def test_drop_duplicates_touches_train_only_and_keeps_labels(corpus):
    dropped = checks.drop_duplicates(corpus)
    assert dropped.rows["train"] == [Row("b", "1"), Row("d", "0")]
    assert dropped.rows["valid"] == corpus.rows["valid"]
    assert dropped.rows["test"] == corpus.rows["test"]
    assert len(corpus.rows["train"]) == 5


def test_split_statistics():
    rows = [Row("x", "0"), Row("x", "1"), Row("y", "1"), Row("z", "1")]
    tokens = [[["a"] * 6], [["a"] * 7], [["a", "?"]], [["b"]]]
    assert checks.split_statistics(rows, tokens, {"a", "b"}, max_positions=8) == {
        "rows": 4,
        "labels": {"0": 1, "1": 3},
        "repeated_rows": 1,
        "tokens": 16,
        "length_mean": 4.0,
        "length_median": 4.0,
        "length_p95": 7,
        "length_max": 7,
        "truncated_rows": 1,
        "truncated_share": 0.25,
        "unknown_tokens": 1,
        "unknown_share": 1 / 16,
    }
    assert checks.frequent_unknown(tokens, {"b"}) == [["a", 14], ["?", 1]]


def test_p95_is_the_smallest_length_that_covers_95_per_cent():
    rows = [Row(str(n), "0") for n in range(1, 101)]
    tokens = [[["a"] * n] for n in range(1, 101)]
    assert checks.split_statistics(rows, tokens, {"a"}, 256)["length_p95"] == 95


def test_pairs_have_four_special_tokens():
    row = [Row("x", "0", "y")]
    for length, truncated in ((4, 0), (5, 1)):
        tokens = [[["a"] * 2, ["a"] * (length - 2)]]
        assert checks.split_statistics(row, tokens, {"a"}, 8)["truncated_rows"] == truncated


@pytest.mark.skipif(not (SHARED / "data/cls-books").is_dir(), reason="needs ../shared")
def test_cls_books_has_the_duplicates_its_readme_speaks_of():
    corpus = read_corpus(SHARED / "data/cls-books")
    found = checks.duplicates(corpus)
    assert found["test_in_train"]["texts"] == 43
    assert found["valid_in_train"]["texts"] == 13
    dropped = checks.drop_duplicates(corpus)
    assert checks.duplicates(dropped)["test_in_train"]["texts"] == 0
    assert {split: len(rows) for split, rows in corpus.rows.items()} == {
        "train": 1600,
        "valid": 400,
        "test": 2000,
    }


def test_odd_labels_are_said():
    splits = {
        "train": {"labels": {"0.5": 3, "1.5": 1, "2": 4}},
        "valid": {"labels": {"2": 4}},
    }
    decimals, single, missing = checks.label_warnings(splits)
    assert "2 labels are decimals (0.5, 1.5)" in decimals
    assert "1 classes have one row in train (1.5)" in single
    assert "2 classes have no row in valid (0.5, 1.5)" in missing
    assert checks.label_warnings({"train": {"labels": {"a": 2, "b.5": 2}}}) == []


@pytest.mark.parametrize(
    ("kind", "labels", "said"),
    [
        ("classes", ("b", "c", "a"), "leaves no row of b in train"),
        ("labels", ("b a", "a", "a"), "leaves no row of b in train"),
        ("number", ("1.0", "2.0", "2.0"), "leaves equal numbers alone in train"),
    ],
)
def test_what_no_row_is_left_of_is_refused(kind, labels, said):
    """The first row of train is in valid, too."""
    train = [Row(text, label) for text, label in zip(("one", "two", "three"), labels)]
    rows = {"train": train, "valid": [Row("one", labels[0])]}
    with pytest.raises(InputError, match=said):
        checks.drop_duplicates(Corpus(rows, kind=kind))
    rows["valid"] += train[1:]
    with pytest.raises(InputError, match="--drop-duplicates leaves no row in train"):
        checks.drop_duplicates(Corpus(rows, kind=kind))
