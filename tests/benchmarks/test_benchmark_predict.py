"""benchmarks/predict_speed.py: what it measures and prints, at tiny sizes, and how it fails."""

from __future__ import annotations

import json

import predict_shared
import predict_speed
import pytest
from benchmarking import benchmark

TINY = ["--texts", "12", "--warmup", "2"]
OURS = ("ours-fp32", "ours-lora-fp32", "stock-one-by-one", "stock-batch32")


def tiny_run(out, *flags, **env):
    return benchmark("predict_speed.py", out, *TINY, *flags, **env)


@pytest.mark.end_to_end
def test_every_contestant_is_measured_on_the_same_tokens(tmp_path, python):
    done = tiny_run(tmp_path, "--only", ",".join(OURS), python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "predict_speed.json").read_text())
    assert result["schema"] == 1 and result["failures"] == result["left_out"] == []
    assert result["data"]["source"] == "demo data, test" and result["data"]["texts"] == 12
    assert [entry["name"] for entry in result["contestants"]] == list(OURS)
    assert result["other_tokens"] == dict.fromkeys(OURS, 0)
    for entry in result["contestants"]:
        (run,) = entry["runs"]
        assert (run["texts"], run["threads"]) == (12, 1)
        assert run["tokens"] > 12 * 5
        assert entry["texts_per_s"]["median"] == 12 / run["seconds"]
        assert 0 < run["startup_s"] < 300
        assert 0 < run["alone_ms"]["p50"] <= run["alone_ms"]["p99"]
        assert entry["name"] in done.stdout


@pytest.mark.end_to_end
def test_a_contestant_that_fails_is_a_sentence(tmp_path):
    done = tiny_run(tmp_path, "--only", "ours-fp32", "--embed-dim", "15")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("predict_speed.py: error: A model to predict with could not be made")


@pytest.mark.end_to_end
def test_hugging_face_is_left_out_aloud(tmp_path):
    done = tiny_run(tmp_path, "--only", "hf-*", FAIRSEQ_PEFT_PEFT_PYTHON="nowhere")
    assert done.returncode == 1
    assert "Nothing is left to measure. hf-*: nowhere does not exist" in done.stderr


def a_run(texts_per_s, rows=((3, "a"), (4, "b"))):
    return {
        "startup_s": 1.0, "seconds": 2 / texts_per_s, "texts": 2, "tokens": 7, "threads": 1,
        "rows": [list(row) for row in rows], "peak_rss_bytes": 10, "versions": {},
        "alone_ms": {"p50": 1000 / texts_per_s, "p99": 9, "cpu_p50": 8},
    }  # fmt: skip


def test_ratios_are_to_the_best_batch_size_of_the_same_repeat():
    chosen = [
        one
        for one in predict_speed.contestants()
        if one.name in ("ours-bf16", "hf-fp32-batch1", "hf-bf16-batch1", "hf-bf16-batch8")
        or one.software == "hf-sorted"
    ]
    runs = {
        "ours-bf16": {1: a_run(60), 2: a_run(40)},
        "hf-fp32-batch1": {1: a_run(5), 2: a_run(40)},
        "hf-bf16-batch1": {1: a_run(10), 2: a_run(10)},
        "hf-bf16-batch8": {1: a_run(20), 2: a_run(5)},
        "hf-bf16-sorted": {1: a_run(1000), 2: a_run(1000)},
    }
    ours = predict_speed.summarise(chosen, runs)[0]
    assert ours["ratio_to_hf_same_precision"] == pytest.approx({"median": 3.5, "min": 3, "max": 4})
    assert ours["ratio_to_hf_best"] == pytest.approx({"median": 2, "min": 1, "max": 3})
    # One text at a time, the pipeline takes 50 and 100 ms, ours 16.7 and 25.
    assert ours["alone_cpu_p50_ratio_to_hf_same_precision"]["median"] == 1
    same = ours["alone_p50_ratio_to_hf_same_precision"]
    assert same == pytest.approx({"median": 3.5, "min": 3, "max": 4})


def test_other_tokens_are_told():
    other = a_run(1, rows=((3, "a"), (5, "c")))
    found = predict_shared.other_rows({"ours": {1: a_run(1)}, "hf": {1: other}})
    assert found == {"ours": 0, "hf": 0.5}


def test_a_message_is_read_field_by_field():
    """Of the sentencepiece model's own file: number 2, a string; number 3, a number above 127."""
    assert list(predict_shared.fields(b"\x12\x02ab\x18\xac\x02")) == [(2, b"ab"), (3, 300)]
