"""Layers of the operators that only training has: what they compute on the vector unit, read and write.

Matrix work is in `lowering.training.weight_gradient` and in the ordinary convolutions and products; elementwise
gradients are elementwise operators (`lowering.training.costs`). OPERATORS.md says what is approximate.
"""

from __future__ import annotations

import math
from dataclasses import replace

from lowering.context import Handler, Network, unsupported
from lowering.emit import Extent, Operand
from lowering.fusion import Group
from lowering.gather import Table, emit_scatter
from lowering.ir import Node, Tensor
from lowering.layout import Layout, Order, channels_last, row_major
from lowering.matmul import vector_units
from lowering.operators import Cost
from lowering.resampling import TAPS
from lowering.row_layers import RowCost, RowLayer, Rows
from lowering.streams import Read, StreamLayer, emit_stream
from lowering.training.channel_rows import emit_channel_rows
from lowering.training.update import COSTS
from lowering.training.weight_gradient import Pair, WeightGradient, emit_weight_gradient
from lowering.vector_layers import ElementwiseLayer, Identity, block_span, emit_elementwise, shares

# -- weights


def conv_weight_grad(network: Network, group: Group) -> None:
    """ConvWeightGrad: the result lies with the output channels innermost, as the sums leave the array."""
    node = group.head
    x, dy, dw = node.input(0), node.input(1), node.outputs[0]
    rank, spatial = len(x.shape), len(x.shape) - 2
    groups = node.int("group", 1)
    layer = WeightGradient(
        Identity(node.name, node.op),
        network.in_order(x, channels_last(rank)),
        network.in_order(dy, channels_last(rank)),
        network.place(dw, (1, *range(2, rank), 0)).layout,
        in_channels=x.shape[1] // groups,
        out_channels=dy.shape[1] // groups,
        in_size=_pair(x.shape[2:], 1),
        out_size=_pair(dy.shape[2:], 1),
        images=x.shape[0],
        groups=groups,
        kernel=_pair(dw.shape[2:], 1),
        stride=_pair(node.ints("strides")[-spatial:], 1),
        dilation=_pair(node.ints("dilations")[-spatial:], 1),
        pads=_pair(node.ints("pads")[-spatial:], 0),
    )
    emit_weight_gradient(network.builder, layer, network.chip, network.space)


def matmul_weight_grad(network: Network, group: Group) -> None:
    """MatMulWeightGrad: X^T dY over all rows, or for each matrix of a batch when the result has a batch."""
    node = group.head
    x, dy, dw = node.input(0), node.input(1), node.outputs[0]
    products = math.prod(dw.shape[:-2])
    rows = x.elements // x.shape[-1] // products
    layer = WeightGradient(
        Identity(node.name, node.op),
        network.in_order(x, row_major(len(x.shape))),
        network.in_order(dy, row_major(len(dy.shape))),
        network.place(dw, row_major(len(dw.shape))).layout,
        in_channels=x.shape[-1],
        out_channels=dy.shape[-1],
        in_size=(1, rows),
        out_size=(1, rows),
        products=products,
    )
    emit_weight_gradient(network.builder, layer, network.chip, network.space)


def _pair(sizes: tuple[int, ...], default: int) -> Pair:
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (default, sizes[0])


# -- normalisations

_STATISTICS = RowCost(
    {"add": 1, "mul": 1}, 2, {"scalar_mul": 4, "scalar_add": 3, "scalar_sqrt": 1, "div": 1}, {"mul": 1, "mac": 1}
)
"""Batch normalisation: difference, square, two sums; deviation and running statistics; normalise, scale and shift."""

_BATCH_NORM_GRAD = RowCost(
    {"add": 1, "mul": 2}, 2, {"scalar_mul": 3, "div": 1}, {"add": 2, "mul": 2, "mac": 1}
)  # fmt: skip
"""xhat (difference, product) and dy xhat, two sums; xhat again, dy - mean(dy) - xhat mean(dy xhat), times a factor."""

_LAYER_NORM_GRAD = RowCost(
    {"add": 2, "mul": 4},
    4,
    {"scalar_mul": 4, "scalar_add": 1, "scalar_sqrt": 1, "div": 1},
    {"add": 2, "mul": 1, "mac": 1},
)
"""Statistics of x again (as forward), dy scale, xhat, dy scale xhat; four sums; then as batch normalisation."""

_RMS_NORM_GRAD = RowCost(
    {"mul": 3}, 2, {"scalar_mul": 3, "scalar_add": 1, "scalar_sqrt": 1, "div": 1}, {"mul": 1, "mac": 1}
)

_SCALE_GRAD = RowCost({"add": 1, "mul": 2}, 2, {})
"""xhat and dy xhat, two sums over all rows."""

_SOFTMAX_GRAD = RowCost({"mul": 1}, 1, {}, {"add": 1, "mul": 1})
_LOSS = RowCost({"add": 1, "exp": 1}, 2, {"exp": 1, "scalar_add": 2})
"""Maximum, difference, exponential, sum; its logarithm, the label's logit, the sum over rows."""


def batch_norm_training(network: Network, group: Group) -> None:
    """BatchNormTraining: statistics of each channel over the batch, then the result; a large x is read twice."""
    node = group.head
    x = node.input(0)
    order = channels_last(len(x.shape))
    source = network.in_order(x, order)
    result = network.place(node.outputs[0], order).layout
    statistics = tuple(network.place(tensor, (0,)).layout for tensor in node.outputs[1:])
    _emit_rows(network, node, _channel_rows(network, x, order), (source,), _STATISTICS, (result,), statistics,
               node.inputs[1:])  # fmt: skip


def batch_norm_grad(network: Network, group: Group) -> None:
    """BatchNormGrad: dy and x are read, twice when they are large."""
    node = group.head
    x = node.input(1)
    order = channels_last(len(x.shape))
    inputs = tuple(network.in_order(tensor, order) for tensor in (node.input(0), x))
    result = network.place(node.outputs[0], order).layout
    sums = tuple(network.place(tensor, (0,)).layout for tensor in node.outputs[1:])
    _emit_rows(network, node, _channel_rows(network, x, order), inputs, _BATCH_NORM_GRAD, (result,), sums,
               node.inputs[2:])  # fmt: skip


def layer_norm_grad(network: Network, group: Group) -> None:
    """LayerNormGrad: row by row, the statistics of x computed again."""
    node = group.head
    dy, x = node.input(0), node.input(1)
    order = network.find(x).order
    inputs = tuple(network.in_order(tensor, order) for tensor in (dy, x))
    rows = Rows.over(x.shape, order, tuple(range(node.int("axis", -1), len(x.shape))), _lanes(network))
    result = network.place(node.outputs[0], order).layout
    cost = _RMS_NORM_GRAD if node.int("simplified", 0) else _LAYER_NORM_GRAD
    _emit_rows(network, node, rows, inputs, cost, (result,), (), node.inputs[2:])


def layer_norm_weight_grad(network: Network, group: Group) -> None:
    """LayerNormWeightGrad: sums over all rows; dy and x are read once more."""
    node = group.head
    dy, x = node.input(0), node.input(1)
    order = row_major(len(x.shape))
    inputs = tuple(network.in_order(tensor, order) for tensor in (dy, x))
    rows = Rows.over(x.shape, order, tuple(range(node.int("axis", -1))) or (0,), _lanes(network))
    sums = tuple(network.place(tensor, row_major(len(tensor.shape))).layout for tensor in node.outputs)
    cost = replace(_SCALE_GRAD, trees=len(sums))
    _emit_rows(network, node, rows, inputs, cost, (), sums, ())


def softmax_grad(network: Network, group: Group) -> None:
    """SoftmaxGrad: dy and y are read, a sum for each row."""
    node = group.head
    dy, y = node.input(0), node.input(1)
    order = network.find(y).order
    inputs = tuple(network.in_order(tensor, order) for tensor in (dy, y))
    rows = Rows.over(y.shape, order, node.ints("axes"), _lanes(network))
    _emit_rows(network, node, rows, inputs, _SOFTMAX_GRAD, (network.place(node.outputs[0], order).layout,), (), ())


def reduce_grad(network: Network, group: Group) -> None:
    """ReduceGrad: a sum over the axes along which an operand was repeated, or over all pixels for a bias."""
    node = group.head
    dy, target = node.input(0), node.outputs[0]
    order = network.find(dy).order
    other = node.optional_input(1)
    whole = other is not None and other.shape == dy.shape
    inputs = [network.in_order(dy, order)]
    if other is not None and whole:
        inputs.append(network.in_order(other, order))
    rows = Rows.over(dy.shape, order, node.ints("axes"), _lanes(network))
    kept = [d for d in order if d not in node.ints("axes")]
    goal = network.place(target, _kept_order(target, dy, kept)).layout
    cost = RowCost({} if other is None else {"mul": 1}, 1, {})
    _emit_rows(network, node, rows, tuple(inputs), cost, (), (goal,), () if whole else (other,))


def _kept_order(target: Tensor, source: Tensor, kept: list[int]) -> Order:
    """The order of a sum: dimensions that are left in the order of what was summed, those of size 1 outermost."""
    if len(target.shape) == len(kept):
        ranks = sorted(kept)
        return tuple(ranks.index(d) for d in kept)
    missing = len(source.shape) - len(target.shape)
    inner = tuple(d - missing for d in kept if d >= missing)
    return (*(d for d in range(len(target.shape)) if d not in inner), *inner)


def _channel_rows(network: Network, x: Tensor, order: Order) -> Rows:
    reduced = tuple(d for d in range(len(x.shape)) if d != 1)
    return Rows.over(x.shape, order, reduced, _lanes(network))


def _lanes(network: Network) -> int:
    return max(1, network.chip.request_bytes // network.chip.element_bytes)


def _emit_rows(
    network: Network,
    node: Node,
    rows: Rows,
    inputs: tuple[Layout, ...],
    cost: RowCost,
    results: tuple[Layout, ...],
    reduced: tuple[Layout, ...],
    constants: tuple[Tensor | None, ...],
) -> None:
    small = [network.find(tensor).layout for tensor in constants if tensor is not None]
    places = tuple((layout.base_byte, layout.total_bytes) for layout in small)
    layer = RowLayer(Identity(node.name, node.op), rows, inputs, cost, results, reduced, places)
    emit_channel_rows(network.builder, layer, network.chip, network.space)


def lrn_grad(network: Network, group: Group) -> None:
    """LRNGrad: the forward pass's sum of squares and power again, then a second sum over the window."""
    node = group.head
    dy, x, y = (node.input(index) for index in range(3))
    order = network.find(x).order
    window = node.int("size", 1)
    cost = {"mul": 4, "add": 2 * (window - 1), "mac": 2, "exp": 2, "div": 1}
    operands = tuple(network.in_order(tensor, order) for tensor in (dy, x, y))
    result = network.place(node.outputs[0], order).layout
    layer = ElementwiseLayer(Identity(node.name, node.op), result, operands, cost)
    emit_elementwise(network.builder, layer, network.chip, network.space)


def prelu_grad(network: Network, group: Group) -> None:
    """PReluGrad: dy, x and the slopes that they share are read; a product and a selection."""
    node = group.head
    dy, x, slopes = (node.input(index) for index in range(3))
    order = network.find(x).order
    operands = (*(network.in_order(tensor, order) for tensor in (dy, x)), network.find(slopes).layout)
    result = network.place(node.outputs[0], order).layout
    layer = ElementwiseLayer(Identity(node.name, node.op), result, operands, {"mul": 1, "add": 1})
    emit_elementwise(network.builder, layer, network.chip, network.space)


# -- loss


def cross_entropy_loss(network: Network, group: Group) -> None:
    """CrossEntropyLoss: one pass over the logits; labels are read alongside."""
    node = group.head
    x, labels = node.input(0), node.input(1)
    order = network.find(x).order
    rows = Rows.over(x.shape, order, (node.int("axis", -1) % len(x.shape),), _lanes(network))
    network.place(node.outputs[0], (0,))
    sums = network.place(node.outputs[1], row_major(len(node.outputs[1].shape))).layout
    _emit_rows(network, node, rows, (network.find(x).layout,), _LOSS, (), (sums,), (labels,))


def cross_entropy_grad(network: Network, group: Group) -> None:
    """CrossEntropyGrad: exp(logit - logarithm of the sum), less 1 at the label, divided by the rows (1 mul)."""
    node = group.head
    x = node.input(0)
    placed = network.find(x)
    reads = (Read(placed.layout), *(Read(network.find(node.input(index)).layout) for index in (1, 2)))
    result = network.place(node.outputs[0], placed.order).layout
    _emit_stream(network, node, reads, result, {"add": 2, "exp": 1, "mul": 1})


def mean_square_loss(network: Network, group: Group) -> None:
    """MeanSquareLoss: a sum of squared differences over everything."""
    node = group.head
    y = node.input(0)
    order = network.find(y).order
    inputs = tuple(network.in_order(tensor, order) for tensor in (y, node.input(1)))
    rows = Rows(inputs[0].pixels, y.elements, True, 0)
    loss = network.place(node.outputs[0], (0,)).layout
    _emit_rows(network, node, rows, inputs, RowCost({"add": 1, "mul": 1}, 1, {"scalar_mul": 1}), (), (loss,), ())


def mean_square_grad(network: Network, group: Group) -> None:
    """MeanSquareGrad: the difference, times a factor."""
    node = group.head
    y = node.input(0)
    order = network.find(y).order
    reads = tuple(Read(network.in_order(tensor, order)) for tensor in (y, node.input(1)))
    _emit_stream(network, node, reads, network.place(node.outputs[0], order).layout, {"add": 1, "mul": 1})


# -- pools, data movement


def max_pool_grad(network: Network, group: Group) -> None:
    """MaxPoolGrad: dy, x and y are read; a comparison and an addition for each element of each window."""
    node = group.head
    dy, x, y = (node.input(index) for index in range(3))
    order = channels_last(len(x.shape))
    reads = tuple(Read(network.in_order(tensor, order)) for tensor in (dy, x, y))
    per_element = math.ceil(2 * math.prod(node.ints("kernel_shape")) * y.elements / x.elements)
    _emit_stream(network, node, reads, network.place(node.outputs[0], order).layout, {"add": per_element})


def average_pool_grad(network: Network, group: Group) -> None:
    """AveragePoolGrad: a product for each result, and an addition for each further window that it lies in."""
    node = group.head
    dy, dx = node.input(0), node.outputs[0]
    order = channels_last(len(dx.shape))
    windows = math.ceil(math.prod(node.ints("kernel_shape")) * dy.elements / dx.elements)
    reads = (Read(network.in_order(dy, order)),)
    _emit_stream(network, node, reads, network.place(dx, order).layout, {"mul": 1, "add": windows - 1})


def expand_grad(network: Network, group: Group) -> None:
    """ExpandGrad: the gradient of a mean or a sum, repeated, times a factor."""
    node = group.head
    dy, dx = node.input(0), node.outputs[0]
    placed = network.find(dy)
    same = len(dy.shape) == len(dx.shape)
    order = placed.order if same else row_major(len(dx.shape))
    _emit_stream(network, node, (Read(placed.layout),), network.place(dx, order).layout, {"mul": 1})


def resize_grad(network: Network, group: Group) -> None:
    """ResizeGrad: dy is read, dx is written; a mac for each sample of each element of dy."""
    node = group.head
    dy, dx = node.input(0), node.outputs[0]
    order = channels_last(len(dx.shape))
    resized = sum(1 for old, new in zip(dx.shape, dy.shape, strict=True) if old != new)
    taps = TAPS[node.text("mode", "nearest")] ** resized
    per_element = math.ceil(taps * dy.elements / dx.elements)
    reads = (Read(network.in_order(dy, order)),)
    _emit_stream(network, node, reads, network.place(dx, order).layout, {"mac": per_element})


def slice_grad(network: Network, group: Group) -> None:
    """SliceGrad: dy is read, dx with its zeros is written."""
    node = group.head
    dy, dx = node.input(0), node.outputs[0]
    placed = network.find(dy)
    order = placed.order if len(dy.shape) == len(dx.shape) else row_major(len(dx.shape))
    _emit_stream(network, node, (Read(placed.layout),), network.place(dx, order).layout, {})


def view_grad(network: Network, group: Group) -> None:
    """ViewGrad: the memory of dy in the order of x, free where the forward view was."""
    node = group.head
    dy, x = node.input(0), node.input(1)
    order = network.find(x).order
    placed = network.find(dy)
    goal = Layout.of(x.shape, order, network.chip.element_bytes, network.chip.request_bytes)
    if goal.total_bytes == placed.layout.total_bytes:
        network.place_at(node.outputs[0], order, placed.layout.base_byte)
        return
    _emit_stream(network, node, (Read(placed.layout),), network.place(node.outputs[0], order).layout, {})


def gather_grad(network: Network, group: Group) -> None:
    """GatherGrad: the gradient of the table is filled with zeros, then every row of dy is added to its row.

    Rows are spread evenly over the table, as those that are looked up; the rows that are added to are not read back.
    """
    node = group.head
    dy, indices, table = node.input(0), node.input(1), node.outputs[0]
    rank, axis = len(table.shape), node.int("axis", 0)
    if axis == rank - 1 and rank > 1:
        raise unsupported(node, "training through a Gather along the innermost dimension is not modelled")
    goal = network.place(table, row_major(rank)).layout
    _fill(network, Identity(f"{node.name} (zeros)", node.op), goal)
    outer, inner = math.prod(table.shape[:axis]), math.prod(table.shape[axis + 1 : -1])
    lookups = max(1, indices.elements)
    where = Table(goal, outer, table.shape[axis], inner, lookups)
    given = network.in_order(dy, row_major(len(dy.shape)))
    emit_scatter(network, node, where, given, network.find(indices).layout)


def _fill(network: Network, identity: Identity, goal: Layout) -> None:
    """Write zeros."""
    builder, chip = network.builder, network.chip
    total = math.ceil(goal.total_bytes / goal.request_bytes)
    builder.begin_layer(identity.info())
    for core, start, count in shares(total, chip.spad_bytes // goal.request_bytes, 1, goal.request_bytes, chip):
        builder.begin_tile(core)
        n_bytes = count * goal.request_bytes
        units, elements = vector_units(n_bytes, chip.cores[core]), n_bytes // chip.element_bytes
        builder.vector(dst=Operand(0), src_a=Operand(-1), size1=Extent(units), elements=elements)
        builder.store(0, block_span(goal, start, count), acc=False)
        builder.end_tile()
    builder.end_layer()


# -- updates


def update(network: Network, group: Group) -> None:
    """Sgd, Momentum, Adam: gradient, parameter and states are read in one order, the last two written in place."""
    node = group.head
    gradient = node.input(1)
    order = network.find(gradient).order
    kept = [node.input(0), *(node.input(index) for index in range(2, len(node.inputs)))]
    layouts = [network.in_order(tensor, order) for tensor in kept]
    for tensor, layout in zip(node.outputs, layouts, strict=True):
        network.place_at(tensor, order, layout.base_byte)
    reads = tuple(Read(layout) for layout in (network.find(gradient).layout, *layouts))
    layer = StreamLayer(Identity(node.name, node.op), reads, layouts[0], COSTS[node.op], tuple(layouts[1:]))
    emit_stream(network.builder, layer, network.chip)


def _emit_stream(network: Network, node: Node, reads: tuple[Read, ...], result: Layout, cost: Cost) -> None:
    emit_stream(network.builder, StreamLayer(Identity(node.name, node.op), reads, result, cost), network.chip)


HANDLERS: dict[str, Handler] = {
    "ConvWeightGrad": conv_weight_grad,
    "MatMulWeightGrad": matmul_weight_grad,
    "BatchNormTraining": batch_norm_training,
    "BatchNormGrad": batch_norm_grad,
    "LayerNormGrad": layer_norm_grad,
    "LayerNormWeightGrad": layer_norm_weight_grad,
    "SoftmaxGrad": softmax_grad,
    "ReduceGrad": reduce_grad,
    "CrossEntropyLoss": cross_entropy_loss,
    "CrossEntropyGrad": cross_entropy_grad,
    "MeanSquareLoss": mean_square_loss,
    "MeanSquareGrad": mean_square_grad,
    "MaxPoolGrad": max_pool_grad,
    "AveragePoolGrad": average_pool_grad,
    "ExpandGrad": expand_grad,
    "SliceGrad": slice_grad,
    "LRNGrad": lrn_grad,
    "PReluGrad": prelu_grad,
    "ResizeGrad": resize_grad,
    "ViewGrad": view_grad,
    "GatherGrad": gather_grad,
    **dict.fromkeys(COSTS, update),
}
"""By kind (`lowering.training.graph`)."""
