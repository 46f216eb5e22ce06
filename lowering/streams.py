"""Data movement: tensors that pass through the scratchpad once, whole or in strided parts.

A *stream* reads tensors and writes one, each in order and once; a *move* copies a strided set of pixels (a slice).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowering.chip import Chip
from lowering.context import blocks
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.layout import Layout
from lowering.mapping import MappingError
from lowering.matmul import vector_units
from lowering.operators import Cost, latency, times
from lowering.vector_layers import MIN_TILE_BYTES, TILES_PER_CORE, Identity, shares


@dataclass(frozen=True)
class Read:
    """One tensor of a stream. halo_bytes: what a tile reads beyond its part, on either side."""

    layout: Layout
    halo_bytes: int = 0


@dataclass(frozen=True)
class StreamLayer:
    """result = f(operands), where each part of the result comes from the corresponding part of every operand.

    cost: operations for each element of the result; nothing stands for one pass of the vector unit over the largest
    tensor, which rearranges the elements. more: further results, written in proportion.
    """

    identity: Identity
    reads: tuple[Read, ...]
    result: Layout
    cost: Cost
    more: tuple[Layout, ...] = ()


def emit_stream(builder: ProgramBuilder, layer: StreamLayer, chip: Chip) -> None:
    """Write the layer. Raises MappingError when not even one block of each tensor fits."""
    request = chip.request_bytes
    sizes = [blocks(read.layout) for read in layer.reads]
    results = [blocks(layout) for layout in (layer.result, *layer.more)]
    steps = max(*sizes, *results)
    halo = sum(2 * math.ceil(read.halo_bytes / request) + 2 for read in layer.reads) + len(results)
    room = (chip.spad_bytes // request - halo) * steps // (sum(sizes) + sum(results))
    if room < 1:
        raise MappingError(
            f"layer {layer.identity.name} ({layer.identity.op}): a tile needs {halo * request} bytes of scratchpad and "
            f"more, half of it is {chip.spad_bytes}; enlarge cores.spad_kib"
        )
    builder.begin_layer(layer.identity.info())
    for core, start, count in shares(steps, room, 1, request, chip):
        builder.begin_tile(core)
        for entry, (read, size) in enumerate(zip(layer.reads, sizes, strict=True)):
            extra = math.ceil(read.halo_bytes / request)
            first = max(0, start * size // steps - extra)
            end = min(size, math.ceil((start + count) * size / steps) + extra)
            builder.load(entry, Descriptor(read.layout.base_byte // request + first, end - first))
        each = latency(layer.cost, chip.cores[core])
        part = math.ceil(count * results[0] / steps) if each else count
        units = vector_units(part * request, chip.cores[core])
        result = Operand(len(sizes))
        second = Operand(1) if len(sizes) > 1 else None
        elements = part * request // chip.element_bytes
        builder.vector(
            dst=result,
            src_a=Operand(0),
            src_b=second,
            size1=Extent(units),
            size2=Extent(max(1, each)),
            elements=elements,
            operations=times(layer.cost, elements),
        )
        for entry in range(2, len(sizes)):
            builder.vector(dst=result, src_a=result, src_b=Operand(entry), size1=Extent(0), elements=elements)
        for index, (layout, size) in enumerate(zip((layer.result, *layer.more), results, strict=True)):
            if index:
                builder.vector(dst=Operand(len(sizes) + index), src_a=result, size1=Extent(0), elements=elements)
            # A block of the result that two tiles share is written once, by the later one.
            first, end = (edge * size // steps for edge in (start, start + count))
            if end > first:
                target = Descriptor(layout.base_byte // request + first, end - first)
                builder.store(len(sizes) + index, target, acc=False)
        builder.end_tile()
    builder.end_layer()


@dataclass(frozen=True)
class Side:
    """A strided set of pixels: the first one, the strides of the loops over them, and the channels of each."""

    layout: Layout
    first: int
    strides: tuple[int, ...]
    channels: tuple[int, int]


@dataclass(frozen=True)
class Move:
    """`counts` pixels (loops, outermost first) from `source` to `target`. A pass of the vector unit selects channels
    where the two sides have different ones.
    """

    source: Side
    target: Side
    counts: tuple[int, ...]

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel, the larger side."""
        element = self.source.layout.element_bytes
        return max(self.source.channels[1], self.target.channels[1]) * element


def emit_moves(builder: ProgramBuilder, identity: Identity, moves: Sequence[Move], chip: Chip) -> None:
    """One layer that makes all the moves. Raises MappingError when a single pixel does not fit."""
    builder.begin_layer(identity.info())
    for move in moves:
        selects = move.source.channels[1] != move.target.channels[1]
        room = chip.spad_bytes // (move.pixel_bytes * (1 + selects))
        if room < 1:
            raise MappingError(
                f"layer {identity.name} ({identity.op}): one row needs {move.pixel_bytes} bytes of scratchpad, half of "
                f"it is {chip.spad_bytes}; enlarge cores.spad_kib"
            )
        for part, units in _cut(move, room, chip):
            inner = math.prod(part.counts[1:])
            for core, start, count in shares(part.counts[0], max(1, room // inner), 1, units, chip):
                builder.begin_tile(core)
                builder.load(0, _region(part.source, start, (count, *part.counts[1:])))
                if selects:
                    moved = count * inner * move.pixel_bytes
                    cycles, elements = vector_units(moved, chip.cores[core]), moved // chip.element_bytes
                    builder.vector(dst=Operand(1), src_a=Operand(0), size1=Extent(cycles), elements=elements)
                builder.store(int(selects), _region(part.target, start, (count, *part.counts[1:])), acc=False)
                builder.end_tile()
    builder.end_layer()


def _cut(move: Move, room: int, chip: Chip) -> list[tuple[Move, int]]:
    """The move as moves whose outermost loop can be cut into tiles that fit and keep the cores busy."""
    counts = move.counts
    total = math.prod(counts) * move.pixel_bytes
    wanted = min(chip.n_cores * TILES_PER_CORE, max(1, total // MIN_TILE_BYTES))
    outer = 0
    while outer < len(counts) - 1 and (
        math.prod(counts[outer + 1 :]) > room or math.prod(counts[: outer + 1]) < wanted
    ):
        outer += 1
    parts = [move]
    for _ in range(outer):
        parts = [_inner(part, index) for part in parts for index in range(part.counts[0])]
    return [(part, math.prod(part.counts[1:]) * move.pixel_bytes) for part in parts]


def _inner(move: Move, index: int) -> Move:
    """The move for one trip of the outermost loop."""
    source, target = (
        replace(side, first=side.first + index * side.strides[0], strides=side.strides[1:])
        for side in (move.source, move.target)
    )
    return Move(source, target, move.counts[1:])


def _region(side: Side, start: int, counts: tuple[int, ...]) -> Descriptor:
    levels = tuple(zip(counts, side.strides, strict=True))
    return side.layout.region(side.first + start * side.strides[0], levels, *side.channels)


def physical_strides(layout: Layout) -> tuple[int, ...]:
    """Pixels from one index to the next of every physical dimension but the innermost."""
    sizes = layout.physical[:-1]
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
