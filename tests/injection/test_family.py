"""Families other than RoBERTa's: an encoder with a decoder, maps that are no nn.Linear, models that
know nothing of this package. Descriptions are written here, and methods work on what they say."""

from __future__ import annotations

import argparse
import types

import pytest
import torch
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture
from helpers import TOLERANCE
from torch import nn

from fairseq_peft import methods
from fairseq_peft.errors import InputError
from fairseq_peft.injection import frozen, maps, surgery, targets
from fairseq_peft.injection.family import Block, Family, Map, Stack
from fairseq_peft.models.blocks import CROSS_ATTENTION, FEED_FORWARD, SELF_ATTENTION
from fairseq_peft.optim.layer_decay import decay_learning_rates

OTHERS = ("embed_positions", "layernorm_embedding", "layer_norm")
TRANSFORMER = Family(
    "",
    (
        Stack("encoder", (SELF_ATTENTION, FEED_FORWARD), "embed_tokens", OTHERS),
        Stack("decoder", (SELF_ATTENTION, CROSS_ATTENTION, FEED_FORWARD), "embed_tokens", OTHERS),
    ),
)


def inject(model, family, peft, **given):
    """The setting, injected; what it trains is moved from where it starts."""
    before = dict(model.named_parameters())
    setting = methods.setting(peft, given)
    setting.inject(model, family, lambda name: torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in before:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return setting


@pytest.fixture
def translator(dictionary):
    """fairseq's own transformer: one layer of encoder, two of decoder, one embedding for all."""
    args = argparse.Namespace(
        encoder_layers=1,
        decoder_layers=2,
        encoder_embed_dim=16,
        encoder_ffn_embed_dim=24,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        share_all_embeddings=True,
        max_source_positions=20,
        max_target_positions=20,
    )
    base_architecture(args)
    task = types.SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    torch.manual_seed(1)
    return TransformerModel.build_model(args, task).eval()


def translate(model):
    tokens = torch.arange(4, 16).view(2, 6)
    with torch.no_grad():
        return model(tokens, torch.tensor([6, 6]), tokens.flip(1))[0]


def test_names_of_an_encoder_and_a_decoder(translator):
    names = list(surgery.linears(translator, TRANSFORMER))
    assert len(names) == 6 + 2 * 10
    assert names[:6] == [
        *(f"encoder.layers.0.self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        "encoder.layers.0.fc1",
        "encoder.layers.0.fc2",
    ]
    assert names[10] == "decoder.layers.0.encoder_attn.q_proj"
    assert list(surgery.embeddings(translator, TRANSFORMER)) == ["encoder.embed_tokens"]
    norms = {n for n in surgery.tensors(translator, TRANSFORMER) if n.endswith("norm.weight")}
    assert {"encoder.layers.0.final_layer_norm.weight"} < norms
    assert {"decoder.layers.1.encoder_attn_layer_norm.weight"} < norms
    # Everything but the output, which is the embedding, is named.
    numel = sum(p.numel() for p in surgery.tensors(translator, TRANSFORMER).values())
    assert numel == sum(p.numel() for p in translator.parameters())
    words = "decoder.layers.0.encoder_attn.q_proj"
    assert targets.select(names, "encoder_attn.q_proj", "0") == [words]


@pytest.mark.parametrize("words", [r"encoder\.layers\.\d+\.fc1", r"decoder\.layers\.1\.fc2"])
def test_lora_on_one_stack_moves_the_logits_and_merges(translator, words):
    base = translate(translator)
    keys = list(translator.state_dict())
    setting = inject(translator, TRANSFORMER, "lora", peft_targets=words)
    expected = translate(translator)
    assert (expected - base).abs().max() > 1e-3
    setting.merge(translator, TRANSFORMER)
    assert list(translator.state_dict()) == keys
    assert (translate(translator) - expected).abs().max() < TOLERANCE["fp32"]


def test_a_shared_embedding_is_adapted_in_both_stacks(translator):
    output = translator.decoder.output_projection
    output.weight = nn.Parameter(output.weight.detach().clone())
    inject(translator, TRANSFORMER, "lora", peft_targets="embed_tokens")
    assert translator.encoder.embed_tokens is translator.decoder.embed_tokens
    assert isinstance(translator.decoder.embed_tokens.lora_A, nn.Parameter)


@pytest.mark.parametrize(
    "peft, given, message",
    [
        ("lora", {"peft_targets": "embed_tokens"}, "no slot output_update"),  # tied to the output
        ("adapter", {}, "has no slot ffn_adapter"),
        ("prompt", {}, "no place for a soft prompt"),
        ("prefix", {}, "no place for a prefix"),
        ("last_layers", {}, r"several stacks of layers \(encoder and decoder\)"),
    ],
)
def test_what_nothing_would_call_is_refused(translator, peft, given, message):
    with pytest.raises(InputError, match=message):
        inject(translator, TRANSFORMER, peft, **given)
        methods.setting(peft, given).trainable_base_names(translator, TRANSFORMER)


def test_stages_and_learning_rates_are_told_by_stack(translator):
    surgery.freeze(translator, lambda name: name.startswith("encoder.layers.0.fc1"))
    line = frozen.set_dropout(translator, TRANSFORMER, set(), "off")
    assert "the frozen encoder embeddings and decoder embeddings and decoder layers 0, 1" in line
    assert translator.encoder.layers[0].dropout_module.p == 0.1
    assert translator.decoder.layers[1].dropout_module.p == 0
    decay_learning_rates(translator, TRANSFORMER, 0.5)
    assert translator.encoder.layers[0].fc1.weight.lr_scale == 1
    assert translator.decoder.layers[0].fc1.weight.lr_scale == 0.5
    assert translator.decoder.embed_positions is not None


class Conv1D(nn.Module):
    """GPT-2's linear map: weight (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class FusedLayer(nn.Module):
    """Attention with one map for query, key and value, and a feed-forward of one map; C = 8."""

    num_heads = 2

    def __init__(self, kind, by_head):
        super().__init__()
        self.qkv, self.mlp, self.by_head = kind(8, 24), kind(8, 8), by_head
        self.norm_1, self.norm_2 = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x):
        y = self.qkv(self.norm_1(x))
        if self.by_head:  # as in BLOOM
            q, k, v = y.unflatten(-1, (self.num_heads, 3, -1)).transpose(1, 2).unbind(3)
        else:  # as in GPT-2
            q, k, v = (
                part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in y.chunk(3, -1)
            )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + attended.transpose(1, 2).flatten(2)
        return x + self.mlp(self.norm_2(x))


class Foreign(nn.Module):
    """A model of nobody's, with its layers in ``h``."""

    def __init__(self, kind, by_head):
        super().__init__()
        torch.manual_seed(2)
        self.wte = nn.Embedding(9, 8)
        self.h = nn.ModuleList(FusedLayer(kind, by_head) for _ in range(2))

    def forward(self, tokens):
        x = self.wte(tokens)
        for layer in self.h:
            x = layer(x)
        return x


PARTS = ("q_proj", "k_proj", "v_proj")
KINDS = {  # what the map is, how it is split, how many names a layer has
    "gpt2": (Conv1D, {"transposed": True}, 2),
    "gpt2, split": (Conv1D, {"transposed": True, "parts": PARTS}, 4),
    "bloom": (nn.Linear, {}, 2),
    "bloom, split": (nn.Linear, {"parts": PARTS, "heads": "num_heads"}, 4),
}


@pytest.fixture(params=KINDS)
def foreign(request):
    """(model, family, number of maps): a model whose maps are unpacked."""
    kind, described, number = KINDS[request.param]
    by_head = request.param.startswith("bloom")
    model = Foreign(kind, by_head)
    mlp = Map("mlp", transposed=True) if kind is Conv1D else "mlp"
    blocks = (
        Block("attention", (Map("qkv", **described),), "norm_1"),
        Block("ffn", (mlp,), "norm_2"),
    )
    family = Family("", (Stack(blocks=blocks, embedding="wte", layers="h"),))
    plain = Foreign(kind, by_head)
    maps.unpack(model, family)
    return model, plain, family, number


TOKENS = torch.arange(8).view(2, 4)


def test_maps_that_are_no_linear_become_some_and_are_saved_as_they_were(foreign):
    model, plain, family, number = foreign
    found = surgery.linears(model, family)
    assert len(found) == 2 * number
    assert all(type(linear) is nn.Linear for linear in found.values())
    assert (model(TOKENS) - plain(TOKENS)).abs().max() < TOLERANCE["fp32"]
    state = model.state_dict()
    assert sorted(state) == sorted(plain.state_dict())
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    other = {key: torch.randn_like(value) for key, value in state.items()}
    model.load_state_dict(other)
    plain.load_state_dict(other)
    assert (model(TOKENS) - plain(TOKENS)).abs().max() < 1e-4  # weights of size 1, not of 1/sqrt(C)


@pytest.mark.parametrize("peft", ["lora", "dora", "adalora", "ia3"])
def test_methods_on_such_maps_move_the_output_and_merge(foreign, peft):
    model, plain, family, number = foreign
    words = "q_proj" if number == 4 else "qkv"
    flag = "ia3_targets" if peft == "ia3" else "peft_targets"
    given = {flag: f"{words},mlp"}
    if peft == "ia3":
        given["ia3_feedforward"] = "mlp"
    before = model(TOKENS)
    setting = inject(model, family, peft, **given)
    expected = model(TOKENS)
    assert (expected - before).abs().max() > 1e-3
    setting.merge(model, family)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert (plain(TOKENS) - expected).abs().max() < TOLERANCE["fp32"]


def test_an_update_of_one_part_leaves_the_others_alone(foreign):
    model, plain, family, number = foreign
    if number == 2:
        words, moved = "qkv", {"q", "k", "v"}
    else:
        words, moved = "v_proj", {"v"}
    setting = inject(model, family, "lora", peft_targets=words)
    setting.merge(model, family)
    layer = plain.h[0]
    after, before = model.state_dict()["h.0.qkv.weight"], plain.state_dict()["h.0.qkv.weight"]
    if isinstance(layer.qkv, Conv1D):
        after, before = after.t(), before.t()
    num_heads = layer.num_heads if layer.by_head else None
    pairs = zip("qkv", maps.split(after, 3, num_heads), maps.split(before, 3, num_heads))
    assert {name for name, a, b in pairs if not torch.equal(a, b)} == moved
