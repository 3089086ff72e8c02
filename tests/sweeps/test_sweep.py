"""The scripts a user runs one after the other, for real: data, sweep with a grid, report;
resumed; failing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, TINY_FLAGS, script
from workers import children, session

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def data(python, tmp_path_factory):
    """data-bin/demo, from generated reviews through the real preparation."""
    from fairseq_peft import cli

    folder = tmp_path_factory.mktemp("sweep")
    sizes = ["--unlabelled", "300", "--train", "40", "--valid", "20", "--test", "20"]
    assert cli.main(["make-demo-data", str(folder / "raw"), *sizes]) == 0
    done = script(
        "prepare_data.sh",
        folder / "raw",
        "demo",
        VOCAB_SIZE=100,
        SPM_TEXT=folder / "raw" / "unlabelled.txt",
        DATA_BIN=folder / "data-bin",
        MAX_POSITIONS=40,
        PYTHON=python,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def knobs(data, python):
    """``knobs(...)``: those of a small sweep in the folder ``data``; ``more`` adds or replaces."""
    given = {
        "DATA": data / "data-bin" / "demo",
        "RUNS": data / "runs",
        "CELLS": "scratch/full scratch/lora",
        "SEEDS": "1 2",
        "LR_SCRATCH": "1e-3 1e-2",
        "EPOCHS": 1,
        "BATCH_SIZE": 8,
        "ARCH_ARGS": " ".join(TINY_FLAGS),
        "THREADS": 1,
        "JOBS": 2,
        "TMPDIR": data,
        "PYTHON": python,
        "FORK_SWEEPS": "1",
    }
    return lambda **more: {**given, **more}


def left_behind(data):
    """What a worker would leave where temporary files go."""
    return list(data.glob("fairseq-peft.*"))


def test_sweep_picks_the_rate_on_valid_and_is_reported(data, knobs, python):
    done = script("sweep.sh", **knobs())
    assert done.returncode == 0, done.stderr + done.stdout
    assert "6 of 6 done" in done.stdout
    runs = data / "runs" / "demo" / "scratch" / "full"
    grid = {}
    for rate in ("1e-3", "1e-2"):
        path = data / f"runs-grid/lr{rate}/demo/scratch/full/seed1/result.json"
        grid[rate] = json.loads(path.read_text())["valid_accuracy"]
    best = max(grid, key=grid.get)  # the first of equals, as the sweep takes
    results = [json.loads((runs / f"seed{seed}/result.json").read_text()) for seed in (1, 2)]
    assert [result["hyperparameters"]["lr"] for result in results] == [float(best)] * 2
    assert results[0]["valid_accuracy"] == grid[best]
    assert (runs / "seed2" / "checkpoint_best.pt").exists()
    assert not (runs / "seed2" / "checkpoint_last.pt").exists()
    if sys.platform.startswith("linux"):
        log = (runs / "seed2" / "train.log").read_text()
        assert "has already been imported" in log and "process of its own" not in log
    assert left_behind(data) == []

    before = {path: path.stat().st_mtime for path in data.rglob("result.json")}
    again = script("sweep.sh", **knobs())
    assert again.returncode == 0 and "started" not in again.stdout
    assert {path: path.stat().st_mtime for path in data.rglob("result.json")} == before

    done = script("compare.sh", data / "runs", RAW=data / "raw", NAME="demo", PYTHON=python)
    assert done.returncode == 0, done.stderr
    rows = json.loads((data / "runs" / "report" / "report.json").read_text())
    found = {(row["init"], row["method"]): row["seeds"] for row in rows}
    assert found == {
        ("scratch", "full"): [1, 2],
        ("scratch", "lora"): [1, 2],
        ("baseline", "tfidf"): [1],
    }
    # Rows of the same classes in the same order, whoever predicted them: all were compared.
    compared = {row["method"]: (row["paired_with"], row["paired_rows"]) for row in rows}
    assert compared == {
        "full": (None, None),
        "lora": ("scratch/full", 20),
        "tfidf": ("scratch/full", 20),
    }
    assert not list(data.rglob("epoch*.npz"))  # result keeps the chosen epoch's alone


def test_failures_are_listed_and_the_rest_runs(data, knobs):
    """A file where a run's adapter folder is to be fails its cell, with the sentence that its log
    has; the exit status says so, and the cell's other runs are not started."""
    cell = data / "failing/demo/scratch/lora"
    (cell / "seed1").mkdir(parents=True)
    (cell / "seed1" / "adapter").write_text("a file")
    more = {
        "RUNS": data / "failing",
        "CELLS": "scratch/lora scratch/head_only",
        "SEEDS": "1 2",
        "LR_SCRATCH": "1e-3",
        "JOBS": "1",
    }
    done = script("sweep.sh", **knobs(**more))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    failed, left, last = done.stderr.splitlines()[-3:]
    assert failed.startswith("failed: scratch/lora seed 1 lr 1e-3: ") and "is a file" in failed
    assert left == "failed: scratch/lora: 1 more run not started, because of that"
    assert "1 of 4 runs failed" in last
    assert not (cell / "seed2").exists()
    assert (data / "failing/demo/scratch/head_only/seed2/result.json").exists()
    assert "is a file" in (data / "failing/logs/demo-scratch-lora-seed1.log").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"METHODS": "lora"}, "METHODS=lora would be ignored"),
        ({"SEED": "1"}, "SEED=1 would be ignored"),
        ({"LR_LORA": "1e-3"}, "LR_LORA) would be ignored: no cell of this sweep"),
        ({"FLAGS_LORAA": "--lora-rank 4"}, "(FLAGS_LORA) meant?"),
        ({"SEEDS": "1 1"}, "'1 1' names 1 twice"),
        ({"CELLS": "scratch/lora scratch/lora"}, "names scratch/lora twice"),
    ],
)
def test_sweep_names_what_it_would_ignore(data, knobs, more, message):
    done = script("sweep.sh", **knobs(**{"RUNS": data / "none", **more}))
    assert done.returncode == 1 and message in done.stderr
    assert not (data / "none").exists()


def test_finetune_refuses_bad_knobs(data, knobs):
    for more, message in [
        ({"INIT": "pretrained", "BASE": ""}, "INIT=pretrained needs BASE"),
        ({"INIT": "scrath"}, "INIT=scrath is unknown"),
        ({"INIT": "scratch", "METHODS": "lora"}, "METHODS=lora would be ignored"),
        ({"INIT": "scratch", "LR_LORA": "1e-3"}, "LR_LORA=1e-3 would be ignored"),
        ({"INIT": "scratch", "DATA": data}, "label/train.idx does not exist"),
    ]:
        done = script("finetune.sh", **{**knobs(CELLS="", SEEDS="", LR_SCRATCH=""), **more})
        assert done.returncode == 1 and message in done.stderr


# ---- Ends of a worker, of a run, of the sweep ----------------------------------------------------


@contextlib.contextmanager
def sweeping(knobs, data, name):
    """A sweep of one endless run, once it trains: the sweep, as a terminal would start it, and the
    ids of its run, of that run's handler and of the worker."""
    more = knobs(RUNS=data / name, FORK_SWEEPS="", **LONG)
    sweep = subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "sweep.sh")],
        env={**os.environ, **{key: str(value) for key, value in more.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 600
        while not list((data / name).rglob("metrics.jsonl")):
            assert sweep.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        (worker,) = [pid for pid in children(sweep.pid) if command(pid) == command(sweep.pid)]
        (handler,) = children(worker)
        (run,) = children(handler)
        yield sweep, (run, handler, worker)
    finally:
        for pid in session(sweep.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        sweep.wait()


LONG = {
    "CELLS": "scratch/lora",
    "SEEDS": "1",
    "LR_SCRATCH": "1e-3",
    "EPOCHS": "100000",
    "JOBS": "1",
}


def command(pid):
    """Its command line, which a fork has, too."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no worker, no /proc")
@pytest.mark.parametrize("victims", [1, 3], ids=["run", "worker"])
def test_a_kill_is_a_failed_run_and_the_next_sweep_completes(data, knobs, victims):
    """The run alone, as for want of memory; or the worker with all its children."""
    name = f"killed{victims}"
    with sweeping(knobs, data, name) as (sweep, processes):
        for pid in reversed(processes[:victims]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, error = sweep.communicate(timeout=300)
        assert sweep.returncode == 1
        assert "failed: scratch/lora seed 1 lr 1e-3" in error
        assert session(sweep.pid) == []
    log = (data / name / "demo/scratch/lora/seed1/train.log").read_text()
    assert ("ended by SIGKILL" if victims == 1 else "ended before the run did") in log
    assert left_behind(data) == []
    if victims == 3:
        return
    more = {**LONG, "EPOCHS": "1", "RUNS": data / name}
    done = script("sweep.sh", **knobs(**more))
    assert done.returncode == 1 and "max_epoch 100000, now 1" in done.stderr
    done = script("sweep.sh", "--redo", **knobs(**more))
    assert done.returncode == 0, done.stderr
    assert (data / name / "demo/scratch/lora/seed1/result.json").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no worker, no /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_process_behind(data, knobs, number):
    with sweeping(knobs, data, f"stopped{int(number)}") as (sweep, _):
        if number == signal.SIGINT:  # what the terminal does: the whole group in its foreground
            os.killpg(sweep.pid, number)
        else:
            sweep.send_signal(number)
        assert sweep.wait(timeout=300) == 130
        deadline = time.monotonic() + 100
        while session(sweep.pid):
            assert time.monotonic() < deadline, session(sweep.pid)
            time.sleep(0.1)
    assert left_behind(data) == []


def test_without_a_worker_the_sweep_goes_on(data, knobs):
    """A folder for temporary files whose name is too long for a socket."""
    folder = data / ("x" * 100)
    folder.mkdir()
    more = {**LONG, "EPOCHS": "1", "RUNS": data / "own", "TMPDIR": folder}
    done = script("sweep.sh", **knobs(**more))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("each run is a process of its own") == 1
    log = next((data / "own").rglob("train.log")).read_text()
    assert "already been imported" not in log
    assert "| INFO | fairseq_cli.train | done training" in log  # as fairseq-train writes it
    assert left_behind(folder) == []
