"""benchmarks/text_speed.py: its ratios, its commands, and what it says without Hugging Face's."""

from __future__ import annotations

import json
import os

import pytest
import text_speed

from fairseq_peft.errors import InputError


def a_run(seconds, cpu, memory=100):
    return {
        "real_tokens": 60, "seconds": seconds, "cpu_seconds": cpu, "peak_rss_bytes": memory,
        "trainable_parameters": 8, "versions": {},
    }  # fmt: skip


def test_ratios_are_to_hugging_face_on_the_same_model_in_the_same_repeat():
    chosen = [one for one in text_speed.contestants() if "gpt2" in one.name]
    runs = {
        "ours-gpt2": {1: a_run(3, 2, 50), 2: a_run(6, 2, 50)},
        "packed-gpt2": {1: a_run(3, 1), 2: a_run(3, 2)},
        "hf-gpt2": {1: a_run(6, 3), 2: a_run(6, 5)},
        "hf-gpt2-made-small": {1: a_run(1, 1), 2: a_run(1, 1)},
    }
    found = {entry["name"]: entry for entry in text_speed.summarise(chosen, runs)}
    assert set(found) == set(runs)
    ours = found["ours-gpt2"]
    assert ours["tokens_per_cpu_s"] == {"median": 30, "min": 30, "max": 30}
    assert ours["cpu_ratio_to_hf"] == pytest.approx({"median": 2, "min": 1.5, "max": 2.5})
    assert ours["clock_ratio_to_hf"] == pytest.approx({"median": 1.5, "min": 1, "max": 2})
    assert ours["memory_to_hf"]["median"] == 0.5
    packed = found["packed-gpt2"]["cpu_ratio_to_ours"]
    assert packed == pytest.approx({"median": 1.5, "min": 1, "max": 2})
    assert found["hf-gpt2-made-small"]["cpu_ratio_to_hf"]["median"] == 1


def test_both_sides_train_the_same_rows_in_batches_of_one_size(tmp_path):
    args = text_speed.read_args(["--batch-size", "5", "--steps", "2", "--precision", "bf16"])
    for one in text_speed.contestants():
        (tmp_path / one.model).mkdir(exist_ok=True)
        (tmp_path / one.model / "config.json").write_text(json.dumps({"vocab_size": 9}))
        words = text_speed.command(one, args, tmp_path, "python")
        assert str(tmp_path / f"{one.model}-data") in words
        assert words[words.index("--batch-size") + 1] == "5"
        assert words[words.index("--precision") + 1] == "bf16"
        assert one.task in words
        assert ("--pack" in words) == one.name.startswith("packed-gpt2")


def test_without_hugging_face_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("FAIRSEQ_PEFT_PEFT_PYTHON", os.devnull)
    for only in ("ours-*", "hf-*"):
        with pytest.raises(InputError, match="bash scripts/test.sh parity makes it"):
            text_speed.main(["--only", only, "--out", str(tmp_path)])
