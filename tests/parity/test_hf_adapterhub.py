"""The same logits, gradients and training as AdapterHub's `adapters` on T5, BART, GPT-2 and Llama,
from one random seed. AdapterHub has no BLOOM.

`scripts/test.sh parity` sets up what this needs; adapters_hf.py has the library's half.
"""

from __future__ import annotations

import re

import pytest
import torch
from comparison import Differences, learn_and_compare, part, write_records
from hf_families import PAD, Kind
from safetensors.torch import save_file

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
    found = write_records("FAIRSEQ_PEFT_ADAPTERS_PYTHON", "adapters_hf.py", place, "gpt2")
    return kinds, bases, {name: one for name, one in found.items() if "batch" not in name}


def compare(model, kind, record) -> Differences:
    own, trained, names = dict(model.named_parameters()), {}, {}
    with torch.no_grad():
        for theirs, tensor in part(record, "before").items():
            name = ours_of(theirs)
            names[name], trained[name] = theirs, own.pop(name)
            trained[name].copy_(tensor.view_as(trained[name]))
    assert not any(p.requires_grad for p in own.values()), "another set of tensors trains"
    answer = batch_of(kind)["answer"].flatten()
    answer = answer[answer != -100]
    wanted = record["logits"]
    wanted = wanted[kind.tokens().ne(PAD)] if kind.causal else wanted.flatten(0, 1)

    def theirs(record, what, name):
        return record[f"{what}.{names[name]}"].view_as(trained[name])

    return learn_and_compare(trained, lambda: kind.logits(model), answer, record, wanted, theirs)


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
