"""``Classifier.load(compile=...)`` and ``fairseq-peft predict --compile``: the same answers."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

from helpers import TOLERANCE  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

import fairseq_peft  # noqa: E402
from fairseq_peft import cli, compiling  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Run step by step, by torch's backend ``eager``: no compiler is asked."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    yield
    torch._dynamo.reset()


def test_several_adapters_answer_as_without(load, train, base, texts):
    """Each in a pass of its own; rows of all lengths share the graphs."""
    names = ["default", "prefix"]
    plain = load("lora")
    compiled = fairseq_peft.Classifier.load(base, train("lora") / "adapter", compile="on")
    for classifier in (plain, compiled):
        classifier.add("prefix", train("prefix") / "adapter")
    adapters = [names[i % 2] for i in range(len(texts))]
    expected, found = (
        torch.stack([logits for _, logits in classifier.logits(texts, adapters, batch_size=8)])
        for classifier in (plain, compiled)
    )
    assert (found - expected).abs().max() < TOLERANCE["fp32"]
    assert 0 < counters["stats"]["unique_graphs"] <= 8 and not counters["graph_break"]
    compiled.remove("prefix")
    assert compiled.predict(texts[:3]).labels == plain.predict(texts[:3], "default").labels
    assert compiled.precision == plain.precision == "fp32"


def test_a_model_as_a_whole(load, train, texts):
    compiled = fairseq_peft.Classifier.load(None, train("full") / "adapter", compile="on")
    found, expected = compiled.predict(texts), load("full").predict(texts)
    assert abs(found.probabilities - expected.probabilities).max() < TOLERANCE["fp32"]
    assert counters["stats"]["unique_graphs"] > 0


def test_the_command(train, base, texts, tmp_path):
    lines = tmp_path / "texts"
    lines.write_text("beau vif\nnul triste fade\n")
    answers = []
    for more in ([], ["--compile", "on"]):
        out = tmp_path / f"{len(more)}.jsonl"
        words = ["predict", lines, "--base", base, "--adapter", train("lora") / "adapter"]
        words += ["--out", out, "--format", "jsonl", *more]
        assert cli.main([str(word) for word in words]) == 0
        assert bool(counters["stats"]) == bool(more)
        answers.append([json.loads(line) for line in out.read_text().splitlines()])
    for one, other in zip(*answers):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


@pytest.mark.parametrize(
    "choice, sentence",
    [
        ("graphs", "--compile graphs records CUDA graphs, and the model runs on a CPU"),
        ("yes", "--compile 'yes' is unknown: give off, on or graphs"),
    ],
)
def test_what_there_is_not(train, base, choice, sentence):
    with pytest.raises(InputError, match=sentence):
        fairseq_peft.Classifier.load(base, train("lora") / "adapter", compile=choice)
