"""Where LoRA and IA3 stand in Hugging Face's models while nobody says anything: where PEFT's do."""

from __future__ import annotations

import pytest

pytest.importorskip("fairseq")
pytest.importorskip("transformers")

import hf_families  # noqa: E402

from fairseq_peft.hf import peft_beside, peft_match, peft_read  # noqa: E402
from fairseq_peft.methods.ia3 import IA3  # noqa: E402
from fairseq_peft.methods.lora import LoRALinear  # noqa: E402
from fairseq_peft.models.hf_families import CAUSAL, SEQ2SEQ  # noqa: E402

#: model_type -> LoRA's targets, IA3's, and those of IA3 that are scaled on their input: the tables
#: TRANSFORMERS_MODELS_TO_{LORA_TARGET,IA3_TARGET,IA3_FEEDFORWARD}_MODULES_MAPPING of PEFT 0.21.
PEFT = {
    "t5": (["q", "v"], ["k", "v", "wo"], ["wo"]),
    "mt5": (["q", "v"], ["k", "v", "wi_1"], []),
    "bart": (["q_proj", "v_proj"], ["q_proj", "v_proj", "fc2"], ["fc2"]),
    "gpt2": (["c_attn"], ["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "bloom": (
        ["query_key_value"],
        ["query_key_value", "mlp.dense_4h_to_h"],
        ["mlp.dense_4h_to_h"],
    ),
    "opt": (["q_proj", "v_proj"], ["q_proj", "k_proj", "fc2"], ["fc2"]),
    "llama": (["q_proj", "v_proj"], ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "mistral": (["q_proj", "v_proj"], ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "qwen2": (["q_proj", "v_proj"], ["q_proj", "v_proj", "down_proj"], ["down_proj"]),
    "qwen3": (["q_proj", "v_proj"], ["q_proj", "v_proj", "down_proj"], ["down_proj"]),
}
#: Configs, where no kind of ``hf_families`` has them.
GATED = {**hf_families.T5, "feed_forward_proj": "gated-gelu"}
CONFIGS = {
    "mt5": {**GATED, "model_type": "mt5"},
    "qwen3": {**hf_families.LLAMA, "model_type": "qwen3", "head_dim": 4},
}
ALL = {**{name: name for name in PEFT}, "t5 gated": "t5-gated", "mt5 not gated": "mt5-plain"}


@pytest.fixture
def kind(tmp_path, monkeypatch):
    plain = {**hf_families.T5, "model_type": "mt5", "feed_forward_proj": "relu"}
    configs = {**CONFIGS, "mt5-plain": plain}
    more = {name: (config, {}) for name, config in configs.items()}
    monkeypatch.setattr(hf_families, "WINDOWED", {**hf_families.WINDOWED, **more})
    return lambda name: hf_families.Kind(name, tmp_path)


def theirs(model, words):
    """The maps whose names end with one of these, as PEFT has it."""
    names = peft_match.places(model)
    return {ours for ours, name in names.items() if any(peft_match.fits(name, w) for w in words)}


def scales_of(model):
    """Map that IA3 stands on -> whether its input is scaled."""
    found = {path: m.on_input for path, m in model.named_modules() if isinstance(m, IA3)}
    return {path.rpartition(".")[0]: on_input for path, on_input in found.items()}


def test_the_table_has_every_kind():
    assert PEFT.keys() == CAUSAL.keys() | SEQ2SEQ.keys()


@pytest.mark.parametrize("name", ALL.values(), ids=ALL)
def test_defaults_are_those_of_peft(kind, name):
    kind = kind(name)
    lora, ia3, feedforward = PEFT[kind.config["model_type"]]
    model = kind.build("lora")
    found = {path for path, module in model.named_modules() if isinstance(module, LoRALinear)}
    assert found == {model.family.path(path) for path in theirs(model, lora)}
    model = kind.build("ia3")
    inputs = theirs(model, feedforward)
    assert scales_of(model) == {
        model.family.path(path): path in inputs for path in theirs(model, ia3)
    }


@pytest.mark.parametrize("name", ALL.values(), ids=ALL)
def test_a_folder_of_peft_that_names_no_targets_means_the_same(kind, name):
    model = kind(name).build("ia3")
    beside, places = peft_beside.of(model), peft_match.places(model)
    peft, flags = peft_read.as_flags({"peft_type": "IA3"}, places, beside)
    assert peft == "ia3" and scales_of(kind(name).build("ia3", **flags)) == scales_of(model)
