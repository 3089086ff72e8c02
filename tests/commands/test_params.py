"""``fairseq-peft params``: S1's table to the last digit, and the counts that real models have."""

from __future__ import annotations

import json

import pytest

from fairseq_peft import cli


def params(capsys, *words):
    assert cli.main(["params", *words]) == 0
    return capsys.readouterr().out


def test_s1_table(capsys):
    counts = json.loads(params(capsys, "--arch", "roberta_small", "--json"))
    terms = {row["part"]: row["parameters"] for row in counts["terms"]}
    assert terms == {
        "attention, per layer": 1_048_576,
        "feed-forward, per layer": 524_288,
        "token embedding": 16_384_000,
        "position embedding": 132_096,
        "4 layers": 6_291_456,
    }
    assert counts["encoder_matrices"] == 22_807_552
    assert counts["encoder"] == 22_829_056
    assert counts["with_lm_head"] == 23_124_736
    assert counts["with_lm_head_and_head"] == 23_388_418


def test_methods(capsys):
    counts = json.loads(params(capsys, "--arch", "roberta_small", "--json"))
    found = {row["method"]: row["trainable_without_head"] for row in counts["methods"]}
    assert found == {
        "full": 22_829_056,
        "head_only": 0,
        "lora": 65_536,
        "adapter": 264_448,
        "prompt": 10_240,
    }
    assert all(row["head"] == 263_682 for row in counts["methods"])


@pytest.mark.parametrize(
    "knobs, expected",
    [
        (["--peft-targets", "q_proj,k_proj,v_proj,out_proj"], 131_072),
        (["--peft-targets", "q_proj,k_proj,v_proj,out_proj,fc1,fc2"], 196_608),
        (["--lora-rank", "1"], 8_192),
    ],
)
def test_knobs(capsys, knobs, expected):
    out = params(capsys, "--arch", "roberta_small_lora", "--json", "--", *knobs)
    (method,) = json.loads(out)["methods"]
    assert (method["method"], method["trainable_without_head"]) == ("lora", expected)


def test_roberta_base_is_the_published_one(capsys):
    """Hugging Face counts 124,697,433 for the same masked LM; 768 of them are its token-type
    row."""
    counts = json.loads(params(capsys, "--arch", "roberta_base", "--json"))
    assert counts["with_lm_head"] == 124_697_433 - 768


def test_text(capsys):
    out = params(capsys, "--arch", "roberta_small_prompt")
    assert "22,807,552" in out and "20 x 512" in out and "10,240" in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    "words, message",
    [
        (["--arch", "bert"], "--arch 'bert' is unknown"),
        (["--arch", "roberta_small", "--peft", "lorra"], "--peft 'lorra' is unknown"),
        (["--arch", "roberta_small", "--num-classes", "1"], "--num-classes 1"),
        (["--arch", "roberta_small_lora", "--", "--lora-rank", "x"], "A knob of lora"),
        (["--arch", "roberta_small_lora", "--", "lora"], "not a list of --knob value pairs"),
    ],
)
def test_bad_input(capsys, words, message):
    assert cli.main(["params", *words]) == 1
    assert message in capsys.readouterr().err
