"""What predicts computes in the precision that it says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

from products import Products  # noqa: E402

import fairseq_peft  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402

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


@pytest.fixture(scope="module")
def folders(train):
    """Adapters that were trained in other precisions."""
    return {name: train(name, **more) / "adapter" for name, more in RUNS.items()}


RUNS = {
    "lora": {},
    "adapter": {},
    "in-bf16": {"arch": "roberta_small_lora", "precision": "bf16", "max_epoch": 1},
}


def test_an_adapter_of_another_precision_is_not_computed_in_that_of_the_first(base, folders):
    """Unless somebody says which: by ``precision=``, or by setting it."""
    for first, other in (("lora", "in-bf16"), ("in-bf16", "lora")):
        classifier = fairseq_peft.Classifier.load(base, folders[first], name=first)
        with pytest.raises(InputError, match=f"different precisions .{first} in .*{other} in "):
            classifier.add(other, folders[other])
        assert classifier.adapters == [first]
        classifier.precision = "fp32"
        classifier.add(other, folders[other])
        assert classifier.precision == "fp32"
    classifier = fairseq_peft.Classifier.load(base, folders["lora"], precision="bf16")
    for name in ("adapter", "in-bf16"):
        classifier.add(name, folders[name])
    assert classifier.precision == "bf16"


def test_the_first_of_those_that_are_there_decides(base, folders):
    classifier = fairseq_peft.Classifier.load(base, folders["in-bf16"], name="first")
    classifier.remove("first")
    classifier.add("lora", folders["lora"])
    assert classifier.precision == "fp32"
    classifier.add("adapter", folders["adapter"])
    with pytest.raises(InputError, match="different precisions"):
        classifier.add("first", folders["in-bf16"])
