"""benchmarks/start_memory.py: what starting takes, and that the base is not held twice."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("fairseq")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_an_optimizers_state_takes_no_memory(tmp_path, capsys):
    import start_memory

    flags = ["--arch", "roberta_small", "--only", "ours-lora*", "--repeats", "1", "--threads", "1"]
    assert start_memory.main([*flags, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "start_memory.json").read_text())
    plain, optimizer = (one["runs"][0]["peak_bytes"] for one in found["contestants"])
    # Two moments are twice the model; a tenth is left for what varies from run to run.
    assert optimizer - plain < 0.1 * found["model_bytes"]
    assert "| ours-lora-optimizer |" in capsys.readouterr().out
