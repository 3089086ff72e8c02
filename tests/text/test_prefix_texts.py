"""``fairseq-peft prefix-texts``: titles found in another folder, and words that a model expects."""

from __future__ import annotations

import pytest

from fairseq_peft.cli import main


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def raw(tmp_path):
    return write(
        tmp_path / "raw",
        train_review=["J'ai aimé ce livre !", "Un autre livre", "Nul part ailleurs"],
        train_label=["1", "0", "0"],
        valid_review=["À lire"],
        valid_label=["a|b"],
        test_review=["Sans titre", "!!!"],
        test_label=["1", "0"],
    )


@pytest.fixture
def titled(tmp_path):
    return write(
        tmp_path / "titled",
        a_review=["J?ai  aimé ce livre!", "Nul part ailleurs", "...", "À lire"],
        a_headline=["Parfait", "Quoi ?", "signes", " "],
        b_review=["j'ai aimé ce livre", "à LIRE"],
        b_headline=["un second titre", "Oui…"],
    )


def prefixed(*words):
    return main(["prefix-texts", *map(str, words)])


def lines_of(folder, name):
    return (folder / name).read_text("utf-8").splitlines()


def test_titles_come_before_the_texts_they_belong_to(raw, titled, tmp_path, capsys):
    """Case, spaces and signs may differ, as they do in copies; the first title counts, an empty one
    does not; a text without words has none."""
    out = tmp_path / "out"
    assert prefixed(raw, out, "--titles", titled, "--prefix", "query: ") == 0
    assert lines_of(out, "train.review") == [
        "query: Parfait. J'ai aimé ce livre !",
        "query: Un autre livre",
        "query: Quoi ? Nul part ailleurs",
    ]
    assert lines_of(out, "valid.review") == ["query: Oui… À lire"]
    assert lines_of(out, "test.review") == ["query: Sans titre", "query: !!!"]
    for split in ("train", "valid", "test"):
        assert lines_of(out, f"{split}.label") == lines_of(raw, f"{split}.label")
    assert capsys.readouterr().out.splitlines() == [
        str(out),
        "train: 2 of 3 rows have a title",
        "valid: 1 of 1 rows have a title",
        "test: 0 of 2 rows have a title",
    ]


def test_refusals(raw, titled, tmp_path, capsys):
    out = tmp_path / "out"
    short = write(tmp_path / "short", a_review=["un", "deux"], a_headline=["Un"])
    uneven = write(tmp_path / "uneven", train_review=["un", "deux"], train_label=["1"])
    pairs = write(tmp_path / "pairs", train_review=["un"], train_review2=["x"], train_label=["1"])
    for words, said in (
        ((raw, out), "Nothing to put before the texts"),
        ((raw, out, "--titles", raw), "has no NAME.headline"),
        ((raw, out, "--titles", short), "has 2 lines"),
        ((uneven, out, "--prefix", "x"), "train.review has 2 lines, train.label 1"),
        ((pairs, out, "--prefix", "x"), "has pairs of texts"),
        ((tmp_path / "no", out, "--prefix", "x"), "has no train.review"),
        ((raw, titled, "--prefix", "x"), "exists. Give another name, or --force"),
    ):
        assert prefixed(*words) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not out.exists()
