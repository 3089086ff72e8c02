"""Folders for ONNX Runtime: what it computes of them is what the model says."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.end_to_end

from fairseq_peft.cli import main  # noqa: E402
from fairseq_peft.commands import export  # noqa: E402
from fairseq_peft.serving import onnx_folder  # noqa: E402
from fairseq_peft.serving.agreement import compare  # noqa: E402
from fairseq_peft.serving.predict import Prediction  # noqa: E402


@pytest.fixture(scope="module")
def exported(train, base, data, tmp_path_factory):
    """``exported("lora")``: the folder for ONNX Runtime, made once; its text went to stdout."""
    made = {}

    def run(name, *flags):
        if (name, *flags) in made:
            return made[(name, *flags)]
        out = made[(name, *flags)] = tmp_path_factory.mktemp("onnx") / name
        words = ["export", train(name) / "adapter", out, "--format", "onnx", "--base", base]
        assert main([str(word) for word in (*words, *flags)]) == 0
        return out

    return run


def probabilities(folder, texts):
    """As a program without torch computes them: what docs/predict.md shows."""
    told = json.loads((folder / "classifier.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=told["padding"], pad_token="<pad>")
    tokenizer.enable_truncation(told["max_tokens"])
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    rows = [row.ids for row in tokenizer.encode_batch(list(texts))]
    (logits,) = session.run(["logits"], {"input_ids": torch.tensor(rows).numpy()})
    return torch.from_numpy(logits).softmax(-1), told


@pytest.mark.parametrize("name", ["lora", "prompt"])
def test_onnx_runtime_computes_what_the_classifier_does(exported, load, texts, capsys, name):
    """Merged, and where the method cannot be merged; for batches of any size, and one row."""
    texts = [*texts[:21], "mot1 " * 60]  # the last is cut
    folder = exported(name)
    assert "24 rows: 100.00% have the same label, a probability" in capsys.readouterr().out
    expected = torch.as_tensor(load(name).predict(texts).probabilities)
    found, told = probabilities(folder, texts)
    assert told["labels"] == ["bad", "good"] and told["kind"] == "classes"
    assert (found - expected).abs().max() < 1e-5
    assert (probabilities(folder, texts[:1])[0] - expected[:1]).abs().max() < 1e-5


def test_products_in_8_bits(exported, load, texts, data, capsys):
    """What is printed is what a user finds; rows of a file are compared."""
    folder = exported("lora", "--int8", "--check-text", data.parent / "raw" / "valid.review")
    graph = onnx.load(folder / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulInteger") >= 12  # 6 maps in each of 2 layers
    told = capsys.readouterr().out
    assert "model.onnx, int8, " in told and "21 rows: " in told
    expected = torch.as_tensor(load("lora").predict(texts[:21]).probabilities)
    difference = (probabilities(folder, texts[:21])[0] - expected).abs().max()
    assert 1e-6 < difference < 0.05


def test_rows_to_compare_on_are_those_that_predict_reads(exported, tmp_path, capsys):
    path = tmp_path / "rows.txt.gz"
    path.write_bytes(gzip.compress(b"\n\n  mot1\rmot2\n"))
    exported("lora", "--check-text", path)
    assert "3 rows: " in capsys.readouterr().out
    assert export.read_rows(path, 1) == ["", "", "  mot1\rmot2"]
    path.write_bytes("a text\t\r\none\ttwo".encode("utf-8-sig"))
    assert export.read_rows(path, 2) == [("a text", ""), ("one", "two")]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="rows.txt.gz is empty. Give a row a line"):
        export.read_rows(path, 1)


def test_another_graph_is_not_written(exported, train, base, tmp_path, monkeypatch):
    other = exported("lora")
    monkeypatch.setattr(
        onnx_folder, "to_onnx", lambda _, path, __: shutil.copy(other / "model.onnx", path)
    )
    found, model = onnx_folder.finetuned.from_folder(train("lora") / "adapter", base)
    with torch.no_grad():
        model.classification_heads[found.description["head"]["name"]].out_proj.bias[0] += 0.1
    with pytest.raises(RuntimeError, match="something else, nothing written: 24 rows"):
        onnx_folder.write(tmp_path / "out", found, model)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_a_sentence(monkeypatch, tmp_path, capsys):
    words = ["export", str(tmp_path), str(tmp_path / "out")]
    for flags in (["--int8"], ["--check-text", "x"], ["--format", "onnx", "--base-name", "x"]):
        assert main([*words, *flags]) == 1
        assert "would be ignored with --format" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="needs the package onnxruntime, which is not installed"):
        onnx_folder.load_runtime()
    monkeypatch.undo()
    plain = SimpleNamespace(folder=tmp_path, description={})
    with pytest.raises(ValueError, match="is no RoBERTa"):
        onnx_folder.write(tmp_path / "out", plain, torch.nn.Linear(1, 1))


def test_agreement_of_predictions():
    def of(label, share):
        return Prediction(label, share, {label: share, "other": 1 - share})

    found = compare([of("a", 0.9), of("a", 0.8)], [of("a", 0.7), of("a", 0.85)])
    assert found.equal == 1 and abs(found.largest - 0.2) < 1e-9
    assert compare([Prediction("a", 0.6, {"a": 0.6})], [Prediction("b", 0.6, {"a": 0.4})])[1] == 0
    numbers = compare([Prediction("1.5", None, {})], [Prediction("1.25", None, {})])
    assert str(numbers) == "1 rows: a number differs by 2.5e-01 at most"
