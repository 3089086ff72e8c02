"""``fairseq-peft table-columns``: a table's columns as files with a text a line."""

from __future__ import annotations

import lzma

import pytest

from fairseq_peft.cli import main

TABLE = (
    "article\tabstract\ttitle\n"
    "Un long texte.\tCourt\tA\nUn  autre.\tBref « ici »\tB\nFin.\tOui\tC\n"
)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "train.tsv.xz"
    path.write_bytes(lzma.compress(TABLE.encode()))
    return path


def test_line_n_of_every_column_is_row_n(table, tmp_path, capsys):
    prefix = tmp_path / "raw" / "train.first"
    words = ["--columns", "article,abstract", "--rows", "2"]
    assert main(["table-columns", str(table), str(prefix), *words]) == 0
    assert (tmp_path / "raw/train.first.article").read_text(
        "utf-8"
    ) == "Un long texte.\nUn autre.\n"
    assert (tmp_path / "raw/train.first.abstract").read_text("utf-8") == "Court\nBref « ici »\n"
    assert not (tmp_path / "raw/train.first.title").exists()
    assert capsys.readouterr().out.count("2 rows") == 2


def test_line_breaks_become_spaces(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\ntwo\\u2028three"}\n{"text": "four"}\n', encoding="utf-8")
    assert main(["table-columns", str(path), str(tmp_path / "a"), "--columns", "text"]) == 0
    assert (tmp_path / "a.text").read_text("utf-8") == "one two three\nfour\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--columns", "article,summary"], "'summary'"),
        (["--columns", "article", "--rows", "0"], "--rows 0"),
        (["--columns", "article,"], "--columns has ''"),
        (["--columns", "../article"], "'../article'"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(table, tmp_path, capsys, words, said):
    assert main(["table-columns", str(table), str(tmp_path / "out"), *words]) != 0
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not list(tmp_path.glob("out*"))


def test_an_empty_text_is_told_by_its_line(tmp_path, capsys):
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\nx\ty\nz\t \n", encoding="utf-8")
    assert main(["table-columns", str(path), str(tmp_path / "out"), "--columns", "a,b"]) != 0
    assert "a.tsv:3: b is empty" in capsys.readouterr().err
    assert not (tmp_path / "out.a").exists()
