"""Layers without the systolic array: elementwise operators, row-wise ones, pooling, and copies.

A tile loads its operands into one scratchpad entry each, computes into another, and stores that. Work is cut into
equal shares, at least `TILES_PER_CORE` for each core where there is enough of it, so that loads, computing and
stores of neighbouring tiles overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hwconfigs.schema import CoreConfig
from lowering.address_space import AddressSpace
from lowering.balance import balance
from lowering.chip import Chip
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.layout import Layout
from lowering.mapping import ACCUMULATOR_BYTES, MappingError, ranges
from lowering.matmul import Lines, input_lines, vector_units
from lowering.operators import Cost, add_costs, latency, softmax_operations, softmax_row_cycles, times
from lowering.program import LayerInfo

TILES_PER_CORE = 4
"""Tiles per core that a layer is cut into when capacity alone would allow fewer."""

MIN_TILE_BYTES = 2048
"""Cutting finer than this to get more tiles per core is not worth a tile's overhead."""


@dataclass(frozen=True)
class Identity:
    """Name, operator and remarks of a layer in the report."""

    name: str
    op: str
    notes: tuple[str, ...] = ()

    def info(self) -> LayerInfo:
        """The layer's entry; traffic and cycles are counted by the builder."""
        return LayerInfo(self.name, self.op, notes=self.notes)


# -- elementwise


@dataclass(frozen=True)
class ElementwiseLayer:
    """result = f(operands), element by element.

    operands: tensors that are read; those as large as the result are read alongside it, smaller ones are broadcast:
    read whole by every tile when they are small, else the part that lies alongside.
    constant_bytes: per-channel constants, read by every tile (base address, bytes). cost: operations for each element.
    granule_bytes: tiles are multiples of this many bytes of the result.
    """

    identity: Identity
    result: Layout
    operands: tuple[Layout, ...]
    cost: Cost
    constant_bytes: int = 0


def emit_elementwise(builder: ProgramBuilder, layer: ElementwiseLayer, chip: Chip, space: AddressSpace) -> None:
    """Write the layer. Raises MappingError when not even one memory block of every operand fits."""
    request = chip.request_bytes
    blocks = math.ceil(layer.result.total_bytes / request)
    full = [operand for operand in layer.operands if operand.total_bytes >= layer.result.total_bytes]
    broadcast = [operand for operand in layer.operands if operand.total_bytes < layer.result.total_bytes]
    small = sum(min(_blocks(operand), chip.spad_bytes // 8 // request) for operand in broadcast) * request
    fixed = small + layer.constant_bytes
    room = (chip.spad_bytes - fixed) // ((len(full) + 1) * request)
    if room < 1:
        raise MappingError(
            f"layer {layer.identity.name} ({layer.identity.op}): a tile needs at least "
            f"{fixed + (len(full) + 1) * request} bytes of scratchpad, half of it is {chip.spad_bytes}; "
            "enlarge cores.spad_kib"
        )
    constants = space.allocate(layer.constant_bytes) if layer.constant_bytes else None
    builder.begin_layer(layer.identity.info())
    for core, start, count in shares(blocks, room, 1, request, chip):
        builder.begin_tile(core)
        for entry, operand in enumerate(layer.operands):
            builder.load(entry, _alongside(operand, layer.result, start, count, chip))
        entries = len(layer.operands)
        if constants is not None:
            builder.load(entries, Descriptor.contiguous(constants, layer.constant_bytes, request))
        _compute(builder, entries, constants is not None, layer.cost, count * request, chip, chip.cores[core])
        builder.store(entries + 1, block_span(layer.result, start, count), acc=False)
        builder.end_tile()
    builder.end_layer()


def _compute(
    builder: ProgramBuilder, operands: int, constants: bool, cost: Cost, n_bytes: int, chip: Chip, core: CoreConfig
) -> None:
    """One vector instruction; further ones of no duration wait for operands beyond the second."""
    result = Operand(operands + 1)
    sources = [Operand(entry) for entry in range(operands + int(constants))]
    cycles = vector_units(n_bytes, core), latency(cost, core)
    second = sources[1] if len(sources) > 1 else None
    elements = n_bytes // chip.element_bytes
    builder.vector(
        dst=result,
        src_a=sources[0],
        src_b=second,
        size1=Extent(cycles[0]),
        size2=Extent(cycles[1]),
        elements=elements,
        operations=times(cost, elements),
    )
    for source in sources[2:]:
        builder.vector(dst=result, src_a=result, src_b=source, size1=Extent(0), elements=elements)


def _blocks(layout: Layout) -> int:
    return math.ceil(layout.total_bytes / layout.request_bytes)


def block_span(layout: Layout, first_block: int, blocks: int) -> Descriptor:
    """Consecutive memory blocks of a tensor."""
    return Descriptor(layout.base_byte // layout.request_bytes + first_block, blocks)


def _alongside(operand: Layout, result: Layout, start: int, count: int, chip: Chip) -> Descriptor:
    """The blocks of `operand` that a tile of `count` blocks from `start` of the result needs."""
    total = _blocks(operand)
    if operand.total_bytes >= result.total_bytes:
        return block_span(operand, start, min(count, total - start))
    small = chip.spad_bytes // 8 // chip.request_bytes
    if total <= small:
        return block_span(operand, 0, total)
    first = start % total
    return block_span(operand, first, min(count, small, total - first))


def shares(total: int, room: int, granule: int, unit_bytes: int, chip: Chip) -> list[tuple[int, int, int]]:
    """Cut 0..total into (core, start, length): at most `room` long, multiples of `granule`, evenly over the cores."""
    fitting = math.ceil(total / max(granule, room // granule * granule))
    wanted = min(chip.n_cores * TILES_PER_CORE, max(1, total * unit_bytes // MIN_TILE_BYTES))
    parts = max(fitting, wanted, min(chip.n_cores, math.ceil(total / granule)))
    parts = min(math.ceil(parts / chip.n_cores) * chip.n_cores, math.ceil(total / granule))
    pieces = _even(total, parts, granule)
    costs = [[length / _speed(core) for _, length in pieces] for core in chip.cores]
    return [(core, *pieces[item]) for core, items in enumerate(balance(costs)) for item in items]


def _even(total: int, parts: int, granule: int) -> list[tuple[int, int]]:
    granules = math.ceil(total / granule)
    edges = [granules * part // parts * granule for part in range(parts)] + [total]
    return [(edges[i], edges[i + 1] - edges[i]) for i in range(parts)]


def _speed(core: CoreConfig) -> float:
    return float(core.vector_bits)


# -- softmax


@dataclass(frozen=True)
class SoftmaxLayer:
    """Softmax over rows of `row_elements` elements.

    group_pixels: pixels that belong together, because they hold the elements of the same rows.
    """

    identity: Identity
    x: Layout
    y: Layout
    row_elements: int
    group_pixels: int


def emit_softmax(builder: ProgramBuilder, layer: SoftmaxLayer, chip: Chip) -> None:
    """Write the layer. Raises MappingError when one row group does not fit the scratchpad."""
    group_bytes = layer.group_pixels * layer.x.pitch_bytes
    room = chip.spad_bytes // (2 * group_bytes)
    if room < 1:
        raise MappingError(
            f"layer {layer.identity.name} ({layer.identity.op}): a row and its result need {2 * group_bytes} bytes of "
            f"scratchpad, half of it is {chip.spad_bytes}; enlarge cores.spad_kib"
        )
    rows_per_group = layer.group_pixels * layer.x.channels // layer.row_elements
    builder.begin_layer(layer.identity.info())
    for core, start, count in shares(layer.x.pixels // layer.group_pixels, room, 1, group_bytes, chip):
        first, pixels = start * layer.group_pixels, count * layer.group_pixels
        per_row = softmax_row_cycles(layer.row_elements * chip.element_bytes, chip.cores[core])
        rows = max(1, count * rows_per_group)
        elements = rows * layer.row_elements
        builder.begin_tile(core)
        builder.load(0, layer.x.span(first, pixels))
        # Three passes over a row: maximum, exponentials with their sum, scaling. The first writes nothing.
        builder.vector(
            dst=Operand(1),
            src_a=Operand(0),
            size1=Extent(per_row),
            size2=Extent(rows),
            elements=3 * elements,
            results=2 * elements,
            operations=softmax_operations(rows, elements),
        )
        builder.store(1, layer.y.span(first, pixels), acc=False)
        builder.end_tile()
    builder.end_layer()


# -- pooling


@dataclass(frozen=True)
class PoolLayer:
    """Pooling of images in rows and columns.

    sizes: (rows, columns) of input, output, kernel, stride, dilation; pads at the top and at the left.
    per_input: operations for each element of a window; per_output: for each result.
    """

    identity: Identity
    x: Layout
    y: Layout
    images: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]
    per_input: Cost
    per_output: Cost


@dataclass(frozen=True)
class _PoolCut:
    """Tile sizes: output rows and columns, channels, kernel rows (fewer than all: partial results are kept)."""

    rows: int
    cols: int
    channels: int
    kernel_rows: int


def emit_pool(builder: ProgramBuilder, layer: PoolLayer, chip: Chip) -> None:
    """Write the layer. Raises MappingError when no window fits."""
    cut = _cut_pool(layer, chip)
    granule = max(1, chip.request_bytes // chip.element_bytes)
    pieces = [
        (image, rows, cols, channels)
        for image in range(layer.images)
        for rows in ranges(layer.out_size[0], cut.rows, 1, exact=False)
        for cols in ranges(layer.out_size[1], cut.cols, 1, exact=False)
        for channels in ranges(layer.x.channels, cut.channels, granule, exact=False)
    ]
    steps = ranges(layer.kernel[0], cut.kernel_rows, 1, exact=False)
    work = [rows[1] * cols[1] * channels[1] for _, rows, cols, channels in pieces]
    builder.begin_layer(layer.identity.info())
    assigned = balance([[item / _speed(core) for item in work] for core in chip.cores])
    for core, items in enumerate(assigned):
        for item in items:
            _pool_chain(builder, layer, chip, core, (*pieces[item], steps), item)
    builder.end_layer()


def _pool_chain(
    builder: ProgramBuilder,
    layer: PoolLayer,
    chip: Chip,
    core_index: int,
    piece: tuple[int, tuple[int, int], tuple[int, int], tuple[int, int], list[tuple[int, int]]],
    key: int,
) -> None:
    """One output piece: a single tile, or several that take some kernel rows each and keep partial results."""
    image, rows, cols, channels, steps = piece
    core = chip.cores[core_index]
    outputs = rows[1] * cols[1] * channels[1]
    units = vector_units(outputs * chip.element_bytes, core)
    split = len(steps) > 1
    result = Operand(0, acc=True) if split else Operand(1)
    for index, kernel_rows in enumerate(steps):
        builder.begin_tile(core_index, accumulate=index > 0, acc_key=key)
        window = _window(layer, rows, cols, kernel_rows)
        loaded = _load_window(builder, layer, window, image, channels)
        positions = kernel_rows[1] * layer.kernel[1]
        cost = times(layer.per_input, positions)
        if index == len(steps) - 1:
            cost = add_costs(cost, layer.per_output)
        if loaded:
            builder.vector(
                dst=result,
                src_a=Operand(0),
                size1=Extent(units),
                size2=Extent(latency(cost, core)),
                elements=positions * outputs,
                results=outputs,
                operations=times(cost, outputs),
            )
        if index == len(steps) - 1:
            first = (image * layer.out_size[0] + rows[0]) * layer.out_size[1] + cols[0]
            levels = ((rows[1], layer.out_size[1]), (cols[1], 1))
            builder.store(result.entry, layer.y.region(first, levels, *channels), acc=split)
        builder.end_tile()


def _window(
    layer: PoolLayer, rows: tuple[int, int], cols: tuple[int, int], kernel_rows: tuple[int, int]
) -> tuple[Lines, Lines]:
    lines = (
        input_lines(out, kernel, layer.stride[axis], layer.dilation[axis], layer.pads[axis], layer.in_size[axis])
        for axis, (out, kernel) in enumerate(((rows, kernel_rows), (cols, (0, layer.kernel[1]))))
    )
    first, second = lines
    return first, second


def _load_window(
    builder: ProgramBuilder, layer: PoolLayer, window: tuple[Lines, Lines], image: int, channels: tuple[int, int]
) -> bool:
    """Load the window into entry 0; False when it lies in the padding altogether."""
    rows, cols = window
    if not rows.count or not cols.count:
        return False
    first = (image * layer.in_size[0] + rows.first) * layer.in_size[1] + cols.first
    levels = ((rows.count, rows.step * layer.in_size[1]), (cols.count, cols.step))
    builder.load(0, layer.x.region(first, levels, *channels))
    return True


def _cut_pool(layer: PoolLayer, chip: Chip) -> _PoolCut:
    """The largest tiles that fit and give every core work: fewer rows first, then fewer channels, then columns."""
    granule = max(1, chip.request_bytes // chip.element_bytes)
    out_rows, out_cols = layer.out_size
    channel_sizes = _halvings(layer.x.channels, granule)
    cut = _PoolCut(out_rows, out_cols, layer.x.channels, layer.kernel[0])
    wanted = chip.n_cores * TILES_PER_CORE
    for kernel_rows in _halvings(layer.kernel[0], 1):
        for cols in _halvings(out_cols, 1):
            for channels in channel_sizes:
                for rows in _halvings(out_rows, 1):
                    cut = _PoolCut(rows, cols, channels, kernel_rows)
                    if _pool_fits(layer, cut, chip):
                        return _refine(layer, cut, granule, wanted)
    needed = _pool_bytes(layer, cut)
    raise MappingError(
        f"layer {layer.identity.name} ({layer.identity.op}): the smallest tile needs {needed} bytes of scratchpad, "
        f"half of it is {chip.spad_bytes}; enlarge cores.spad_kib"
    )


def _refine(layer: PoolLayer, cut: _PoolCut, granule: int, wanted: int) -> _PoolCut:
    """Cut rows, then channels, further until there are `wanted` tiles (or nothing is left to cut)."""

    def tiles(rows: int, channels: int) -> int:
        return (
            layer.images
            * math.ceil(layer.out_size[0] / rows)
            * math.ceil(layer.out_size[1] / cut.cols)
            * math.ceil(layer.x.channels / channels)
        )

    rows, channels = cut.rows, cut.channels
    while tiles(rows, channels) < wanted and rows > 1:
        rows = math.ceil(rows / 2)
    while tiles(rows, channels) < wanted and channels > granule:
        channels = math.ceil(channels / 2 / granule) * granule
    return _PoolCut(rows, cut.cols, channels, cut.kernel_rows)


def _pool_fits(layer: PoolLayer, cut: _PoolCut, chip: Chip) -> bool:
    acc = cut.rows * cut.cols * cut.channels * ACCUMULATOR_BYTES if cut.kernel_rows < layer.kernel[0] else 0
    return _pool_bytes(layer, cut) <= chip.spad_bytes and acc <= chip.acc_bytes


def _pool_bytes(layer: PoolLayer, cut: _PoolCut) -> int:
    """Scratchpad bytes of an unclipped tile: its window and its results."""
    rows = (cut.rows - 1) * layer.stride[0] + (cut.kernel_rows - 1) * layer.dilation[0] + 1
    cols = (cut.cols - 1) * layer.stride[1] + (layer.kernel[1] - 1) * layer.dilation[1] + 1
    window = min(rows, layer.in_size[0]) * min(cols, layer.in_size[1])
    return (window + cut.rows * cut.cols) * cut.channels * layer.x.element_bytes


def _halvings(size: int, granule: int) -> list[int]:
    """`size`, half of it, a quarter, ... down to one granule."""
    sizes = [size]
    while sizes[-1] > granule:
        sizes.append(max(granule, math.ceil(sizes[-1] / 2 / granule) * granule))
        if sizes[-1] == sizes[-2]:
            break
    return sizes


# -- copies


@dataclass(frozen=True)
class CopyPart:
    """A piece of a copy: `pixels` whole pixels of the source, and where they go."""

    source: Layout
    first: int
    pixels: int
    target_first: int
    target_channel: int = 0


@dataclass(frozen=True)
class CopyLayer:
    """Data moved through the scratchpad without computing (Concat)."""

    identity: Identity
    target: Layout
    parts: tuple[CopyPart, ...] = field(default=())


def emit_copy(builder: ProgramBuilder, layer: CopyLayer, chip: Chip) -> None:
    """Write the layer: every part is cut evenly over the cores."""
    builder.begin_layer(layer.identity.info())
    for part in layer.parts:
        room = chip.spad_bytes // part.source.pitch_bytes
        if room < 1:
            raise MappingError(
                f"layer {layer.identity.name} ({layer.identity.op}): one row needs {part.source.pitch_bytes} bytes of "
                f"scratchpad, half of it is {chip.spad_bytes}; enlarge cores.spad_kib"
            )
        for core, start, count in shares(part.pixels, room, 1, part.source.pitch_bytes, chip):
            builder.begin_tile(core)
            builder.load(0, part.source.span(part.first + start, count))
            target = layer.target.region(
                part.target_first + start, ((count, 1),), part.target_channel, part.source.channels
            )
            builder.store(0, target, acc=False)
            builder.end_tile()
    builder.end_layer()


@dataclass(frozen=True)
class PermuteLayer:
    """A physical transpose (or a change of layout): everything is loaded, rearranged by the vector unit, stored.

    Reading is contiguous; the scattered side is assumed to be gathered in the scratchpad into whole requests.
    """

    identity: Identity
    x: Layout
    y: Layout


def emit_permute(builder: ProgramBuilder, layer: PermuteLayer, chip: Chip) -> None:
    """Write the layer, one vector pass over all bytes."""
    source, target = _blocks(layer.x), _blocks(layer.y)
    smaller, larger = min(source, target), max(source, target)
    room = max(1, chip.spad_bytes // (2 * chip.request_bytes) * smaller // larger)
    builder.begin_layer(layer.identity.info())
    for core, start, count in shares(smaller, room, 1, chip.request_bytes, chip):
        reads, writes = _proportional(start, count, smaller, source), _proportional(start, count, smaller, target)
        units = vector_units(max(reads[1], writes[1]) * chip.request_bytes, chip.cores[core])
        builder.begin_tile(core)
        builder.load(0, block_span(layer.x, *reads))
        elements = max(reads[1], writes[1]) * chip.request_bytes // chip.element_bytes
        builder.vector(dst=Operand(1), src_a=Operand(0), size1=Extent(units), elements=elements)
        builder.store(1, block_span(layer.y, *writes), acc=False)
        builder.end_tile()
    builder.end_layer()


def _proportional(start: int, count: int, whole: int, part: int) -> tuple[int, int]:
    """(start, length) in a range of `part` that corresponds to a piece of a range of `whole`."""
    first = start * part // whole
    return first, (start + count) * part // whole - first
