"""Weights that are cast to half precision, by fairseq's ``--fp16``, ``--bf16`` and their kin: a
model computes in what they are, whatever ``--precision`` says."""

from __future__ import annotations

import types

import hf_families
import pytest
import torch
from adapter_folders import moved
from families import BART, FAMILIES, parametrize
from settings import collect, identifier

from fairseq_peft.errors import InputError
from fairseq_peft.fairseq_fixes import processes

#: Each method, and the places where it is in the embedding or the norms come elsewhere.
SETTINGS = [
    (peft, given)
    for peft, given in collect()
    if not given or "encoder_normalize_before" in given or "embed" in str(given)
]


@pytest.fixture
def family(request, dictionary):
    return FAMILIES[request.param](dictionary)


@parametrize(SETTINGS)
def test_precision_does_not_touch_half_weights(family, peft, given, batch):
    compute = {
        precision: moved(family.build(peft, precision=precision, **given), 3).half()
        for precision in ("fp32", "bf16")
    }
    with torch.no_grad():
        expected, found = (family.scores(model, batch) for model in compute.values())
    assert torch.equal(found, expected) and found.isfinite().all(), identifier(peft, given)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("norms_first", [False, True])
def test_bart_in_half(dictionary, batch, cast, norms_first):
    bart = BART(dictionary)
    flags = {"encoder_normalize_before": norms_first, "layernorm_embedding": True}
    with torch.no_grad():
        expected, found = (
            bart.scores(moved(bart.build("lora", precision=precision, **flags), 3).to(cast), batch)
            for precision in ("fp32", "bf16")
        )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("peft", ["lora", "prompt", "prefix", "adapter"])
@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "bloom", "opt", "llama"])
def test_models_of_hugging_face(name, peft, tmp_path):
    kind = hf_families.Kind(name, tmp_path)
    tokens = torch.randint(5, hf_families.VOCAB, (2, 6))
    given = (tokens,) if kind.causal else (tokens, None, tokens[:, :4])
    with torch.no_grad():
        expected, found = (
            moved(kind.build(peft, precision=precision), 3).half()(*given)[0]
            for precision in ("fp32", "bf16")
        )
    assert found.dtype == torch.float16 and torch.equal(found, expected)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_half_weights(dictionary, batch, name, cast):
    family = FAMILIES[name](dictionary)
    gradients = []
    for precision in ("fp32", "bf16"):
        model = moved(family.build("lora", precision=precision), 3).to(cast)
        family.scores(model, batch).float().square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    expected, found = gradients
    assert all(torch.equal(found[key], expected[key]) for key in expected if "k_proj" not in key)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tpu": True, "bf16": True}, "--bf16 and --memory-efficient-bf16 are for GPUs"),
        ({"fp16": True}, "--fp16 with this --optimizer is for GPUs"),
        ({"fp16": True, "memory_efficient_fp16": True}, None),
        ({"fp16": True, "fp16_no_flatten_grads": True}, None),
        ({}, None),
    ],
)
def test_training_in_half_without_a_gpu(given, said, monkeypatch):
    """fairseq sets ``tpu`` where bf16 is asked for and there is no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = ("tpu", "fp16", "bf16", "memory_efficient_fp16", "fp16_no_flatten_grads")
    common = types.SimpleNamespace(**{**dict.fromkeys(flags, False), **given})
    if said is None:
        processes.check_half(common)
    else:
        with pytest.raises(InputError, match=said):
            processes.check_half(common)
