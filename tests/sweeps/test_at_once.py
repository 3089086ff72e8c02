"""Processes that would write one folder at once, for real: one waits, or is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers import ROOT, TINY_FLAGS, train_flags

from fairseq_peft.sweeps.job import Job
from fairseq_peft.sweeps.knobs import Knobs

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

ADAPTER = {"adapter.json", "adapter.safetensors"}


def both(commands, **environment):
    """Run two commands at once; both completed processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    started = [
        subprocess.Popen(
            list(map(str, words)),
            env={name: str(value) for name, value in environment.items()},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in commands
    ]
    return [(process.communicate(timeout=600)[0], process.returncode) for process in started]


def epochs_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def check_trained_once(folder, num_epochs):
    """One process has trained the run, to its end, and left a whole adapter."""
    assert epochs_of(folder) == list(range(1, num_epochs + 1))
    assert (folder / "train.log").read_text().count("| fairseq_cli.train | done training") == 1
    assert {"adapter.json", "adapter.safetensors"} <= {
        p.name for p in (folder / "adapter").iterdir()
    }
    assert (folder / "result.json").exists()


def test_two_sweeps_on_one_folder_share_the_runs(python, data_folder, tmp_path):
    words = ["bash", ROOT / "scripts" / "sweep.sh"]
    ended = both(
        [words, words],
        **{"DATA": data_folder, "RUNS": tmp_path / "runs", "CELLS": "scratch/lora", "SEEDS": "1 2"},
        **{"LR_SCRATCH": "1e-3 1e-2", "EPOCHS": "2", "BATCH_SIZE": "8", "PYTHON": python},
        **{"ARCH_ARGS": " ".join(TINY_FLAGS), "JOBS": "2", "THREADS": "1", "TMPDIR": tmp_path},
        FORK_SWEEPS="1",
    )
    for text, status in ended:
        assert status == 0 and "3 of 3 done, 0 running, 0 failed" in text, text
    place = f"{data_folder.name}/scratch/lora"
    for run in ("runs-grid/lr1e-3", "runs-grid/lr1e-2"):
        check_trained_once(tmp_path / run / place / "seed1", 2)
    for seed in (1, 2):  # the first one was copied, by one of the two
        check_trained_once(tmp_path / "runs" / place / f"seed{seed}", 2)


def test_two_groups_of_members_wait_for_each_other(python, data_folder, base_checkpoint, tmp_path):
    """Also where they name their members in another order."""
    knobs = Knobs(
        **{"data": str(data_folder), "runs": str(tmp_path), "base": str(base_checkpoint)},
        **{"method": "lora", "label": "lora", "size": "roberta_small", "seed": 1, "lr": "1e-3"},
        **{"epochs": 2, "batch_size": 8, "warmup": 10, "precision": "fp32", "threads": 1},
        **{"subsets": "valid,test", "arch_args": TINY_FLAGS, "flags": []},
    )
    commands = []
    for number, seeds in enumerate([(1, 2), (2, 1)]):
        runs = [replace(knobs, seed=seed) for seed in seeds]
        logs = [str(tmp_path / f"logs{number}" / f"{seed}") for seed in seeds]
        job = Job(runs, None, str(tmp_path / f"log{number}"), logs)
        commands.append([python, "-m", "fairseq_peft.sweeps.job", job.to_json()])
    for text, status in both(commands):
        assert status == 0 and "[null, null]" in text, text
    for seed in (1, 2):
        check_trained_once(replace(knobs, seed=seed).folder, 2)


def test_torchrun_without_a_world_size_is_told_and_mixes_nothing(fairseq, data_folder, tmp_path):
    folder = tmp_path / "run"
    words = train_flags(data_folder, folder, max_epoch=2_000)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [sys.executable, *launch, "fairseq_cli.train", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode != 0
    assert "give --distributed-world-size 2" in done.stderr
    # torchrun has ended the other one, too, at any moment: what is there is whole, and goes on.
    adapter = folder / "adapter"
    assert not adapter.exists() or {path.name for path in adapter.iterdir()} >= ADAPTER
    num_epochs = epochs_of(folder)[-1] + 1 if (folder / "metrics.jsonl").exists() else 1
    done = fairseq("train", *train_flags(data_folder, folder, max_epoch=num_epochs))
    assert done.returncode == 0, done.stderr
    epochs = epochs_of(folder)
    assert sorted(set(epochs)) == list(range(1, num_epochs + 1))
    assert len(epochs) <= num_epochs + 1  # the one that was interrupted may have come twice
    assert {path.name for path in adapter.iterdir()} >= ADAPTER
