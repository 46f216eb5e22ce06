"""Operators that only move data: Slice, Split, Pad, Expand, Tile, DepthToSpace and their relatives."""

from __future__ import annotations

import math
from dataclasses import replace

from lowering.context import Handler, Network, axis_of, unsupported
from lowering.fusion import Group
from lowering.ir import Node, Tensor
from lowering.layout import Order, row_major
from lowering.streams import Move, Read, Side, StreamLayer, emit_moves, emit_stream, physical_strides
from lowering.vector_layers import Identity

Cut = tuple[int, int, int]
"""(first index, number of indices, step) along one dimension; the step may be negative."""


def slice_(network: Network, group: Group) -> None:
    """Slice with constant bounds."""
    node = group.head
    x = node.input(0)
    cuts: dict[int, Cut] = {}
    bounds = [_integers(node, name, index) for name, index in (("starts", 1), ("ends", 2))]
    starts, ends = bounds[0] or (), bounds[1] or ()
    axes = _integers(node, "axes", 3) or tuple(range(len(starts)))
    steps = _integers(node, "steps", 4) or (1,) * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = x.shape[axis % len(x.shape)]
        first, last, step = slice(start, end if end > -size - 1 or step > 0 else None, step).indices(size)
        cuts[axis % len(x.shape)] = (first, len(range(first, last, step)), step)
    copy_part(network, node, x, node.outputs[0], cuts)


def _integers(node: Node, attribute: str, index: int) -> tuple[int, ...] | None:
    if attribute in node.attributes:
        return node.ints(attribute)
    tensor = node.optional_input(index)
    if tensor is None:
        return None
    if tensor.values is None:
        raise unsupported(node, f"its {attribute} ({tensor.name}) are computed while the model runs")
    return tuple(int(value) for value in tensor.values)


def split(network: Network, group: Group) -> None:
    """Split: one part for each output."""
    node = group.head
    x = node.input(0)
    axis = axis_of(node, 0, len(x.shape))
    start = 0
    for index, tensor in enumerate(node.outputs):
        size = tensor.shape[axis] if len(tensor.shape) == len(x.shape) else 1
        if tensor.name:
            part = replace(node, name=f"{node.name} ({index})")
            copy_part(network, part, x, tensor, {axis: (start, size, 1)})
        start += size


def copy_part(network: Network, node: Node, x: Tensor, target: Tensor, cuts: dict[int, Cut]) -> None:
    """`target` is a part of `x`: free where it is contiguous memory on a block boundary, else copied.

    Where `target` lacks a dimension it is the one in `cuts`, cut down to one index; not the innermost in memory.
    """
    source = network.find(x)
    order: Order = source.order
    layout = source.layout
    strides = physical_strides(layout)
    first, inside, contiguous = 0, True, True
    counts: list[int] = []
    steps: list[int] = []
    for position, dimension in enumerate(order[:-1]):
        start, count, step = cuts.get(dimension, (0, x.shape[dimension], 1))
        # Contiguous: all dimensions outside the one that is cut have one index.
        straight = step == 1 or count == 1
        contiguous &= straight and (inside or count == x.shape[dimension])
        inside &= count == 1
        begin = start if step > 0 else start + (count - 1) * step
        first += begin * strides[position]
        counts.append(count)
        steps.append(abs(step) * strides[position])
    channel, channels, step = cuts.get(order[-1], (0, layout.channels, 1)) if order else (0, 1, 1)
    goal_order = order if len(target.shape) == len(x.shape) else _without(order, next(iter(cuts)))
    base = layout.base_byte + first * layout.pitch_bytes
    whole = channels == layout.channels and step == 1
    if contiguous and whole and base % layout.request_bytes == 0:
        network.place_at(target, goal_order, base)
        return
    goal = network.place(target, goal_order).layout
    read = (channel, (channels - 1) * step + 1) if step > 0 else (channel + (channels - 1) * step, channels * -step)
    read = (read[0], min(read[1], layout.channels - read[0]))
    dense = tuple(math.prod(counts[index + 1 :]) for index in range(len(counts)))
    move = Move(
        Side(layout, first, tuple(steps) or (1,), read),
        Side(goal, 0, dense or (1,), (0, channels)),
        tuple(counts) or (1,),
    )
    emit_moves(network.builder, Identity(node.name, node.op), (move,), network.chip)


def _without(order: Order, dimension: int) -> Order:
    """The order of the dimensions that are left when one is dropped."""
    return tuple(d - (d > dimension) for d in order if d != dimension)


def pad(network: Network, group: Group) -> None:
    """Pad with anything, anywhere: the input is read, the padded tensor is written."""
    node = group.head
    amounts = _integers(node, "pads", 1) or ()
    if len(amounts) and min(amounts) < 0 and max(amounts) <= 0:
        _crop(network, node, amounts)
        return
    _stream(network, node)


def _crop(network: Network, node: Node, amounts: tuple[int, ...]) -> None:
    x, target = node.input(0), node.outputs[0]
    axes = _integers(node, "axes", 3) or tuple(range(len(x.shape)))
    cuts = {axis % len(x.shape): (-amounts[i], target.shape[axis], 1) for i, axis in enumerate(axes)}
    copy_part(network, node, x, target, cuts)


def rearrange(network: Network, group: Group) -> None:
    """Expand, Tile, DepthToSpace, SpaceToDepth, ReverseSequence, OneHot: read once, arranged, written once."""
    _stream(network, group.head)


def _stream(network: Network, node: Node) -> None:
    x, target = node.input(0), node.outputs[0]
    source = network.find(x)
    order = source.order if len(x.shape) == len(target.shape) else row_major(len(target.shape))
    result = network.place(target, order).layout
    layer = StreamLayer(Identity(node.name, node.op), (Read(source.layout),), result, {})
    emit_stream(network.builder, layer, network.chip)


HANDLERS: dict[str, Handler] = {
    "Slice": slice_,
    "Split": split,
    "Pad": pad,
    "CenterCropPad": rearrange,
    **dict.fromkeys(("Expand", "Tile", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "OneHot"), rearrange),
}
