"""The same numbers as Hugging Face PEFT on T5, GPT-2 and BLOOM, from the same weights: logits,
gradients, and what three steps leave.

`scripts/test.sh parity` sets up what this needs.
"""

from __future__ import annotations

import sys

import pytest
import torch
from comparison import STEPS_TOLERANCE
from helpers import TOLERANCE
from hf_families import PAD, Kind
from torch.nn import functional as F

pytestmark = pytest.mark.parity

LORA = {"r": 3, "lora_alpha": 6}
TASKS = {"t5": "SEQ_2_SEQ_LM", "gpt2": "CAUSAL_LM", "bloom": "CAUSAL_LM"}
EVERY_MAP = {
    "t5": ["q", "k", "v", "o", "wi", "wo"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bloom": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
RANK = {"lora_rank": 3, "lora_alpha": 6.0}
#: method, our flags, PEFT's config and its knobs (those that are functions take the kind's name).
CASES = {
    "lora": ("lora", RANK, "LoraConfig", LORA),
    "lora-all": (
        "lora",
        {**RANK, "peft_targets": "all-linear"},
        "LoraConfig",
        {**LORA, "target_modules": EVERY_MAP.get},
    ),
    "dora": ("dora", RANK, "LoraConfig", {**LORA, "use_dora": True}),
    "ia3": ("ia3", {}, "IA3Config", {}),
    "prompt": ("prompt", {"prompt_num_tokens": 3}, "PromptTuningConfig", {"num_virtual_tokens": 3}),
    "prefix": (
        "prefix",
        {"prefix_num_tokens": 3, "prefix_positions": "reserved"},
        "PrefixTuningConfig",
        {"num_virtual_tokens": 3},
    ),
}
#: T5's prefix is that of encoder and decoder here, BLOOM's has no distance to the text.
PAIRS = [(k, c) for k in TASKS for c in CASES if c != "prefix" or k == "gpt2"]


def ours_of(name: str, layout: str) -> str:
    """Our name of a tensor of PEFT's."""
    if name.startswith("prompt_encoder."):
        slot = "soft_prompt" if layout.endswith("prompt") else "prefix"
        owner = "hf.encoder" if layout.startswith("t5") else "hf.transformer"
        return f"{owner}.{slot}.embeddings"
    name = name.replace("base_model.model.", "hf.").replace(".default", "")
    name = name.replace(".ia3_l", ".ia3.scale").replace(
        "lora_magnitude_vector.weight", "lora_magnitude"
    )
    return name.replace("lora_A.weight", "lora_A").replace("lora_B.weight", "lora_B")


@pytest.fixture(scope="module")
def peft(packages):
    """PEFT, on this process's torch and transformers."""
    sys.path.append(packages)
    import peft

    return peft


def loss_of(kind, logits):
    return F.cross_entropy(logits, torch.arange(len(logits)) % 11)


@pytest.mark.parametrize("name, case", PAIRS)
def test_logits_gradients_and_three_steps(peft, tmp_path, name, case):
    method, flags, config, knobs = CASES[case]
    kind = Kind(name, tmp_path)
    base = kind.base()
    knobs = {k: value(name) if callable(value) else value for k, value in knobs.items()}
    if config == "PromptTuningConfig":
        knobs["num_transformer_submodules"] = 1
    theirs = peft.get_peft_model(
        kind.stock(base), getattr(peft, config)(task_type=TASKS[name], **knobs)
    ).eval()
    model = kind.build(method, **flags)
    model.load_state_dict(dict(base))

    pairs, own = [], dict(model.named_parameters())
    torch.manual_seed(5)
    with torch.no_grad():
        for their_name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                # Scales and magnitudes near where they start, the rest of size 0.3.
                parameter.add_(0.3 * torch.randn(parameter.shape))
                mine = own.pop(ours_of(their_name, f"{name}-{case}"))
                mine.copy_(parameter.reshape(mine.shape))
                pairs.append((mine, parameter))
    assert pairs and not any(p.requires_grad for p in own.values()), "another set of tensors trains"

    def both():
        tokens = kind.tokens()
        keep = tokens.ne(PAD)
        inputs = {"input_ids": tokens.masked_fill(~keep, 0), "attention_mask": keep.long()}
        if kind.causal:
            logits = theirs(**inputs).logits[:, -tokens.shape[1] :][keep]
        else:
            logits = theirs(**inputs, decoder_input_ids=kind.answers()).logits.flatten(0, 1)
        return kind.logits(model), logits

    found, expected = both()
    size = expected.abs().max()
    assert (found - expected).abs().max() < TOLERANCE["fp32"] * size
    optimizers = [torch.optim.AdamW(side, lr=1e-2) for side in zip(*pairs)]
    for _ in range(3):
        for logits, optimizer in zip(both(), optimizers):
            optimizer.zero_grad()
            loss_of(kind, logits).backward()
        for mine, other in pairs:
            differ = (mine.grad - other.grad.reshape(mine.shape)).abs().max()
            assert differ < STEPS_TOLERANCE * max(1, other.grad.abs().max())
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in pairs:
        assert (mine - other.reshape(mine.shape)).abs().max() < STEPS_TOLERANCE
