"""The same numbers from our model as from the library that wrote a record (reference.py)."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from helpers import TOLERANCE
from safetensors.torch import load_file
from torch import nn

#: Weights after three steps of AdamW; an addition to the table in tests/support/helpers.py.
STEPS_TOLERANCE = 1e-4

ENCODER = "encoder.sentence_encoder."
HEAD = "classification_heads.head."

#: Hugging Face -> fairseq, module by module. Tensors of a module keep their names.
EMBEDDINGS = {
    "roberta.embeddings.word_embeddings": ENCODER + "embed_tokens",
    "roberta.embeddings.position_embeddings": ENCODER + "embed_positions",
    "roberta.embeddings.LayerNorm": ENCODER + "layernorm_embedding",
}
LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
CLASSIFIER = {"classifier.dense": HEAD + "dense", "classifier.out_proj": HEAD + "out_proj"}
LAYERS = {
    f"roberta.encoder.layer.{i}.{theirs}": f"{ENCODER}layers.{i}.{ours}"
    for i in range(2)
    for theirs, ours in LAYER.items()
}
MODULES = {**EMBEDDINGS, **LAYERS, **CLASSIFIER}


def same(tensor):
    return tensor


@dataclass(frozen=True)
class From:
    """Where one of our tensors comes from: a tensor of the library, and what to do with it.

    ``change`` may only move or flip elements, so that it holds for gradients and for AdamW's
    steps as well.
    """

    name: str
    change: callable = same


@dataclass
class Differences:
    """The largest absolute differences of each kind, and where."""

    found: dict = field(default_factory=dict)

    def see(self, kind: str, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)}, {tuple(theirs.shape)}"
        assert ours.dtype == theirs.dtype == torch.float32, name
        difference = (ours.detach() - theirs).abs().max().item()
        if difference >= self.found.get(kind, (-1.0, ""))[0]:
            self.found[kind] = (difference, name)

    def check(self) -> None:
        """AssertionError with every kind that differs too much."""
        limits = {"after": STEPS_TOLERANCE}
        bad = [
            f"{kind}: {difference:.1e} at {name}"
            for kind, (difference, name) in self.found.items()
            if not difference <= limits.get(kind, TOLERANCE["fp32"])  # catches nan, too
        ]
        assert not bad, "; ".join(bad)

    def __str__(self):
        return "  ".join(f"{kind} {difference:.1e}" for kind, (difference, _) in self.found.items())


def random_texts() -> tuple:
    """source (4, 9), padded at the right; target (4, 6) that begins with </s>; answer (4, 6)."""
    generator = torch.Generator().manual_seed(7)
    source = torch.randint(4, 50, (4, 9), generator=generator)
    for row, length in zip(source, (9, 7, 5, 2)):
        row[length - 1] = 2
        row[length:] = 1
    target = torch.randint(4, 50, (4, 6), generator=generator)
    target[:, 0] = 2
    return source, target, torch.randint(4, 50, (4, 6), generator=generator)


def write_records(variable: str, script: str, folder: Path, *words: str) -> dict:
    """Run a reference script with the Python that ``variable`` names; case -> record."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set: run scripts/test.sh parity, which sets it up")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")  # nothing is downloaded
    done = subprocess.run(
        [python, str(Path(__file__).with_name(script)), str(folder), *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def part(record: dict, kind: str) -> dict:
    """The tensors ``kind.NAME`` of a record, by NAME."""
    return {
        key[len(kind) + 1 :]: value for key, value in record.items() if key.startswith(kind + ".")
    }


def fairseq_state(model, base: dict) -> dict:
    """A base checkpoint for ``model`` with the tensors of the Hugging Face model ``base``."""
    base = dict(base)
    assert not base.pop("roberta.embeddings.token_type_embeddings.weight").any()
    for buffer in ("position_ids", "token_type_ids"):  # tables of integers, in older versions
        base.pop("roberta.embeddings." + buffer, None)
    state = {}
    for theirs, ours in MODULES.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in base:
                state[f"{ours}.{kind}"] = base.pop(f"{theirs}.{kind}")
    assert not base, f"no place for {sorted(base)}"
    # A Hugging Face classifier has no LM head, and ours is not read here: it keeps its own.
    own = model.state_dict()
    state.update({key: own[key] for key in own if key.startswith("encoder.lm_head.")})
    state["encoder.lm_head.weight"] = state[ENCODER + "embed_tokens.weight"]  # tied
    return state


def learn_and_compare(trained: dict, logits, answer, record: dict, wanted, theirs) -> Differences:
    """Train as ``reference.steps`` does, and compare with what it has recorded.

    Args:
        trained: our name -> parameter.
        logits: a function that computes them, (N, classes).
        answer: (N), the classes; -100 where there is none.
        record: that of the library.
        wanted: the library's logits, (N, classes).
        theirs: (record, kind, our name) -> the library's tensor of that kind (grad, after), in our
            shape.
    """
    differences = Differences()
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0, eps=1e-4)
    for step in range(3):
        optimizer.zero_grad()
        scores = logits()
        nn.functional.cross_entropy(scores, answer).backward()
        if step == 0:
            differences.see("logits", "logits", scores, wanted)
            for name, parameter in trained.items():
                gradient = theirs(record, "grad", name)
                assert gradient.abs().max() > 1e-6, f"{name} learns nothing"
                differences.see("gradients", name, parameter.grad, gradient)
        optimizer.step()
    for name, parameter in trained.items():
        differences.see("after", name, parameter, theirs(record, "after", name))
    return differences


def dead_tensors(records: dict) -> list[str]:
    """Trained tensors of the library without a gradient: nothing could be learnt from them."""
    return [
        f"{case}: {name}"
        for case, record in records.items()
        for name, gradient in part(record, "grad").items()
        if gradient.abs().max() < 1e-3
    ]


def head_table() -> dict:
    return {
        f"{ours}.{kind}": From(f"{theirs}.{kind}")
        for theirs, ours in CLASSIFIER.items()
        for kind in ("weight", "bias")
    }


def build_checked(build, method: str, flags: dict):
    """``build(method, **flags)``; a flag that no method has, which it would ignore, is an error."""
    from fairseq_peft.models.options import METHOD_FIELDS

    build(method)  # says so if there is no such method
    unknown = set(flags) - set(METHOD_FIELDS)
    assert not unknown, f"{method} has no flag {sorted(unknown)}"
    return build(method, **flags)


def compare(model, record: dict, table, start: bool = False) -> Differences:
    """Give ``model`` the record's tensors and compare everything the record holds.

    Args:
        model: ours, from the fixture ``build``.
        record: the library's.
        table: our name -> From, for all that trains but the head; or a function of (model,
            record) that returns it, called once the base is loaded.
        start: the method's own start is compared instead of being replaced by the library's.

    Raises:
        AssertionError: a tensor on either side is not in the table, or a shape differs.
    """
    model.load_state_dict(fairseq_state(model, part(record, "base")))
    before = part(record, "before")
    table = table(model, record) if callable(table) else table
    own = dict(model.named_parameters())
    assert set(table) >= set(own) & model.added, "the table and what the method adds"
    table = {**table, **head_table()}
    theirs = [source.name for source in table.values()]
    assert sorted(theirs) == sorted(before), "the table and what trains in the library"
    trains = {key for key, parameter in own.items() if parameter.requires_grad}
    assert trains == set(table), "the table and what trains here"

    differences = Differences()
    with torch.no_grad():
        for key, source in table.items():
            wanted = source.change(before[source.name])
            if start and not key.startswith(HEAD):
                differences.see("start", key, own[key], wanted)
            else:
                assert own[key].shape == wanted.shape, key
                own[key].copy_(wanted)
    for theirs, wanted in part(record, "frozen").items():
        module, _, kind = theirs.rpartition(".")
        key = f"{MODULES[module]}.{kind}"
        differences.see("corrected base", key, own[key], wanted)

    optimizer = torch.optim.AdamW(
        [own[key] for key in sorted(table)], lr=1e-2, weight_decay=0.0, eps=1e-4
    )  # as in reference.py
    gradients, after = part(record, "grad"), part(record, "after")
    for step in range(int(record["num_steps"])):
        optimizer.zero_grad()
        scores, _ = model(record["tokens"], features_only=True, classification_head_name="head")
        nn.functional.cross_entropy(scores, record["labels"]).backward()
        if step == 0:
            differences.see("logits", "logits", scores, record["logits"])
            for key, source in table.items():
                wanted = source.change(gradients[source.name])
                differences.see("gradients", key, own[key].grad, wanted)
        optimizer.step()
    for key, source in table.items():
        differences.see("after", key, own[key], source.change(after[source.name]))
    return differences
