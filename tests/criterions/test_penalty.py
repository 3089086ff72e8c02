"""A method's penalty is a part of the loss that is minimised, and no part of the one that is
logged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import torch.nn.functional as F  # noqa: E402
from families import FAMILIES  # noqa: E402

from fairseq_peft import methods  # noqa: E402
from fairseq_peft.criterions.sentence_classification import (  # noqa: E402
    SentenceClassificationCriterion,
)

#: Methods that have one.
WITH_PENALTY = ["adalora", "fusion"]


@pytest.fixture
def sample(batch):
    target = torch.tensor([0, 1, 1, 0])
    return {
        "net_input": {"src_tokens": batch},
        "target": target,
        "ntokens": batch.numel(),
        "nsentences": len(target),
    }


@pytest.fixture
def moved(dictionary):
    """``moved("adalora")``: a model whose trained tensors are not where they started."""

    def make(peft, seed=0):
        model = FAMILIES["roberta"](dictionary).build(peft)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    return make


def losses(model, sample):
    """(summed loss, summed cross entropy, logged loss) of one batch without dropout."""
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    criterion = SentenceClassificationCriterion(SimpleNamespace(), "head")
    loss, num_rows, logged = criterion(model, sample)
    assert num_rows == 4
    scores, _ = model(**sample["net_input"], features_only=True, classification_head_name="head")
    entropy = F.cross_entropy(scores, sample["target"], reduction="sum")
    return loss, entropy, logged["loss"]


@pytest.mark.parametrize("peft", methods.available())
def test_training_minimises_the_penalty_and_does_not_log_it(moved, sample, peft):
    """Once for each row: fairseq divides the sum by their number."""
    model = moved(peft).train()
    loss, entropy, logged = losses(model, sample)
    penalty = model.penalty()
    assert loss.item() == pytest.approx((entropy + 4 * (penalty or 0)).item(), rel=1e-5)
    assert logged.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert not logged.requires_grad
    if peft in WITH_PENALTY:
        assert penalty > 0.01


@pytest.mark.parametrize("peft", WITH_PENALTY)
def test_gradients_are_those_of_both(moved, sample, peft):
    model = moved(peft).train()
    loss, entropy, _ = losses(model, sample)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(value):
        found = torch.autograd.grad(value, trained, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found)]

    both, alone, regular = (gradients(v) for v in (loss, entropy, 4 * model.penalty()))
    assert any(part.abs().max() > 1e-3 for part in regular)
    for whole, a, b in zip(both, alone, regular):
        assert torch.allclose(whole, a + b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("peft", WITH_PENALTY)
def test_validation_has_no_penalty(moved, sample, peft):
    loss, entropy, logged = losses(moved(peft).eval(), sample)
    assert loss.item() == logged.item() == pytest.approx(entropy.item(), rel=1e-5)
