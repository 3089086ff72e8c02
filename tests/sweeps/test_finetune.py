"""A run as one thing, trained: what ends it, who may write it, and with which knobs it goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, TINY_FLAGS, train_flags

pytest.importorskip("fairseq")

from fairseq import checkpoint_utils  # noqa: E402

from fairseq_peft import cli  # noqa: E402
from fairseq_peft.checkpoints import best  # noqa: E402
from fairseq_peft.runs import lock, plan  # noqa: E402
from fairseq_peft.sweeps import finetune as of_runs  # noqa: E402


@pytest.fixture
def finetune(data_folder, python, tmp_path, monkeypatch, caplog):
    """``finetune("--lr", "1e-3")``: exit status, folder, and what was logged."""
    monkeypatch.setattr(sys, "executable", str(python))
    folder = tmp_path / "runs" / data_folder.name / "scratch" / "lora" / "seed1"

    def call(*words):
        caplog.clear()
        flags = ["--data", data_folder, "--runs", tmp_path / "runs", "--from-scratch"]
        flags += ["--method", "lora", "--batch-size", "8", "--threads", "1"]
        flags += ["--arch-args", " " + " ".join(TINY_FLAGS)]
        with caplog.at_level("INFO"):
            status = cli.main(["finetune", *map(str, flags), *words])
        return status, folder, caplog.text

    return call


@pytest.mark.parametrize(
    ("words", "reason", "num_epochs"),
    [
        (["--epochs", "3", "--", "--max-update", "5"], "num_updates: 5 >= max_update: 5", 1),
        (["--epochs", "9", "--lr", "1e-12", "--", "--patience", "1"], "early stop since", 2),
        (["--epochs", "2"], "max_epoch: 2", 2),
    ],
    ids=["max-update", "patience", "epochs"],
)
def test_what_fairseq_ended_is_done_and_says_why(finetune, words, reason, num_epochs):
    status, folder, text = finetune(*words)
    assert status == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["ended_by"].startswith(reason)
    assert result["num_epochs"] == num_epochs
    assert f"epoch {num_epochs} of " in text and f"log: {folder / 'train.log'}" in text
    status, _, text = finetune(*words)
    assert status == 0 and "is done" in text


def test_the_log_says_what_ended_a_run_whatever_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGLEVEL", "WARNING")  # fairseq reads it
    words = ["timeit", "-n1", "-r1", "import os; print(os.environ['LOGLEVEL'])"]
    with open(tmp_path / "log", "w+") as log:
        assert of_runs.process(words, log, 1, lambda: None) == 0
        log.seek(0)
        assert log.readline() == "INFO\n"


def test_another_plan_is_refused_and_a_run_without_end_is_extended(finetune, capfd):
    fixed = ["--", "--lr-scheduler", "fixed"]
    status, _, text = finetune("--epochs", "1", "--warmup", "0", *fixed)
    assert status == 0 and ": 9 updates; " in text
    status, folder, _ = finetune("--epochs", "2", "--warmup", "0", *fixed)
    assert status == 1 and "max_epoch 1, now 2" in capfd.readouterr().err
    assert finetune("--epochs", "2", "--warmup", "0", "--extend", *fixed)[0] == 0
    extended = json.loads((folder / "result.json").read_text())
    assert extended["num_epochs"] == 2
    # As a run of two epochs from the beginning.
    shutil.rmtree(folder)
    assert finetune("--epochs", "2", "--warmup", "0", *fixed)[0] == 0
    assert json.loads((folder / "result.json").read_text())["curve"] == extended["curve"]


def test_redo_throws_nothing_away_for_a_run_that_cannot_start(finetune, capfd):
    status, folder, _ = finetune("--epochs", "1")
    assert status == 0

    def there():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = there()
    for words, message in [
        (["--metric", "f1_typo"], "f1_typo"),
        (["--lr", "abc"], "abc"),
        (["--", "--peft-targets", "nope"], "nope"),
    ]:
        assert finetune("--epochs", "1", "--redo", *words)[0] == 1
        told = capfd.readouterr().err
        assert f"{folder} is as it was, for the new run cannot start: " in told and message in told
        assert there() == before
    assert finetune("--epochs", "1", "--redo", "--lr", "1e-3")[0] == 0
    assert there()[folder / "result.json"] != before[folder / "result.json"]


@pytest.fixture(scope="module")
def trained(fairseq, data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = fairseq("train", *train_flags(data_folder, folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    "more", [{"lora_alpha": 640}, {"lora_rslora": True}, {"lora_dropout": 0.5}]
)
def test_a_run_does_not_go_on_with_other_knobs(fairseq, data_folder, trained, more):
    before = (trained / "run.json").read_bytes()
    done = fairseq("train", *train_flags(data_folder, trained, max_epoch=2, **more))
    assert done.returncode == 1
    (name, value) = next(iter(more.items()))
    assert f"would go on with {name[5:]} = {value}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (trained / "run.json").read_bytes() == before


def test_a_run_by_hand_has_a_plan_and_tells_what_differs(fairseq, data_folder, tmp_path):
    def train(**more):
        return fairseq("train", *train_flags(data_folder, tmp_path, **more))

    assert train().returncode == 0
    found = plan.read(tmp_path)
    assert (found.seed, found.max_epoch, found.lr) == (1, 1, "0.01")
    done = train(seed=2, max_epoch=2)
    assert done.returncode == 1 and "holds another run: seed 1, now 2" in done.stderr
    assert plan.read(tmp_path) == found
    done = train(lr=5e-3, max_epoch=2)
    assert done.returncode == 0, done.stderr
    assert "another plan than before: lr 0.01, now 0.005; max_epoch 1, now 2" in done.stdout
    assert plan.read(tmp_path).max_epoch == 2


def test_a_new_start_from_lora_keeps_what_it_computes(fairseq, data_folder, trained, tmp_path):
    start = {"from_scratch": None, "finetune_from_model": trained / "checkpoint_best.pt"}
    flags = train_flags(data_folder, tmp_path / "a", lora_alpha=640, **start)
    done = fairseq("train", *flags)
    assert done.returncode == 1
    assert "was trained with lora.alpha = 16.0; with lora.alpha = 640" in done.stderr
    done = fairseq("train", *train_flags(data_folder, tmp_path / "b", lora_dropout=0.5, **start))
    assert done.returncode == 0, done.stderr


def test_a_second_process_is_refused(fairseq, data_folder, tmp_path):
    lock.take(tmp_path)
    try:
        done = fairseq("train", *train_flags(data_folder, tmp_path))
        assert done.returncode == 1
        assert f"{tmp_path} is in use: process {os.getpid()}" in done.stderr
        assert not (tmp_path / "metrics.jsonl").exists()
    finally:
        lock.release(tmp_path)
    assert fairseq("train", *train_flags(data_folder, tmp_path)).returncode == 0


def test_two_processes_that_replace_one_folder_each_leave_a_whole_one(tmp_path):
    code = (
        "import sys; from fairseq_peft import folders\n"
        "with folders.replaced(sys.argv[1]) as new:\n"
        "    (new / 'a').write_text(sys.argv[2]); print('in', flush=True); sys.stdin.readline()\n"
        "    (new / 'b').write_text(sys.argv[2])\n"
    )
    folder = tmp_path / "adapter"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in "xy"
    ]
    for process in both:
        assert process.stdout.readline() == b"in\n"
    for process, name in zip(both, "xy"):
        process.communicate(b"\n")
        assert process.returncode == 0
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": name, "b": name}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_second_run_of_a_process_begins_without_the_scores_of_the_first():
    from fairseq_cli import train

    checkpoint_utils.save_checkpoint.best = 0.99
    train.should_stop_early.best, train.should_stop_early.num_runs = 0.99, 3
    best.forget()
    assert not vars(checkpoint_utils.save_checkpoint).keys() & {"best"}
    assert not vars(train.should_stop_early).keys() & {"best", "num_runs"}
