"""From a graph of `lowering` to the layers of the closed-form model.

Groups are those of the cycle-level model (`lowering.fusion`): what is folded into weights is free, what follows a
matrix layer elementwise is one vector layer fused behind it. Costs of elementwise operators are those of
`lowering.operators`. Approximate: a kernel that is not square runs as a matrix product over its window (inputs that
windows share are loaded for each); dilation does not widen the window; a pooling window is square; a square root takes
as long as a division; a normalisation or softmax is a fixed number of operations for each element; attention is two
matrix products and a softmax, with every score computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from lowering.attention_node import attention_shape
from lowering.canonical import canonical
from lowering.context import UnsupportedError
from lowering.fusion import Group, fuse, is_elementwise
from lowering.ir import Graph, Node
from lowering.operators import POOLS, VIEWS, Cost, add_costs, elementwise_cost
from lowering.simplify import is_bookkeeping, simplify
from lowering.training.update import COSTS
from vsim.systolic.bridge_layers import coefficients, is_full, product, sides, square, vector_layer
from vsim.systolic.layers import Layer, MatrixLayer, VectorLayer
from vsim.systolic.operators import VectorOperator
from vsim.systolic.training_rules import TRAINING_RULES

_NORMALISATIONS = (
    *("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "GroupNormalization"),
    *("SkipSimplifiedLayerNormalization", "com.microsoft.GroupNorm", "InstanceNormalization"),
    *("RMSNormalization", "MeanVarianceNormalization", "LpNormalization", "LRN"),
)
_ROW_COSTS: dict[str, Cost] = {
    "Softmax": {"add": 3, "exp": 1, "mul": 1},
    "LogSoftmax": {"add": 4, "exp": 1},
    **{name: {"add": 3, "mac": 2, "mul": 1} for name in _NORMALISATIONS},
    "RotaryEmbedding": {"mul": 2, "add": 1},
}
"""Operations for each element: maximum, difference, exponential, sum, scale; mean, variance, shift, scale."""
_COPIES = frozenset(
    {
        *("Transpose", "Concat", "Slice", "Split", "Pad", "CenterCropPad", "Expand", "Tile", "DepthToSpace"),
        *("SpaceToDepth", "Gather", "GatherND", "GatherElements", "Resize", "Upsample", "OneHot", "ReverseSequence"),
    }
)


@dataclass(frozen=True)
class Bridged:
    """The layers of a graph, and what was left out of them.

    heads: of each layer, the node that its group begins with (ONNX models only). roles: of the operators of a training
    iteration.
    """

    layers: list[Layer]
    warnings: list[str] = field(default_factory=list)
    roles: Mapping[str, str] = field(default_factory=dict)
    heads: tuple[str, ...] = ()

    def role_of(self, layer: Layer) -> str:
        """The role of the operator that a layer, or a part of one ("NAME statistics"), stems from."""
        return self.roles.get(layer.name) or self.roles[layer.name.rpartition(" ")[0]]


def bridge(graph: Graph, *, skip_unknown: bool = False) -> Bridged:
    """The layers of ``graph``, in its order.

    Raises UnsupportedError for an operator that the closed-form model does not know, unless ``skip_unknown``.
    """
    layers: list[Layer] = []
    heads: list[str] = []
    warnings: list[str] = []
    for group in fuse(simplify(canonical(graph))):
        node = group.head
        if is_bookkeeping(node) or node.op in VIEWS or node.op == "Identity":
            continue
        rule = _rule(node)
        if rule is not None:
            own = rule(group)
            layers += own
            heads += [node.name] * len(own)
            continue
        what = f"node {node.name}: operator {node.op} is not modelled by the closed-form model"
        if not skip_unknown:
            raise UnsupportedError(f"{what}; --skip-unknown leaves it out")
        warnings.append(f"{what}, it was skipped")
    return Bridged(_told_of_neighbours(layers), warnings, heads=tuple(heads))


def _told_of_neighbours(layers: list[Layer]) -> list[Layer]:
    """What the next layer, a matrix layer, reads is stored as activations; what an update writes is not read by it."""
    following = [*layers[1:], None]
    return [
        replace(layer, feeds_matrix=isinstance(after, MatrixLayer) and layer.operator not in COSTS)
        if isinstance(layer, VectorLayer)
        else layer
        for layer, after in zip(layers, following, strict=True)
    ]


def _rule(node: Node) -> Callable[[Group], list[Layer]] | None:
    if node.op in _MATRIX_RULES:
        return _MATRIX_RULES[node.op]
    if node.op in TRAINING_RULES:
        return lambda group: TRAINING_RULES[group.head.op](group.head)
    if is_elementwise(node):
        return _elementwise
    if node.op in POOLS:
        return _pool
    if node.op in _ROW_COSTS:
        return _row_wise
    if node.op.startswith("Reduce"):
        return _reduction
    return _copy if node.op in _COPIES else None


# -- matrix layers


def _with_epilogue(layer: MatrixLayer, group: Group) -> list[Layer]:
    steps = [step for step in group.steps if not step.folded]
    if not steps:
        return [layer]
    cost = add_costs(*(elementwise_cost(step.node) for step in steps))
    operands = sum(is_full(tensor, group.output) for step in steps for tensor in step.operands)
    name = "+".join(step.node.op for step in steps)
    return [
        replace(layer, fused=True),
        vector_layer(steps[-1].node.name, name, group.output, cost, 1 + operands, fused=True),
    ]


def _conv(group: Group) -> list[Layer]:
    node = group.head
    out_channels, in_channels, *kernel = node.input(1).shape
    groups = node.int("group", 1)
    width, height = sides(node.outputs[0].shape[2:])
    side, channels = square(kernel, in_channels)
    stride = node.ints("strides", (1,))[0]
    if set(kernel) == {1} and groups == 1:
        if stride == 1:
            pixels = width * height * node.input(0).shape[0]
            pointwise = product(node.name, pixels, in_channels, out_channels)
            return _with_epilogue(replace(pointwise, operator="gemm (1x1 conv)"), group)
        # Of each window one pixel is read, and none of those between windows.
        stride = 1
    layer = MatrixLayer(
        node.name,
        "conv",
        width,
        height,
        out_channels // groups,
        channels,
        side,
        stride,
        node.input(0).shape[0],
        groups=groups,
    )
    return _with_epilogue(layer, group)


def _conv_transpose(group: Group) -> list[Layer]:
    """A convolution over the input with zeros between its elements, which cost nothing."""
    node = group.head
    in_channels, out_channels, *kernel = node.input(1).shape
    groups = node.int("group", 1)
    strides = node.ints("strides", (1,) * len(kernel))
    width, height = sides(node.outputs[0].shape[2:])
    side, channels = square(kernel, in_channels // groups)
    layer = MatrixLayer(
        node.name,
        "conv_transpose",
        width,
        height,
        out_channels,
        channels,
        side,
        1,
        node.input(0).shape[0],
        groups=groups,
        useful_input=1 / math.prod(strides),
    )
    return _with_epilogue(layer, group)


def _gemm(group: Group) -> list[Layer]:
    node = group.head
    left = node.input(0).shape
    rows, inner = left[::-1] if node.int("transA", 0) else left
    return _with_epilogue(product(node.name, rows, inner, node.outputs[0].shape[-1]), group)


def _matmul(group: Group) -> list[Layer]:
    node = group.head
    left, right = (node.input(index).shape for index in (0, 1))
    inner = left[-1]
    columns = right[-2 if node.int("right_transposed", 0) else -1] if len(right) > 1 else 1
    rows = left[-2] if len(left) > 1 else 1
    products = max(1, node.outputs[0].elements // (rows * columns))
    if math.prod(right[:-2]) == 1:
        rows, products = rows * products, 1
    return _with_epilogue(product(node.name, rows, inner, columns, products), group)


def _attention(group: Group) -> list[Layer]:
    node = group.head
    shape = attention_shape(node)
    keys, products = shape.past_len + shape.new_len, shape.batch * shape.q_heads
    rows = products * shape.q_len
    softmax = VectorLayer(
        f"{node.name} softmax",
        "Softmax",
        1,
        1,
        keys,
        rows,
        fused=True,
        costs=coefficients(_ROW_COSTS["Softmax"], loads=1),
    )
    return [
        replace(product(f"{node.name} scores", shape.q_len, shape.head, keys, products), fused=True),
        softmax,
        product(f"{node.name} values", shape.q_len, keys, shape.v_head, products),
    ]


_MATRIX_RULES = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Attention": _attention,
}


# -- layers of the vector unit


def _elementwise(group: Group) -> list[Layer]:
    node = group.head
    steps = [step for step in group.steps if not step.folded]
    cost = add_costs(elementwise_cost(node), *(elementwise_cost(step.node) for step in steps))
    tensors = [tensor for tensor in node.inputs if tensor is not None]
    tensors += [tensor for step in steps for tensor in step.operands]
    loads = max(1, sum(is_full(tensor, group.output) for tensor in tensors))
    operator = "+".join([node.op, *(step.node.op for step in steps)])
    return [vector_layer(node.name, operator, group.output, cost, loads)]


def _pool(group: Group) -> list[Layer]:
    node = group.head
    source, target = node.input(0), node.outputs[0]
    average = "Average" in node.op
    if node.op.startswith("Global") or target.elements == target.shape[0] * target.shape[1]:
        cost: Cost = {"add": 1}
        return [vector_layer(node.name, node.op, source, cost, 1, stores=0)]
    kernel = max(node.ints("kernel_shape"))
    width, height = sides(target.shape[2:])
    costs = VectorOperator(
        cycles_of_window=1,
        window_operations=1,
        divides=1 if average else 0,
        window_loads=1,
        tile_stores=1,
        fit_windows=1,
    )
    stride = node.ints("strides", (1,))[0]
    layer = VectorLayer(
        node.name, node.op, width, height, target.shape[1], target.shape[0], kernel, stride, costs=costs
    )
    return [layer]


def _row_wise(group: Group) -> list[Layer]:
    node = group.head
    return [vector_layer(node.name, node.op, node.outputs[0], _ROW_COSTS[node.op], 1)]


def _reduction(group: Group) -> list[Layer]:
    node = group.head
    return [vector_layer(node.name, node.op, node.input(0), {"add": 1}, 1, stores=0)]


def _copy(group: Group) -> list[Layer]:
    node = group.head
    return [vector_layer(node.name, node.op, tensor, {}, 1) for tensor in node.outputs if tensor.elements]
