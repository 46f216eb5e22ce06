"""ONNX graphs built for tests, weights without data."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def _weight(name: str, *dims: int) -> TensorProto:
    """An initializer that has a shape and no values: weights are never read."""
    return TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT)


def _model(
    name: str, nodes: list[onnx.NodeProto], x: list[int], y: list[int], weights: list[TensorProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, y)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def mm(n: int, k: int, m: int) -> onnx.ModelProto:
    """`mm_N_K_M`: one MatMul of [N, K] by a weight [K, M]."""
    return _model(
        f"mm_{n}_{k}_{m}", [helper.make_node("MatMul", ["X", "W"], ["Y"], "mm")], [n, k], [n, m], [_weight("W", k, m)]
    )


def mlp(n: int, k: int, m: int, o: int) -> onnx.ModelProto:
    """`mlp_N_K_M_O`: Gemm (weight [M, K], bias), Relu, Gemm (weight [O, M], bias)."""
    nodes = [
        helper.make_node("Gemm", ["X", "W1", "b1"], ["H"], "g1", transB=1),
        helper.make_node("Relu", ["H"], ["R"], "relu"),
        helper.make_node("Gemm", ["R", "W2", "b2"], ["Y"], "g2", transB=1),
    ]
    weights = [_weight("W1", m, k), _weight("b1", m), _weight("W2", o, m), _weight("b2", o)]
    return _model(f"mlp_{n}_{k}_{m}_{o}", nodes, [n, k], [n, o], weights)


def conv(c: int, m: int, kernel: int, stride: int, pad: int, size: int) -> onnx.ModelProto:
    """One Conv on a [1, C, size, size] image, square kernel, without bias."""
    out = (size + 2 * pad - kernel) // stride + 1
    node = helper.make_node(
        "Conv", ["X", "W"], ["Y"], "conv", kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
    )
    return _model("conv", [node], [1, c, size, size], [1, m, out, out], [_weight("W", m, c, kernel, kernel)])
