"""scripts/compare.sh: what it gives to the baseline."""

import shutil

import pytest
from helpers import ROOT
from scripting import run_script

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(shutil.which("bash") is None, reason="no bash"),
]


def compare(tmp_path, **knobs):
    return run_script(ROOT / "scripts/compare.sh", "--dry-run", "runs", cwd=tmp_path, **knobs)


@pytest.mark.parametrize(
    ("raw", "name"),
    [("my.books/", "my.books"), ("my.books.tsv", "my.books"), ("books.jsonl.gz", "books")],
)
def test_the_baseline_reads_what_prepare_data_read(tmp_path, raw, name):
    (tmp_path / raw).mkdir() if raw.endswith("/") else (tmp_path / raw).touch()
    done = compare(tmp_path, RAW=raw, SEED="3", VALID_SHARE="0.2", LABEL_COLUMN="y")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if " tfidf " in line)
    assert line.endswith(f" --name {name} --label-column y --seed 3 --valid-share 0.2")


def test_the_baseline_is_told_what_a_row_has(tmp_path):
    (tmp_path / "books").mkdir()
    done = compare(tmp_path, RAW="books", KIND="labels", LABEL_SEPARATOR=";")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if " tfidf " in line)
    assert line.endswith(" --name books --kind labels --label-separator \\;")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"KIND": "labels"}, "do nothing without RAW"),
        ({"RAW": "no.tsv"}, "RAW='no.tsv' does not exist"),
        ({"TEST_SHARE": "0.2"}, "do nothing without RAW"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, knobs, said):
    done = compare(tmp_path, **knobs)
    assert done.returncode != 0 and said in done.stderr and done.stderr.count("\n") == 1
