"""A run that fails in a sweep of members is counted, named, and run again by the next sweep."""

from __future__ import annotations

import pytest
from helpers import TINY_FLAGS, script

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end


def test_a_member_that_fails_is_a_failed_run(python, data_folder, base_checkpoint, tmp_path):
    """Something lies where the second seed's adapter folder is to be: one sentence in its log. The
    first seed, in the same process, is trained to its end."""
    cell = tmp_path / "runs" / data_folder.name / "pretrained" / "lora"
    (cell / "seed2").mkdir(parents=True)
    in_the_way = cell / "seed2" / "adapter"
    in_the_way.write_text("a file")
    knobs = {
        "DATA": data_folder,
        "BASE": base_checkpoint,
        "RUNS": tmp_path / "runs",
        "CELLS": "pretrained/lora",
        "SEEDS": "1 2",
        "LR_LORA": "1e-3",
        "EPOCHS": 1,
        "BATCH_SIZE": 8,
        "THREADS": 1,
        "MEMBERS": 2,
        "ARCH_ARGS": " ".join(TINY_FLAGS),
        "PYTHON": python,
        "FORK_SWEEPS": "1",
    }
    done = script("sweep.sh", **knobs)
    assert done.returncode == 1
    assert "failed: pretrained/lora seed 2 lr 1e-3" in done.stderr
    assert "1 of 2 runs failed" in done.stderr and "seed 1" not in done.stderr
    assert "2 of 2 done, 0 running, 1 failed" in done.stdout
    assert (cell / "seed1" / "result.json").exists()
    assert not (cell / "seed2" / "result.json").exists()
    log = (cell / "seed2" / "train.log").read_text()
    assert "adapter is a file, where an adapter folder is to be" in log
    assert "Traceback" not in log
    members = (
        tmp_path / "runs/logs" / f"{data_folder.name}-pretrained-lora-members.log"
    ).read_text()
    assert f"failed: {cell / 'seed2'}: " in members

    in_the_way.unlink()
    done = script("sweep.sh", **knobs)
    assert done.returncode == 0 and done.stdout.count("started") == 1
    assert (cell / "seed2" / "result.json").exists()
