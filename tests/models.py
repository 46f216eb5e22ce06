"""ONNX graphs built for tests, weights without data."""

from __future__ import annotations

from collections.abc import Sequence

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


def chain(n: int, sizes: Sequence[tuple[int, int]]) -> onnx.ModelProto:
    """Independent MatMuls of [n, K] inputs by weights [K, M], one after the other in the graph."""
    nodes = [helper.make_node("MatMul", [f"X{i}", f"W{i}"], [f"Y{i}"], f"mm{i}") for i in range(len(sizes))]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(f"X{i}", TensorProto.FLOAT, [n, k]) for i, (k, _) in enumerate(sizes)],
        [helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, [n, m]) for i, (_, m) in enumerate(sizes)],
        [_weight(f"W{i}", k, m) for i, (k, m) in enumerate(sizes)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def conv(c: int, m: int, kernel: int, stride: int, pad: int, size: int) -> onnx.ModelProto:
    """One Conv on a [1, C, size, size] image, square kernel, without bias."""
    out = (size + 2 * pad - kernel) // stride + 1
    node = helper.make_node(
        "Conv", ["X", "W"], ["Y"], "conv", kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
    )
    return _model("conv", [node], [1, c, size, size], [1, m, out, out], [_weight("W", m, c, kernel, kernel)])


def transformer_block(tokens: int, features: int, heads: int, inner: int) -> onnx.ModelProto:
    """Attention, MatMul, SkipLayerNormalization, MatMul, BiasGelu, MatMul, SkipLayerNormalization on [1, S, D]."""
    nodes = [
        helper.make_node("Attention", ["X", "wqkv", "bqkv"], ["a"], "att", domain="com.microsoft", num_heads=heads),
        helper.make_node("MatMul", ["a", "wo"], ["o"], "proj"),
        helper.make_node("SkipLayerNormalization", ["X", "o", "g1", "b1"], ["n1"], "ln1", domain="com.microsoft"),
        helper.make_node("MatMul", ["n1", "w1"], ["f1"], "fc1"),
        helper.make_node("BiasGelu", ["f1", "bf1"], ["ge"], "gelu", domain="com.microsoft"),
        helper.make_node("MatMul", ["ge", "w2"], ["f2"], "fc2"),
        helper.make_node("SkipLayerNormalization", ["n1", "f2", "g2", "b2"], ["Y"], "ln2", domain="com.microsoft"),
    ]
    weights = [
        _weight("wqkv", features, 3 * features), _weight("bqkv", 3 * features), _weight("wo", features, features),
        _weight("g1", features), _weight("b1", features), _weight("w1", features, inner), _weight("bf1", inner),
        _weight("w2", inner, features), _weight("g2", features), _weight("b2", features),
    ]  # fmt: skip
    shape = [1, tokens, features]
    return _model("block", nodes, shape, shape, weights)


def resnet18() -> onnx.ModelProto:
    """ResNet-18 for 224 x 224 images (He et al., CVPR 2016), batch normalisation folded into the convolutions."""
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def convolve(x: str, name: str, c: int, m: int, kernel: int, stride: int) -> str:
        weights.extend([_weight(f"{name}.W", m, c, kernel, kernel), _weight(f"{name}.b", m)])
        pads = [kernel // 2] * 4
        inputs = [x, f"{name}.W", f"{name}.b"]
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        nodes.append(helper.make_node("Conv", inputs, [name], name, **shape))
        return name

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"], f"{x}.relu"))
        return f"{x}.relu"

    def block(x: str, name: str, c: int, m: int, stride: int) -> str:
        inner = relu(convolve(x, f"{name}.conv1", c, m, 3, stride))
        inner = convolve(inner, f"{name}.conv2", m, m, 3, 1)
        shortcut = x if c == m else convolve(x, f"{name}.downsample", c, m, 1, stride)
        nodes.append(helper.make_node("Add", [inner, shortcut], [f"{name}.add"], f"{name}.add"))
        return relu(f"{name}.add")

    x = relu(convolve("X", "stem", 3, 64, 7, 2))
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    nodes.append(helper.make_node("MaxPool", [x], ["pool"], "pool", **pool))
    x, c = "pool", 64
    for stage, m in enumerate((64, 128, 256, 512)):
        for index in range(2):
            stride = 2 if stage > 0 and index == 0 else 1
            x, c = block(x, f"layer{stage + 1}.{index}", c, m, stride), m
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["average"], "average"))
    nodes.append(helper.make_node("Flatten", ["average"], ["flat"], "flat"))
    nodes.append(helper.make_node("Gemm", ["flat", "fc.W", "fc.b"], ["Y"], "fc", transB=1))
    weights.extend([_weight("fc.W", 1000, 512), _weight("fc.b", 1000)])
    return _model("resnet18", nodes, [1, 3, 224, 224], [1, 1000], weights)
