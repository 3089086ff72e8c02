"""docs/tutorial.md, as it stands, with two questions instead of twenty and a small base."""

from __future__ import annotations

import csv
import json
import os
import subprocess

import pytest
from helpers import ROOT
from pages import commands_of, files_of

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402

pytestmark = pytest.mark.end_to_end

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILES = files_of(PAGE)


@pytest.fixture
def course(tmp_path, python):
    """``course(text)``: commands of the page, in one shell, begun where the repository would be."""
    base = tmp_path / "quickstart" / "base"
    base.mkdir(parents=True)
    adapter_folders.write_base(base, FILES["course.py"].split("\n"), 150)
    (tmp_path / "course").mkdir()
    for name, content in FILES.items():
        content = content.replace(
            "QUESTIONS, MARKED, NEW = 20, 150, 20", "QUESTIONS, MARKED, NEW = 2, 80, 5"
        )
        (tmp_path / "course" / name).write_text(content, encoding="utf-8")
    functions = (
        f'python() {{ "{python}" -c "exec(open(\'$1\').read())"; }}\n'
        f'fairseq-peft() {{ "{python}" -m fairseq_peft.cli "$@"; }}\n'
    )

    def run(text):
        text = text.replace("bash scripts/", f"bash {ROOT}/scripts/")
        text = text.replace("quickstart.sh", "quickstart.sh --dry-run")
        for more, one in (('"1 2"', "1"), ('"5e-3 1e-2"', "5e-3"), ('"3e-3 1e-2"', "3e-3")):
            assert more in text  # a run of each cell of the sweep will do
            text = text.replace(more, one)
        text = text.replace("--epochs 20", "--epochs 2")
        return subprocess.run(
            ["bash", "-e", "-c", functions + text],
            cwd=tmp_path,
            env={
                **{**os.environ, "PYTHON": python, "FORK_SWEEPS": "1"},
                **{"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
            },
            capture_output=True,
            text=True,
        )

    return run


def test_the_page_has_its_files():
    assert list(FILES) == ["course.py", "split.py", "mark.py"]
    assert "QUESTIONS, MARKED, NEW = 20, 150, 20" in FILES["course.py"]


def test_from_a_table_to_classifiers_on_one_base(course, tmp_path):
    blocks = commands_of(PAGE)
    done = course("\n".join(line for lines, _ in blocks for line in lines))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (shown,) = (shown for _, shown in blocks if shown)
    assert "\n".join(shown) in done.stdout
    assert "of 10 as by hand, 2 classifiers on one base" in done.stdout

    here = tmp_path / "course"
    rows = json.loads((here / "report" / "report.json").read_text())
    assert [(row["data"], row["method"]) for row in rows] == [("q01", "lora"), ("q02", "lora")]
    with open(here / "marks.csv", encoding="utf-8", newline="") as file:
        marks = list(csv.DictReader(file))
    assert {row["question"] for row in marks} == {"q01", "q02"}
    assert {row["mark"] for row in marks} <= {"right", "wrong"}
    with open(here / "q01.csv", encoding="utf-8", newline="") as file:
        alone = {row["answer"]: row["prediction"] for row in csv.DictReader(file)}
    for row in marks:  # in company as alone
        assert row["question"] != "q01" or row["mark"] == alone[row["answer"]]
