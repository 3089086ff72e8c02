"""``fairseq-peft params``: every exact figure of the systems S1 to S5 to the last digit, through
the command line, and the counts that real models have."""

from __future__ import annotations

import argparse
import json
import math
import types

import pytest
import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft import architectures, cli, methods
from fairseq_peft.injection import counting
from fairseq_peft.models import hf_models


def params(capsys, *words):
    assert cli.main(["params", *words]) == 0
    return capsys.readouterr().out


def counts(capsys, *words):
    return json.loads(params(capsys, "--json", *words))


def one_method(capsys, arch, peft, *knobs):
    """The row of one method with knobs."""
    (row,) = counts(capsys, "--arch", arch, "--peft", peft, "--", *knobs)["methods"]
    return row


def test_s1_table(capsys):
    found = counts(capsys, "--arch", "roberta_small")
    matrices, encoder, with_lm_head = found["sections"]
    terms = {row["part"]: row["parameters"] for row in matrices["details"] + matrices["terms"]}
    assert terms == {
        "attention, per layer": 1_048_576,
        "feed-forward, per layer": 524_288,
        "token embedding": 16_384_000,
        "position embedding": 132_096,
        "4 layers": 6_291_456,
    }
    assert (matrices["title"], matrices["total"]) == ("encoder, matrices alone", 22_807_552)
    assert (encoder["title"], encoder["total"]) == ("encoder", 22_829_056)
    assert (with_lm_head["title"], with_lm_head["total"]) == ("with LM head", 23_124_736)
    assert found["base"] == 23_124_736
    assert sum(row["parameters"] for row in found["head"]) == 263_682
    assert found["with_head"] == 23_388_418


def test_s1_text_shows_the_table(capsys):
    lines = [line.split() for line in params(capsys, "--arch", "roberta_small").splitlines()]
    for line in [
        "token embedding 32000 x 512 16,384,000",
        "position embedding (256 + 2) x 512 132,096",
        "attention, per layer 4 x 512 x 512 1,048,576",
        "feed-forward, per layer 2 x 512 x 512 524,288",
        "4 layers 4 x 1572864 6,291,456",
        "encoder, matrices alone 22,807,552",
        "encoder 22,829,056",
        "with LM head 23,124,736",
        "with classification head 23,388,418",
    ]:
        assert line.split() in lines


SYSTEMS = {
    # S4, T5-small: base 60,506,624
    "S4 full": ("t5_small", "full", "", 60_506_624, 60_506_624),
    "S4 prompt 10": ("t5_small", "prompt", "--prompt-num-tokens 10", 5_120, 60_511_744),
    "S4 prompt 1": ("t5_small", "prompt", "--prompt-num-tokens 1", 512, 60_507_136),
    "S4 adapter 8": ("t5_small", "adapter", "--adapter-bottleneck 8", 104_544, 60_611_168),
    "S4 adapter 1": ("t5_small", "adapter", "--adapter-bottleneck 1", 18_444, 60_525_068),
    "S4 LoRA 8": ("t5_small", "lora", "--peft-targets q,v --lora-rank 8", 294_912, 60_801_536),
    "S4 LoRA 1": ("t5_small", "lora", "--peft-targets q,v --lora-rank 1", 36_864, 60_543_488),
    # The same model in AdapterHub: DoubleSeqBnConfig, IA3Config
    "T5 adapters, both blocks": (
        "t5_small",
        "adapter",
        "--adapter-bottleneck 8 --adapter-placement both",
        209_088,
        60_715_712,
    ),
    "T5 IA3": (
        "t5_small",
        "ia3",
        "--ia3-targets k,v,wo --ia3-feedforward wo",
        43_008,
        60_549_632,
    ),
    # S5, GPT-2 small: base 124,439,808
    "S5 prompt 6": ("gpt2_small", "prompt", "--prompt-num-tokens 6", 4_608, 124_444_416),
    "S5 LoRA 128": (
        "gpt2_small",
        "lora",
        "--peft-targets c_attn --lora-rank 128 --lora-alpha 32 --lora-dropout 0.1",
        4_718_592,
        129_158_400,
    ),
    "S5 last block and tied embedding": (
        "gpt2_small",
        "last_layers",
        "--last-layers-num-layers 1 --last-layers-embeddings true",
        45_685_248,
        124_439_808,
    ),
    "S5 full": ("gpt2_small", "full", "", 124_439_808, 124_439_808),
    # S3, BLOOM-560m: base 559,214,592
    "S3 LoRA 16": (
        "bloom_560m",
        "lora",
        "--peft-targets query_key_value --lora-rank 16 --lora-alpha 32 --lora-dropout 0.05",
        1_572_864,
        560_787_456,
    ),
    "S3 full": ("bloom_560m", "full", "", 559_214_592, 559_214_592),
}


@pytest.mark.parametrize("arch, peft, knobs, trainable, total", SYSTEMS.values(), ids=SYSTEMS)
def test_figures_of_the_systems(capsys, arch, peft, knobs, trainable, total):
    row = one_method(capsys, arch, peft, *knobs.split())
    assert (row["trainable"], row["total"]) == (trainable, total)
    assert row["trainable_without_head"] == trainable and row["head"] == 0
    assert sum(term["parameters"] for term in row["terms"]) == trainable


@pytest.mark.parametrize("arch, peft, knobs, trainable, total", SYSTEMS.values(), ids=SYSTEMS)
def test_figures_of_the_systems_are_those_of_models(arch, peft, knobs, trainable, total):
    """Built by transformers from its config, without memory for the numbers."""
    kind = hf_models.HFSeq2Seq if arch == "t5_small" else hf_models.HFCausalLM
    config = {"gpt2_small": "gpt2"}.get(arch, arch.replace("_", "-"))
    words = ["--hf-config", config, "--peft", peft, "--precision", "fp32"]
    words += knobs.replace(" true", "").split()  # fairseq's switches take no value
    parser = argparse.ArgumentParser()
    gen_parser_from_dataclass(parser, hf_models.HFConfig())
    task = types.SimpleNamespace(cfg=types.SimpleNamespace(seed=1))
    with torch.device("meta"):
        model = kind.build_model(parser.parse_args(words), task)
    found = counting.count(model, "no head")
    assert (found.trainable, found.total) == (trainable, total)


@pytest.mark.parametrize(
    "arch, base",
    [("t5_small", 60_506_624), ("gpt2_small", 124_439_808), ("bloom_560m", 559_214_592)],
)
def test_models_that_are_only_counted(capsys, arch, base):
    """All methods at once: those with a count, and the reason for each of the others."""
    found = counts(capsys, "--arch", arch)
    assert (found["base"], found["with_head"], found["head"]) == (base, base, [])
    counted = {row["method"] for row in found["methods"]}
    assert {"full", "prompt", "adapter"} <= counted
    assert counted | set(found["left_out"]) == set(methods.available())
    assert "no classification head" in found["left_out"]["head_only"]
    assert "Modules here: " in found["left_out"]["lora"]
    assert "head_only: left out" in params(capsys, "--arch", arch)


@pytest.mark.parametrize("system, share", [("S5 LoRA 128", "3.6533 %"), ("S3 LoRA 16", "0.2805 %")])
def test_shares_of_the_reports(capsys, system, share):
    arch, peft, knobs, trainable, total = SYSTEMS[system]
    out = params(capsys, "--arch", arch, "--peft", peft, "--", *knobs.split())
    last = out.splitlines()[-1].split()
    assert " ".join(last) == f"of all parameters {trainable:,} {share} of {total:,}"


@pytest.mark.parametrize(
    "arch, number, modules, layers",
    [
        ("t5_small", 12 * 4 + 6 * 4 + 12 * 2, {"q", "k", "v", "o", "wi", "wo"}, 6),
        ("gpt2_small", 12 * 4, {"c_attn", "c_proj", "c_fc"}, 12),
        (
            "bloom_560m",
            24 * 4,
            {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
            24,
        ),
    ],
)
def test_linear_maps_have_the_names_of_hugging_face(arch, number, modules, layers):
    from fairseq_peft.injection import targets

    names = list(architectures.COUNTED[arch].linears())
    assert {name.rpartition(".")[2] for name in names} == modules
    assert len(targets.select(names, targets.ALL_LINEAR)) == len(names) == number
    assert {targets.layer_of(name) for name in names} == set(range(layers))
    first = targets.select(names, targets.ALL_LINEAR, layers="0")
    assert len(first) == number // layers and all("layers.0." in name for name in first)


@pytest.mark.parametrize("arch", architectures.COUNTED)
def test_tensors_by_name_are_the_body(arch):
    """The list of tensors that methods choose from, and the formulas of the whole, are written
    down apart and agree."""
    dims = architectures.COUNTED[arch]
    tensors = dims.tensors()
    assert sum(math.prod(shape) for shape in tensors.values()) == dims.body().total
    for name, (rows, columns) in dims.linears().items():
        assert tensors[f"{name}.weight"] == (columns, rows)
    for name, shape in dims.embeddings().items():
        assert tensors[f"{name}.weight"] == shape


def test_methods(capsys):
    found = counts(capsys, "--arch", "roberta_small")
    assert [row["method"] for row in found["methods"]] == methods.available()
    assert found["left_out"] == {}
    rows = {row["method"]: row["trainable_without_head"] for row in found["methods"]}
    for method, number in {
        "full": 22_829_056,
        "head_only": 0,
        "lora": 65_536,
        "adapter": 264_448,
        "prompt": 10_240,
    }.items():
        assert rows[method] == number
    assert all(row["head"] == 263_682 for row in found["methods"])


@pytest.mark.parametrize(
    "knobs, expected",
    [
        (["--peft-targets", "q_proj,k_proj,v_proj,out_proj"], 131_072),
        (["--peft-targets", "q_proj,k_proj,v_proj,out_proj,fc1,fc2"], 196_608),
        (["--peft-targets", "all-linear"], 196_608),
        (["--lora-rank", "1"], 8_192),
    ],
)
def test_knobs(capsys, knobs, expected):
    (method,) = counts(capsys, "--arch", "roberta_small_lora", "--", *knobs)["methods"]
    assert (method["method"], method["trainable_without_head"]) == ("lora", expected)


def test_a_knob_is_for_those_of_the_methods_that_have_it(capsys):
    words = ["--arch", "roberta_small", "--peft", "lora", "prompt", "--", "--lora-rank", "1"]
    found = {
        row["method"]: row["trainable_without_head"] for row in counts(capsys, *words)["methods"]
    }
    assert found == {"lora": 8_192, "prompt": 10_240}


def test_several_methods_in_one(capsys):
    row = one_method(capsys, "t5_small", "lora,prompt", "--peft-targets", "q,v")
    assert row["method"] == "lora+prompt" and row["trainable"] == 294_912 + 20 * 512


def test_roberta_base_is_the_published_one(capsys):
    """Hugging Face counts 124,697,433 for the same masked LM; 768 of them are its token-type
    row."""
    assert counts(capsys, "--arch", "roberta_base")["base"] == 124_697_433 - 768


def test_another_vocabulary(capsys):
    found = counts(capsys, "--arch", "t5_small", "--vocab-size", "32000", "--peft", "full")
    assert found["base"] == 60_506_624 - 128 * 512


def test_text(capsys):
    out = params(capsys, "--arch", "roberta_small_prompt")
    assert "22,807,552" in out and "20 x 512" in out and "10,240" in out
    for arch in architectures.COUNTED:
        lines = params(capsys, "--arch", arch, "--peft", "full", "prompt").splitlines()
        assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    "words, message",
    [
        (["--arch", "bert"], "--arch 'bert' is unknown"),
        (["--arch", "roberta_small", "--peft", "lorra"], "--peft 'lorra' is unknown"),
        (["--arch", "roberta_small", "--num-classes", "1"], "--num-classes 1"),
        (["--arch", "t5_small", "--num-classes", "3"], "--num-classes 3 would be ignored"),
        (["--arch", "roberta_small_lora", "--", "--lora-rank", "x"], "A knob of lora"),
        (["--arch", "roberta_small_lora", "--", "lora"], "not a list of --knob value pairs"),
        (["--arch", "roberta_small", "--", "--lora-rnk", "4"], "--lora-rnk is unknown here"),
        (["--arch", "roberta_small_lora", "--", "--encoder-layers", "2"], "sizes are those of"),
        (["--arch", "roberta_small", "--", "--encoder-layers", "2"], "--encoder-layers is unk"),
        (["--arch", "gpt2_small", "--", "--hf-split-qkv", "true"], "--hf-split-qkv is unknown"),
        (
            ["--arch", "roberta_small_lora", "--", "--adapter-bottleneck", "8"],
            "--adapter-bottleneck would be ignored: --peft lora does not use it",
        ),
        (
            ["--arch", "t5_small", "--peft", "lora,prompt", "ia3", "--", "--vera-rank", "8"],
            "--vera-rank would be ignored: --peft lora,prompt ia3 does not use it",
        ),
        (
            ["--arch", "t5_small", "--peft", "lora"],
            "Modules here: q, k, v, o, wi, wo, shared. Try q,",
        ),
        (["--arch", "gpt2_small", "--peft", "head_only"], "trains nothing on gpt2_small"),
    ],
)
def test_bad_input(capsys, words, message):
    assert cli.main(["params", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_linear_head(capsys):
    found = counts(capsys, "--arch", "roberta_small", "--classifier-head", "linear")
    assert [(row["formula"], row["parameters"]) for row in found["head"]] == [("512 x 2 + 2", 1026)]
    assert found["with_head"] == 23_124_736 + 1026
    lines = params(
        capsys, *["--arch", "roberta_small", "--classifier-head", "linear", "--peft", "lora"]
    )
    sizes = [line.split()[-1] for line in lines.splitlines() if "fp32 bytes" in line]
    assert sizes == ["262,144", "266,248"]
    assert cli.main(["params", "--arch", "t5_small", "--classifier-head", "linear"]) == 1
    assert "would be ignored" in capsys.readouterr().err
