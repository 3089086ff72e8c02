"""Prediction from raw text: what it says is what validation said, row by row, whatever a row is."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from helpers import TOLERANCE
from prediction import FORMS, lines_of, validation_logits

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

import fairseq_peft  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402


@pytest.mark.parametrize("name", FORMS)
def test_predictions_are_those_of_validation(name, load, train, texts, data):
    run = train(name)
    labels, expected, dataset = validation_logits(run / "checkpoint_best.pt", data)
    assert dataset.num_truncated > 1
    classifier = load(name)
    assert classifier.labels == labels == ["bad", "good"]
    found = torch.stack([logits for _, logits in classifier.logits(texts)])
    assert torch.allclose(found, expected, atol=TOLERANCE["fp32"], rtol=0)
    assert (expected - expected[0]).abs().max() > 1e-2  # rows differ, so an order would show

    # And, counted, what training logged at its best epoch.
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: (line["subsets"]["valid"]["accuracy"], line["epoch"]))
    truth = lines_of(data / "raw" / "test.label")
    correct = sum(a == b for a, b in zip(classifier.predict(texts).labels, truth))
    assert correct == best["subsets"]["test"]["num_correct"]
    assert len(texts) == best["subsets"]["test"]["num_examples"]


def test_a_checkpoint_reads_as_its_folder_does(load, train, texts):
    whole = fairseq_peft.Classifier.load(train("lora") / "checkpoint_best.pt")
    rows = zip(whole.logits(texts), load("lora").logits(texts))
    assert all(torch.allclose(a, b, atol=1e-6) for (_, a), (_, b) in rows)


def test_pairs(prepare, train, base, tmp_path, data):
    """A pair is cut as ``SentenceDataset`` cuts it, and its texts do not change places."""
    rng = random.Random(1)
    raw = tmp_path / "raw"
    shutil.copytree(data.parent / "raw", raw)
    for split in ("train", "valid", "test"):
        count = len(lines_of(raw / f"{split}.review"))
        second = [
            " ".join(rng.choices(["beau", "nul", "mot3"], k=1 + 3 * (i % 9))) for i in range(count)
        ]
        (raw / f"{split}.review2").write_text("".join(f"{line}\n" for line in second))
    model = ("--spm", data / "sentencepiece.bpe.model", "--dict", data / "dict.txt")
    prepare(raw, tmp_path / "data", *model)
    run = train("pairs", tmp_path / "data", arch="roberta_small_lora")
    _, expected, dataset = validation_logits(run / "checkpoint_best.pt", tmp_path / "data")
    assert dataset.num_truncated > 1
    classifier = fairseq_peft.Classifier.load(base, run / "adapter")
    rows = list(zip(lines_of(raw / "test.review"), lines_of(raw / "test.review2")))
    found = torch.stack([logits for _, logits in classifier.logits(rows)])
    assert torch.allclose(found, expected, atol=TOLERANCE["fp32"], rtol=0)
    with pytest.raises(InputError, match="Row 2 is 'nul'.*pair of texts"):
        classifier.predict([("beau", "vif"), "nul"])


@pytest.mark.parametrize(("batch_size", "window"), [(1, 1), (3, 7), (64, 2048)])
def test_order_and_values_do_not_depend_on_batches(load, texts, batch_size, window):
    classifier = load("lora")
    expected = [classifier.predict([text])[0] for text in texts]
    found = list(classifier.stream(texts, batch_size=batch_size, window=window))
    assert [row.label for row in found] == [row.label for row in expected]
    for a, b in zip(found, expected):
        assert a.probabilities == pytest.approx(b.probabilities, abs=TOLERANCE["fp32"])
        assert a.probability == max(a.probabilities.values())
        assert sum(a.probabilities.values()) == pytest.approx(1, abs=1e-6)


def test_a_stream_reads_no_further_than_its_window(load, texts):
    read = []

    def source():
        for text in texts:
            read.append(text)
            yield text

    rows = load("lora").stream(source(), window=4)
    next(rows)
    assert len(read) == 4


def test_odd_rows_are_rows(load):
    classifier = load("lora")
    odd = ["", "   ", "\n", "\r", "\ud800 beau", "beau", "x" * 100_000]
    found = classifier.predict(odd)
    assert len(found) == len(odd) and classifier.predict([]) == []
    assert found[0] == found[1] == found[2] == found[3]
    assert found.labels[5] == classifier.predict(["beau"]).labels[0]
    assert found.probabilities.shape == (len(odd), 2)
    assert classifier.predict([]).probabilities.shape == (0, 2)


def test_bf16(load, texts):
    """Near to fp32, and not the same."""
    classifier = load("lora")
    assert classifier.precision == "fp32"
    exact = classifier.predict(texts).probabilities
    classifier.precision = "bf16"
    rough = classifier.predict(texts).probabilities
    assert abs(exact - rough).max() < TOLERANCE["bf16"]
    assert abs(exact - rough).max() > 0


@pytest.mark.parametrize("load", [fairseq_peft.Classifier.load, fairseq_peft.Generator.load])
def test_a_device_that_is_not_there_is_a_sentence(load, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda:77", "gpu"):
        with pytest.raises(InputError, match=f"^The device {device} cannot be used .*. Give cpu.$"):
            load("base.pt", "adapter", device=device)


def test_bad_input_is_a_sentence(load, train, base, data, tmp_path):
    classifier = load("lora")
    load_it = fairseq_peft.Classifier.load
    with pytest.raises(InputError, match="is one text. Give a list"):
        classifier.predict("beau")
    with pytest.raises(InputError, match="Row 2 is 3 .int.. Expected one text"):
        classifier.predict(["beau", 3])
    with pytest.raises(InputError, match="Row 1 is .*tuple.. Expected one text"):
        classifier.predict([("beau", "vif")])
    with pytest.raises(InputError, match="give 1 or more"):
        classifier.predict(["beau"], batch_size=0)
    with pytest.raises(InputError, match="Precision 'fp8' is unknown"):
        classifier.precision = "fp8"
    with pytest.raises(InputError, match="fairseq-peft export .* --format onnx --int8"):
        classifier.precision = "int8"
    with pytest.raises(InputError, match="has no classifier of this plugin. Give an adapter"):
        load_it(base)
    with pytest.raises(InputError, match="neither a base nor an adapter"):
        load_it(None)
    for no_name in ("", "a b", 'bo"oks', None):
        with pytest.raises(InputError, match="is no name of an adapter. Give one of ASCII"):
            classifier.add(no_name, train("lora") / "adapter")
        with pytest.raises(InputError, match="is no name of an adapter"):
            load_it(train("lora") / "checkpoint_best.pt", name=no_name)
    with pytest.raises(InputError, match="not the base.*Give it"):
        load_it(None, train("lora") / "adapter")
    with pytest.raises(InputError, match="would be ignored.*holds a whole model"):
        load_it(base, train("full") / "adapter")
    with pytest.raises(InputError, match="would be ignored: the adapter folder has its own"):
        load_it(base, train("lora") / "adapter", data=data)
    with pytest.raises(InputError, match="has no sentencepiece model"):
        load_it(train("lora") / "checkpoint_best.pt", data=tmp_path)
    with pytest.raises(InputError, match="is not the base that the adapter was trained on"):
        load_it(train("full") / "checkpoint_best.pt", train("lora") / "adapter")
