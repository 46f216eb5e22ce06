"""Reductions, scans and selections along an axis: row-wise layers that keep a few values of each row."""

from __future__ import annotations

from lowering.context import Handler, Network, axis_of, present, unsupported
from lowering.fusion import Group
from lowering.ir import Node
from lowering.layout import Layout, Order, row_major
from lowering.row_layers import RowCost, RowLayer, Rows, emit_rows
from lowering.vector_layers import Identity

REDUCTIONS: dict[str, RowCost] = {
    "ReduceSum": RowCost({}, 1, {}),
    "ReduceMean": RowCost({}, 1, {"scalar_mul": 1}),
    "ReduceMax": RowCost({}, 1, {}),
    "ReduceMin": RowCost({}, 1, {}),
    "ReduceProd": RowCost({}, 1, {}),
    "ReduceL1": RowCost({"add": 1}, 1, {}),
    "ReduceL2": RowCost({"mul": 1}, 1, {"scalar_sqrt": 1}),
    "ReduceSumSquare": RowCost({"mul": 1}, 1, {}),
    "ReduceLogSum": RowCost({}, 1, {"exp": 1}),
    "ReduceLogSumExp": RowCost({"add": 1, "exp": 1}, 2, {"exp": 1, "scalar_add": 1}),
    "ArgMax": RowCost({"add": 1}, 1, {}),
    "ArgMin": RowCost({"add": 1}, 1, {}),
}
"""A maximum or product takes the adder tree as a sum does; an index is selected alongside its value (1 add)."""


def reduce(network: Network, group: Group) -> None:
    """Reduce* and ArgMax, ArgMin: axes from the attribute or from constant input 1."""
    node = group.head
    x = node.input(0)
    rank = len(x.shape)
    axes = _axes(node, rank)
    source = network.find(x)
    order: Order = source.order
    target = node.outputs[0]
    kept = [d for d in order if d not in axes]
    if len(target.shape) == rank:
        result = network.place(target, order).layout
    else:
        rank_of = {d: index for index, d in enumerate(sorted(kept))}
        result = network.place(target, tuple(rank_of[d] for d in kept)).layout
    lanes = max(1, network.chip.request_bytes // network.chip.element_bytes)
    rows = Rows.over(x.shape, order, axes or (order[-1],), lanes)
    _emit(network, node, rows, source.layout, REDUCTIONS[node.op], (), (result,))


def _axes(node: Node, rank: int) -> tuple[int, ...]:
    if node.op in ("ArgMax", "ArgMin"):
        return (axis_of(node, 0, rank),)
    axes = node.ints("axes")
    given = node.optional_input(1)
    if given is not None:
        if given.values is None and given.elements:
            raise unsupported(node, f"its axes ({given.name}) are computed while the model runs")
        axes = tuple(int(value) for value in given.values or ())
    if not axes:
        return () if node.int("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(axis % rank for axis in axes)


def top_k(network: Network, group: Group) -> None:
    """TopK: a bitonic partial sort, ceil(log2(k)) + 1 rounds of compare-and-exchange of value and index (4 add)."""
    node = group.head
    x = node.input(0)
    axis = axis_of(node, -1, len(x.shape))
    source = network.find(x)
    k = node.outputs[0].shape[axis]
    rounds = max(1, (k - 1).bit_length() + 1)
    lanes = max(1, network.chip.request_bytes // network.chip.element_bytes)
    rows = Rows.over(x.shape, source.order, (axis,), lanes)
    outputs = [tensor for index in range(2) if (tensor := present(node, index)) is not None]
    results = tuple(network.place(tensor, source.order).layout for tensor in outputs)
    _emit(network, node, rows, source.layout, RowCost({"add": 4 * rounds}, 1, {}), (), results)


def scan(network: Network, group: Group) -> None:
    """CumSum, CumProd: a log-step scan inside vectors, and a carry; Hardmax: a maximum and a comparison."""
    node = group.head
    x = node.input(0)
    rank = len(x.shape)
    lanes = max(1, network.chip.request_bytes // network.chip.element_bytes)
    if node.op == "Hardmax":
        axis, cost = axis_of(node, -1, rank), RowCost({"add": 1}, 1, {}, {"add": 1})
    else:
        values = node.numbers(1)
        if values is None:
            raise unsupported(node, "its axis is computed while the model runs")
        axis = int(values[0]) % rank
        width = min(core.vector_bits // 8 for core in network.chip.cores) // network.chip.element_bytes
        cost = RowCost({}, 0, {}, {"add": max(1, width - 1).bit_length() + 1})
    source = network.find(x)
    rows = Rows.over(x.shape, source.order, (axis,), lanes)
    result = network.place(node.outputs[0], source.order).layout
    _emit(network, node, rows, source.layout, cost, (result,), ())


def dynamic_quantize(network: Network, group: Group) -> None:
    """DynamicQuantizeLinear: minimum and maximum of the whole tensor, then scale, round and clip."""
    node = group.head
    x = node.input(0)
    source = network.find(x)
    rank = max(1, len(x.shape))
    rows = Rows(source.layout.pixels, x.elements, True, 0)
    result = network.place(node.outputs[0], source.order).layout
    scalars = tuple(
        network.place(tensor, row_major(rank if tensor.shape else 0)).layout
        for index in (1, 2)
        if (tensor := present(node, index)) is not None
    )
    cost = RowCost({}, 2, {"scalar_add": 1, "div": 2}, {"mac": 1, "add": 3})
    _emit(network, node, rows, source.layout, cost, (result,), scalars)


def _emit(
    network: Network,
    node: Node,
    rows: Rows,
    x: Layout,
    cost: RowCost,
    results: tuple[Layout, ...],
    reduced: tuple[Layout, ...],
) -> None:
    layer = RowLayer(Identity(node.name, node.op), rows, (x,), cost, results, reduced)
    emit_rows(network.builder, layer, network.chip, network.space)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(REDUCTIONS, reduce),
    "TopK": top_k,
    "CumSum": scan,
    "CumProd": scan,
    "Hardmax": scan,
    "DynamicQuantizeLinear": dynamic_quantize,
}
