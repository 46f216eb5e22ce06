"""Layers that work row by row: normalisations, reductions, scans, selections.

A *row* is what one statistic is taken over (a token for LayerNormalization, one channel of one image for
InstanceNormalization). A *group* is the shortest run of whole pixels that holds whole rows. Tiles take whole groups,
or channel slices of one, where they fit the scratchpad: everything is then read once. Groups that do not fit, or
too few of them for half of the cores, take several layers: one reads chunks and leaves the partial statistics of each
in DRAM, one combines these, and, where the result has the size of the input, one reads the input again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hwconfigs.schema import CoreConfig
from lowering.address_space import AddressSpace
from lowering.balance import balance
from lowering.chip import Chip
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.layout import Layout, Order
from lowering.mapping import ACCUMULATOR_BYTES, MappingError, ranges
from lowering.matmul import vector_units
from lowering.operators import Cost, add_costs, latency, times, tree_passes
from lowering.vector_layers import Identity, shares

_MIN_SPLIT_BYTES = 16384
"""Smaller tensors are not worth a second layer only to give every core work."""


@dataclass(frozen=True)
class RowCost:
    """Operations of a row-wise operator.

    statistics: for each element, before the reductions. trees: reductions of a row to one value.
    per_row: for each row, on its statistics. per_element: for each element, once the statistics are there.
    """

    statistics: Cost
    trees: int
    per_row: Cost
    per_element: Cost = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """How rows lie in a tensor.

    group_pixels: pixels of a group. elements: of one row. in_pixel: whether a row holds neighbouring elements of a
    pixel (reduced by adder trees) or one element of each pixel (reduced lane by lane). granule: channels come in
    multiples of this where a group is cut into slices of channels; 0 when it cannot be.
    """

    group_pixels: int
    elements: int
    in_pixel: bool
    granule: int

    @staticmethod
    def over(shape: Sequence[int], order: Order, reduced: Sequence[int], lanes: int) -> Rows:
        """Rows over the logical dimensions `reduced` (at least one); `lanes`: elements of a memory block."""
        outermost = min(order.index(d) for d in reduced)
        in_pixel = order[-1] in reduced
        return Rows(
            math.prod(shape[d] for d in order[outermost:-1]),
            math.prod(shape[d] for d in reduced),
            in_pixel,
            0 if in_pixel else lanes,
        )


@dataclass(frozen=True)
class RowLayer:
    """One row-wise operator.

    inputs: tensors of one geometry, read together; the first is the one that rows are rows of. results: written, as
    large as the input. reduced: written, one or a few elements for each row.
    constants: (base address, bytes) of what every tile reads besides (scale and shift).
    """

    identity: Identity
    rows: Rows
    inputs: tuple[Layout, ...]
    cost: RowCost
    results: tuple[Layout, ...] = ()
    reduced: tuple[Layout, ...] = ()
    constants: tuple[tuple[int, int], ...] = field(default=())

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.inputs[0].pixels // self.rows.group_pixels

    def statistics(self, elements: int) -> int:
        """Statistics of rows with `elements` elements together."""
        return max(1, elements // self.rows.elements) * max(1, self.cost.trees)


def emit_rows(builder: ProgramBuilder, layer: RowLayer, chip: Chip, space: AddressSpace) -> None:
    """Write the layer, or the layers, of a row-wise operator. Raises MappingError when no chunk fits."""
    if fits_whole(layer, chip):
        slices, piece, fixed = _piece(layer, chip)
        _emit_whole(builder, layer, chip, slices, (chip.spad_bytes - fixed) // piece)
    else:
        _emit_chunks(builder, layer, chip, space)


def fits_whole(layer: RowLayer, chip: Chip) -> bool:
    """Whether whole groups, or slices of one, fit the scratchpad and give at least half of the cores work."""
    slices, piece, fixed = _piece(layer, chip)
    idle = 2 * layer.groups * slices < chip.n_cores and layer.inputs[0].total_bytes >= _MIN_SPLIT_BYTES
    return piece + fixed <= chip.spad_bytes and not idle


def _piece(layer: RowLayer, chip: Chip) -> tuple[int, int, int]:
    """Slices of a group, bytes of one, and of the constants."""
    group_bytes = layer.rows.group_pixels * layer.inputs[0].pitch_bytes
    slices = _slices(layer, chip)
    width = math.ceil(layer.inputs[0].channels / slices) * chip.element_bytes
    streams = len(layer.inputs) + len(layer.results)
    fixed = sum(size for _, size in layer.constants)
    piece = (group_bytes if slices == 1 else layer.rows.group_pixels * width) * streams + _reduced_bytes(layer)
    return slices, piece, fixed


def _slices(layer: RowLayer, chip: Chip) -> int:
    """Into how many slices of channels a group is cut: as many as it takes to fit, and to give every core work."""
    rows, x = layer.rows, layer.inputs[0]
    if not rows.granule:
        return 1
    most = max(1, x.channels // rows.granule)
    streams = len(layer.inputs) + len(layer.results)
    fixed = sum(size for _, size in layer.constants) + _reduced_bytes(layer)
    room = max(1, chip.spad_bytes - fixed)
    capacity = math.ceil(rows.group_pixels * x.pitch_bytes * streams / room)
    return min(most, max(capacity, math.ceil(chip.n_cores / layer.groups)))


def _reduced_bytes(layer: RowLayer) -> int:
    return sum(math.ceil(item.total_bytes / layer.groups) for item in layer.reduced)


def _emit_whole(builder: ProgramBuilder, layer: RowLayer, chip: Chip, slices: int, room: int) -> None:
    """Tiles of whole groups (or one slice of a group), everything read once."""
    x, rows = layer.inputs[0], layer.rows
    channels = ranges(x.channels, math.ceil(x.channels / slices), rows.granule, False) if slices > 1 else []
    builder.begin_layer(layer.identity.info())
    if not channels:
        group_bytes = rows.group_pixels * x.pitch_bytes
        granule = whole_blocks(group_bytes, x.request_bytes, min(room, layer.groups))
        for core, start, count in shares(layer.groups, room, granule, group_bytes, chip):
            _tile(builder, layer, chip, core, (start, count), (0, x.channels))
    else:
        pieces = [(group, piece) for group in range(layer.groups) for piece in channels]
        costs = [[piece[1] / core.vector_bits for _, piece in pieces] for core in chip.cores]
        for core, items in enumerate(balance(costs)):
            for item in items:
                _tile(builder, layer, chip, core, (pieces[item][0], 1), pieces[item][1])
    builder.end_layer()


def whole_blocks(unit_bytes: int, request_bytes: int, most: int) -> int:
    """How many units fill whole memory blocks, so that no two tiles share one; 1 when more than `most` would."""
    units = math.lcm(unit_bytes, request_bytes) // unit_bytes
    return units if units <= most else 1


def _tile(
    builder: ProgramBuilder,
    layer: RowLayer,
    chip: Chip,
    core: int,
    groups: tuple[int, int],
    channels: tuple[int, int],
) -> None:
    """One tile: `groups` and `channels` are (start, length)."""
    rows = layer.rows
    first, pixels = groups[0] * rows.group_pixels, groups[1] * rows.group_pixels
    builder.begin_tile(core)
    entries = load_inputs(builder, layer, first, pixels, channels)
    cycles = row_cycles(pixels * channels[1], rows, layer.cost, chip, chip.cores[core])
    wait_for_all(builder, entries, cycles, entries, RowWork.of(pixels * channels[1], layer))
    store_results(builder, layer, entries, (first, pixels), channels)
    store_reduced(builder, layer, entries, groups, channels)
    builder.end_tile()


def store_results(
    builder: ProgramBuilder, layer: RowLayer, entries: int, pixels: tuple[int, int], channels: tuple[int, int]
) -> None:
    """Store a tile's part of all results as large as the input, from the first entry behind the operands."""
    for index, result in enumerate(layer.results):
        if index:
            wait_for_all(builder, entries, 0, entries + index)
            builder.note({"spad_writes": pixels[1] * channels[1]})
        builder.store(entries + index, result.region(pixels[0], ((pixels[1], 1),), *channels), acc=False)


def store_reduced(
    builder: ProgramBuilder, layer: RowLayer, entries: int, groups: tuple[int, int], channels: tuple[int, int]
) -> None:
    """Store a tile's statistics, behind its results."""
    for index, result in enumerate(layer.reduced):
        piece = _reduced_piece(result, layer, groups, channels)
        if piece is None:
            continue
        entry = entries + len(layer.results) + index
        if entry > entries:
            wait_for_all(builder, entries, 0, entry)
            builder.note({"spad_writes": layer.statistics(groups[1] * layer.rows.group_pixels * channels[1])})
        builder.store(entry, piece, acc=False)


def load_inputs(builder: ProgramBuilder, layer: RowLayer, first: int, pixels: int, channels: tuple[int, int]) -> int:
    """Load the pixels of all inputs, and the constants; returns the number of entries."""
    for entry, source in enumerate(layer.inputs):
        builder.load(entry, source.region(first, ((pixels, 1),), *channels))
    entries = len(layer.inputs)
    for base, size in layer.constants:
        builder.load(entries, Descriptor.contiguous(base, size, layer.inputs[0].request_bytes))
        entries += 1
    return entries


@dataclass(frozen=True)
class RowWork:
    """What a tile's arithmetic reads of each operand and writes, in elements, and its operations on single elements."""

    reads: int = 0
    writes: int = 0
    operations: Cost = field(default_factory=dict)

    @staticmethod
    def of(elements: int, layer: RowLayer) -> RowWork:
        """For `elements` elements of the layer's rows. A reduction adds each once; results take a second pass."""
        cost, rows = layer.cost, max(1, elements // layer.rows.elements)
        each = add_costs(cost.statistics, {"add": cost.trees}, cost.per_element)
        passes = bool(cost.statistics or cost.trees) + bool(cost.per_element)
        operations = add_costs(times(each, elements), times(cost.per_row, rows))
        return RowWork(passes * elements, elements if layer.results else layer.statistics(elements), operations)


def wait_for_all(
    builder: ProgramBuilder, entries: int, cycles: int, core_result: int, work: RowWork | None = None
) -> None:
    """The arithmetic of a tile; operands beyond the second are awaited by instructions that take no time."""
    result, work = Operand(core_result), work or RowWork()
    second = Operand(1) if entries > 1 else None
    builder.vector(
        dst=result,
        src_a=Operand(0),
        src_b=second,
        size1=Extent(cycles),
        elements=work.reads,
        results=work.writes,
        operations=work.operations,
    )
    for entry in range(2, entries):
        builder.vector(dst=result, src_a=result, src_b=Operand(entry), size1=Extent(0), elements=work.reads)


def _reduced_piece(
    result: Layout, layer: RowLayer, groups: tuple[int, int], channels: tuple[int, int]
) -> Descriptor | None:
    """Where a tile's statistics go; None when all its blocks are written by other tiles."""
    if not layer.rows.in_pixel and result.channels == layer.inputs[0].channels:
        per_group = result.pixels // layer.groups
        return result.region(groups[0] * per_group, ((groups[1] * per_group, 1),), *channels)
    total = math.ceil(result.total_bytes / result.request_bytes)
    # A block that two tiles share is written once, by the later one.
    first, end = (edge * total // layer.groups for edge in (groups[0], groups[0] + groups[1]))
    if first == end:
        return None
    return Descriptor(result.base_byte // result.request_bytes + first, end - first)


def row_cycles(elements: int, rows: Rows, cost: RowCost, chip: Chip, core: CoreConfig) -> int:
    """Vector cycles for `elements` elements in rows (parts of a row included).

    Rows inside pixels: for each row, adder trees and whole vectors. Otherwise the vector unit's lanes hold different
    rows, and a reduction is one addition for each element.
    """
    n_rows = max(1, elements // rows.elements)
    if not rows.in_pixel:
        each = latency(cost.statistics, core) + latency(cost.per_element, core) + cost.trees * core.latency.add
        statistics = vector_units(n_rows * chip.element_bytes, core) * latency(cost.per_row, core)
        return vector_units(elements * chip.element_bytes, core) * each + statistics
    row_bytes = min(elements, rows.elements) * chip.element_bytes
    units = core.vector_bits // 8
    trees = cost.trees * tree_passes(row_bytes, units) * core.latency.add_tree
    passes = math.ceil(row_bytes / units) * (latency(cost.statistics, core) + latency(cost.per_element, core))
    return n_rows * (trees + passes + latency(cost.per_row, core))


# -- groups that do not fit


def _emit_chunks(builder: ProgramBuilder, layer: RowLayer, chip: Chip, space: AddressSpace) -> None:
    """Partial statistics of every chunk, their combination, then the results."""
    x, rows = layer.inputs[0], layer.rows
    streams = len(layer.inputs) + len(layer.results)
    constants = sum(size for _, size in layer.constants)
    rows_per_group = rows.group_pixels * x.channels // rows.elements
    statistics = max(1, rows_per_group) * max(1, layer.cost.trees) * ACCUMULATOR_BYTES
    statistics = math.ceil(statistics / x.request_bytes) * x.request_bytes
    wanted = max(1, chip.n_cores // layer.groups)
    chunk = min(
        math.ceil(rows.group_pixels / wanted),
        (chip.spad_bytes - constants - statistics) // (streams * x.pitch_bytes),
    )
    if chunk < 1:
        raise MappingError(
            f"layer {layer.identity.name} ({layer.identity.op}): one row of the tensor needs "
            f"{streams * x.pitch_bytes + constants + statistics} bytes of scratchpad, half of it is "
            f"{chip.spad_bytes}; enlarge cores.spad_kib"
        )
    chunks = ranges(rows.group_pixels, chunk, whole_blocks(x.pitch_bytes, x.request_bytes, chunk), False)
    base = space.allocate(layer.groups * len(chunks) * statistics)
    pieces = [
        (group, index, (group * rows.group_pixels + start, length))
        for group in range(layer.groups)
        for index, (start, length) in enumerate(chunks)
    ]
    costs = [[piece[2][1] / core.vector_bits for piece in pieces] for core in chip.cores]
    assigned = balance(costs)
    builder.begin_layer(replace(layer.identity, name=f"{layer.identity.name} (statistics)").info())
    partial = replace(layer, constants=())
    first_cost = RowCost(layer.cost.statistics, layer.cost.trees, {})
    for core, items in enumerate(assigned):
        for item in items:
            _, _, (first, pixels) = pieces[item]
            builder.begin_tile(core)
            entries = load_inputs(builder, partial, first, pixels, (0, x.channels))
            cycles = row_cycles(pixels * x.channels, rows, first_cost, chip, chip.cores[core])
            work = RowWork.of(pixels * x.channels, replace(layer, cost=first_cost, results=()))
            wait_for_all(builder, entries, cycles, entries, work)
            builder.store(
                entries, Descriptor.contiguous(base + item * statistics, statistics, x.request_bytes), acc=False
            )
            builder.end_tile()
    builder.end_layer()
    area = len(chunks) * statistics
    if not layer.results:
        _combine(builder, layer, chip, base, area)
        return
    totals = Layout(
        space.allocate(layer.groups * statistics),
        (layer.groups, statistics // x.element_bytes),
        x.element_bytes,
        statistics,
        x.request_bytes,
    )
    combined = replace(layer.identity, name=f"{layer.identity.name} (combined statistics)")
    _combine(builder, replace(layer, identity=combined, reduced=(totals,)), chip, base, area)
    final = replace(layer, cost=RowCost({}, 0, layer.cost.per_row, layer.cost.per_element))
    builder.begin_layer(layer.identity.info())
    for core, items in enumerate(assigned):
        for item in items:
            group, index, (first, pixels) = pieces[item]
            builder.begin_tile(core)
            constants = (*layer.constants, (totals.base_byte + group * statistics, statistics))
            entries = load_inputs(builder, replace(final, constants=constants), first, pixels, (0, x.channels))
            cycles = row_cycles(pixels * x.channels, rows, final.cost, chip, chip.cores[core])
            wait_for_all(builder, entries, cycles, entries, RowWork.of(pixels * x.channels, final))
            store_results(builder, layer, entries, (first, pixels), (0, x.channels))
            if index == len(chunks) - 1:
                store_reduced(builder, layer, entries, (group, 1), (0, x.channels))
            builder.end_tile()
    builder.end_layer()


def _combine(builder: ProgramBuilder, layer: RowLayer, chip: Chip, base: int, area: int) -> None:
    """One tile for each group: its partial results become its results."""
    if area + _reduced_bytes(layer) > chip.spad_bytes:
        raise MappingError(
            f"layer {layer.identity.name} ({layer.identity.op}): partial statistics of {area} bytes do not fit half of "
            f"the scratchpad, {chip.spad_bytes} bytes; enlarge cores.spad_kib"
        )
    builder.begin_layer(layer.identity.info())
    for core, start, count in shares(layer.groups, max(1, chip.spad_bytes // (2 * area)), 1, area, chip):
        builder.begin_tile(core)
        builder.load(0, Descriptor.contiguous(base + start * area, count * area, layer.inputs[0].request_bytes))
        units = vector_units(count * area, chip.cores[core])
        partial = count * area // ACCUMULATOR_BYTES
        builder.vector(
            dst=Operand(1),
            src_a=Operand(0),
            size1=Extent(units + latency(layer.cost.per_row, chip.cores[core])),
            elements=partial,
            results=count * max(1, layer.cost.trees),
            operations=add_costs({"add": partial}, layer.cost.per_row),
        )
        for index, result in enumerate(layer.reduced):
            piece = _reduced_piece(result, layer, (start, count), (0, layer.inputs[0].channels))
            if piece is not None:
                if index:
                    builder.vector(dst=Operand(1 + index), src_a=Operand(1), size1=Extent(0))
                builder.store(1 + index, piece, acc=False)
        builder.end_tile()
    builder.end_layer()
