"""Bottleneck adapters: styles, placements and knobs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fairseq_peft import methods
from fairseq_peft.architectures import SIZES, evaluate


def layers(model):
    return model.encoder.sentence_encoder.layers


def config(**knobs):
    return methods.get("adapter").Config(**knobs)


@pytest.mark.parametrize("normalize_before", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("place", ["attention", "ffn"])
@pytest.mark.parametrize("style", ["sequential", "houlsby", "pfeiffer", "parallel"])
def test_what_an_adapter_reads_and_where_its_output_goes(build, style, place, normalize_before):
    """A layer, computed by hand from its linear maps and norms."""
    model = build(
        "adapter",
        adapter_style=style,
        adapter_placement="both",
        adapter_scaling=0.7,
        encoder_normalize_before=normalize_before,
    )
    layer = layers(model)[1]
    adapter = getattr(layer, f"{place}_adapter")
    with torch.no_grad():
        for parameter in [*adapter.parameters(), *layer.self_attn_layer_norm.parameters()]:
            parameter.add_(0.3 * torch.randn(parameter.shape))
    activation = {"sequential": F.gelu, "houlsby": F.silu}.get(style, F.relu)
    attention_norm, ffn_norm = layer.self_attn_layer_norm, layer.final_layer_norm

    def adapted(name, h, x, norm):
        bottleneck = getattr(layer, f"{name}_adapter")
        z = {"parallel": x, "pfeiffer": x + h if normalize_before else norm(x + h)}.get(style, h)
        return h + 0.7 * bottleneck.up(activation(bottleneck.down(z)))

    def by_hand(x):
        h = layer.self_attn(attention_norm(x) if normalize_before else x)
        x = x + adapted("attention", h, x, attention_norm)
        x = x if normalize_before else attention_norm(x)
        z = ffn_norm(x) if normalize_before else x
        h = layer.fc2(F.gelu(layer.fc1(z)))
        x = x + adapted("ffn", h, x, ffn_norm)
        return x if normalize_before else ffn_norm(x)

    with torch.no_grad():
        x = torch.randn(3, 7, 16)
        assert torch.allclose(layer(x), by_hand(x), atol=1e-5)
        changed = layer(x)
        for zero in adapter.up.parameters():
            zero.zero_()
        assert (layer(x) - changed).abs().max() > 1e-2  # this adapter takes part


def test_a_style_brings_its_own_habits_and_a_knob_wins():
    def habits(**knobs):
        found = config(**knobs)
        return found.placement, found.activation, found.scaling

    assert habits() == ("ffn", "gelu", 1.0)
    assert habits(style="houlsby") == ("both", "silu", 1.0)
    assert habits(style="pfeiffer") == ("ffn", "relu", 1.0)
    assert habits(style="parallel") == ("ffn", "relu", 4.0)
    assert habits(style="houlsby", placement="ffn", activation="gelu") == ("ffn", "gelu", 1.0)
    assert habits(style="parallel", placement="both", scaling="2") == ("both", "relu", 2.0)


def test_widths():
    assert config().width(512) == 64
    assert config(reduction=16).width(512) == 32
    assert config(reduction=5).width(16) == 3  # rounded down, as in AdapterHub
    assert config(reduction=0.5).width(16) == 32


def test_counts():
    """Plain numbers, and one adapter a block as E (B + 1) + B (E + 1)."""

    def count(**knobs):
        return methods.get("adapter")(config(**knobs)).count(SIZES["roberta_small"]).total

    assert count() == 264_448
    assert count(style="houlsby", bottleneck=32) == 266_496
    assert count(style="pfeiffer", bottleneck=32) == 133_248
    assert count(skip_layers=1) == 264_448 * 3 / 4
    assert count(scaling="learned", layer_norm=True) == 264_448 + 4 * (1 + 2 * 512)
    for e, b in ((512, 8), (512, 1), (512, 64)):
        assert count(bottleneck=b) == 4 * evaluate(f"{e} x ({b} + 1) + {b} x ({e} + 1)")


def test_skipped_layers_have_no_adapter(build):
    model = build("adapter", adapter_skip_layers=1, adapter_placement="both")
    first, second = layers(model)
    assert first.attention_adapter is None and first.ffn_adapter is None
    assert second.attention_adapter is not None and second.ffn_adapter is not None


def test_starts(build):
    """parallel: uniform in +-1/sqrt(C), as LoRA's A; else N(0, 0.02). Learned scales start at 1."""
    for style, std in (("parallel", (1 / 3 / 16) ** 0.5), ("sequential", 0.02)):
        model = build("adapter", adapter_style=style, adapter_bottleneck=500)
        weight = layers(model)[0].ffn_adapter.down.weight
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert weight.abs().max() < (1 / 4 if style == "parallel" else 1)
    model = build("adapter", adapter_style="parallel", adapter_scaling="learned")
    assert layers(model)[0].ffn_adapter.scale.item() == 1


def test_dropout_is_for_training(build, batch, logits):
    model = build("adapter", adapter_dropout=0.5)
    with torch.no_grad():
        layers(model)[0].ffn_adapter.up.bias.fill_(1)
    plain = build("adapter")
    plain.load_state_dict(model.state_dict())
    assert torch.equal(logits(model, batch), logits(plain, batch))
    adapter = layers(model)[0].ffn_adapter.train()
    h = torch.zeros(2, 50, 16)
    dropped = (adapter(h, h, None) == 0).float().mean()
    assert 0.4 < dropped < 0.6


@pytest.mark.parametrize(
    "given, message",
    [
        ({"adapter_bottleneck": 0}, "--adapter-bottleneck 0"),
        ({"adapter_placement": "middle"}, "--adapter-placement 'middle'"),
        (
            {"adapter_style": "serial"},
            "--adapter-style 'serial' is unknown: give one of sequential",
        ),
        ({"adapter_activation": "swish"}, "--adapter-activation 'swish' is unknown: give one of"),
        ({"adapter_scaling": "0"}, "--adapter-scaling '0'"),
        ({"adapter_scaling": "nan"}, "--adapter-scaling 'nan'"),
        ({"adapter_scaling": "much"}, "--adapter-scaling 'much'"),
        ({"adapter_dropout": 1.0}, "--adapter-dropout 1.0"),
        ({"adapter_reduction": 0.0}, "--adapter-reduction 0"),
        ({"adapter_reduction": 17.0}, "--adapter-reduction 17 leaves nothing"),
        (
            {"adapter_reduction": 2.0, "adapter_bottleneck": 8},
            "--adapter-bottleneck 8 and --adapter-reduction 2 both set the width",
        ),
        ({"adapter_skip_layers": -1}, "--adapter-skip-layers -1"),
        ({"adapter_skip_layers": 2}, "--adapter-skip-layers 2 leaves no adapter: the model has 2"),
        ({"lora_rank": 4}, "--lora-rank would be ignored: --peft adapter"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("adapter", **given)
    assert message in str(error.value)


def test_the_count_refuses_what_the_model_refuses():
    with pytest.raises(ValueError, match="--adapter-skip-layers 4 leaves no adapter"):
        methods.get("adapter")(config(skip_layers=4)).count(SIZES["roberta_small"])
