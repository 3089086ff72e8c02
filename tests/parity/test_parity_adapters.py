"""The same logits, gradients and training as AdapterHub's `adapters`, on copied weights.

`scripts/test.sh parity` sets up what this needs; `scripts/test.sh parity -- -rP` also shows the
largest differences. reference_adapters.py has the library's half.
"""

from __future__ import annotations

import pytest
from comparison import ENCODER, From, build_checked, compare, dead_tensors, part, write_records

pytestmark = pytest.mark.parity

#: our slot in a layer -> theirs
SLOTS = {
    "attention_adapter": "attention.output.adapters.a",
    "ffn_adapter": "output.adapters.a",
}
BOTH, FFN = tuple(SLOTS), ("ffn_adapter",)


def places(slots):
    """(ours, theirs) for the adapters of every layer."""
    return [
        (f"{ENCODER}layers.{i}.{slot}", f"roberta.encoder.layer.{i}.{SLOTS[slot]}")
        for i in range(2)
        for slot in slots
    ]


def bottleneck(slots, down="adapter_down.0", **more):
    """``down``: their name of it; ``more``: our name -> theirs within an adapter."""
    table = {}
    for ours, theirs in places(slots):
        for kind in ("weight", "bias"):
            table[f"{ours}.down.{kind}"] = From(f"{theirs}.{down}.{kind}")
            table[f"{ours}.up.{kind}"] = From(f"{theirs}.adapter_up.{kind}")
        for name, source in more.items():
            table[f"{ours}.{name}"] = From(f"{theirs}.{source}")
    return table


def layer_norm(slots):
    # The norm is the first part of their `adapter_down`, the linear map the second.
    names = {f"norm.{kind}": f"adapter_norm_before.{kind}" for kind in ("weight", "bias")}
    return bottleneck(slots, down="adapter_down.1", **names)


def compacter(slots):
    table = {ENCODER + "compacter.rule": From("roberta.shared_parameters.a.phm_rule")}
    for ours, theirs in places(slots):
        for name, source in (("down", "adapter_down.0"), ("up", "adapter_up")):
            table[f"{ours}.{name}.left"] = From(f"{theirs}.{source}.W_left")
            table[f"{ours}.{name}.right"] = From(f"{theirs}.{source}.W_right")
            table[f"{ours}.{name}.bias"] = From(f"{theirs}.{source}.b")
    return table


def fusion(slots):
    """Two adapters, which are copied and stay, and what is trained above them."""

    def build_table(model, record):
        own, theirs = dict(model.named_buffers()), part(record, "adapter")
        table = {}
        for ours, place in places(slots):
            for n, name in enumerate("ab"):
                adapter = place[: -len("a")] + name
                for key, source in (("down", "adapter_down.0"), ("up", "adapter_up")):
                    for kind in ("weight", "bias"):
                        value = theirs.pop(f"{adapter}.{source}.{kind}")
                        own[f"{ours}.adapters.{n}.{key}.{kind}"].copy_(value)
            layer = place.replace("adapters.a", "adapter_fusion_layer.a,b")
            for key in ("query.weight", "query.bias", "key.weight", "value.weight"):
                table[f"{ours}.{key}"] = From(f"{layer}.{key}")
        assert not theirs
        return table

    return build_table


def fused(style):
    return {"fusion_bottleneck": 4, "fusion_style": style}


PREFIX_FLAGS = {"prefix_num_tokens": 4, "prefix_positions": "shared"}
# One pool for all layers, named after the first that holds it.
POOL = "roberta.encoder.layer.0.attention.self.prefix_tuning.pool."
PREFIX = POOL + "prefix_tunings.a.self_prefix."


def adapter(style, **flags):
    return {"adapter_bottleneck": 4, "adapter_style": style, **flags}


COMPACTER = {"compacter_bottleneck": 4}

#: case -> (method, flags, table); the cases are those of reference_adapters.py. What a style leaves
#: open (placement, activation, scaling) is left to it, as it is left to the library's config.
CASES = {
    "houlsby": ("adapter", adapter("houlsby"), bottleneck(BOTH)),
    "houlsby-layer-norm": (
        "adapter",
        adapter("houlsby", adapter_layer_norm=True),
        layer_norm(BOTH),
    ),
    "pfeiffer": ("adapter", adapter("pfeiffer"), bottleneck(FFN)),
    "pfeiffer-both": (
        "adapter",
        adapter("pfeiffer", adapter_placement="both"),
        bottleneck(BOTH),
    ),
    "parallel": ("adapter", adapter("parallel"), bottleneck(FFN)),
    "parallel-both": (
        "adapter",
        adapter("parallel", adapter_placement="both"),
        bottleneck(BOTH),
    ),
    "parallel-learned-scale": (
        "adapter",
        adapter("parallel", adapter_scaling="learned"),
        bottleneck(FFN, scale="scaling"),
    ),
    "fusion-pfeiffer": ("fusion", fused("pfeiffer"), fusion(FFN)),
    "fusion-houlsby": ("fusion", fused("houlsby"), fusion(BOTH)),
    "compacter": ("compacter", COMPACTER, compacter(BOTH)),
    "compacter-ffn": ("compacter", {**COMPACTER, "compacter_placement": "ffn"}, compacter(FFN)),
    "compacter-plus-plus": (
        "compacter",
        {**COMPACTER, "compacter_style": "pfeiffer"},
        compacter(FFN),
    ),
    "prefix": (
        "prefix",
        PREFIX_FLAGS,
        # One long vector there: (P, 2 L, H, C / H), row by row.
        {
            f"{ENCODER}prefix.embeddings": From(
                PREFIX + "control_trans", lambda vector: vector.view(4, -1)
            )
        },
    ),
    "prefix-mlp": (
        "prefix",
        {**PREFIX_FLAGS, "prefix_mlp": 6},
        {
            f"{ENCODER}prefix.embeddings": From(PREFIX + "wte.weight"),
            **{
                f"{ENCODER}prefix.mlp.{i}.{kind}": From(f"{PREFIX}control_trans.{i}.{kind}")
                for i in (0, 2)
                for kind in ("weight", "bias")
            },
        },
    ),
}


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return write_records("FAIRSEQ_PEFT_ADAPTERS_PYTHON", "reference_adapters.py", folder)


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_adapterhub(build, records, case):
    method, flags, table = CASES[case]
    differences = compare(build_checked(build, method, flags), records[case], table)
    print(f"{case}: {differences}")
    differences.check()


def test_every_case_of_the_library_is_compared(records):
    assert set(records) == set(CASES)


def test_every_tensor_of_the_library_reaches_its_logits(records):
    assert dead_tensors(records) == []


def test_negative_control_another_style_is_seen(build, records):
    """Pfeiffer's tensors behind the same block, with the input that Houlsby's adapters have."""
    flags = adapter("houlsby", adapter_placement="ffn", adapter_activation="relu")
    differences = compare(
        build_checked(build, "adapter", flags), records["pfeiffer"], bottleneck(FFN)
    )
    for kind in ("logits", "gradients", "after"):
        assert differences.found[kind][0] > 1e-3, kind
    with pytest.raises(AssertionError, match="logits"):
        differences.check()
