"""What both reference scripts share: the tiny Hugging Face model and the record of one case.

Runs in an environment with transformers and without fairseq. A record is one safetensors file:
    tokens, labels      the batch
    base.NAME           the model as it was before the library changed it
    frozen.NAME         base tensors that the library changed when it was put in (PiSSA, OLoRA)
    adapter.NAME        what does not train: adapters (AdapterFusion), shared matrices (VeRA)
    before.NAME         what trains: the adapters and the head, perturbed
    logits, grad.NAME   class scores, and gradients of the cross entropy
    after.NAME          what trains, after num_steps steps of AdamW
Everything is float32. Names are those of the library without its wrappers (``RENAMES``).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

#: The sizes of tests/support/helpers.py (TINY); 42 position rows are fairseq's 40 and its padding
#: offset of 2.
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "vocab_size": 35,
    "max_position_embeddings": 42,
}
LENGTHS = (12, 9, 5, 3)
LABELS = (0, 1, 1, 0)
NUM_STEPS = 3

#: Wrappers that say nothing: PEFT's model, its adapter name, its copy of the head.
RENAMES = [
    (re.compile(r"^base_model\.(model\.)?"), ""),
    (re.compile(r"\.modules_to_save\.default\."), "."),
    (re.compile(r"\.default\b"), ""),
    (re.compile(r"\.base_layer\."), "."),
]


def plain_name(name: str) -> str:
    for pattern, text in RENAMES:
        name = pattern.sub(text, name)
    return name


def base_model(seed: int = 0) -> RobertaForSequenceClassification:
    """RoBERTa of fairseq's shape (eps 1e-5, no segment embeddings) with every tensor random."""
    config = RobertaConfig(
        **SIZES,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        num_labels=2,
        attn_implementation="eager",
    )
    model = RobertaForSequenceClassification(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if "LayerNorm.weight" in name else 0.0
            # 0.3: with 16 columns, outputs of size 1.
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(start + noise)
        # fairseq has no segment embeddings.
        model.roberta.embeddings.token_type_embeddings.weight.zero_()
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """(4, 12) token ids with <s>, </s> and padding at the right; no <mask>, the last row."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(4, SIZES["vocab_size"] - 1, (4, 12), generator=generator)
    tokens[:, 0] = 0
    for row, length in zip(tokens, LENGTHS):
        row[length - 1] = 2
        row[length:] = 1
    return tokens, torch.tensor(LABELS)


def perturb(model: nn.Module, seed: int = 1, scale: float = 0.3) -> None:
    """Move what trains away from its start (zeros, ones), the head too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def record(folder: Path, case: str, wrap, start: bool = False) -> None:
    """Write ``folder``/``case``.safetensors.

    Args:
        folder: where to.
        case: name of the case.
        wrap: base model -> the library's model around it, with what trains set to train.
        start: keep the library's start instead of perturbing it, because it is what is compared.
    """
    torch.manual_seed(2)
    base = base_model()
    kept = {f"base.{key}": value.clone() for key, value in base.state_dict().items()}
    model = wrap(base).eval()
    if not start:
        perturb(model)
    trained = {plain_name(key): p for key, p in model.named_parameters() if p.requires_grad}
    frozen = {plain_name(key): p for key, p in model.named_parameters() if not p.requires_grad}
    for key, value in frozen.items():
        if "base." + key in kept and not torch.equal(value, kept["base." + key]):
            kept["frozen." + key] = value.detach().clone()
        elif ".adapters." in key:
            kept["adapter." + key] = value.detach().clone()
    for name, buffer in model.named_buffers():
        if ".vera_" in name:  # base_model.vera_A.default; of the layers, too, but each once
            kept["adapter." + re.search(r"vera_[AB]", name)[0]] = buffer.clone()
    kept.update({f"before.{key}": p.detach().clone() for key, p in trained.items()})

    tokens, labels = batch()
    kept.update(
        steps(
            trained,
            lambda: model(input_ids=tokens, attention_mask=tokens.ne(1).long()).logits,
            labels,
        )
    )
    kept.update({"tokens": tokens, "labels": labels, "num_steps": torch.tensor(NUM_STEPS)})
    floats = [value for value in kept.values() if value.is_floating_point()]
    assert all(value.dtype == torch.float32 for value in floats)
    save_file(
        {key: value.contiguous() for key, value in kept.items()}, folder / f"{case}.safetensors"
    )


def steps(trained: dict, logits, answer) -> dict:
    """Train by NUM_STEPS steps of AdamW on the cross entropy.

    Args:
        trained: name -> parameter.
        logits: a function that computes them, (..., classes).
        answer: (...), the classes; -100 where there is none.

    Returns:
        ``logits`` and ``grad.NAME`` of the first step, and ``after.NAME``, what ``trained`` became.
    """
    kept = {}
    # eps is not the usual 1e-8: with it a gradient that is nothing but rounding (1e-7) makes a
    # step as large as lr, and two correct programs part there.
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0, eps=1e-4)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        scores = logits()
        nn.functional.cross_entropy(scores.flatten(0, -2), answer.flatten()).backward()
        if step == 0:
            kept["logits"] = scores.detach().clone()
            kept.update({f"grad.{name}": p.grad.clone() for name, p in trained.items()})
        optimizer.step()
    kept.update({f"after.{name}": p.detach().clone() for name, p in trained.items()})
    return kept
