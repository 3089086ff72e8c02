"""BitFit: which biases, and its knobs."""

from __future__ import annotations

import pytest
import torch


def trained(model):
    """Names below the body of what trains, without layers' numbers."""
    names = {
        name.split("sentence_encoder.")[1]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("classification_heads.")
    }
    return {name.split(".", 2)[2] if name.startswith("layers.") else name for name in names}


def test_every_bias_trains_and_nothing_else(build):
    model = build("bitfit")
    attention = {f"self_attn.{name}_proj.bias" for name in ("q", "k", "v", "out")}
    assert trained(model) == attention | {
        *("fc1.bias", "fc2.bias", "layernorm_embedding.bias"),
        *("self_attn_layer_norm.bias", "final_layer_norm.bias"),
    }
    named = {name for name, _ in model.encoder.sentence_encoder.named_parameters()}
    biases = {name for name in named if name.endswith(".bias")}
    assert len(model.setting.trainable_base_names(model, model_family())) == len(biases)


def model_family():
    from fairseq_peft.models.roberta import FAMILY

    return FAMILY


def test_the_papers_subset(build):
    model = build("bitfit", bitfit_scope="query_middle_mlp")
    assert trained(model) == {"self_attn.q_proj.bias", "fc1.bias"}


def test_the_keys_bias_moves_nothing(build, batch, logits):
    """What the docstring says: softmax cancels it, up to rounding."""
    model = build("bitfit")
    before = logits(model, batch)
    with torch.no_grad():
        for layer in model.encoder.sentence_encoder.layers:
            layer.self_attn.k_proj.bias.normal_()
    assert (logits(model, batch) - before).abs().max() < 1e-5


def test_counts_of_the_real_sizes():
    """RoBERTa-base: 0.08 % of the model, as in the paper, half of it in its subset."""
    from fairseq_peft import methods
    from fairseq_peft.architectures import SIZES

    base = SIZES["roberta_base"]
    count = methods.setting("bitfit", {}).count_base(base)
    assert count.total == 12 * (7 * 768 + 3072) + 768 == 102_144
    assert ("fc1.bias", "12 x 3072", 36_864) in count.terms
    subset = methods.setting("bitfit", {"bitfit_scope": "query_middle_mlp"}).count_base(base)
    assert subset.total == 12 * (768 + 3072) == 46_080
    # What two methods train counts once.
    both = methods.setting("bitfit,layer_norm", {}).count_base(base)
    assert both.total == 102_144 + 25 * 768


@pytest.mark.parametrize(
    "given, message",
    [
        ({"bitfit_scope": "key"}, "--bitfit-scope 'key'"),
        ({"peft": "lora", "bitfit_scope": "all"}, "--bitfit-scope would be ignored: --peft lora"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build(**{"peft": "bitfit", **given})
    assert message in str(error.value)


def test_a_model_without_biases_has_no_bitfit():
    from fairseq_peft import methods
    from fairseq_peft.architectures import COUNTED, Undefined

    with pytest.raises(Undefined, match="no biases by these names"):
        methods.setting("bitfit", {}).count_base(COUNTED["t5_small"])
