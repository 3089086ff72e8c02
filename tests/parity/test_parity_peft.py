"""The same logits, gradients and training as Hugging Face PEFT, on copied weights.

`scripts/test.sh parity` sets up what this needs; `scripts/test.sh parity -- -rP` also shows the
largest differences. reference_peft.py has the library's half.
"""

from __future__ import annotations

import pytest
import torch
from comparison import (
    EMBEDDINGS,
    ENCODER,
    LAYER,
    LAYERS,
    MODULES,
    From,
    build_checked,
    compare,
    dead_tensors,
    part,
    write_records,
)

pytestmark = pytest.mark.parity

RANK = {"lora_rank": 3, "lora_alpha": 6.0}
ALL = {**RANK, "peft_targets": "q_proj,k_proj,v_proj,out_proj,fc1,fc2"}
QUERY_VALUE = ("attention.self.query", "attention.self.value")
LINEARS = tuple(name for name in LAYER if not name.endswith("LayerNorm"))


def modules(names):
    """(theirs, ours) for the linear maps ``names`` of every layer."""
    return [
        (theirs, ours)
        for theirs, ours in LAYERS.items()
        if theirs.split(".", 4)[4] in names  # roberta.encoder.layer.0.NAME
    ]


def lora(names=QUERY_VALUE, magnitude=False):
    table = {}
    for theirs, ours in modules(names):
        for kind in ("lora_A", "lora_B"):
            table[f"{ours}.{kind}"] = From(f"{theirs}.{kind}.weight")
        if magnitude:
            table[f"{ours}.lora_magnitude"] = From(f"{theirs}.lora_magnitude_vector.weight")
    return table


def lora_embeddings():
    table = lora(("attention.self.query",))
    theirs = "roberta.embeddings.word_embeddings"
    for kind in ("A", "B"):
        table[f"{EMBEDDINGS[theirs]}.lora_{kind}"] = From(f"{theirs}.lora_embedding_{kind}")
    return table


def lora_biases(names):
    """LoRA, and base biases that train."""
    return {**lora(), **{f"{MODULES[name]}.bias": From(f"{name}.bias") for name in names}}


def adalora():
    return {
        f"{ours}.lora_{kind}": From(f"{theirs}.lora_{kind}")
        for theirs, ours in modules(QUERY_VALUE)
        for kind in "AEB"
    }


def vera(names=QUERY_VALUE):
    """With the library's frozen matrices in the place of ours."""

    def build_table(model, record):
        matrices, theirs = model.encoder.sentence_encoder.vera, part(record, "adapter")
        assert matrices.A.shape == theirs["vera_A"].shape
        matrices.A.copy_(theirs["vera_A"])
        matrices.B.copy_(theirs["vera_B"])
        return {
            f"{ours}.vera_{mine}": From(f"{its}.vera_lambda_{kind}")
            for its, ours in modules(names)
            for mine, kind in (("d", "d"), ("v", "b"))
        }

    return build_table


def oft():
    """PEFT's R is (I - Q) (I + Q)^-1."""
    return {
        f"{ours}.oft_q": From(f"{theirs}.oft_R.weight", torch.neg)
        for theirs, ours in modules(QUERY_VALUE)
    }


def decomposed(names=QUERY_VALUE):
    """PiSSA, OLoRA: singular vectors and the columns of Q have a free sign, shared by A and B."""

    def build_table(model, record):
        own, table = dict(model.named_parameters()), lora(names)
        for _, ours in modules(names):
            key_a, key_b = f"{ours}.lora_A", f"{ours}.lora_B"
            theirs = record["before." + table[key_a].name]
            sign = torch.sign((own[key_a].detach() * theirs).sum(1, keepdim=True))
            assert sign.abs().all()
            table[key_a] = From(table[key_a].name, lambda a, sign=sign: sign * a)
            table[key_b] = From(table[key_b].name, lambda b, sign=sign: b * sign.T)
        return table

    return build_table


def ia3(outputs, inputs):
    """``outputs`` are scaled behind the map, (out, 1) in PEFT; ``inputs`` before it, (1, in)."""
    return {
        f"{ours}.ia3.scale": From(f"{theirs}.ia3_l", torch.flatten)
        for theirs, ours in modules((*outputs, *inputs))
    }


KEY_VALUE = ("attention.self.key", "attention.self.value")
PROMPT = "prompt_encoder.embedding.weight"

#: case -> (method, flags, table); the cases are those of reference_peft.py.
CASES = {
    "lora": ("lora", RANK, lora()),
    "lora-all-linears": ("lora", ALL, lora(LINEARS)),
    "lora-embeddings": (
        "lora",
        {**RANK, "peft_targets": "embed_tokens,q_proj"},
        lora_embeddings(),
    ),
    "lora-patterns": (
        "lora",
        {**RANK, "lora_rank_pattern": "v_proj=2", "lora_alpha_pattern": "v_proj=5"},
        lora(),
    ),
    "lora-bias": (
        "lora",
        {**RANK, "lora_bias": "lora_only"},
        lora_biases([theirs for theirs, _ in modules(QUERY_VALUE)]),
    ),
    "lora-bias-all": (
        "lora",
        {**RANK, "lora_bias": "all"},
        lora_biases([*LAYERS, "roberta.embeddings.LayerNorm"]),
    ),
    "rslora": ("lora", {**RANK, "lora_rslora": True}, lora()),
    "dora": ("dora", RANK, lora(magnitude=True)),
    "dora-all-linears": ("dora", ALL, lora(LINEARS, magnitude=True)),
    "pissa": ("lora", {**RANK, "lora_init": "pissa"}, decomposed()),
    "pissa-all-linears": ("lora", {**ALL, "lora_init": "pissa"}, decomposed(LINEARS)),
    "olora": ("lora", {**RANK, "lora_init": "olora"}, decomposed()),
    "olora-all-linears": ("lora", {**ALL, "lora_init": "olora"}, decomposed(LINEARS)),
    "adalora": (
        "adalora",
        {"adalora_init_rank": 3, "adalora_rank": 2, "adalora_alpha": 6.0},
        adalora(),
    ),
    "vera": ("vera", {"vera_rank": 3}, vera()),
    "vera-all-linears": (
        "vera",
        {"vera_rank": 3, "peft_targets": ALL["peft_targets"]},
        vera(LINEARS),
    ),
    "oft": ("oft", {"oft_block_size": 4}, oft()),
    "ia3": ("ia3", {}, ia3(KEY_VALUE, ("output.dense",))),
    # PEFT's default hits every module whose name ends in output.dense, so out_proj, too.
    "ia3-peft-default": (
        "ia3",
        {"ia3_targets": "k_proj,v_proj,out_proj,fc2", "ia3_feedforward": "out_proj,fc2"},
        ia3(KEY_VALUE, ("attention.output.dense", "output.dense")),
    ),
    "prompt": (
        "prompt",
        {"prompt_num_tokens": 4, "prompt_placement": "before_bos"},
        {ENCODER + "soft_prompt.embeddings": From(PROMPT)},
    ),
    "prefix": (
        "prefix",
        {"prefix_num_tokens": 4, "prefix_positions": "reserved"},
        {ENCODER + "prefix.embeddings": From(PROMPT)},
    ),
    "prefix-mlp": (
        "prefix",
        {"prefix_num_tokens": 4, "prefix_positions": "reserved", "prefix_mlp": 6},
        {
            ENCODER + "prefix.embeddings": From(PROMPT),
            **{
                f"{ENCODER}prefix.mlp.{i}.{kind}": From(f"prompt_encoder.transform.{i}.{kind}")
                for i in (0, 2)
                for kind in ("weight", "bias")
            },
        },
    ),
}
STARTS = {case for case in CASES if "pissa" in case or "olora" in case}


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    return write_records("FAIRSEQ_PEFT_PEFT_PYTHON", "reference_peft.py", folder)


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_peft(build, records, case):
    method, flags, table = CASES[case]
    differences = compare(
        build_checked(build, method, flags), records[case], table, start=case in STARTS
    )
    print(f"{case}: {differences}")
    differences.check()


def test_every_case_of_the_library_is_compared(records):
    assert set(records) == set(CASES)


def test_every_tensor_of_the_library_reaches_its_logits(records):
    # A bias of the keys moves all scores of a query alike, and softmax does not see that.
    dead = [name for name in dead_tensors(records) if not name.endswith("attention.self.key.bias")]
    assert dead == []


def test_negative_control_a_wrong_scale_is_seen(build, records):
    differences = compare(build("lora", lora_rank=3, lora_alpha=6.1), records["lora"], lora())
    for kind in ("logits", "gradients", "after"):
        assert differences.found[kind][0] > 1e-3, kind
    with pytest.raises(AssertionError, match="logits"):
        differences.check()


def test_negative_control_a_tensor_that_the_table_lacks_is_seen(build, records):
    model = build("lora", **ALL)
    with pytest.raises(AssertionError, match="what the method adds"):
        compare(model, records["lora"], lora())
    with pytest.raises(AssertionError, match="what trains in the library"):
        compare(build("lora", **RANK), records["lora-all-linears"], lora())
