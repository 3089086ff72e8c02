"""A linear map and its low-rank update in one, against the same written out."""

import pytest
import torch
import torch.nn.functional as F

from fairseq_peft.layers.low_rank import add_updates, linear_with_update

SCALE = 1.5


def parts(dtype=torch.float64, bias=True):
    """x (2, 5, 6), weight (4, 6), bias (4,) or None, A (3, 6), B (4, 3); all want a gradient but
    the weight."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 5, 6), (4, 6), (4,) if bias else None, (3, 6), (4, 3))
    found = [
        s and torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes
    ]
    found[1].requires_grad_(False)
    return found


def written_out(x, weight, bias, a, b):
    return F.linear(x, weight, bias) + SCALE * F.linear(F.linear(x, a), b)


def results(function, given):
    """The output and the gradient of each part that has one, None for the others."""
    wanted = [part for part in given if part is not None and part.requires_grad]
    y = function(*given)
    weights = torch.arange(y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((weights * y).sum(), wanted)]


def in_one(*given):
    return linear_with_update(*given, SCALE)


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_formula(bias):
    found, expected = (results(function, parts(bias=bias)) for function in (in_one, written_out))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
    assert len(found) == 4 + bias


def test_a_layer_whose_input_is_frozen():
    given = parts()
    given[0].requires_grad_(False)
    for one, other in zip(results(in_one, given), results(written_out, given)):
        torch.testing.assert_close(one, other)


def test_autocast_computes_in_its_type_and_gradients_keep_theirs():
    given = parts(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(in_one, given)
    assert [one.dtype for one in found] == [torch.bfloat16, *[torch.float32] * 4]
    for one, other in zip(found, results(written_out, given)):
        assert F.cosine_similarity(one.float().flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("scales", [(1.5, 1.5), (1.5, 0.25)])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 4)])
def test_many_updates_are_each_that_of_its_own(ranks, scales):
    """Output and gradients, in the layout of what they are gradients of where ranks are equal."""
    draw = torch.Generator().manual_seed(2)

    def made(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    y, x = made(2, 5, 4), made(2, 5, 6)
    factors = [(made(rank, 6), made(4, rank)) for rank in ranks]
    wanted = [y, x, *(part for pair in factors for part in pair)]
    weights = torch.arange(40.0).view(2, 5, 4)
    expected = torch.stack(
        [y[m] + scales[m] * x[m] @ a.t() @ b.t() for m, (a, b) in enumerate(factors)]
    )
    found = add_updates(y, x, factors, scales)
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (
        torch.autograd.grad((weights * z).sum(), wanted) for z in (found, expected)
    )
    for one, other in zip(of_found, of_expected):
        torch.testing.assert_close(one, other)
        assert one.is_contiguous() or ranks != (3, 3)
    turned = add_updates(y, x, factors[::-1], scales)
    assert (turned - expected).abs().max() > 0.1
