"""The same numbers as Hugging Face PEFT on T5, GPT-2 and BLOOM, from the same weights: logits,
gradients, and what three steps leave; and folders both ways.

`scripts/test.sh parity` sets up what this needs.
"""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
import verbs
from comparison import STEPS_TOLERANCE
from helpers import TOLERANCE
from hf_families import PAD, Kind
from safetensors.torch import load_file
from torch.nn import functional as F

from fairseq_peft.checkpoints import finetuned
from fairseq_peft.models import hf_base

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
#: Of folders alone.
MORE = {
    "lora-bias": ("lora", {**RANK, "lora_bias": "lora_only"}, "", {}),
    "lora-patterns": ("lora", {**RANK, "lora_layers": "1", "lora_rslora": True}, "", {}),
    "pissa": ("lora", {**RANK, "lora_init": "pissa"}, "", {}),
}
FURTHER = [
    *((kind, case) for kind in ("gpt2", "bloom") for case in MORE),
    *((kind, case) for kind in ("t5-gated", "bart") for case in ("lora-all", "ia3", "prompt")),
    *((kind, case) for kind in ("opt", "llama") for case in ("dora", "ia3", "prompt")),
    ("opt", "prefix"),
]


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


def stock_logits(kind, theirs):
    """As ``Kind.stock_logits``, of a model of PEFT, which may have a prompt in front."""
    tokens = kind.tokens()
    keep = tokens.ne(PAD)
    inputs = {"input_ids": tokens.masked_fill(~keep, 0), "attention_mask": keep.long()}
    if kind.causal:
        return theirs(**inputs).logits[:, -tokens.shape[1] :][keep]
    return theirs(**inputs, decoder_input_ids=kind.answers()).logits.flatten(0, 1)


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
        return kind.logits(model), stock_logits(kind, theirs)

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


@pytest.fixture(scope="module")
def based(tmp_path_factory):
    """``based("t5")``: a kind, and the folder of a base of it."""
    place = tmp_path_factory.mktemp("bases")

    def of(name):
        kind, folder = Kind(name, place), place / name
        return kind, folder if folder.exists() else kind.write(folder)

    return of


def tensors_of(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name, case", [*PAIRS, *FURTHER])
def test_folders_go_both_ways(peft, based, tmp_path, name, case):
    """PEFT loads what is exported, on the base's own folder, and computes the same; what it saves
    comes here, computes the same, and goes back as it was."""
    (kind, base), (method, flags, _, _) = based(name), {**CASES, **MORE}[case]
    model = kind.write_adapter(tmp_path / "ours", base, method, **flags)
    verbs.run("export", tmp_path / "ours", tmp_path / "given", "--base", base)
    auto = getattr(hf_base.library(), kind.kind.auto)
    plain = auto.from_pretrained(base, attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns where tensors are missing
        # Prompts and prefixes cannot be loaded to be trained there.
        trains = method not in ("prompt", "prefix")
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "given", is_trainable=trains)
    theirs.eval()
    with torch.no_grad():
        found, expected = kind.logits(model), stock_logits(kind, theirs)
        apart = (found - kind.logits(kind.build(hf_config="", hf_model=str(base)))).abs().max()
    size = TOLERANCE["fp32"] * expected.abs().max()
    assert (found - expected).abs().max() < size < apart

    torch.manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if parameter.requires_grad or parameter_name.startswith("prompt_encoder."):
                parameter.add_(0.1 * torch.randn(parameter.shape))
        expected = stock_logits(kind, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    verbs.run("import", tmp_path / "theirs", tmp_path / "back", "--base", base)
    _, back = finetuned.from_folder(tmp_path / "back", base, of_any_task=True)
    # So far from its start the gated T5 makes of rounding 1.1e-5 of its largest logit, which is 16.
    size = 2 * TOLERANCE["fp32"] * expected.abs().max()
    with torch.no_grad():
        assert (kind.logits(back) - expected).abs().max() < size
    verbs.run("export", tmp_path / "back", tmp_path / "again", "--base", base)
    before, after = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
