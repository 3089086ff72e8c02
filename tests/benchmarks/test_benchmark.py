"""benchmarks/train_speed.py: what it measures and prints, at tiny sizes, and how it fails."""

from __future__ import annotations

import json
import os

import harness
import pytest
import train_report
import train_rows
import train_speed
from benchmarking import benchmark

TINY = ["--steps", "2", "--warmup", "1", "--batch-size", "4", "--vocab", "100"]
SMALL = {"layers": 4, "embed_dim": 512, "ffn_dim": 512}
METHODS = {"stock-full-fp32": "full", "ours-full-fp32": "full", "ours-lora-fp32": "lora"}


def tiny_run(out, *flags, **env):
    return benchmark("train_speed.py", out, *TINY, *flags, **env)


def result_of(out):
    return json.loads((out / "train_speed.json").read_text())


def a_run(tokens_per_s, **more):
    """What a process reports, with a speed."""
    parts = dict.fromkeys(train_report.PARTS, 0.2)
    return {
        "startup_s": 3.0, "steps": 4, "seconds": 1.0, "parts_s": parts, "threads": 1,
        "real_tokens": tokens_per_s, "padded_tokens": 2 * tokens_per_s, "rows_hash": "a",
        "peak_rss_bytes": 10, "peak_device_bytes": None, "trainable_parameters": 5, "versions": {},
        **more,
    }  # fmt: skip


# The whole program


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "out"
    done = tiny_run(out, "--only", ",".join(METHODS))
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done, result_of(out)


@pytest.mark.end_to_end
def test_every_contestant_is_measured(tiny):
    out, done, result = tiny
    assert result["schema"] == 1
    assert result["failures"] == result["left_out"] == []
    assert result["reference"] == "stock-full-fp32"
    assert {entry["name"]: entry["method"] for entry in result["contestants"]} == METHODS
    for entry in result["contestants"]:
        (run,) = entry["runs"]
        assert run["repeat"] == run["threads"] == 1
        assert run["steps"] == 2
        assert 0 < run["real_tokens"] <= run["padded_tokens"]
        assert run["peak_rss_bytes"] > 50e6
        assert 0.5 < run["startup_s"] < 300
        assert run["versions"]["torch"]
        assert entry["real_tokens_per_s"]["median"] == run["real_tokens"] / run["seconds"]
        assert entry["name"] in done.stdout
    assert (out / "train_speed.png").stat().st_size > 5000
    assert all(product["fp32"] > 0 and product["bf16"] > 0 for product in result["products"])


@pytest.mark.end_to_end
def test_every_contestant_saw_the_same_rows(tiny):
    _, _, result = tiny
    hashes = {run["rows_hash"] for entry in result["contestants"] for run in entry["runs"]}
    assert hashes == {result["data"]["rows_hash"]}


@pytest.mark.end_to_end
def test_the_parts_are_the_step(tiny):
    _, _, result = tiny
    for entry in result["contestants"]:
        (run,) = entry["runs"]
        parts = run["parts_s"]
        assert list(parts) == list(train_report.PARTS)
        # Nothing is counted twice (then the rest would be negative), and each part was found.
        assert all(seconds > 0 for seconds in parts.values()), (entry["name"], parts)
        assert sum(parts.values()) == pytest.approx(run["seconds"])


@pytest.mark.end_to_end
def test_contestants_train_what_their_names_say(tiny):
    _, _, result = tiny
    trained = {entry["name"]: entry["trainable_parameters"] for entry in result["contestants"]}
    head = 16 * 16 + 16 + 2 * 16 + 2
    assert trained["ours-lora-fp32"] == head + 2 * 2 * 2 * 8 * 16
    assert trained["ours-full-fp32"] > trained["ours-lora-fp32"]
    # Stock fairseq leaves the LM head trainable, which nothing reads.
    lm_head = 16 * 16 + 16 + 2 * 16 + 100
    assert trained["stock-full-fp32"] == trained["ours-full-fp32"] + lm_head


@pytest.mark.end_to_end
def test_a_contestant_that_fails_is_a_sentence(tmp_path):
    broken = "broken=lora fp32 --peft-targets nothing_there"
    done = tiny_run(tmp_path / "out", "--only", "broken", "--variant", broken)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "error: broken failed" in line]
    assert len(errors) == 1
    assert "nothing_there" in errors[0]
    assert "Traceback" not in done.stderr
    result = result_of(tmp_path / "out")
    assert result["contestants"] == []
    assert len(result["failures"]) == 1


def hf_python():
    return harness.find_hf_python()[0]


@pytest.mark.end_to_end
@pytest.mark.skipif(hf_python() is None, reason="no environment with Hugging Face PEFT")
def test_hugging_face_sees_the_same_rows(tmp_path):
    done = tiny_run(tmp_path / "out", "--only", "hf-lora-bf16")
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = result_of(tmp_path / "out")["contestants"]
    assert entry["trainable_parameters"] == 16 * 16 + 16 + 2 * 16 + 2 + 2 * 2 * 2 * 8 * 16
    assert all(seconds > 0 for seconds in entry["runs"][0]["parts_s"].values())


def test_without_hugging_face_the_output_says_so(tmp_path):
    done = tiny_run(tmp_path / "out", "--only", "hf-*", FAIRSEQ_PEFT_PEFT_PYTHON=os.devnull)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "scripts/test.sh parity" in done.stderr


# Its parts


def test_ratios_are_taken_within_a_repeat():
    """The machine was half as fast in the second repeat: no ratio may notice."""
    chosen = [
        one
        for one in train_speed.contestants("cpu")
        if one.name in ("stock-full-fp32", "ours-lora-bf16", "hf-lora-bf16")
    ]
    runs = {
        "stock-full-fp32": {1: a_run(100), 2: a_run(50)},
        "ours-lora-bf16": {1: a_run(800), 2: a_run(400)},
        "hf-lora-bf16": {1: a_run(200), 2: a_run(80)},
    }
    products = [{"fp32": 1.0, "bf16": 4.0}, {"fp32": 0.5, "bf16": 2.0}]
    floor = [{"method": "lora", "scope": "every layer", "flop_per_token": 1e6}]
    ours = train_speed.summarise(chosen, runs, products, floor)[1]
    assert ours["real_tokens_per_s"] == {"median": 600, "min": 400, "max": 800}
    assert ours["ratio_to_reference"] == {"median": 8, "min": 8, "max": 8}
    assert ours["ratio_to_rival"] == {"median": 4.5, "min": 4, "max": 5}
    assert ours["share_of_floor"] == {"median": 0.2, "min": 0.2, "max": 0.2}
    assert ours["parts_ms"]["forward"]["median"] == 50


def test_contestants_take_turns_and_one_that_fails_is_not_asked_again(
    tmp_path, monkeypatch, capsys
):
    asked = []

    def start(words, log, threads, timed=False, given=""):
        if log.stem == "products":
            return '{"fp32": 1.0, "bf16": 2.0}'
        asked.append(log.stem)
        if "head_only" in log.stem:
            raise harness.Failed("failed with status 1: too slow")
        return json.dumps(a_run(100))

    sizes = {**SMALL, "heads": 8, "max_positions": 256, "vocab": 10, "classes": 2, "dropout": 0.1}
    data = {"source": "x", "rows": 2, "mean_length": 9.0, "longest": 9, "rows_hash": "a"}
    monkeypatch.setattr(train_speed, "start", start)
    monkeypatch.setattr(harness, "start", start)
    monkeypatch.setattr(train_speed, "prepare", lambda *_: (sizes, data))
    only = "stock-*,ours-head_only-fp32,ours-lora-fp32"
    flags = ["--repeats", "2", "--threads", "1", "--only", only]
    assert train_speed.main(["--out", str(tmp_path), *flags]) == 1
    assert asked == [
        "stock-full-fp32-1", "ours-head_only-fp32-1", "ours-lora-fp32-1",
        "stock-full-fp32-2", "ours-lora-fp32-2",
    ]  # fmt: skip
    result = result_of(tmp_path)
    assert result["failures"] == ["ours-head_only-fp32 failed with status 1: too slow"]
    assert [len(entry["runs"]) for entry in result["contestants"]] == [2, 2]
    assert "error: ours-head_only-fp32 failed" in capsys.readouterr().err


def test_other_rows_and_other_threads_are_failures():
    runs = {"a": {1: a_run(1)}, "b": {1: a_run(1, rows_hash="b"), 2: a_run(1, threads=2)}}
    found = train_speed.check_rows(runs, "a", 1)
    assert [line.split(":")[0] for line in found] == ["b, repeat 1", "b, repeat 2"]


def test_the_floor_is_that_of_roberta_small():
    found = {
        (entry["method"], entry["scope"]): entry["flop_per_token"]
        for entry in train_report.floors(SMALL, 140)
    }
    weights = 4 * (4 * 512 * 512 + 2 * 512 * 512)
    assert found["full", "every layer"] == 6 * weights
    assert found["head_only", "every layer"] == 2 * weights
    # LoRA: forward and the gradients of inputs, and three products with its 65,536 parameters.
    assert found["lora", "every layer"] == 4 * weights + 6 * 65_536
    for method in train_speed.METHODS:
        assert found[method, "head's share"] < found[method, "every layer"]


def test_synthetic_rows_are_like_reviews():
    rows, labels = train_rows.synthetic_rows(1600, 254, 32_000)
    lengths = [len(row) for row in rows]
    assert 115 < sum(lengths) / len(lengths) < 130  # cls-books has 117 when cut at 254
    assert max(lengths) == 254 and min(lengths) >= 8
    assert sum(labels) == 800
    assert max(map(max, rows)) < 31_999  # <mask> is the last
    assert train_rows.synthetic_rows(1600, 254, 32_000)[0] == rows


def test_written_rows_are_read_back(tmp_path):
    rows, labels = train_rows.synthetic_rows(9, 20, 100)
    train_rows.write_data(tmp_path / "data", rows, labels, None, 100, valid=2)
    again, targets = train_rows.real_rows(tmp_path / "data", 9, 20)
    assert sorted(zip(again, targets)) == sorted(zip(rows, labels))
    with pytest.raises(harness.InputError, match="has 9 training rows"):
        train_rows.real_rows(tmp_path / "data", 10, 20)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "no-such"], "'no-such' fits no contestant"),
        (["--variant", "x=lora"], "NAME=METHOD PRECISION"),
        (["--steps", "0"], "--steps 0: give 1 or more"),
        (["--max-positions", "20"], "--max-positions 20"),
    ],
)
def test_bad_flags_are_sentences(flags, message, tmp_path):
    done = tiny_run(tmp_path / "out", *flags)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_reason_of_a_failure_is_its_error():
    text = "INFO | start\nValueError: too long\nsee the documentation\n"
    assert harness.reason_of(text) == "ValueError: too long"
    assert harness.reason_of("Killed\n\n") == "Killed"
    assert harness.reason_of("") == "no message"
