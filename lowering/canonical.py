"""Fused and quantised operators as the ONNX operators that they stand for.

Runs before anything else looks at the graph. Every tensor has the chip's one precision, so quantised forms differ by
their scales only: these and the zero points fold into weights and bias, and what is left is the rescaling of the
result, a QuantizeLinear that fuses with its producer. Sources: ONNX's operator documentation; ONNX Runtime's
ContribOperators.md for com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lowering import contrib_attention
from lowering.ir import Graph, Node, Tensor
from lowering.operators import MATRIX
from lowering.simplify import consumers

Inputs = tuple[Tensor | None, ...]


def canonical(graph: Graph) -> Graph:
    """The graph without operators of quantised or com.microsoft form where an ONNX operator does the same work."""
    graph = contrib_attention.separate_caches(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        short = node.op.removeprefix("com.microsoft.")
        rewrite = REWRITES.get(node.op) or REWRITES.get(short)
        if rewrite is not None:
            nodes += rewrite(replace(node, op=short))
        else:
            nodes.append(replace(node, op=short) if short in SAME_MEANING else node)
    return _drop_dequantization(replace(graph, nodes=tuple(nodes)))


def _drop_dequantization(graph: Graph) -> Graph:
    """DequantizeLinear in front of matrix layers disappears: its scale is part of the layer's."""
    uses = consumers(graph.nodes)
    kept = {tensor.name for tensor in graph.outputs}
    source: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(source.get(t.name, t) if t is not None else None for t in node.inputs))
        users = uses.get(node.outputs[0].name, [])
        folds = node.op == "DequantizeLinear" and users and all(user.op in MATRIX for user in users)
        if folds and node.outputs[0].name not in kept:
            source[node.outputs[0].name] = node.input(0)
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _chain(node: Node, head: Node, *steps: tuple[str, Inputs]) -> list[Node]:
    """`head` followed by `steps` (operator, further inputs); the last one produces the outputs of `node`."""
    if not steps:
        return [replace(head, outputs=node.outputs)]
    nodes: list[Node] = []
    previous, output = head, node.outputs[0]
    for index, (op, others) in enumerate(steps):
        between = replace(output, name=f"{output.name} ({index})")
        nodes.append(replace(previous, outputs=(between,)))
        previous = Node(f"{node.name} ({op})", op, (between, *others), (output,))
    return [*nodes, previous]


def _pick(node: Node, *indices: int) -> Inputs:
    return tuple(node.optional_input(index) for index in indices)


def _requantised(op: str, *indices: int) -> Callable[[Node], list[Node]]:
    """`op` on the given inputs, then the rescaling of its result."""

    def rewrite(node: Node) -> list[Node]:
        return _chain(node, replace(node, op=op, inputs=_pick(node, *indices)), ("QuantizeLinear", ()))

    return rewrite


def _plain(op: str, *indices: int) -> Callable[[Node], list[Node]]:
    """`op` on the given inputs: scales and zero points are folded."""

    def rewrite(node: Node) -> list[Node]:
        return [replace(node, op=op, inputs=_pick(node, *indices))]

    return rewrite


def _fused_conv(node: Node) -> list[Node]:
    """FusedConv: Conv, then the optional sum Z, then the activation."""
    steps: list[tuple[str, Inputs]] = []
    if node.optional_input(3) is not None:
        steps.append(("Add", (node.optional_input(3),)))
    if node.text("activation", ""):
        steps.append((node.text("activation", ""), ()))
    return _chain(node, replace(node, op="Conv", inputs=_pick(node, 0, 1, 2)), *steps)


def _fused_gemm(node: Node) -> list[Node]:
    steps = [(node.text("activation", ""), ())] if node.text("activation", "") else []
    return _chain(node, replace(node, op="Gemm"), *steps)


def _fused_matmul(node: Node) -> list[Node]:
    """FusedMatMul: transposed operands become Transpose nodes, alpha folds."""
    nodes: list[Node] = []
    operands: list[Tensor | None] = []
    for index, side in enumerate("AB"):
        tensor = node.input(index)
        rank = len(tensor.shape)
        if node.int(f"trans{side}", 0) and rank > 1:
            perm = (*range(rank - 2), rank - 1, rank - 2)
            shape = tuple(tensor.shape[d] for d in perm)
            turned = Tensor(f"{tensor.name} (transposed for {node.name})", shape, tensor.constant)
            if not tensor.constant:
                nodes.append(Node(f"{node.name} (trans{side})", "Transpose", (tensor,), (turned,), {"perm": perm}))
            tensor = turned
        operands.append(tensor)
    return [*nodes, replace(node, op="MatMul", inputs=tuple(operands))]


def _with_bias(activation: str) -> Callable[[Node], list[Node]]:
    """BiasGelu, FastGelu: an optional bias, then the activation."""

    def rewrite(node: Node) -> list[Node]:
        if node.optional_input(1) is None:
            return [replace(node, op=activation, inputs=node.inputs[:1])]
        return _chain(node, replace(node, op="Add"), (activation, ()))

    return rewrite


def _q_concat(node: Node) -> list[Node]:
    """QLinearConcat: inputs are (scale, zero point) of the result, then (tensor, scale, zero point) of each part."""
    parts = tuple(node.optional_input(index) for index in range(2, len(node.inputs), 3))
    return [replace(node, op="Concat", inputs=parts)]


def _q_gemm(node: Node) -> list[Node]:
    head = replace(node, op="Gemm", inputs=_pick(node, 0, 3, 6))
    return _chain(node, head, ("QuantizeLinear", ()))


def _bias_add(node: Node) -> list[Node]:
    """BiasAdd: x + bias + skip."""
    return _chain(node, replace(node, op="Add", inputs=_pick(node, 0, 1)), ("Add", (node.optional_input(2),)))


REWRITES: dict[str, Callable[[Node], list[Node]]] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "BiasGelu": _with_bias("Gelu"),
    "FastGelu": _with_bias("Gelu"),
    "BiasAdd": _bias_add,
    "Silu": _plain("Swish", 0),
    "QLinearConv": _requantised("Conv", 0, 3, 8),
    "ConvInteger": _plain("Conv", 0, 1),
    "QLinearMatMul": _requantised("MatMul", 0, 3),
    "MatMulInteger": _plain("MatMul", 0, 1),
    "DynamicQuantizeMatMul": _plain("MatMul", 0, 1),
    "MatMulIntegerToFloat": _plain("MatMul", 0, 1),
    "QGemm": _q_gemm,
    "QLinearAdd": _requantised("Add", 0, 3),
    "QLinearMul": _requantised("Mul", 0, 3),
    "QLinearSigmoid": _requantised("Sigmoid", 0),
    "QLinearLeakyRelu": _requantised("LeakyRelu", 0),
    "QLinearAveragePool": _requantised("AveragePool", 0),
    "QLinearGlobalAveragePool": _requantised("GlobalAveragePool", 0),
    "QLinearSoftmax": _requantised("Softmax", 0),
    "QLinearConcat": _q_concat,
    **contrib_attention.REWRITES,
    "com.microsoft.RotaryEmbedding": _plain("RotaryEmbedding", 0, 2, 3, 1),
}

SAME_MEANING = frozenset(
    {
        *("Gelu", "QuickGelu", "QuantizeLinear", "DequantizeLinear"),
        *("LayerNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization"),
    }
)
"""com.microsoft operators whose name and inputs mean the same without the domain."""
