"""Products of an ONNX graph in 8 bits.

A weight is rounded with a scale a channel, what it is multiplied with as it comes, with one scale
for the whole tensor. What gelu hands on is up to twenty times as large in a few channels as in the
others, and one scale for all of them leaves the others a few steps. So the difficulty is shared
first (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438): x W = (x / s) (s W), for a scale s of each
channel of x, which costs a multiplication a number. The weights take unsigned numbers: on
processors without VNNI the sums of products of unsigned and signed ones overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

#: The part of the difference between channels that goes into the weights: the paper has 0.5 for
#: large language models; on a small RoBERTa 0.85 kept more labels than 0.5 and 0.75.
STRENGTH = 0.85
#: How many rows are looked at.
ROWS = 64


def write(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Let the products of a file's graph compute in 8 bits.

    Args:
        path: the graph in fp32, written over.
        rows: input_ids, each (1, T), that tell how large channels become.
    """
    import onnx
    from onnxruntime import quantization

    model = onnx.load(str(path))
    smooth(model, rows[:ROWS])
    quantization.quantize_dynamic(
        model,
        str(path),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=quantization.QuantType.QUInt8,
    )


def smooth(model, rows: Sequence[np.ndarray]) -> None:
    """Rewrite products with weights so that the channels of their inputs are of one size.

    Args:
        model: an onnx.ModelProto, changed in place; it computes the same.
        rows: input_ids, each (1, T).
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weights, inputs = {}, {}  # the weights that an input meets, the inputs that a weight meets
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            weights.setdefault(node.input[0], set()).add(node.input[1])
            inputs.setdefault(node.input[1], set()).add(node.input[0])
    alone = [x for x in weights if all(len(inputs[weight]) == 1 for weight in weights[x])]
    for x, largest in largest_channels(model, alone, rows).items():
        arrays = {name: numpy_helper.to_array(tensors[name]) for name in weights[x]}
        heaviest = np.max([np.abs(array).max(1) for array in arrays.values()], axis=0)
        scale = _positive(largest) ** STRENGTH / _positive(heaviest) ** (1 - STRENGTH)
        for name, array in arrays.items():
            scaled = (array * scale[:, None]).astype(array.dtype)
            tensors[name].CopyFrom(numpy_helper.from_array(scaled, name))
        graph.initializer.append(
            numpy_helper.from_array((1 / scale).astype(np.float32), f"{x}.scale")
        )
    nodes, done = [], set()
    for node in graph.node:
        x = node.input[0] if node.input else ""
        if node.op_type == "MatMul" and x in alone and node.input[1] in weights[x]:
            if x not in done:
                nodes.append(helper.make_node("Mul", [x, f"{x}.scale"], [f"{x}.scaled"]))
                done.add(x)
            node.input[0] = f"{x}.scaled"
        nodes.append(node)
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def largest_channels(model, names: Sequence[str], rows: Sequence[np.ndarray]) -> dict:
    """The largest size of each channel, (D,), of tensors (..., D) of a graph over ``rows``."""
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = {}
    for tokens in rows:
        for name, value in zip(names, session.run(list(names), {"input_ids": tokens})):
            size = np.abs(value).reshape(-1, value.shape[-1]).max(0)
            found[name] = np.maximum(found.get(name, 0), size)
    return found


def _positive(sizes: np.ndarray) -> np.ndarray:
    """Sizes that can be divided by: a channel that is 0 everywhere stays as it is."""
    return np.where(sizes > 0, sizes, 1)
