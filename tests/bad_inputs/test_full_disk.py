"""A disk that is full, and folders that are read-only: one sentence, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_runs
import pytest
import unprivileged
from helpers import TINY_FLAGS, train_flags

pytest.importorskip("fairseq")
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's mount, capabilities"),
]

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.checkpoints import slim  # noqa: E402
from fairseq_peft.runs import predictions  # noqa: E402

#: KiB: where a run has no room for its plan, its adapter folder, its first and last checkpoint.
SIZES = [int(size) for size in os.getenv("DISK_SIZES", "16 100").split()]

AS_NOBODY = f"""
import sys
sys.path[:0] = [{str(Path(unprivileged.__file__).parent)!r}]
from unprivileged import give_up_rights
give_up_rights()
"""
TRAINING = """
from fairseq_cli import train
sys.argv = ["fairseq-train", *{words!r}]
train.cli_main()
"""
COMMANDS = """
import contextlib, io, json
from fairseq_cli import train
import fairseq_peft.plugin
from fairseq_peft import cli, errors

def fairseq_train(words):
    sys.argv = ["fairseq-train", *words]
    train.cli_main()

answers = []
for verb, *words in json.loads({commands!r}):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = fairseq_train(words) if verb == "train" else cli.main([verb, *words])
        except SystemExit as error:
            status = error.code
        except Exception as error:
            status = 1
            print(errors.sentence(error) or repr(error), file=said)
    answers.append([verb, status, said.getvalue()])
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture
def disk(tmp_path):
    """``disk(size)``: a folder that is a disk of so many KiB; another size makes it larger."""
    folder, mounted = tmp_path / "disk", []

    def sized(size):
        if not mounted:
            try:
                mounted.append(unprivileged.small_disk(folder, f"{size}k"))
                mounted[0].__enter__()
            except OSError as error:
                mounted.clear()
                pytest.skip(f"no disk of its own can be mounted here: {error}")
        else:
            words = ["mount", "-o", f"remount,size={size}k", str(folder)]
            subprocess.run(words, check=True)
        return folder

    yield sized
    for each in mounted:
        each.__exit__(None, None, None)


def whole(folder):
    """Every file below ``folder`` is one that its reader takes."""
    for path in folder.rglob("*"):
        if path.suffix == ".pt":
            slim.read(str(path))
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == ".npz":
            predictions.read(path)
        elif path.name == "adapter":
            adapter_folder.read(path)
        assert ".tmp" not in path.name and ".new" not in path.name, path


@pytest.mark.parametrize("size", SIZES)
def test_training_on_a_full_disk(fairseq, data_folder, base_checkpoint, disk, size):
    """It ends with a sentence; where there is room, the same line goes on to the end."""
    flags = {"from_scratch": None, "finetune_from_model": base_checkpoint, "max_epoch": 2}
    words = list(map(str, train_flags(data_folder, disk(size) / "run", **flags)))
    training = AS_NOBODY + TRAINING.format(words=words)
    done = fairseq("python", training)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert "No space left on device" in lines[0] and lines[0].startswith("fairseq_peft: error: ")
    whole(disk(size))
    disk(1000)
    done = fairseq("python", training)
    assert done.returncode == 0, done.stderr
    whole(disk(1000))
    assert {path.stat().st_uid for path in disk(1000).rglob("*")} == {unprivileged.USER}


def test_commands_on_a_full_disk(fairseq, base_checkpoint, tmp_path, disk):
    """The sentence names what could not be written, and nothing is left of it."""
    runs, full = tmp_path / "runs", disk(8)
    data = fake_runs.write_data(tmp_path / "books", "classes", ["bad", "good"], 40)
    fake_runs.write_run(runs, tmp_path / "books", data)
    (tmp_path / "table.csv").write_text("text,label\n" + "a b,good\nc d,bad\n" * 2000)
    commands = [
        ["report", runs, "--out", full / "report"],
        ["report", runs, "--html", full / "report.html"],
        ["export-checkpoint", base_checkpoint, "--out", full / "lean.pt"],
        ["prepare-data", tmp_path / "table.csv", full / "data"],
        ["make-demo-data", full / "demo"],
    ]
    text = json.dumps([list(map(str, words)) for words in commands])
    done = fairseq("python", AS_NOBODY + COMMANDS.format(commands=text))
    assert done.returncode == 0, done.stderr
    for (_, *words), (verb, status, said) in zip(
        commands, json.loads(done.stdout.partition("ANSWERS")[2])
    ):
        *_, line = said.splitlines()
        assert status == 1 and str(words[-1]) in line, (verb, said)
        assert "No space left on device" in line and "Make room there" in line, (verb, said)
        assert "Traceback" not in said
    whole(full)
    assert not [path for path in full.rglob("*.[sp][vn]g") if not path.stat().st_size]


def test_where_nothing_may_be_written(fairseq, data_folder, base_checkpoint, tmp_path):
    """Each command, of a user who has no rights there."""
    runs, shut = tmp_path / "runs", tmp_path / "shut"
    data = fake_runs.write_data(tmp_path / "books", "classes", ["bad", "good"], 40)
    fake_runs.write_run(runs, tmp_path / "books", data)
    (tmp_path / "table.csv").write_text("text,label\n" + "a b,good\nc d,bad\n" * 20)
    (shut / "run").mkdir(parents=True)
    (shut / "run" / "checkpoint_last.pt").write_bytes(base_checkpoint.read_bytes())
    flags = {"from_scratch": None, "finetune_from_model": base_checkpoint}
    commands = [
        ["train", *train_flags(data_folder, shut / "new", **flags)],
        ["report", runs, "--out", shut / "report"],
        ["report", runs, "--html", "--out", shut / "report"],
        ["sweep", "--data", data_folder, "--cells", "scratch/lora", "--runs", shut / "runs",
         "--seeds", "1", "--rates", "SCRATCH=1e-3", "--epochs", 1, "--worker", "none",
         "--arch-args", " " + " ".join(TINY_FLAGS)],
        ["finetune", "--from-scratch", "--data", data_folder, "--runs", shut / "runs",
         "--arch-args", " " + " ".join(TINY_FLAGS)],
        ["prepare-data", tmp_path / "table.csv", shut / "data"],
        ["make-demo-data", shut / "demo"],
    ]  # fmt: skip
    before = sorted(shut.rglob("*"))
    for folder in (shut / "run", shut):
        folder.chmod(0o555)
    text = json.dumps([list(map(str, words)) for words in commands])
    done = fairseq("python", AS_NOBODY + COMMANDS.format(commands=text))
    assert done.returncode == 0, done.stderr
    for verb, status, said in json.loads(done.stdout.partition("ANSWERS")[2]):
        lines = said.splitlines()
        assert status == 1 and str(shut) in said, (verb, said)
        assert "Permission denied" in said or "not writable" in said, (verb, said)
        assert len(lines) == 1, (verb, said)
    assert sorted(shut.rglob("*")) == before
