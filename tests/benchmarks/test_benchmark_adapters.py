"""benchmarks/many_adapters.py: what it measures and prints, at tiny sizes, and how it fails."""

from __future__ import annotations

import json
import os

import harness
import many_adapters
import pytest
from benchmarking import benchmark

TINY = ["--texts", "12", "--warmup", "2", "--loaded", "2", "--adapters", "1,3"]


def tiny_run(out, *flags, **env):
    return benchmark("many_adapters.py", out, *TINY, *flags, **env)


@pytest.mark.end_to_end
def test_ours_and_whole_models_are_measured_on_the_same_tokens(tmp_path, python):
    done = tiny_run(tmp_path, "--only", "ours-*,whole-3", python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "many_adapters.json").read_text())
    assert result["schema"] == 1 and result["failures"] == result["left_out"] == []
    names = ["ours-1", "ours-3", "whole-3"]
    assert [entry["name"] for entry in result["contestants"]] == names
    assert result["other_tokens"] == dict.fromkeys(names, 0)
    for entry in result["contestants"]:
        (run,) = entry["runs"]
        assert (run["texts"], run["threads"]) == (12, 1)
        assert entry["texts_per_s"]["median"] == 12 / run["seconds"]
        assert entry["memory_bytes"]["median"] > 0 and entry["load_s"]["median"] > 0
        assert entry["name"] in done.stdout
    # Rank 8 on q and v of two layers, the head's two layers, both with biases.
    assert result["own_bytes"]["adapter"] == 4 * (2 * 2 * 8 * 32 + 16 * 17 + 2 * 17)
    whole = result["contestants"][2]
    assert len(whole["runs"][0]["after_bytes"]) == 2 and whole["memory_told"]
    assert set(result["goals"]) == {"memory"}


@pytest.mark.parity
@pytest.mark.end_to_end
def test_hugging_face_gives_the_same_of_mixed_rows(tmp_path):
    if not os.environ.get("FAIRSEQ_PEFT_PEFT_PYTHON"):
        pytest.skip("FAIRSEQ_PEFT_PEFT_PYTHON is not set: scripts/test.sh parity sets it up")
    done = tiny_run(tmp_path, "--only", "*-3,hf-3-batch8")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "many_adapters.json").read_text())
    assert result["other_tokens"] == dict.fromkeys(("ours-3", "hf-3-batch8", "whole-3"), 0)
    assert result["other_scores"]["hf-3-batch8"] < 1e-5
    ours = result["contestants"][0]
    assert result["goals"]["throughput_of_hf"]["found"] == ours["ratio_to_hf"]["median"]


@pytest.mark.end_to_end
def test_a_model_that_cannot_be_made_is_a_sentence(tmp_path):
    done = tiny_run(tmp_path, "--only", "ours-1", "--embed-dim", "15")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("many_adapters.py: error: What is to be loaded could not be made")


def test_numbers_of_adapters_are_checked():
    with pytest.raises(harness.InputError, match="--adapters '1,x': give numbers"):
        many_adapters.read_args(["--adapters", "1,x"])
    with pytest.raises(harness.InputError, match="--adapters '0': give numbers"):
        many_adapters.read_args(["--adapters", "0"])


def a_run(texts_per_s, after=(150,), score=0.5):
    return {
        "startup_s": 1.0, "seconds": 2 / texts_per_s, "texts": 2, "tokens": 7, "threads": 1,
        "rows": [[3, "a"], [4, "b"]], "peak_rss_bytes": 10, "versions": {}, "load_s": 1.0,
        "cpu_s": 1.0, "before_bytes": 50, "after_bytes": list(after),
        "scores": [[score, 1 - score]] * 2,
    }  # fmt: skip


def chosen(*names):
    return [one for one in many_adapters.contestants([1, 100]) if one.name in names]


def test_the_memory_of_whole_models_is_told_from_the_difference_of_one():
    (one, many) = chosen("whole-1", "whole-100")
    assert many_adapters.held(one, a_run(1)) == 100
    # 100 for the first, 40 for each of the other 99.
    assert many_adapters.held(many, a_run(1, (150, 190, 230))) == 100 + 99 * 40


def test_goals_are_of_one_repeat_and_of_the_faster_batch_size():
    found = chosen("ours-1", "ours-100", "hf-100-batch8", "hf-100-batch32")
    runs = {
        "ours-1": {1: a_run(40), 2: a_run(20)},
        "ours-100": {1: a_run(20, (350,)), 2: a_run(15, (350,))},
        "hf-100-batch8": {1: a_run(10), 2: a_run(5)},
        "hf-100-batch32": {1: a_run(5), 2: a_run(30)},
    }
    entries = many_adapters.summarise(found, runs, {"base": 100, "adapter": 1})
    goals = {name: goal["found"] for name, goal in many_adapters.goals(entries).items()}
    assert goals == pytest.approx(
        {
            "throughput_of_one": (20 / 40 + 15 / 20) / 2,
            "memory": 300 / 200,
            "throughput_of_hf": (20 / 10 + 15 / 30) / 2,
        }
    )


def test_the_largest_difference_of_a_probability_is_told():
    found = chosen("ours-1", "hf-1-batch8")
    runs = {"ours-1": {1: a_run(1)}, "hf-1-batch8": {1: a_run(1, score=0.75)}}
    assert many_adapters.other_scores(found, runs) == {"hf-1-batch8": 0.25}
