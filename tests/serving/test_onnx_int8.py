"""Products in 8 bits: channels of one size first, which changes nothing, then rounding."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fairseq_peft.serving import onnx_int8  # noqa: E402

WIDTH = 32


@pytest.fixture
def model():
    """input_ids (B, T) -> logits: a few channels of what products read are 50 times the others."""
    random = np.random.default_rng(1)

    def weight(name, size):
        """Numbers (WIDTH, WIDTH), of which those of two channels are ``size`` times as large."""
        numbers = random.normal(size=(WIDTH, WIDTH))
        numbers[[3, 17]] *= size
        return numpy_helper.from_array(numbers.astype(np.float32), name)

    table = numpy_helper.to_array(weight("table", 50)).T.copy()
    table[:, 5] = 0  # a channel that is 0 everywhere
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "first"], ["a"], name="a"),
        helper.make_node("MatMul", ["x", "second"], ["b"], name="b"),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "shared"], ["d"], name="d"),
        helper.make_node("MatMul", ["d", "shared"], ["logits"], name="e"),
    ]
    weights = [
        numpy_helper.from_array(table, "table"),
        weight("first", 1 / 50),
        weight("second", 1 / 50),
        weight("shared", 1),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "tokens"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [ids], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def rows():
    return [np.arange(start, start + 9)[None] for start in range(0, 24, 3)]


def computed(model, tokens):
    content = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input_ids": tokens})[0]


def test_channels_of_one_size_compute_the_same(model, rows):
    before = computed(model, rows[0])
    onnx_int8.smooth(model, rows)
    after = computed(model, rows[0])
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    kinds = [node.op_type for node in model.graph.node]
    # One multiplication for both products of x; a weight that meets two inputs stays as it is.
    assert kinds == ["Gather", "Mul", "MatMul", "MatMul", "Mul", "MatMul", "MatMul"]
    largest = onnx_int8.largest_channels(model, ["x", "x.scaled"], rows)
    spread = {name: np.sort(sizes)[-1] / np.median(sizes) for name, sizes in largest.items()}
    assert spread["x"] > 30 and spread["x.scaled"] < 3


def test_rounding_loses_less(model, rows, tmp_path, monkeypatch):
    expected = computed(model, rows[0])
    errors = {}
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(onnx_int8, "smooth", lambda model, rows: None)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, str(path))
        onnx_int8.write(path, rows)
        kinds = [node.op_type for node in onnx.load(str(path)).graph.node]
        assert kinds.count("MatMulInteger") == 4 and "MatMul" not in kinds
        errors[name] = np.abs(computed(str(path), rows[0]) - expected).mean()
    assert 0 < errors["with"] < 0.5 * errors["without"]
