"""Arithmetic on updates, against formulas."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fairseq_peft.combining import arithmetic  # noqa: E402
from fairseq_peft.combining.arithmetic import Update  # noqa: E402


def update(rank=3, seed=0, scale=2.0, sizes=(7, 6)):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, sizes[0], generator=generator)
    return Update(a, torch.randn(sizes[1], rank, generator=generator), scale)


def weighted(updates, weights):
    return sum(w * found.delta() for w, found in zip(weights, updates))


ONE_RANK = [update(seed=1), update(seed=2, scale=0.5)]
RANKS = [update(2, 1), update(1, 2, 0.5), update(3, 3, 4.0)]


def test_cat_is_the_sum():
    weights = [0.5, -1.0, 2.0]
    found = arithmetic.combine(RANKS, weights, "cat")
    assert found.a.shape == (6, 7) and found.b.shape == (6, 6) and found.scale == 1
    assert torch.allclose(found.delta(), weighted(RANKS, weights), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_svd_is_the_best_of_its_rank(rank):
    weights = [1.0, -0.7]
    exact = weighted(ONE_RANK, weights)
    found = arithmetic.combine(ONE_RANK, weights, "svd", rank)
    assert found.a.shape == (rank, 7) and found.b.shape == (6, rank)
    # Eckart and Young: what is missing are the singular values that were left out.
    left_out = torch.linalg.svdvals(exact)[rank:].norm().item()
    missing = (found.delta() - exact).norm().item()
    assert missing == pytest.approx(left_out, rel=1e-4, abs=1e-4)


def test_svd_takes_the_largest_rank_by_itself():
    assert len(arithmetic.combine(RANKS, [1, 1, 1], "svd").a) == 3


def test_linear_by_hand():
    one, two = ONE_RANK
    found = arithmetic.combine(ONE_RANK, [0.5, -3.0], "linear")
    assert torch.allclose(found.a, one.a * 1.0**0.5 - two.a * 1.5**0.5)
    assert torch.allclose(found.b, one.b * 1.0**0.5 + two.b * 1.5**0.5)


@pytest.mark.parametrize("how", ["cat", "svd", "linear"])
def test_negation(how):
    found = arithmetic.combine(ONE_RANK[:1], [-1.0], how)
    assert torch.allclose(found.delta(), -ONE_RANK[0].delta(), atol=1e-5)


def test_what_is_added_and_taken_away_is_gone():
    exact = arithmetic.combine([*ONE_RANK, ONE_RANK[0]], [1.0, 1.0, -1.0], "svd", 3)
    assert torch.allclose(exact.delta(), ONE_RANK[1].delta(), atol=1e-4)


def test_ties_by_hand():
    """Trimmed to 3 of 6 values; then signs are elected, and those that agree averaged."""
    one = torch.tensor([5.0, -4.0, 3.0, 0.1, 0.2, 0.3])
    two = torch.tensor([-2.0, -6.0, 0.1, 4.0, 0.2, -0.1])
    assert arithmetic.trim(one, 0.5).tolist() == [5, -4, 3, 0, 0, 0]
    assert arithmetic.trim(two, 0.5).tolist() == [-2, -6, 0, 4, 0, 0]
    found = arithmetic.mix("ties", [one, two], [1.0, 0.5], 0.5)
    # 5 wins over -2; both are negative; one alone; two alone.
    assert found.tolist() == [5, (-4 - 0.5 * 6) / 2, 3, 0.5 * 4, 0, 0]


def test_trim_rounds_down():
    assert arithmetic.trim(torch.arange(1.0, 8.0), 0.5).count_nonzero() == 3


def test_dare_keeps_the_mean_and_the_share():
    tensor = update().a
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([arithmetic.thin(tensor, 0.25, generator) for _ in range(4000)])
    assert (draws != 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    kept = draws[draws != 0].unique()
    assert torch.allclose(kept, (4 * tensor).unique())
    # The standard error of a mean is sqrt(3 / 4000) |value|.
    assert ((draws.mean(0) - tensor).abs() < 4.5 * (3 / 4000) ** 0.5 * tensor.abs()).all()


def test_dare_of_deltas_has_the_sum_as_its_mean():
    weights = [1.0, -0.5]
    exact = weighted(ONE_RANK, weights)
    draws = [
        arithmetic.combine(
            ONE_RANK, weights, "dare_linear_svd", 6, 0.5, torch.Generator().manual_seed(seed)
        ).delta()
        for seed in range(1500)
    ]
    mean = torch.stack(draws).mean(0)
    assert (mean - exact).abs().max() < 0.1 * exact.abs().max()
    assert (draws[0] - exact).norm() > 0.5 * exact.norm()


def test_dare_is_a_matter_of_its_generator():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return arithmetic.combine(ONE_RANK, [1, 1], "dare_ties", None, 0.5, generator)

    before = torch.random.get_rng_state()
    assert torch.equal(draw(1).a, draw(1).a) and not torch.equal(draw(1).a, draw(2).a)
    assert torch.equal(before, torch.random.get_rng_state())


def test_dare_ties_does_not_trim():
    one = torch.ones(1000)
    found = arithmetic.mix("dare_ties", [one], [1.0], 0.5, torch.Generator().manual_seed(0))
    assert 400 < (found == 2).sum() < 600 and ((found == 0) | (found == 2)).all()


@pytest.mark.parametrize("how", ["ties_svd", "dare_linear_svd", "dare_ties_svd"])
def test_deltas_are_mixed_and_then_cut(how):
    def generator():
        return torch.Generator().manual_seed(3)

    found = arithmetic.combine(RANKS, [1, 1, -1], how, 2, 0.5, generator())
    deltas = [part.delta() for part in RANKS]
    wanted = arithmetic.mix(how[:-4], deltas, [1, 1, -1], 0.5, generator())
    u, s, vt = torch.linalg.svd(wanted)
    assert torch.allclose(found.delta(), u[:, :2] * s[:2] @ vt[:2], atol=1e-4)


def test_the_error_is_that_of_the_matrices():
    weights = [1.0, -0.7]
    exact = weighted(ONE_RANK, weights)
    found = arithmetic.combine(ONE_RANK, weights, "linear")
    off, whole = arithmetic.squared_error(found, ONE_RANK, weights)
    assert off == pytest.approx((found.delta() - exact).norm().item() ** 2, rel=1e-4)
    assert whole == pytest.approx(exact.norm().item() ** 2, rel=1e-4)
