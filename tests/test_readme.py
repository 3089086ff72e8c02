"""The runs by hand of README.md and docs/by-hand.md, as they stand there, on a small model."""

from __future__ import annotations

import json
import re
import shlex

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from helpers import PACKAGE, ROOT, TINY  # noqa: E402

from fairseq_peft import cli  # noqa: E402

pytestmark = pytest.mark.end_to_end


def commands(start):
    """The words of each command of the two pages that begins with ``start``."""
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/by-hand.md")]
    text = "\n".join(pages).replace("\\\n", " ")
    lines = re.findall(rf"^(?:    )?({re.escape(start)} .*)$", text, flags=re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture
def here(tmp_path, monkeypatch, data_folder, base_checkpoint):
    """The folder that the commands run in."""
    (tmp_path / "data-bin").mkdir()
    (tmp_path / "data-bin" / "cls-books").symlink_to(data_folder)
    (tmp_path / "fairseq_peft").symlink_to(PACKAGE)
    (tmp_path / "model.pt").symlink_to(base_checkpoint)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_by_hand_are_rows_of_one_report(here, fairseq, capsys):
    sizes = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", value)]
    (train,) = (words for words in commands("fairseq-train") if "--save-dir" in words)
    done = fairseq("train", *train, *sizes, "--cpu", cwd=here)
    assert done.returncode == 0, done.stderr
    (validate,) = commands("fairseq-validate")
    done = fairseq("validate", *validate, "--num-workers", 0, "--cpu", cwd=here)
    assert done.returncode == 0, done.stderr

    (hydra,) = commands("fairseq-hydra-train")
    hydra = [word.replace("$PWD", str(here)) for word in hydra]
    more = [f"+model.{name}={value}" for name, value in TINY.items()]
    done = fairseq("hydra-train", *hydra, *more, "common.cpu=true", cwd=here)
    assert done.returncode == 0, done.stderr

    (result,) = (words for words in commands("fairseq-peft") if words[0] == "result")
    (report,) = (w for w in commands("fairseq-peft") if w[0] == "report" and len(w) == 2)
    assert cli.main(result) == 0
    other = next(word for word in hydra if "save_dir" in word).split("=")[1]
    assert cli.main(["result", other]) == 0
    capsys.readouterr()
    assert cli.main([*report, "--out", "report"]) == 0
    rows = json.loads((here / "report" / "report.json").read_text())
    names = [(row["data"], row["init"], row["method"], row["seeds"]) for row in rows]
    assert names == [
        ("cls-books", "scratch", "lora", [1]),
        ("cls-books", "pretrained", "lora", [1]),
    ]
    assert all(row["metric"] == "accuracy" and row["classes"] for row in rows)
    assert "Left out" not in capsys.readouterr().out
    for words in commands("fairseq-peft"):
        if words[0] in ("inspect", "verify", "merge"):
            assert cli.main(words) == 0, words
