"""What predicts computes in the precision that it says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

from products import Products  # noqa: E402

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("names", [["lora"], ["lora", "adapter"]], ids=["one", "several"])
def test_layers_compute_in_the_precision_of_the_classifier(load, train, texts, names, precision):
    """For one adapter, and for several in one batch."""
    classifier = load(names[0])
    for name in names[1:]:
        classifier.add(name, train(name) / "adapter")
    classifier.precision = precision
    adapters = [("default", *names[1:])[i % len(names)] for i in range(8)]
    with Products() as products:
        list(classifier.logits(texts[:8], adapters))
    assert products.count[TYPES[precision]] >= 12  # 6 maps in each of 2 layers
    if precision == "fp32":
        assert set(products.count) == {torch.float32}
    else:  # the head's, of a row each
        assert products.largest[torch.bfloat16] > 8 >= products.largest[torch.float32]


def test_the_default_type_of_torch_changes_nothing(load, train, texts):
    """``precision`` says fp32, so fp32 it is; VeRA draws its matrices from a seed."""
    for name in ("lora", "vera"):
        expected = torch.as_tensor(load(name).predict(texts[:8]).probabilities)
        torch.set_default_dtype(torch.float64)
        try:
            classifier = load(name)
            with Products() as products:
                found = torch.as_tensor(classifier.predict(texts[:8]).probabilities)
        finally:
            torch.set_default_dtype(torch.float32)
        assert set(products.count) == {torch.float32}
        assert torch.equal(found.float(), expected.float())
