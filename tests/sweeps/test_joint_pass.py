"""The joint pass of several members: each with its own padding, in the precision that was asked
for."""

from __future__ import annotations

import pytest
import torch
import waits
from helpers import TOLERANCE
from products import Products
from test_members import joint_of, members, streams

PEFTS = ["head_only", "lora", "adapter", "prompt", "prefix"]


def padded(dictionary, lengths, seed):
    """(B, 9) tokens, row i of length ``lengths[i]``."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, len(dictionary) - 1, (len(lengths), 9), generator=draw)
    tokens[:, 0] = dictionary.bos()
    for row, length in zip(tokens, lengths):
        row[length:] = dictionary.pad()
    return tokens


def scores_of(joint, batches):
    with torch.no_grad():
        return joint(batches, streams(), "head")


@pytest.mark.parametrize("peft", PEFTS)
@pytest.mark.parametrize(
    "lengths",
    [[(9, 4, 6), (9, 8, 3)], [(9, 9, 9), (9, 5, 3)], [(9, 5, 3), (9, 9, 9)]],
    ids=["both", "second", "first"],
)
def test_every_member_has_its_own_padding(dictionary, logits, peft, lengths):
    """Batches of one size, whose rows end elsewhere: one member's mask would fit the other."""
    models = members(dictionary, peft, {}, seeds=(1, 2), train=False)
    batches = [padded(dictionary, each, seed) for seed, each in enumerate(lengths)]
    for scores, model, batch in zip(scores_of(joint_of(models), batches), models, batches):
        assert (scores - logits(model, batch)).abs().max() < TOLERANCE["fp32"]


def test_a_gpu_is_asked_once_for_the_batches_of_all(dictionary):
    """However many members there are to compare."""
    joint = joint_of(members(dictionary, "lora", {}, train=False))
    batches = [padded(dictionary, (9, 4, 6), seed) for seed in range(3)]
    joint.batches = [tokens.to(waits.DEVICE) for tokens in batches]
    joint.streams = None
    with waits.Waits() as found:
        joint._leaders()
    assert found.ours == {"sweeps/members/joint.py _on_host": 1}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("peft", ["lora", "adapter"])
def test_layers_compute_in_the_precision_of_the_members(dictionary, peft, precision):
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    joint = joint_of(members(dictionary, peft, {"precision": precision}, seeds=(1, 2), train=False))
    batches = [padded(dictionary, (9, 4, 6), 1), padded(dictionary, (9, 8, 3), 2)]
    with Products() as products:
        scores_of(joint, batches)
    assert products.count[kind] >= 12  # 6 maps in each of 2 layers
    if precision == "fp32":
        assert set(products.count) == {torch.float32}
    else:  # the heads', of a row each
        assert products.largest[torch.bfloat16] > 6 >= products.largest[torch.float32]
