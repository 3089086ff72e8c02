"""Against stock fairseq: same keys, same logits, same gradients."""

from __future__ import annotations

import argparse
import types

import pytest
import torch
from fairseq.models.roberta import RobertaEncoder, RobertaModel
from helpers import TINY, TOLERANCE

from fairseq_peft.models.roberta import RobertaPeftModel, architecture

SMALL_BASE = {  # roberta_base's proportions: 12 layers, 12 heads of 64, ffn 4 C
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "max_positions": 512,
}


def pair(dictionary, sizes, **given):
    """A stock model with random biases and norms, and ours with its weights; both in eval mode."""
    args = argparse.Namespace(_name="x", **sizes, **given)
    architecture("roberta_small", "full")(args)
    torch.manual_seed(0)
    stock = RobertaModel(args, RobertaEncoder(args, dictionary))
    stock.register_classification_head("head", num_classes=3)
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    task = types.SimpleNamespace(source_dictionary=dictionary, cfg=types.SimpleNamespace(seed=1))
    ours = RobertaPeftModel.build_model(args, task)
    ours.register_classification_head("head", num_classes=3)
    assert set(ours.state_dict()) == set(stock.state_dict())
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock.eval(), ours.eval()


@pytest.mark.parametrize(
    "sizes, given",
    [
        (TINY, {}),
        (TINY, {"encoder_normalize_before": True, "layernorm_embedding": False}),
        (TINY, {"activation_fn": "relu", "untie_weights_roberta": True}),
        (SMALL_BASE, {}),
    ],
    ids=["tiny", "prenorm", "untied-relu", "roberta_base"],
)
def test_logits_equal_stock(dictionary, batch, sizes, given):
    stock, ours = pair(dictionary, sizes, **given)
    with torch.no_grad():
        for kwargs in ({"classification_head_name": "head"}, {}, {"features_only": True}):
            expected, found = stock(batch, **kwargs)[0], ours(batch, **kwargs)[0]
            real = slice(None) if expected.dim() == 2 else batch.ne(dictionary.pad())
            assert (expected[real] - found[real]).abs().max() < TOLERANCE["fp32"]


def test_gradients_equal_stock(dictionary, batch):
    stock, ours = pair(dictionary, TINY)
    for model in (stock, ours):
        scores, _ = model(batch, features_only=True, classification_head_name="head")
        torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2, 0])).backward()
    found = dict(ours.named_parameters())
    compared = 0
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - found[name].grad).abs().max() < TOLERANCE["fp32"], name
            compared += 1
    assert compared > 30


def test_padding_does_not_matter(dictionary, batch, build, logits):
    """A row alone gives the logits that it gives in a padded batch."""
    model = build("lora")
    together = logits(model, batch)
    for row, expected in zip(batch, together):
        alone = row[row.ne(dictionary.pad())].unsqueeze(0)
        assert (logits(model, alone)[0] - expected).abs().max() < TOLERANCE["fp32"]


@pytest.mark.parametrize("method", ["full", "lora", "adapter", "prompt"])
def test_the_last_layer_shortcut_is_exact(build, batch, method, logits):
    model = build(method)
    with torch.no_grad():
        features, _ = model(batch, features_only=True)
        expected = model.classification_heads["head"](features)
    assert (logits(model, batch) - expected).abs().max() < TOLERANCE["fp32"]


def test_bf16_is_close_to_fp32(build, batch, logits):
    fp32, bf16 = build("lora"), build("lora", precision="bf16")
    difference = (logits(fp32, batch) - logits(bf16, batch)).abs().max()
    assert 0 < difference < TOLERANCE["bf16"]
    assert all(p.dtype == torch.float32 for p in bf16.parameters())


def test_too_long_a_batch_is_one_sentence(build, dictionary):
    model = build("prompt", prompt_num_tokens=10)
    message = "31 tokens and 10 prompt or prefix tokens; the model has 40 positions"
    with pytest.raises(ValueError, match=message):
        model(torch.full((1, 31), 5), features_only=True)


def test_exact_counts_of_roberta_small():
    """S1: 23,124,736 with the LM head, 22,829,056 without, 23,388,418 with both heads."""
    words = type("Words", (), {"pad": lambda self: 1, "__len__": lambda self: 32_000})()
    args = argparse.Namespace(_name="x")
    architecture("roberta_small", "full")(args)
    task = types.SimpleNamespace(source_dictionary=words, cfg=types.SimpleNamespace(seed=1))
    model = RobertaPeftModel.build_model(args, task)
    total = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert total(model) == 23_124_736
    assert total(model.encoder.sentence_encoder) == 22_829_056
    matrices = sum(p.numel() for p in model.encoder.sentence_encoder.parameters() if p.dim() == 2)
    assert matrices == 22_807_552
    model.register_classification_head("head", num_classes=2)
    assert total(model) == 23_388_418
