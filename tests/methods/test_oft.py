"""OFT: what it computes, and what a rotation keeps."""

from __future__ import annotations

import pytest
import torch

from fairseq_peft.architectures import SIZES
from fairseq_peft.methods.oft import OFT, OFTConfig


@pytest.fixture
def linear(build):
    """fc2 of the last layer, 24 -> 16, three blocks of 8, turned."""
    model = build("oft", peft_targets="fc2", oft_block_size=8)
    linear = model.encoder.sentence_encoder.layers[1].fc2
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        linear.oft_q.normal_(generator=generator)
    return linear


def test_what_it_computes(linear):
    """Block by block, with Q as the paper has it: R = (I + Q) (I - Q)^-1."""
    x = torch.randn(3, 24)
    full = torch.zeros(24, 24)
    for i, numbers in enumerate(linear.oft_q):
        q, at = torch.zeros(8, 8), 0
        for row in range(8):
            for column in range(row + 1, 8):
                q[row, column], q[column, row] = numbers[at], -numbers[at]
                at += 1
        one = torch.eye(8)
        full[8 * i : 8 * i + 8, 8 * i : 8 * i + 8] = (one + q) @ torch.linalg.inv(one - q)
    expected = (x @ full) @ linear.weight.T + linear.bias
    assert torch.allclose(linear(x), expected, atol=1e-5)
    assert torch.allclose(linear.merged().weight, linear.weight @ full.T, atol=1e-5)


def test_lengths_and_angles_of_the_rows_stay(linear):
    """R is orthogonal, and no identity: the merged rows are others, and have the same products."""
    rotations = linear.rotations()
    one = torch.eye(8).expand(3, 8, 8)
    assert torch.allclose(rotations @ rotations.transpose(1, 2), one, atol=1e-5)
    assert (rotations - one).abs().max() > 0.5
    before, after = linear.weight, linear.merged().weight
    assert (after - before).abs().max() > 0.01
    assert torch.allclose(after @ after.T, before @ before.T, atol=1e-5)


def test_counts():
    def count(**knobs):
        return OFT(OFTConfig(**knobs)).count(SIZES["roberta_small"]).total

    assert count() == 8 * 512 * 15 // 2 == 30_720
    assert count(targets="fc2", layers="0", block_size=32) == 512 * 31 // 2


@pytest.mark.parametrize(
    "given, message",
    [
        ({"oft_block_size": 1}, "--oft-block-size 1 rotates nothing"),
        ({"oft_block_size": 5}, "--oft-block-size 5 does not divide the 16 inputs of layers.0"),
        ({"oft_layers": "2"}, "there is no layer 2"),
        ({"peft_targets": "query"}, "--peft-targets 'query' matches no module"),
        ({"peft": "lora,oft"}, "oft and lora do not go together"),
        ({"peft": "oft,last_layers", "peft_targets": "fc1"}, "one of the two is in vain"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build(**{"peft": "oft", **given})
    assert message in str(error.value)
