"""The scripts a user runs one after the other, for real: data, sweep with a grid, report;
resumed; failing."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from helpers import ROOT, TINY_FLAGS

pytestmark = pytest.mark.end_to_end


def script(name, *args, **knobs):
    """Run ``scripts/<name>`` with knobs in the environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in knobs.items()}}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / name), *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
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
    )
    assert done.returncode == 0, done.stderr
    return folder


def knobs(data, **more):
    return {
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
        **more,
    }


def test_sweep_picks_the_rate_on_valid_and_is_reported(data):
    done = script("sweep.sh", **knobs(data))
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

    before = {path: path.stat().st_mtime for path in data.rglob("result.json")}
    again = script("sweep.sh", **knobs(data))
    assert again.returncode == 0 and "started" not in again.stdout
    assert {path: path.stat().st_mtime for path in data.rglob("result.json")} == before

    done = script("compare.sh", data / "runs", RAW=data / "raw", NAME="demo")
    assert done.returncode == 0, done.stderr
    rows = json.loads((data / "runs" / "report" / "report.json").read_text())
    found = {(row["init"], row["method"]): row["seeds"] for row in rows}
    assert found == {
        ("scratch", "full"): [1, 2],
        ("scratch", "lora"): [1, 2],
        ("baseline", "tfidf"): [1],
    }


def test_failures_are_listed_and_the_rest_runs(data):
    """A base that does not exist fails its cell alone, with a sentence; the exit status says so."""
    more = {
        "RUNS": data / "failing",
        "CELLS": "scratch/head_only pretrained/head_only",
        "BASE": data / "missing.pt",
        "SEEDS": "1",
        "LR_SCRATCH": "1e-3",
        "LR_HEAD_ONLY": "1e-3",
    }
    done = script("sweep.sh", **knobs(data, **more))
    assert done.returncode == 1
    assert "failed: pretrained/head_only seed 1 lr 1e-3" in done.stderr
    assert (data / "failing/demo/scratch/head_only/seed1/result.json").exists()
    log = (data / "failing/logs/demo-pretrained-head_only-seed1.log").read_text()
    assert "missing.pt does not exist" in log and "Traceback" not in log


def test_finetune_refuses_bad_knobs(data):
    for more, message in [
        ({"INIT": "pretrained", "BASE": ""}, "INIT=pretrained needs BASE"),
        ({"INIT": "scrath"}, "INIT=scrath is unknown"),
        ({"INIT": "scratch", "DATA": data}, "label/train.idx does not exist"),
    ]:
        done = script("finetune.sh", **{**knobs(data), **more})
        assert done.returncode == 1 and message in done.stderr
