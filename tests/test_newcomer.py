"""The path of a newcomer, as README.md has it: an own CSV, prepared, a sweep with early stopping
that is interrupted, goes on and is extended, the report, and new rows classified."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
from runs import metrics  # noqa: E402

from fairseq_peft.runs.log import valid_lines  # noqa: E402

pytestmark = pytest.mark.end_to_end

SUBJECTS = ["ce roman", "la fin", "l'intrigue", "le héros", "cette édition", "la traduction"]
WORDS = {
    "positif": ["magnifique", "émouvant", "très réussi", "à lire", "passionnant"],
    "négatif": ["ennuyeux", "raté", "sans intérêt", "décevant", "mal écrit"],
}


def reviews(number, seed):
    """(text, opinion) pairs, with what a table has to quote."""
    rng = random.Random(seed)
    for i in range(number):
        opinion = ("positif", "négatif")[i % 2]
        parts = [f"{rng.choice(SUBJECTS)} est {rng.choice(WORDS[opinion])}" for _ in range(3)]
        yield f'N° {i}: {parts[0]}, {parts[1]}\n« {parts[2]} », dit-on; "oui"', opinion


def block():
    """README's commands from an own CSV to labels, as one script."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("### From your own table to labels")[1].split("\n#")[0]
    return "\n".join(re.findall(r"^    (.*)$", section, flags=re.MULTILINE))


@pytest.fixture
def here(tmp_path, python):
    """A folder with the newcomer's files: two tables, and a checkpoint with what it reads with."""

    rows = list(reviews(240, seed=1))
    with open(tmp_path / "avis.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, quoting=csv.QUOTE_ALL)
        table.writerow(["id", "date", "avis", "opinion", "étoiles"])
        for i, (text, opinion) in enumerate(rows):
            table.writerow([i, "2024-01-31", text, opinion, i % 5 + 1])
    with open(tmp_path / "new.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["numéro", "avis"])
        table.writerows([f"n{i}", text] for i, (text, _) in enumerate(reviews(7, seed=2)))
    adapter_folders.write_base(tmp_path, [text.replace("\n", " ") for text, _ in rows], 120)
    command = tmp_path / "bin" / "fairseq-peft"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} -m fairseq_peft.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def start(here, text, **environment):
    """``text`` as a script of bash, in a session of its own."""
    text = text.replace("fairseq-peft sweep ", "fairseq-peft sweep --threads 1 ")
    for rate in ("lora=1e-3", "head_only=3e-3"):  # too low for so small a model
        assert rate in text or "sweep" not in text
        text = text.replace(rate, rate.split("=")[0] + "=3e-2")
    path = f"{here / 'bin'}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-ec", text],
        cwd=here,
        env={
            **{**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(here)},
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_from_an_own_table_to_labels(here):
    lines = block().replace("\\\n", " ").splitlines()
    assert len(block().splitlines()) <= 10
    begin = next(i for i, line in enumerate(lines) if line.startswith("fairseq-peft sweep"))
    stopped = start(here, "\n".join(lines[: begin + 1]))
    deadline = time.monotonic() + 200
    while not list(here.rglob("metrics.jsonl")):  # the first run has an epoch
        assert stopped.poll() is None and time.monotonic() < deadline, stopped.communicate()
        time.sleep(0.05)
    os.killpg(stopped.pid, signal.SIGINT)
    printed = stopped.communicate(timeout=100)
    assert stopped.returncode, printed
    assert not list(here.rglob("result.json"))

    again = start(here, "\n".join(lines[begin - 1 :]), FORK_SWEEPS="1")
    out, err = again.communicate(timeout=400)
    assert again.returncode == 0, out + err
    assert "Traceback" not in err

    places = [
        f"avis/pretrained/{method}/seed{seed}"
        for method in ("lora", "head_only")
        for seed in (1, 2)
    ]
    lengths = []
    for place in places:
        folder = here / "runs" / place
        result = json.loads((folder / "result.json").read_text())
        assert result["chosen_by"]["metric"] == "macro_f1", place
        epochs = [line["epoch"] for line in valid_lines(metrics(folder))]
        assert epochs == list(range(1, len(epochs) + 1)), place
        early = result["ended_by"].startswith("early stop")
        assert early or (result["num_epochs"], result["ended_by"]) == (5, "max_epoch: 5"), place
        lengths.append(len(epochs))
    assert max(lengths) > 3, lengths  # else nothing was extended
    rows = json.loads((here / "runs" / "report" / "report.json").read_text())
    assert {row["method"]: row["seeds"] for row in rows} == {"lora": [1, 2], "head_only": [1, 2]}
    assert {row["metric"] for row in rows} == {"macro_f1"}
    assert (here / "runs" / "report" / "avis-macro_f1.png").exists()

    with open(here / "new.csv", encoding="utf-8", newline="") as file:
        given = list(csv.DictReader(file))
    with open(here / "answers.csv", encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file))
    told = [(row.pop("prediction"), row.pop("probability")) for row in answers]
    assert answers == given and len(given) == 7
    assert all(name in WORDS and 0.5 <= float(share) <= 1 for name, share in told)
