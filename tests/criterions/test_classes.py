"""Counts of many classes are one meter, and class weights change what is minimised alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import torch.nn.functional as F  # noqa: E402
from fairseq.logging import metrics  # noqa: E402
from helpers import train_flags  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from fairseq_peft import scores  # noqa: E402
from fairseq_peft.criterions.sentence_classification import (  # noqa: E402
    SentenceClassificationCriterion,
)
from fairseq_peft.errors import InputError  # noqa: E402

TARGET = [0, 0, 0, 2, 1]


class Model(torch.nn.Module):
    """Its parameters are the logits."""

    def __init__(self, num_rows, num_classes):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.nn.Parameter(torch.randn(num_rows, num_classes, generator=generator))

    def forward(self, **kwargs):
        return self.logits, None

    def penalty(self):
        return None


def sample_of(target):
    target = torch.tensor(target)
    return {"net_input": {}, "target": target, "ntokens": 9, "nsentences": len(target)}


def task_of(labels="abc", train=TARGET):
    splits = {"part": SimpleNamespace(targets=train)}
    cfg = SimpleNamespace(train_subset="part")
    return SimpleNamespace(labels=list(labels), dataset=splits.__getitem__, cfg=cfg)


@pytest.mark.parametrize("num_classes", [3, 1000])
def test_counts_take_one_meter_however_many_classes_there_are(num_classes):
    """Two updates of two batches: the sums are those of all rows."""
    model = Model(8, num_classes)
    criterion = SentenceClassificationCriterion(task_of(), "head")
    targets = [[i % num_classes for i in range(k, k + 8)] for k in range(4)]
    with metrics.aggregate(new_root=True) as agg:
        for two in (targets[:2], targets[2:]):
            criterion.reduce_metrics([criterion(model, sample_of(target))[2] for target in two])
    assert len(agg) == 6  # loss, tokens, counts, and three scores
    predicted = torch.cat([model.logits.argmax(-1)] * 4)
    target = torch.tensor(sum(targets, []))
    kinds = (target[target == predicted], target, predicted)
    counts = [torch.bincount(kind, minlength=num_classes).tolist() for kind in kinds]
    expected = scores.from_counts(*counts)
    assert scores.from_meters(agg) == {**expected, "predicted": counts[2]}
    assert agg.get_smoothed_values()["mcc"] == round(expected["mcc"], 6)


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ("none", [1.0, 1.0, 1.0]),
        ("1,2.5,4", [1.0, 2.5, 4.0]),
        ("balanced", [5 / 9, 5 / 3, 5 / 3]),  # rows / (classes * rows of the class)
    ],
)
def test_class_weights(given, weights):
    model = Model(len(TARGET), 3)
    criterion = SentenceClassificationCriterion(task_of(), "head", given)
    sample = sample_of(TARGET)
    plain = F.cross_entropy(model.logits, sample["target"], reduction="sum")
    rows = F.cross_entropy(model.logits, sample["target"], reduction="none")
    expected = (rows * torch.tensor(weights)[sample["target"]]).sum()
    loss, num_rows, logged = criterion(model, sample)
    torch.testing.assert_close(loss, expected)
    assert num_rows == 5 and torch.equal(logged["loss"], plain)
    model.eval()
    assert torch.equal(criterion(model, sample)[0], plain)


def test_a_class_without_rows_in_train_is_no_division_by_zero():
    criterion = SentenceClassificationCriterion(task_of("abcd"), "head", "balanced")
    loss, _, _ = criterion(Model(len(TARGET), 4), sample_of(TARGET))
    assert loss.isfinite()


@pytest.mark.parametrize("given", ["1,2", "1,2,3,4", "1,0,2", "1,x,2", "1,nan,2", "1,inf,2", ""])
def test_weights_that_do_not_fit_are_refused(given):
    with pytest.raises(InputError, match="expected none, balanced, or 3 positive numbers"):
        SentenceClassificationCriterion(task_of(), "head", given)


@pytest.mark.end_to_end
def test_the_flag_reaches_training(fairseq, data_folder, tmp_path):
    """The data are balanced: weights of 1 are none at all, others move the head elsewhere."""
    heads = {}
    for given in ("none", "1,1", "1,9", "1,2,3"):
        folder = tmp_path / given
        done = fairseq("train", *train_flags(data_folder, folder, class_weights=given))
        if given == "1,2,3":
            assert done.returncode != 0 and "2 positive numbers" in done.stdout + done.stderr
            continue
        assert done.returncode == 0, done.stderr
        heads[given] = load_file(folder / "adapter" / "adapter.safetensors")
    key = next(key for key in heads["none"] if key.endswith("out_proj.bias"))
    assert torch.equal(heads["none"][key], heads["1,1"][key])
    assert not torch.equal(heads["none"][key], heads["1,9"][key])
