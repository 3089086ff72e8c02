"""benchmarks/sweep_speed.py and stock_style.py for real, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT, TINY_FLAGS

pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end


def test_both_sides_of_a_sweep_are_run_and_compared(data_folder, base_checkpoint, tmp_path):
    out = tmp_path / "out"
    words = [
        *(sys.executable, ROOT / "benchmarks" / "sweep_speed.py", "--data", data_folder),
        *("--base", base_checkpoint, "--out", out, "--methods", "lora", "--seeds", "2"),
        *("--threads", "1"),
    ]
    environment = {**os.environ, "ARCH_ARGS": " ".join(TINY_FLAGS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, words)), env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "sweep_speed.json").read_text())
    assert result["stock_whole_s"] == 2 * result["stock_s"]["lora"][0] and result["ours_s"] > 0
    name = data_folder.name
    ours = out / "ours" / name / "pretrained" / "lora"
    assert all((ours / f"seed{seed}" / "result.json").is_file() for seed in (1, 2))
    # The stock-style run is the plugin's, with the same rows and the same number of updates.
    lines = [
        json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        for run in (ours / "seed1", out / "stock" / name / "pretrained" / "lora" / "seed1")
    ]
    assert lines[0]["num_updates"] == lines[1]["num_updates"]
    assert lines[0]["train"]["num_tokens"] == lines[1]["train"]["num_tokens"]
    assert lines[0]["train"]["loss"] != lines[1]["train"]["loss"]

    again = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert again.returncode == 1 and "give an empty --out" in again.stderr
