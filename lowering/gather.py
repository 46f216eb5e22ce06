"""Looking up rows of a table: Gather, GatherElements, GatherND, embeddings, scatters.

Each row that is looked up costs its own memory requests; which rows they are is unknown before the model runs, so
they are spread evenly over the table. A part of a table that is smaller than the rows a tile looks up in it is read
whole instead. That rows wait for their indices is not modelled: indices are loaded with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from hwconfigs.schema import CoreConfig
from lowering.chip import Chip
from lowering.context import Handler, Network, axis_of, blocks, present, unsupported
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.fusion import Group
from lowering.ir import Node, Tensor
from lowering.layout import Layout, row_major
from lowering.mapping import MappingError
from lowering.matmul import vector_units
from lowering.movement import Cut, copy_part
from lowering.operators import Cost, add_costs, latency, times
from lowering.row_layers import RowCost, RowLayer, Rows, RowWork, emit_rows, row_cycles
from lowering.streams import Read, StreamLayer, emit_stream
from lowering.vector_layers import Identity, shares


@dataclass(frozen=True)
class Table:
    """Where rows come from: `sections` independent tables of `rows` rows of `pixels` whole pixels each.

    A lookup takes `lookups` rows of the first section, then as many of the second, ...
    """

    layout: Layout
    sections: int
    rows: int
    pixels: int
    lookups: int


@dataclass(frozen=True)
class LookupLayer:
    """y = rows of one or more tables (summed when several), with the indices read alongside.

    cost, row_cost: what the vector unit does with the result, for each element and each row.
    constants: (base address, bytes) that every tile reads besides. kept: where the rows go besides, as looked up.
    """

    identity: Identity
    tables: tuple[Table, ...]
    indices: tuple[Layout, ...]
    result: Layout
    cost: Cost = field(default_factory=dict)
    row_cost: RowCost | None = None
    constants: tuple[tuple[int, int], ...] = ()
    kept: tuple[Layout, ...] = ()


def emit_lookup(builder: ProgramBuilder, layer: LookupLayer, chip: Chip) -> None:
    """Write the layer. Raises MappingError when one row of each table and the result do not fit."""
    request = chip.request_bytes
    units = layer.tables[0].sections * layer.tables[0].lookups
    written, results = blocks(layer.result), (layer.result, *layer.kept)
    unit_bytes = sum(table.pixels * max(table.layout.pitch_bytes, request) for table in layer.tables)
    unit_bytes += len(results) * math.ceil(written / units) * request
    unit_bytes += sum(math.ceil(blocks(item) / units) * request for item in layer.indices)
    fixed = sum(size for _, size in layer.constants) + len(layer.indices) * 2 * request
    room = (chip.spad_bytes - fixed) // unit_bytes
    if room < 1:
        raise MappingError(
            f"layer {layer.identity.name} ({layer.identity.op}): a looked-up row needs {unit_bytes + fixed} bytes of "
            f"scratchpad, half of it is {chip.spad_bytes}; enlarge cores.spad_kib"
        )
    builder.begin_layer(layer.identity.info())
    for core, start, count in shares(units, room, 1, unit_bytes, chip):
        builder.begin_tile(core)
        entry = 0
        for item in layer.indices:
            size = blocks(item)
            first, end = start * size // units, math.ceil((start + count) * size / units)
            builder.load(entry, Descriptor(item.base_byte // request + first, end - first))
            entry += 1
        for table in layer.tables:
            for piece in lookup_blocks(table, start, count):
                builder.load(entry, piece)
                entry += 1
        for base, size in layer.constants:
            builder.load(entry, Descriptor.contiguous(base, size, request))
            entry += 1
        _finish(builder, layer, chip.cores[core], entry, count / units, chip)
        # A block of the result that two tiles share is written once, by the later one.
        first, end = (edge * written // units for edge in (start, start + count))
        if end > first:
            for index, goal in enumerate(results):
                builder.store(entry + index, Descriptor(goal.base_byte // request + first, end - first), acc=False)
        builder.end_tile()
    builder.end_layer()


def _finish(
    builder: ProgramBuilder, layer: LookupLayer, core: CoreConfig, entries: int, share: float, chip: Chip
) -> None:
    """What is done with the rows in the scratchpad; a plain lookup takes no vector time, but waits for all its rows."""
    elements = max(1, round(share * math.prod(layer.result.physical)))
    cycles = vector_units(elements * chip.element_bytes, core) * latency(layer.cost, core)
    operations: Cost = times(layer.cost, elements)
    if layer.row_cost is not None:
        rows = Rows(1, layer.result.channels, True, 0)
        cycles += row_cycles(elements, rows, layer.row_cost, chip, core)
        by_row = RowLayer(layer.identity, rows, (layer.result,), layer.row_cost)
        operations = add_costs(operations, RowWork.of(elements, by_row).operations)
    # What is only looked up stays where it was loaded.
    moved = elements if cycles else 0
    result = Operand(entries)
    builder.vector(
        dst=result,
        src_a=Operand(0),
        src_b=Operand(1) if entries > 1 else None,
        size1=Extent(max(0, cycles)),
        elements=moved,
        operations=operations,
    )
    for entry in range(2, entries):
        builder.vector(dst=result, src_a=result, src_b=Operand(entry), size1=Extent(0))
    for index in range(len(layer.kept)):
        builder.vector(dst=Operand(entries + 1 + index), src_a=result, size1=Extent(0), elements=moved)


def lookup_blocks(table: Table, start: int, count: int) -> list[Descriptor]:
    """The memory blocks of lookups `start` to `start + count`, one transfer for each section that they touch."""
    found: list[Descriptor] = []
    layout = table.layout
    section_pixels = table.rows * table.pixels
    section_blocks = math.ceil(section_pixels * layout.pitch_bytes / layout.request_bytes)
    row_blocks = math.ceil(table.pixels * layout.pitch_bytes / layout.request_bytes)
    while count:
        section, index = divmod(start, table.lookups)
        length = min(count, table.lookups - index)
        if length * row_blocks >= section_blocks or length > table.rows:
            found.append(layout.span(section * section_pixels, section_pixels))
        else:
            stride = max(1, table.rows // table.lookups)
            first = min(index * stride % table.rows, table.rows - 1 - (length - 1) * stride)
            levels = ((length, stride * table.pixels), (table.pixels, 1))
            found.append(layout.region(section * section_pixels + first * table.pixels, levels, 0, layout.channels))
        start, count = start + length, count - length
    return found


# -- operators


def gather(network: Network, group: Group) -> None:
    """Gather along one axis; by one constant index it is a slice."""
    node = group.head
    x, indices, target = node.input(0), node.input(1), node.outputs[0]
    rank = len(x.shape)
    axis = axis_of(node, 0, rank)
    drops_innermost = len(target.shape) < rank and network.find(x).order[-1] == axis
    if indices.values is not None and indices.elements == 1 and not drops_innermost:
        index = int(indices.values[0]) % x.shape[axis]
        cuts: dict[int, Cut] = {axis: (index, 1, 1)}
        copy_part(network, node, x, target, cuts)
        return
    same_rank = len(target.shape) == rank
    order = network.find(x).order if same_rank else row_major(rank)
    layout = network.in_order(x, order)
    position = order.index(axis)
    goal = network.place(target, order if same_rank else row_major(len(target.shape))).layout
    where = () if indices.constant else (network.find(indices).layout,)
    if position == rank - 1:
        # Every pixel is read, and elements of it are selected.
        reads = (Read(layout), *(Read(item) for item in where))
        emit_stream(network.builder, StreamLayer(Identity(node.name, node.op), reads, goal, {}), network.chip)
        return
    physical = layout.physical
    table = Table(
        layout,
        math.prod(physical[:position]),
        physical[position],
        math.prod(physical[position + 1 : -1]),
        max(1, indices.elements),
    )
    emit_lookup(network.builder, LookupLayer(Identity(node.name, node.op), (table,), where, goal), network.chip)


def gather_nd(network: Network, group: Group) -> None:
    """GatherND: slices where the index tuples leave dimensions over, else single elements."""
    node = group.head
    x, indices = node.input(0), node.input(1)
    batch, depth = node.int("batch_dims", 0), indices.shape[-1]
    lookups = max(1, math.prod(indices.shape[batch:-1]))
    if batch + depth >= len(x.shape):
        _gather_single(network, node, x, indices, math.prod(indices.shape[:-1]))
        return
    layout = network.in_order(x, row_major(len(x.shape)))
    table = Table(
        layout,
        math.prod(x.shape[:batch]),
        math.prod(x.shape[batch : batch + depth]),
        math.prod(x.shape[batch + depth : -1]),
        lookups,
    )
    goal = network.place(node.outputs[0], row_major(len(node.outputs[0].shape))).layout
    where = () if indices.constant else (network.find(indices).layout,)
    emit_lookup(network.builder, LookupLayer(Identity(node.name, node.op), (table,), where, goal), network.chip)


def gather_elements(network: Network, group: Group) -> None:
    """GatherElements: one request for each element, or the whole input where that is less."""
    node = group.head
    _gather_single(network, node, node.input(0), node.input(1), node.outputs[0].elements)


def _gather_single(network: Network, node: Node, x: Tensor, indices: Tensor, elements: int) -> None:
    layout = network.find(x).layout
    request = layout.request_bytes
    as_blocks = Layout(layout.base_byte, (blocks(layout), request // layout.element_bytes), layout.element_bytes,
                       request, request)  # fmt: skip
    table = Table(as_blocks, 1, blocks(layout), 1, max(1, elements))
    goal = network.place(node.outputs[0], row_major(len(node.outputs[0].shape))).layout
    where = () if indices.constant else (network.find(indices).layout,)
    layer = LookupLayer(Identity(node.name, node.op), (table,), where, goal, {"add": 1})
    emit_lookup(network.builder, layer, network.chip)


def scatter(network: Network, group: Group) -> None:
    """ScatterND, ScatterElements: the data are copied, then the updates are written, each to its own place."""
    node = group.head
    data, indices, updates = node.input(0), node.input(1), node.input(2)
    order = row_major(len(data.shape))
    source = network.in_order(data, order)
    goal = network.place(node.outputs[0], order).layout
    copied = StreamLayer(Identity(f"{node.name} (copy)", node.op), (Read(source),), goal, {})
    emit_stream(network.builder, copied, network.chip)
    if node.op == "ScatterND":
        depth = indices.shape[-1]
        lookups = math.prod(indices.shape[:-1])
        whole = depth < len(data.shape)
        table = Table(goal, 1, math.prod(data.shape[:depth]), math.prod(data.shape[depth:-1]), lookups)
    else:
        lookups, whole = updates.elements, False
        table = Table(goal, 1, goal.pixels, 1, lookups)
    if not whole:
        request = goal.request_bytes
        as_blocks = replace(goal, physical=(blocks(goal), request // goal.element_bytes), pitch_bytes=request)
        table = Table(as_blocks, 1, blocks(goal), 1, lookups)
    emit_scatter(network, node, table, network.find(updates).layout, network.find(indices).layout)


def emit_scatter(network: Network, node: Node, table: Table, updates: Layout, indices: Layout) -> None:
    """Write rows of `updates` to the rows of `table` that `indices` name."""
    builder, chip = network.builder, network.chip
    request, units = chip.request_bytes, table.lookups
    sizes = [blocks(updates), blocks(indices)]
    unit_bytes = sum(math.ceil(size / units) for size in sizes) * request
    room = chip.spad_bytes // unit_bytes
    if room < 1:
        raise MappingError(f"layer {node.name} ({node.op}): one update needs {unit_bytes} bytes of scratchpad")
    builder.begin_layer(Identity(node.name, node.op).info())
    for core, start, count in shares(units, room, 1, unit_bytes, chip):
        builder.begin_tile(core)
        for entry, (layout, size) in enumerate(zip((updates, indices), sizes, strict=True)):
            first, end = start * size // units, math.ceil((start + count) * size / units)
            builder.load(entry, Descriptor(layout.base_byte // request + first, end - first))
        for piece in lookup_blocks(table, start, count):
            builder.store(0, piece, acc=False)
        builder.end_tile()
    builder.end_layer()


def embed_layer_normalization(network: Network, group: Group) -> None:
    """com.microsoft EmbedLayerNormalization: word, position and segment rows are looked up, summed and normalised."""
    node = group.head
    ids, target = node.input(0), node.outputs[0]
    segments, word, position, segment = (node.optional_input(index) for index in (1, 2, 3, 4))
    if word is None or position is None:
        raise unsupported(node, "needs its word and position embeddings")
    lookups = ids.elements
    order = row_major(3)
    goal = network.place(target, order).layout
    tables = [Table(network.find(item).layout, 1, item.shape[0], 1, lookups) for item in (word, position)]
    indices = [network.find(ids).layout]
    if segment is not None:
        tables.append(Table(network.find(segment).layout, 1, segment.shape[0], 1, lookups))
    if segments is not None:
        indices.append(network.find(segments).layout)
    total = present(node, 2)
    kept = () if total is None else (network.place(total, order).layout,)
    scales = [network.find(item).layout for index in (5, 6) if (item := node.optional_input(index)) is not None]
    cost = RowCost(
        {"add": len(tables), "mul": 1},
        2,
        {"scalar_mul": 2, "scalar_add": 1, "scalar_sqrt": 1, "div": 1},
        {"mul": 1, "mac": 1},
    )
    layer = LookupLayer(
        Identity(node.name, node.op),
        tuple(tables),
        tuple(indices),
        goal,
        row_cost=cost,
        constants=tuple((item.base_byte, item.total_bytes) for item in scales),
        kept=kept,
    )
    emit_lookup(network.builder, layer, network.chip)
    _mask_index(network, node)


def _mask_index(network: Network, node: Node) -> None:
    """The optional second output: the number of unmasked tokens of every sequence, a reduction of the mask."""
    tensor, mask = present(node, 1), node.optional_input(7)
    if tensor is None:
        return
    goal = network.place(tensor, row_major(len(tensor.shape))).layout
    if mask is None:
        return
    source = network.find(mask)
    rows = Rows(1, source.layout.channels, True, 0)
    layer = RowLayer(Identity(f"{node.name} (mask)", node.op), rows, (source.layout,), RowCost({}, 1, {}), (), (goal,))
    emit_rows(network.builder, layer, network.chip, network.space)


HANDLERS: dict[str, Handler] = {
    "Gather": gather,
    "GatherND": gather_nd,
    "GatherElements": gather_elements,
    "ScatterND": scatter,
    "ScatterElements": scatter,
    "Scatter": scatter,
    "EmbedLayerNormalization": embed_layer_normalization,
}
