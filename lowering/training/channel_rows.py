"""Statistics of every channel over all pixels of a batch: the row-wise layers of training, whose rows are long and few.

`lowering.row_layers` reads everything once where a slice of channels fits the scratchpad. A training batch seldom does:
then each core runs over its share of the pixels and keeps the sums of a slice of channels in its accumulators (as
reductions of matrix layers and pools do), stores them once, and what all cores found is combined; where the result has
the size of the input, a last layer reads the input again. Slices are as wide as the memories allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lowering.address_space import AddressSpace
from lowering.chip import Chip
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.mapping import ACCUMULATOR_BYTES, MappingError, ranges
from lowering.matmul import vector_units
from lowering.operators import add_costs, latency, times
from lowering.row_layers import (
    RowCost,
    RowLayer,
    RowWork,
    emit_rows,
    fits_whole,
    load_inputs,
    row_cycles,
    store_reduced,
    store_results,
    wait_for_all,
    whole_blocks,
)
from lowering.vector_layers import shares

Piece = tuple[int, int, int]
"""(core, first pixel, pixels)."""

_LEAST_PIXELS = 16
"""Slices of channels are narrowed until a tile has so many pixels, where that is possible."""


def emit_channel_rows(builder: ProgramBuilder, layer: RowLayer, chip: Chip, space: AddressSpace) -> None:
    """Write the layer, or its three. Raises MappingError when not even a slice of one memory block of channels fits."""
    if not layer.rows.granule or layer.groups > 1 or fits_whole(layer, chip):
        emit_rows(builder, layer, chip, space)
        return
    plan = _plan(layer, chip, space)
    _emit_statistics(builder, layer, plan, chip)
    if not layer.results:
        _emit_combination(builder, layer, plan, chip)
        return
    combined = replace(layer.identity, name=f"{layer.identity.name} (combined statistics)")
    _emit_combination(builder, replace(layer, identity=combined, results=(), reduced=()), plan, chip)
    _emit_results(builder, layer, plan, chip)


@dataclass(frozen=True)
class _Plan:
    """Slices of channels as (first, number of), the pieces of every slice, and where statistics lie.

    bytes_of: of a slice's statistics, in whole blocks. partial: address of the statistics of every slice's cores.
    totals: address of every slice's.
    """

    slices: tuple[tuple[int, int], ...]
    pieces: tuple[Piece, ...]
    cores: tuple[int, ...]
    bytes_of: tuple[int, ...]
    partial: tuple[int, ...]
    totals: tuple[int, ...]


def _plan(layer: RowLayer, chip: Chip, space: AddressSpace) -> _Plan:
    width, pixels = _slice(layer, chip)
    x = layer.inputs[0]
    slices = tuple(ranges(x.channels, width, layer.rows.granule, True))
    granule = whole_blocks(x.pitch_bytes, x.request_bytes, pixels)
    pieces = tuple(shares(layer.rows.group_pixels, pixels, granule, width * x.element_bytes, chip))
    cores = tuple(dict.fromkeys(core for core, _, _ in pieces))
    bytes_of = tuple(_statistics_bytes(layer, channels) for _, channels in slices)
    partial = tuple(space.allocate(len(cores) * size) for size in bytes_of)
    return _Plan(slices, pieces, cores, bytes_of, partial, tuple(space.allocate(size) for size in bytes_of))


def _slice(layer: RowLayer, chip: Chip) -> tuple[int, int]:
    """Channels of a slice and pixels of a tile."""
    x = layer.inputs[0]
    streams = len(layer.inputs) + len(layer.results)
    parts, best = 1, (0, 0)
    while True:
        width = min(x.channels, math.ceil(x.channels / parts / layer.rows.granule) * layer.rows.granule)
        statistics = _statistics_bytes(layer, width)
        fixed = statistics + sum(_part(size, width, layer) for _, size in layer.constants)
        pixels = (chip.spad_bytes - fixed) // (streams * width * x.element_bytes)
        if pixels >= 1 and statistics <= chip.acc_bytes:
            best = width, min(pixels, layer.rows.group_pixels)
        if (best[1] >= min(_LEAST_PIXELS, layer.rows.group_pixels)) or width <= layer.rows.granule:
            break
        parts *= 2
    if not best[0]:
        raise MappingError(
            f"layer {layer.identity.name} ({layer.identity.op}): {layer.rows.granule} channels do not fit half the "
            f"scratchpad ({chip.spad_bytes} bytes) and half the accumulators ({chip.acc_bytes} bytes); enlarge "
            "cores.spad_kib or cores.acc_kib"
        )
    return best


def _statistics_bytes(layer: RowLayer, channels: int) -> int:
    request = layer.inputs[0].request_bytes
    return math.ceil(channels * max(1, layer.cost.trees) * ACCUMULATOR_BYTES / request) * request


def _part(size: int, channels: int, layer: RowLayer) -> int:
    """Bytes of a slice's part of constants of all channels, in whole blocks."""
    x = layer.inputs[0]
    return min(size, math.ceil(size * channels / x.channels / x.request_bytes) * x.request_bytes)


def _start(size: int, channel: int, layer: RowLayer) -> int:
    """Offset of the memory block in which a slice's part begins."""
    x = layer.inputs[0]
    return size * channel // x.channels // x.request_bytes * x.request_bytes


def _emit_statistics(builder: ProgramBuilder, layer: RowLayer, plan: _Plan, chip: Chip) -> None:
    """Each core's sums of each slice, kept in the accumulators from its first tile to its last."""
    request = layer.inputs[0].request_bytes
    cost = RowCost(layer.cost.statistics, layer.cost.trees, {})
    builder.begin_layer(replace(layer.identity, name=f"{layer.identity.name} (statistics)").info())
    plain = replace(layer, constants=())
    for number, (channels, size, base) in enumerate(zip(plan.slices, plan.bytes_of, plan.partial, strict=True)):
        for place, core in enumerate(plan.cores):
            own = [(first, pixels) for of, first, pixels in plan.pieces if of == core]
            for index, (first, pixels) in enumerate(own):
                builder.begin_tile(core, accumulate=index > 0, acc_key=number * len(plan.cores) + place)
                entries = load_inputs(builder, plain, first, pixels, channels)
                cycles = row_cycles(pixels * channels[1], layer.rows, cost, chip, chip.cores[core])
                work = RowWork.of(pixels * channels[1], replace(layer, cost=cost, results=()))
                builder.vector(
                    dst=Operand(0, acc=True),
                    src_a=Operand(0),
                    src_b=Operand(1) if entries > 1 else None,
                    size1=Extent(cycles),
                    elements=work.reads,
                    results=channels[1] * max(1, cost.trees),
                    operations=work.operations,
                )
                if index == len(own) - 1:
                    builder.store(0, Descriptor.contiguous(base + place * size, size, request))
                builder.end_tile()
    builder.end_layer()


def _emit_combination(builder: ProgramBuilder, layer: RowLayer, plan: _Plan, chip: Chip) -> None:
    """One tile for each slice; the sums of all cores become the results, or what the last layer reads."""
    request = layer.inputs[0].request_bytes
    builder.begin_layer(layer.identity.info())
    for number, (channels, size) in enumerate(zip(plan.slices, plan.bytes_of, strict=True)):
        core = number % chip.n_cores
        area = len(plan.cores) * size
        units = vector_units(area, chip.cores[core])
        rows = vector_units(channels[1] * chip.element_bytes, chip.cores[core])
        cycles = units + rows * latency(layer.cost.per_row, chip.cores[core])
        builder.begin_tile(core)
        builder.load(0, Descriptor.contiguous(plan.partial[number], area, request))
        partial = area // ACCUMULATOR_BYTES
        builder.vector(
            dst=Operand(1),
            src_a=Operand(0),
            size1=Extent(cycles),
            elements=partial,
            results=partial // len(plan.cores),
            operations=add_costs({"add": partial}, times(layer.cost.per_row, channels[1])),
        )
        if layer.reduced:
            store_reduced(builder, layer, 1, (0, 1), channels)
        else:
            builder.store(1, Descriptor.contiguous(plan.totals[number], size, request), acc=False)
        builder.end_tile()
    builder.end_layer()


def _emit_results(builder: ProgramBuilder, layer: RowLayer, plan: _Plan, chip: Chip) -> None:
    """The input once more, with each slice's statistics and its part of the constants."""
    cost = RowCost({}, 0, {}, layer.cost.per_element)
    builder.begin_layer(layer.identity.info())
    for channels, size, total in zip(plan.slices, plan.bytes_of, plan.totals, strict=True):
        parts = tuple(
            (base + _start(whole, channels[0], layer), _part(whole, channels[1], layer))
            for base, whole in layer.constants
        )
        own = replace(layer, constants=(*parts, (total, size)))
        for index, (core, first, pixels) in enumerate(plan.pieces):
            builder.begin_tile(core)
            entries = load_inputs(builder, own, first, pixels, channels)
            cycles = row_cycles(pixels * channels[1], layer.rows, cost, chip, chip.cores[core])
            work = RowWork.of(pixels * channels[1], replace(layer, cost=cost))
            wait_for_all(builder, entries, cycles, entries, work)
            store_results(builder, layer, entries, (first, pixels), channels)
            if index == 0:
                store_reduced(builder, layer, entries, (0, 1), channels)
            builder.end_tile()
    builder.end_layer()
