"""benchmarks/gpu.py: tried on a CPU; what it makes of figures; without a GPU one sentence."""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import gpu
import pytest
from helpers import script

TINY = ["--device", "cpu", "--tiny", "--steps", "2", "--warmup", "1", "--repeats", "1"]


def program(python, out, *flags):
    """The program as a fork that has done its imports, without Hugging Face's."""
    return subprocess.run(
        [str(python), str(gpu.HERE / "gpu.py"), "--out", str(out), "--threads", "1", *flags],
        env={**os.environ, "FAIRSEQ_PEFT_PEFT_PYTHON": os.devnull},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.end_to_end
def test_it_can_be_tried_on_a_cpu(python, tmp_path):
    done = program(python, tmp_path, *TINY, "--only", "*-small-lora-16,ours-members-2")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["contestants"]) == ["ours-small-lora-16", "ours-members-2"]
    one, members = result["contestants"].values()
    assert one["tokens_per_s"]["median"] > 0 < one["of_products"]["median"]
    assert one["trainable_parameters"] == 16 * 16 + 16 + 2 * 16 + 2 + 2 * 2 * 2 * 8 * 16
    assert members["seconds"]["median"] > 0 and members["x_one"] is None
    assert {goal["reached"] for goal in result["goals"]} <= {"-", "no", "yes"}
    assert "hf-*" in result["left_out"][0] and result["failures"] == []
    assert "these figures say nothing" in done.stdout


def test_without_a_gpu_it_says_what_to_do(python, tmp_path):
    done = program(python, tmp_path, "--only", "ours-small-lora-16")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert "torch sees no GPU here." in line and "--device cpu --tiny --steps 2" in line


def test_one_row_is_compiled_and_one_recorded():
    """Against the same rival; on a CPU nothing is recorded."""
    found = {one.name: one for one in gpu.contestants(False)}
    plain, compiled, graphs = (
        found[f"ours-small-lora-16{way}"] for way in ("", "-compiled", "-graphs")
    )
    assert compiled.flags == ("--compile", "on") and graphs.flags == ("--compile", "graphs")
    assert plain.flags == () and {one.rival for one in (plain, compiled, graphs)} == {
        "hf-small-lora-16"
    }
    assert set(found) - {one.name for one in gpu.contestants(False, "cpu")} == {graphs.name}


def test_the_script_runs_it():
    done = script("benchmark.sh", "--dry-run", "gpu", "--", "--only", "ours-members-*")
    words = shlex.split(done.stdout)
    assert words[1].endswith("benchmarks/gpu.py")
    assert words[-4:] == ["--device", "cuda", "--only", "ours-members-*"]


def test_ratios_floors_and_goals():
    """The machine was half as fast in the second repeat."""
    chosen = [one for one in gpu.contestants(False) if "small-lora-16" in one.name]
    chosen += [one for one in gpu.contestants(False) if one.members]

    def run(tokens, peak, seconds=1.0):
        return {
            "real_tokens": tokens, "seconds": seconds, "steps": 10, "startup_s": 3.0,
            "peak_device_bytes": peak, "trainable_parameters": 100,
        }  # fmt: skip

    runs = {
        "ours-small-lora-16": {1: run(300_000, 80), 2: run(300_000, 80, 2.0)},
        "hf-small-lora-16": {1: run(50_000, 100), 2: run(60_000, 100, 2.0)},
        "ours-members-1": {1: {"seconds": 10.0}, 2: {"seconds": 20.0}},
        "ours-members-16": {1: {"seconds": 25.0}, 2: {"seconds": 50.0}},
    }
    sizes = {"layers": 1, "embed_dim": 10, "ffn_dim": 10}
    products = [{"bf16": 1.0, "copy": 1.0}, {"bf16": 0.5, "copy": 0.5}]
    data = {16: {"mean_length": 100.0}}
    found = gpu.summarise(chosen, runs, products, lambda arch: sizes, data)
    ours = found["ours-small-lora-16"]
    assert ours["x_hf"] == {"median": 5.5, "min": 5.0, "max": 6.0}
    assert ours["memory_to_hf"]["median"] == 0.8
    # 4 W + 12 x 2 maps x 10 x rank 8, W = 4 x 100 + 2 x 100; alike in both repeats.
    flop = 4 * 600 + 12 * 2 * 10 * 8
    assert ours["of_products"]["min"] == ours["of_products"]["max"] == 300_000 * flop / 1e9
    # 30,000 tokens a step, each with 10 C + 2 F numbers of 2 bytes; forward and backward.
    needed = 2 * 2 * (30_000 * 120 + 600) + 32 * 100
    assert ours["of_memory"]["min"] == ours["of_memory"]["max"] == pytest.approx(10 * needed / 1e9)
    assert found["ours-members-16"]["x_one"]["median"] == 2.5
    reached = {goal["what"]: goal["reached"] for goal in gpu.judged(gpu.GOALS, found)}
    assert list(reached.values()) == ["yes", "no", "-", "-", "-", "-", "-", "no"]
