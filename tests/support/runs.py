"""What a run of fairseq-train left behind, read and compared; fairseq-validate on it."""

from __future__ import annotations

import json
import re

import torch
from helpers import PACKAGE

from fairseq_peft.checkpoints import slim
from fairseq_peft.runs import predictions

LAST = "checkpoint_last.pt"
#: Fields of metrics.jsonl that differ between two equal runs.
CLOCKS = {"seconds", "tokens_per_second", "peak_memory_bytes"}


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_clocks(value):
    if isinstance(value, dict):
        return {key: without_clocks(v) for key, v in value.items() if key not in CLOCKS}
    return [without_clocks(v) for v in value] if isinstance(value, list) else value


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def same(a, b, whole=False):
    """Whether two checkpoints' weights and optimizer states are equal, bit for bit; ``whole``: with
    what they leave to their base."""
    states = [slim.read(path) if whole else load(path) for path in (a, b)]
    flat_a, flat_b = (
        torch.utils._pytree.tree_flatten(
            [dict(sorted(state["model"].items())), state["last_optimizer_state"]]
        )
        for state in states
    )
    equal = [
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(flat_a[0], flat_b[0])
    ]
    return flat_a[1] == flat_b[1] and all(equal)


def all_predictions(folder):
    """The files of predictions by update: name -> bytes."""
    found = {path.name: path.read_bytes() for path in (folder / predictions.FOLDER).iterdir()}
    assert set(found) == {f"update{line['num_updates']}.npz" for line in metrics(folder)}
    return found


def validate_flags(data, checkpoint, subsets="valid,test"):
    words = [data, "--user-dir", PACKAGE, "--task", "sentence_classification", "--cpu"]
    words += ["--path", checkpoint, "--valid-subset", subsets, "--batch-size", 8]
    return [*words, "--num-workers", 0, "--log-format", "simple"]


def validated(stdout):
    """What fairseq-validate printed: subset -> metric -> number."""
    found = {}
    for subset, rest in re.findall(r"\| (\w+) \| valid on '\w+' subset \| (.*)", stdout):
        words = (pair.split() for pair in rest.split(" | "))
        found[subset] = {name: float(value) for name, value in words}
    return found
