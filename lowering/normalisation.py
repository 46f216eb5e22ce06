"""Normalisations: LayerNormalization and its relatives as row-wise layers.

Operations: two passes for mean and variance (sum; difference, square, sum), then scale and shift, as in ONNX's
function bodies of these operators; statistics of a row cost scalar-sized work on the vector unit.
"""

from __future__ import annotations

from lowering.context import Handler, Network, axis_of, present, unsupported
from lowering.fusion import Group
from lowering.ir import Node, Tensor
from lowering.layout import Layout, Order, row_major
from lowering.operators import Cost
from lowering.row_layers import RowCost, RowLayer, Rows, emit_rows
from lowering.vector_layers import Identity

_MEAN_AND_VARIANCE = RowCost(
    {"add": 1, "mul": 1}, 2, {"scalar_mul": 2, "scalar_add": 1, "scalar_sqrt": 1, "div": 1}, {"mul": 1, "mac": 1}
)
"""Difference and square, two sums; 1 / sqrt(variance + epsilon); times that, then scale and shift."""

_ROOT_MEAN_SQUARE = RowCost({"mul": 1}, 1, {"scalar_mul": 1, "scalar_add": 1, "scalar_sqrt": 1, "div": 1}, {"mul": 2})


def layer_normalization(network: Network, group: Group) -> None:
    """LayerNormalization, RMSNormalization (ONNX 17, 23) and their com.microsoft simplified form."""
    node = group.head
    x = node.input(0)
    rank = len(x.shape)
    reduced = tuple(range(axis_of(node, -1, rank), rank))
    cost = _MEAN_AND_VARIANCE if node.op == "LayerNormalization" else _ROOT_MEAN_SQUARE
    _normalise(network, node, (x,), reduced, cost, (node.optional_input(1), node.optional_input(2)))


def skip_layer_normalization(network: Network, group: Group) -> None:
    """com.microsoft: the sum of input, skip and bias, normalised over the last dimension; the sum may be a result."""
    node = group.head
    x, skip = node.input(0), node.input(1)
    simplified = "Simplified" in node.op
    base = _ROOT_MEAN_SQUARE if simplified else _MEAN_AND_VARIANCE
    bias = node.optional_input(3 if simplified else 4)
    added: Cost = {"add": 1 + (bias is not None)}
    cost = RowCost({**base.statistics, "add": base.statistics.get("add", 0) + added["add"]}, base.trees, base.per_row)
    cost = RowCost(cost.statistics, cost.trees, cost.per_row, base.per_element)
    scales = (node.optional_input(2), None if simplified else node.optional_input(3), bias)
    inputs = (x, skip) if skip.shape == x.shape else (x,)
    constants = scales if skip.shape == x.shape else (*scales, skip)
    _normalise(network, node, inputs, (len(x.shape) - 1,), cost, constants, sum_index=3)


def channel_normalization(network: Network, group: Group) -> None:
    """GroupNormalization (also com.microsoft GroupNorm) and InstanceNormalization."""
    node = group.head
    x = node.input(0)
    rank = len(x.shape)
    nhwc = node.op == "com.microsoft.GroupNorm" and node.int("channels_last", 1)
    channel = rank - 1 if nhwc else 1
    per_channel = node.op == "InstanceNormalization"
    n_groups = x.shape[channel] if per_channel else node.int("num_groups", node.int("groups", 1))
    if n_groups < 1 or x.shape[channel] % n_groups:
        raise unsupported(node, f"{x.shape[channel]} channels cannot be cut into {n_groups} groups")
    scales = (node.optional_input(1), node.optional_input(2))
    spatial = tuple(d for d in range(1, rank) if d != channel)
    if per_channel and spatial:
        _normalise(network, node, (x,), spatial, _MEAN_AND_VARIANCE, scales)
        return
    placed = network.find(x)
    order, layout = placed.order, placed.layout
    rows = Rows.over(x.shape, order, (*spatial, channel), 0)
    elements = rows.elements // n_groups
    if order[-1] == channel:
        rows = Rows(rows.group_pixels, elements, True, elements // max(1, rows.group_pixels))
    else:
        rows = Rows(max(1, rows.group_pixels // n_groups), elements, True, 0)
    result = network.place(node.outputs[0], order).layout
    _emit(network, node, rows, (layout,), (result,), (), _MEAN_AND_VARIANCE, scales)


def variance_normalization(network: Network, group: Group) -> None:
    """MeanVarianceNormalization and LpNormalization: no scale, no shift."""
    node = group.head
    x = node.input(0)
    rank = len(x.shape)
    if node.op == "LpNormalization":
        cost = RowCost({"mul": 1}, 1, {"scalar_sqrt": 1, "div": 1}, {"mul": 1})
        reduced = (axis_of(node, -1, rank),)
    else:
        cost = RowCost(_MEAN_AND_VARIANCE.statistics, 2, _MEAN_AND_VARIANCE.per_row, {"mul": 1})
        reduced = tuple(axis % rank for axis in node.ints("axes", (0, 2, 3)))
    _normalise(network, node, (x,), reduced, cost, ())


def _normalise(
    network: Network,
    node: Node,
    inputs: tuple[Tensor, ...],
    reduced: tuple[int, ...],
    cost: RowCost,
    scales: tuple[Tensor | None, ...],
    sum_index: int = 0,
) -> None:
    """Place the results and write the layer; output `sum_index` > 0 is the sum of the inputs."""
    x = inputs[0]
    order: Order = network.find(x).order
    layouts = tuple(network.in_order(tensor, order) for tensor in inputs)
    lanes = max(1, network.chip.request_bytes // network.chip.element_bytes)
    results = [network.place(node.outputs[0], order).layout]
    reduced_layouts: list[Layout] = []
    for index in range(1, len(node.outputs)):
        tensor = present(node, index)
        if tensor is None:
            continue
        if index == sum_index and tensor.shape == x.shape:
            results.append(network.place(tensor, order).layout)
        else:
            reduced_layouts.append(network.place(tensor, row_major(len(tensor.shape))).layout)
    rows = Rows.over(x.shape, order, reduced, lanes)
    _emit(network, node, rows, layouts, tuple(results), tuple(reduced_layouts), cost, scales)


def _emit(
    network: Network,
    node: Node,
    rows: Rows,
    inputs: tuple[Layout, ...],
    results: tuple[Layout, ...],
    reduced: tuple[Layout, ...],
    cost: RowCost,
    scales: tuple[Tensor | None, ...],
) -> None:
    small = [network.find(tensor).layout for tensor in scales if tensor is not None]
    constants = tuple((layout.base_byte, layout.total_bytes) for layout in small)
    layer = RowLayer(Identity(node.name, node.op), rows, inputs, cost, results, reduced, constants)
    emit_rows(network.builder, layer, network.chip, network.space)


HANDLERS: dict[str, Handler] = {
    "LayerNormalization": layer_normalization,
    "RMSNormalization": layer_normalization,
    "SimplifiedLayerNormalization": layer_normalization,
    "SkipLayerNormalization": skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_layer_normalization,
    "GroupNormalization": channel_normalization,
    "com.microsoft.GroupNorm": channel_normalization,
    "InstanceNormalization": channel_normalization,
    "MeanVarianceNormalization": variance_normalization,
    "LpNormalization": variance_normalization,
}
