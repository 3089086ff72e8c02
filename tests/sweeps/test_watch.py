"""Where runs stand, off folders that other processes write, half write, or spoil."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from helpers import ROOT
from verbs import refused

from fairseq_peft import cli
from fairseq_peft.runs import lock
from fairseq_peft.sweeps import watch


def line(epoch, correct, seconds=10.0, **more):
    valid = {"accuracy": correct / 100, "macro_f1": correct / 200, "loss": 0.5, "seconds": 2.0}
    return {
        "epoch": epoch,
        "num_updates": 100 * epoch,
        "train": {"seconds": seconds, "tokens_per_second": 4321.0, "loss": 0.1},
        "subsets": {"valid": {**valid, **more}, "test": {"accuracy": 0.01, "seconds": 1.0}},
    }


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def make(runs):
    """``make("lora", 1, [60, 70])``: a run with right answers of 100 after each epoch."""

    def write(method, seed, correct=(), done=False, max_epoch=4, metric="accuracy", root=runs):
        folder = root / "books" / "pretrained" / method / f"seed{seed}"
        folder.mkdir(parents=True)
        plan = {"lr": "0.001", "max_epoch": max_epoch, "metric": metric, "seed": seed}
        (folder / "plan.json").write_text(json.dumps(plan))
        told = {"chosen_by": {"metric": metric, "subset": "valid", "maximize": True}}
        if correct:
            (folder / "run.json").write_text(json.dumps(told))
        texts = [json.dumps(line(n, value)) + "\n" for n, value in enumerate(correct, start=1)]
        (folder / "metrics.jsonl").write_text("".join(texts))
        if done:
            (folder / "result.json").write_text(json.dumps({**told, "best_value": 0.5}))
        return folder

    return write


@contextlib.contextmanager
def held(folder, name=lock.TRAINING):
    """Another process has the folder's lock."""
    code = (
        "import sys; from fairseq_peft.runs import lock; "
        f"lock.take({str(folder)!r}, {name!r}); print('taken', flush=True); sys.stdin.read()"
    )
    words = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = subprocess.Popen([sys.executable, "-c", code], **words)
    try:
        assert process.stdout.readline() == "taken\n"
        yield
    finally:
        process.communicate()


def only(runs):
    (seen,) = watch.look(runs)
    return seen


def content(folder):
    return {path: (path.stat().st_mtime_ns, path.is_dir()) for path in folder.rglob("*")}


@pytest.fixture
def clock(monkeypatch):
    """``clock(folder, seconds)``: so long ago a run has written its newest epoch."""

    def since(folder, seconds):
        os.utime(folder / "metrics.jsonl", (1000, 1000))
        monkeypatch.setattr(watch, "time", SimpleNamespace(time=lambda: 1000 + seconds))

    return since


def test_where_each_run_stands(runs, make, clock, capsys):
    make("lora", 1, [60, 90, 80, 70], done=True)
    training = make("lora", 2, [60, 75, 70], metric="macro_f1")
    make("lora", 3, [50])
    failed = make("adapter", 1)
    (failed / "train.log").write_text("one\nfairseq-train: error: No such base. Give one.\n")
    record = {"schema": 1, "seeds": [1, 2], "cells": {"pretrained/adapter": ["1e-3"]}}
    (runs / "books" / "sweep.json").write_text(json.dumps(record))
    clock(training, 2)
    with held(training):
        before = content(runs)
        assert cli.main(["watch", str(runs)]) == 0
        found = {(seen.cell, seen.seed): seen for seen in watch.look(runs)}
        assert content(runs) == before
    adapter, lora = "pretrained/adapter", "pretrained/lora"
    states = {key: seen.state for key, seen in found.items()}
    assert states == {
        (adapter, "1"): "failed",
        (adapter, "2"): "waiting",
        (lora, "1"): "done",
        (lora, "2"): "running",
        (lora, "3"): "stopped",
    }
    assert found[adapter, "1"].why == "No such base. Give one."
    assert found[lora, "1"].best == "90.00 %"
    seen = found[lora, "2"]
    assert (seen.rate, seen.epoch, seen.max_epoch) == ("0.001", 3, 4)
    assert (seen.latest, seen.best) == ("macro_f1 35.00 %", "macro_f1 37.50 %")
    assert seen.seconds_left == 11  # an epoch of 10 + 2 + 1 s, begun 2 s ago
    assert seen.tokens_per_second == 4321
    # 52 s of the run that is done for the one that waits, one at a time.
    left = watch.seconds_left(list(found.values()))
    assert left == 11 + 52
    text = capsys.readouterr().out
    assert "1 of 5 done, 1 running, 1 failed, 1 stopped, 1 waiting, about 63 s left" in text
    assert "failed: books pretrained/adapter seed 1: No such base. Give one." in text
    assert "of a seed that is done: its best score on valid" in " ".join(text.split())
    row = next(one for one in text.splitlines() if "books pretrained/lora seed 2" in one)
    assert [cell.strip() for cell in row.strip("│ ").split("│")][1:-1] == [
        "0.001", "3 of 4", "macro_f1 35.00 %", "macro_f1 37.50 %", "4,321",
    ]  # fmt: skip


def test_a_run_that_takes_longer_than_its_epochs_did_is_overdue(runs, make, clock, capsys):
    running = [make("lora", 1, [60, 75]), make("lora", 2, [60, 75, 80, 80])]  # of 4 epochs
    for folder in running:
        clock(folder, 60)
    with held(running[0]), held(running[1]):
        assert cli.main(["watch", str(runs)]) == 0
    text = capsys.readouterr().out
    assert "2 running, done at any moment" in text and "0 s" not in text
    assert "overdue" in text and "ending" in text


def test_who_holds_a_folder_is_seen_without_taking_it(make):
    folder = make("lora", 1)
    assert lock.holder(folder) is None
    with held(folder, lock.WHOLE_RUN):
        assert lock.holder(folder).startswith("process ")
        with pytest.raises(lock.Busy):
            lock.take(folder, lock.WHOLE_RUN)
    assert lock.holder(folder) is None  # its name is still in the file
    lock.take(folder)
    try:
        assert str(os.getpid()) in lock.holder(folder)
    finally:
        lock.release(folder)
    # Of this process, which lives, but has let go.
    assert lock.holder(folder) is None
    for text in ("", "process 99999999999999999999 on " + socket.gethostname(), "\x00\xff"):
        (folder / lock.TRAINING).write_bytes(text.encode("latin-1"))
        assert lock.holder(folder) is None, text


def test_a_run_of_another_machine_runs_while_it_writes(runs, make):
    folder = make("lora", 1, [60])
    (folder / lock.TRAINING).write_text("process 1 on another-machine")
    assert only(runs).state == "running"
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    assert only(runs).state == "stopped"


def test_grids_are_beside_their_cells(runs, make, capsys):
    """The grid runs first, so RUNS itself may have nothing but what the sweep has written."""
    grid = runs.with_name("runs-grid")
    make("lora", 1, [60], done=True, root=grid / "lr1e-3")
    (runs / "books").mkdir(parents=True)
    cells = {"pretrained/lora": ["1e-3", "2e-3", "4e-3"]}
    (runs / "books" / "sweep.json").write_text(json.dumps({"seeds": [1, 2], "cells": cells}))
    found = watch.look(runs)
    assert [(seen.grid, seen.rate, seen.state) for seen in found] == [
        (True, "0.001", "done"),
        (True, "2e-3", "waiting"),
        (True, "4e-3", "waiting"),
        (False, None, "waiting"),
        (False, None, "waiting"),
    ]
    assert cli.main(["watch", str(runs), "--once"]) == 0
    assert "1 of 3" in capsys.readouterr().out


SPOILED = {
    "cut": '{"epoch": 3, "num_upda',
    "no-object": "[1, 2]\n3\n",
    "nan": '{"epoch": 3, "num_updates": 300, "subsets": {"valid": {"accuracy": NaN}}}\n',
    "no-score": '{"epoch": 3, "num_updates": 300, "subsets": {"test": 1}}\n',
    "other-types": '{"epoch": "3", "num_updates": true, "subsets": []}\n',
    "huge": '{"epoch": 1' + "0" * 400 + ', "num_updates": 300, "subsets": {}}\n',
    "digits": '{"epoch": ' + "1" * 5000 + "}\n",
    "deep": "[" * 100_000 + "\n",
    "bytes": "\udcff\udcfe{}\n",
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_cannot_be_read_says_nothing(runs, make, name):
    folder = make("lora", 1, [60, 75])
    with open(folder / "metrics.jsonl", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(SPOILED[name])
    seen = only(runs)
    assert (seen.state, seen.best, seen.latest) == ("stopped", "75.00 %", "75.00 %")
    for other in ("run.json", "plan.json", "train.log"):
        content = SPOILED[name].encode("utf-8", "surrogateescape")
        (folder / other).write_bytes(content)
    assert only(runs).best == "75.00 %"
    (folder / "result.json").write_bytes(content)
    seen = only(runs)
    assert (seen.state, seen.why) == ("failed", "result.json is no result")
    (runs / "books" / "sweep.json").write_bytes(content)
    assert cli.main(["watch", str(runs)]) == 0


def test_a_run_by_hand_and_a_name_that_a_terminal_would_obey(tmp_path, capsys):
    folder = tmp_path / "mine" / "\x1b[31m"
    folder.mkdir(parents=True)
    run = {"data": "own\x1b[2J", "init": "scratch", "method": "lora", "seed": 7}
    (folder / "run.json").write_text(json.dumps(run))
    seen = only(tmp_path)
    assert (seen.cell, seen.seed, seen.state) == ("scratch/lora", "7", "stopped")
    assert cli.main(["watch", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "own?[2J" in text and "\x1b" not in text


def test_folders_without_runs(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path)]) == 0
    assert "There is no run yet" in capsys.readouterr().out
    assert "is not a folder" in refused(capsys, "watch", tmp_path / "none")
    assert "give 0.1 to 3600" in refused(capsys, "watch", tmp_path, "--every", 0)


def test_on_a_terminal_it_goes_on_until_the_last_run_ends(runs, make, monkeypatch, capsys):
    """Each look is another: what has come since is shown, and then it ends."""
    folder = make("lora", 1, [60])
    lock.take(folder)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            (folder / "result.json").write_text('{"best_value": 0.6}')

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    try:
        assert cli.main(["watch", str(runs), "--every", "0.5"]) == 0
    finally:
        lock.release(folder)
    assert slept == [0.5, 0.5]
    assert "1 of 1 done" in capsys.readouterr().out


def test_what_has_a_result_and_no_epochs(runs, make):
    make("tfidf", 1, done=True)
    assert (only(runs).state, only(runs).best) == ("done", "50.00 %")
