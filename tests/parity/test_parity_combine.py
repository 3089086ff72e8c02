"""The same sums of LoRA as Hugging Face PEFT's ``add_weighted_adapter``, on copied factors."""

from __future__ import annotations

import pytest
import torch
from comparison import write_records
from helpers import TOLERANCE

from fairseq_peft.combining import arithmetic
from fairseq_peft.combining.arithmetic import Update

pytestmark = pytest.mark.parity

#: case -> (--how, adapters), those of reference_combine.py.
CASES = {
    "linear": ("linear", "ab"),
    "linear-negated": ("linear", "b"),
    "cat": ("cat", "abc"),
    "svd": ("svd", "abc"),
    "ties": ("ties", "ab"),
    "ties_svd": ("ties_svd", "abc"),
}
RANDOM = ("dare_linear", "dare_ties")


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("combine")
    return write_records("FAIRSEQ_PEFT_PEFT_PYTHON", "reference_combine.py", folder)


def matrices(record):
    """The modules that PEFT's result has."""
    start, end = "found.", ".A"
    return [
        key[len(start) : -len(end)] for key in record if key.startswith(start) and key[-2:] == end
    ]


def updates(record, name, adapters):
    """(updates of the module, their weights), of the adapters that have it."""
    found = [
        (
            Update(
                *(record[f"{key}.{name}.{part}"] for part in "AB"),
                record[f"{key}.{name}.scale"].item(),
            ),
            w,
        )
        for key, w in zip(adapters, record["weights"].tolist())
        if f"{key}.{name}.A" in record
    ]
    return [update for update, _ in found], [weight for _, weight in found]


def difference(record, how, adapters):
    """The largest difference of all updates; and the factors' where both are sums of factors."""
    largest = 0.0
    for name in matrices(record):
        parts, weights = updates(record, name, adapters)
        a, b = record[f"found.{name}.A"], record[f"found.{name}.B"]
        # PEFT's rank is one for all modules, filled up with zeros by cat.
        rank = min(len(a), *a.shape[1:], len(b)) if how in arithmetic.OF_DELTAS else None
        found = arithmetic.combine(parts, weights, how, rank, record["density"].item() or None)
        pairs = [(found.delta(), b @ a)]
        if how in arithmetic.OF_FACTORS:
            pairs += [(found.a, a), (found.b, b)]
        for ours, theirs in pairs:
            largest = max(largest, ((ours - theirs).abs().max() / theirs.abs().max()).item())
    return largest


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_peft(records, case):
    how, adapters = CASES[case]
    found = difference(records[case], how, adapters)
    print(f"{case}: {found:.1e}")
    assert found < TOLERANCE["fp32"]


@pytest.mark.parametrize("how", RANDOM)
def test_the_same_draw_gives_the_same(records, how):
    record = records[how]
    generator = torch.Generator().manual_seed(int(record["seed"]))
    tensors = [record[f"{name}.matrix"] for name in "abc"]
    weights, density = record["weights"].tolist(), record["density"].item()
    found = arithmetic.mix(how, tensors, weights, density, generator)
    assert (found - record["found"]).abs().max() < TOLERANCE["fp32"]


def test_every_case_of_the_library_is_compared(records):
    assert set(records) == {*CASES, *RANDOM}
    assert len(matrices(records["cat"])) == 2 + 2 + 2 + 1


def test_negative_control_another_way_is_seen(records):
    assert difference(records["ties"], "linear", "ab") > 1e-2
    assert difference(records["cat"], "cat", "cba") > 1e-2
