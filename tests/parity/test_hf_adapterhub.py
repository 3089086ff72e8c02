"""The same logits, gradients and training as AdapterHub's `adapters` on T5, BART, GPT-2 and Llama,
from one random seed. AdapterHub has no BLOOM.

`scripts/test.sh parity` sets up what this needs; adapters_hf.py has the library's half.
"""

from __future__ import annotations

import re

import pytest
import torch
from comparison import Differences, part, write_records
from hf_families import PAD, Kind
from safetensors.torch import save_file
from torch.nn import functional as F

pytestmark = pytest.mark.parity

KINDS = ("t5", "bart", "gpt2", "llama")
STYLES = ("houlsby", "pfeiffer", "parallel")
CASES = [*((kind, style) for kind in KINDS for style in STYLES), ("gpt2", "prefix")]
#: Ends of their names of places, and of what is in an adapter -> ours.
RENAMES = [
    (r"\.layer\.0\.adapters\.a\.", ".attention_adapter."),
    (r"\.layer\.[12]\.adapters\.a\.", ".ffn_adapter."),
    (r"\.attention_adapters\.adapters\.a\.", ".attention_adapter."),
    (r"\.output_adapters\.adapters\.a\.", ".ffn_adapter."),
    (r"\.adapter_down\.0\.", ".down."),
    (r"\.adapter_up\.", ".up."),
    (r"\.h\.0\.attn\.prefix_tuning\..*control_trans$", ".prefix.embeddings"),
]


def ours_of(name: str) -> str:
    for pattern, text in RENAMES:
        name = re.sub(pattern, text, name)
    return f"hf.{name}"


def batch_of(kind) -> dict:
    """What their forward takes, and the answers, -100 where there is none."""
    tokens = kind.tokens()
    keep = tokens.ne(PAD)
    inputs = {"input_ids": tokens.masked_fill(~keep, 0), "attention_mask": keep.long()}
    if kind.causal:
        answer = torch.arange(tokens.numel()).view_as(tokens) % 11
        return {**inputs, "answer": answer.masked_fill(~keep, -100)}
    answer = torch.arange(kind.answers().numel()).view_as(kind.answers()) % 11
    return {**inputs, "decoder_input_ids": kind.answers(), "answer": answer}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The kinds, the folders of their bases, and the library's records."""
    place = tmp_path_factory.mktemp("adapterhub")
    kinds = {name: Kind(name, place) for name in KINDS}
    (place / "base").mkdir()
    bases = {name: kind.write(place / "base" / name) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        save_file(batch_of(kind), place / f"batch-{name}.safetensors")
    found = write_records("FAIRSEQ_PEFT_ADAPTERS_PYTHON", "adapters_hf.py", place)
    return kinds, bases, {name: one for name, one in found.items() if "batch" not in name}


def compare(model, kind, record) -> Differences:
    differences, own = Differences(), dict(model.named_parameters())
    before, trained = part(record, "before"), {}
    with torch.no_grad():
        for name, tensor in before.items():
            trained[name] = own.pop(ours_of(name))
            trained[name].copy_(tensor.view_as(trained[name]))
    assert not any(p.requires_grad for p in own.values()), "another set of tensors trains"
    answer = batch_of(kind)["answer"].flatten()
    answer = answer[answer != -100]
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0, eps=1e-4)
    for step in range(3):
        optimizer.zero_grad()
        logits = kind.logits(model)
        F.cross_entropy(logits, answer).backward()
        if step == 0:
            theirs = record["logits"]
            theirs = theirs[kind.tokens().ne(PAD)] if kind.causal else theirs.flatten(0, 1)
            differences.see("logits", "logits", logits, theirs)
            for name, parameter in trained.items():
                wanted = record[f"grad.{name}"].view_as(parameter)
                assert wanted.abs().max() > 1e-6, f"{name} learns nothing"
                differences.see("gradients", name, parameter.grad, wanted)
        optimizer.step()
    for name, parameter in trained.items():
        differences.see("after", name, parameter, record[f"after.{name}"].view_as(parameter))
    return differences


def build(kind, base, case, **flags):
    if case == "prefix":
        return kind.build("prefix", hf_config="", hf_model=str(base), prefix_num_tokens=3)
    flags = {"adapter_style": case, "adapter_bottleneck": 4, **flags}
    return kind.build("adapter", hf_config="", hf_model=str(base), **flags)


@pytest.mark.parametrize("name, case", CASES)
def test_the_same_as_adapterhub_on_its_models(made, name, case):
    kinds, bases, records = made
    model = build(kinds[name], bases[name], case)
    differences = compare(model, kinds[name], records[f"{name}-{case}"])
    print(f"{name}, {case}: {differences}")
    differences.check()


def test_negative_control_another_activation_is_seen(made):
    kinds, bases, records = made
    model = build(kinds["t5"], bases["t5"], "pfeiffer", adapter_activation="silu")
    with pytest.raises(AssertionError, match="logits"):
        compare(model, kinds["t5"], records["t5-pfeiffer"]).check()


def test_every_record_of_adapterhub_is_compared(made):
    assert set(made[2]) == {f"{name}-{case}" for name, case in CASES}
