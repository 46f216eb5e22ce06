"""Matrix layers (convolutions and matrix products): mapping -> tiles -> instructions.

A tile holds one input window (scratchpad entry 0), its weights (entries 1 and on) and, when it completes its
outputs, the fused residuals. All partial sums of a tile are one accumulator entry. Tiles that split the reduction
follow one another on one core and keep their partial sums ("a chain"); the first loads the bias, the last runs
the epilogue on the vector unit and stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from hwconfigs.schema import CoreConfig
from lowering.address_space import AddressSpace
from lowering.array_timing import RowGroups, group_rows, tile_cycles
from lowering.balance import balance
from lowering.chip import Chip
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.layout import Layout
from lowering.mapper import Budget, granules
from lowering.mapping import (
    ACCUMULATOR_BYTES,
    Mapping,
    MappingError,
    MatmulShape,
    diagonal_groups,
    kernel_positions,
    ranges,
)
from lowering.mapping_table import lines_of
from lowering.operators import Cost, latency, times
from lowering.parts import CoreKind, Forced, Heuristic, MappingChooser, Part
from lowering.program import LayerInfo
from lowering.weight_layout import place_streams

MAX_WEIGHT_ENTRIES = 480
"""Scratchpad entries for weight blocks in one tile."""

FINE_BLOCK_BYTES = 4096
"""Weight blocks of at least this size are loaded one by one, so that computing starts with the first; smaller ones
(small arrays, whose tiles are small as well) come as one transfer."""

_X = 0
_WEIGHTS = 1
"""First entries in the scratchpad."""

_SUMS = 0
_BIAS = 1
"""Entries in the accumulators. The bias has its own: tiles of one chain may overtake one another, so that a partial
sum can come before the bias. The epilogue waits for both."""


@dataclass(frozen=True)
class BatchedOperands:
    """A batch of products of two computed matrices: the groups of the layer are the batch.

    x_pixels, w_pixels, y_pixels: first pixel of each product's operands. transposed: the right operand is stored
    with the reduction innermost (pixels are output columns).
    """

    weights: Layout
    x_pixels: tuple[int, ...]
    w_pixels: tuple[int, ...]
    y_pixels: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class OutputGrid:
    """Outputs that are every `step`-th (row, column) from `first` on of images of `size`, not neighbours."""

    first: tuple[int, int]
    step: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class MatmulLayer:
    """One matrix layer with its fused operators.

    x, y: input and output, pixels in the order images, rows, columns. batched: None for constant weights, which are
    stored tile by tile in the order of use. bias: whether 4 bytes for each output channel are added.
    residuals: tensors laid out like `y` that are added (or multiplied). epilogue: vector operations for each output,
    the residuals' included. grid: where the outputs lie in `y` when they are not all of it.
    """

    name: str
    op: str
    shape: MatmulShape
    x: Layout
    y: Layout
    batched: BatchedOperands | None = None
    bias: bool = False
    residuals: tuple[Layout, ...] = ()
    epilogue: Cost = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    grid: OutputGrid | None = None


@dataclass(frozen=True)
class OutputTile:
    """Outputs of one chain: (start, length) of images, rows, columns and channels of group number `group`."""

    group: int
    images: tuple[int, int]
    rows: tuple[int, int]
    cols: tuple[int, int]
    channels: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Output pixels."""
        return self.images[1] * self.rows[1] * self.cols[1]


@dataclass(frozen=True)
class ReductionStep:
    """One tile's share of the reduction: (start, length) of kernel rows, kernel columns and input channels."""

    kernel_rows: tuple[int, int]
    kernel_cols: tuple[int, int]
    channels: tuple[int, int]


@dataclass(frozen=True)
class WeightBlocks:
    """The stationary blocks of one tile, output blocks outermost.

    shapes: (weights along the reduction, output channels) of each; macs_per_row: useful products of each streamed
    row, all blocks together; sizes_bytes: bytes of each block in whole requests; output_blocks: different outputs.
    """

    shapes: tuple[tuple[int, int], ...]
    macs_per_row: int
    sizes_bytes: tuple[int, ...]
    output_blocks: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(self.sizes_bytes)


@dataclass(frozen=True)
class Plan:
    """A layer cut into chains: which core runs which.

    parts: what each kind of core computes; steps: the reduction steps that all chains of each part take.
    """

    layer: MatmulLayer
    parts: tuple[Part, ...]
    steps: tuple[tuple[ReductionStep, ...], ...]
    cores: tuple[tuple[OutputTile, ...], ...]

    def part_of(self, core: int) -> tuple[Mapping, tuple[ReductionStep, ...]]:
        """Tile sizes and reduction steps of a core that has work."""
        index = next(index for index, part in enumerate(self.parts) if core in part.cores)
        return self.parts[index].mapping, self.steps[index]


def plan_matmul(layer: MatmulLayer, chip: Chip, mapping: Mapping | MappingChooser | None = None) -> Plan:
    """Cut the layer into tiles and give them to cores. Raises MappingError when no tile fits."""
    chooser = Forced(mapping) if isinstance(mapping, Mapping) else mapping or Heuristic()
    kinds = _core_kinds(layer, chip)
    try:
        parts = chooser.parts(layer.name, layer.shape, kinds)
    except MappingError as error:
        raise MappingError(f"layer {layer.name} ({layer.op}): {error}") from None
    cores: list[tuple[OutputTile, ...]] = [()] * chip.n_cores
    steps = []
    for part in parts:
        budget = next(kind.budget for kind in kinds if part.cores[0] in kind.cores)
        tiles, part_steps = _cut(layer.shape, part, granules(layer.shape, budget))
        mine = [chip.cores[core] for core in part.cores]
        costs = {
            core: [_chain_cycles(layer.shape, tile, part_steps, core, part.mapping) for tile in tiles]
            for core in dict.fromkeys(mine)
        }
        for core, share in zip(part.cores, balance([costs[core] for core in mine]), strict=True):
            cores[core] = tuple(tiles[item] for item in share)
        steps.append(part_steps)
    return Plan(layer, parts, tuple(steps), tuple(cores))


def _core_kinds(layer: MatmulLayer, chip: Chip) -> tuple[CoreKind, ...]:
    """The cores by what tile sizes depend on: array, memories, and whether the array drains."""
    members: dict[tuple[int, int, int, int, bool], list[int]] = {}
    for index, core in enumerate(chip.cores):
        key = (core.rows, core.cols, core.spad_kib, core.acc_kib, core.drains_between_tiles)
        members.setdefault(key, []).append(index)
    return tuple(
        CoreKind(
            tuple(indices),
            Budget(
                n_cores=len(indices),
                array_rows=rows,
                array_cols=cols,
                spad_bytes=spad_kib * 1024 // 2,
                acc_bytes=acc_kib * 1024 // 2,
                element_bytes=chip.element_bytes,
                request_bytes=chip.request_bytes,
                in_pitch_bytes=layer.x.pitch_bytes,
                residual_bytes=len(layer.residuals) * chip.element_bytes,
                drains=drains,
            ),
        )
        for (rows, cols, spad_kib, acc_kib, drains), indices in members.items()
    )


def _cut(shape: MatmulShape, part: Part, step: Mapping) -> tuple[list[OutputTile], tuple[ReductionStep, ...]]:
    """Output tiles and reduction steps of a part; `step`: the granules of its cores."""
    inner, exact = part.mapping, part.mapping.exact

    def cut(span: tuple[int, int], size: int, granule: int) -> list[tuple[int, int]]:
        return [(span[0] + start, length) for start, length in ranges(span[1], size, granule, exact)]

    tiles = [
        OutputTile(group, images, rows, cols, channels)
        for images in cut(part.span("N", shape.images), inner.N, 1)
        for group in range(shape.groups // shape.tile_groups)
        for rows in cut(part.span("P", shape.out_rows), inner.P, step.P)
        for cols in cut(part.span("Q", shape.out_cols), inner.Q, step.Q)
        for channels in cut(part.span("M", shape.tile_out_channels), inner.M, step.M)
    ]
    steps = tuple(
        ReductionStep(kernel_rows, kernel_cols, channels)
        for channels in ranges(shape.in_channels, inner.C, step.C, exact)
        for kernel_rows in ranges(shape.kernel_rows, inner.S, 1, exact)
        for kernel_cols in ranges(shape.kernel_cols, inner.R, 1, exact)
    )
    return tiles, steps


def emit_matmul(builder: ProgramBuilder, plan: Plan, chip: Chip, space: AddressSpace) -> None:
    """Write the layer's tiles. Raises MappingError when a forced mapping does not fit."""
    layer = plan.layer
    systolic = 0
    for index, tiles in enumerate(plan.cores):
        if tiles:
            mapping, steps = plan.part_of(index)
            systolic += sum(_chain_cycles(layer.shape, tile, steps, chip.cores[index], mapping) for tile in tiles)
    builder.begin_layer(
        LayerInfo(
            layer.name,
            layer.op,
            macs=layer.shape.macs,
            systolic_cycles=systolic,
            notes=layer.notes,
            mapping=lines_of(layer.name, layer.shape, plan.parts, chip.n_cores),
        )
    )
    writer = _Writer(builder, plan, chip, _Weights(plan, chip, space))
    if layer.bias:
        writer.bias_base = space.allocate(layer.shape.groups * layer.shape.out_channels * ACCUMULATOR_BYTES)
    for index, tiles in enumerate(plan.cores):
        for tile in tiles:
            writer.chain(index, tile)
    builder.end_layer()


# -- weights


@lru_cache(maxsize=65536)
def weight_blocks(
    shape: MatmulShape,
    channels_out: int,
    step: ReductionStep,
    array: tuple[int, int],
    exact: bool,
    unit_bytes: tuple[int, int],
) -> WeightBlocks:
    """The stationary blocks of a tile of `channels_out` outputs on an array of (rows, columns).

    exact: a forced mapping, one kernel position a block. unit_bytes: (element, request) bytes.
    """
    array_rows, array_cols = array
    positions, channels = step.kernel_rows[1] * step.kernel_cols[1], step.channels[1]
    packed = 1 if exact else kernel_positions(shape, array_rows)
    if packed > 1 and channels == shape.in_channels:
        depths = [length * channels for _, length in ranges(positions, packed, 1, True)]
    else:
        depths = [length for _, length in ranges(channels, array_rows, 1, True)] * positions
    per_block = array_cols
    if shape.diagonal:
        per_block = shape.out_channels * diagonal_groups(
            shape.in_channels, shape.out_channels, shape.groups, array_rows, array_cols
        )
    widths = [length for _, length in ranges(channels_out, per_block, 1, True)]
    shapes = tuple((depth, width) for width in widths for depth in depths)
    element, request = unit_bytes
    return WeightBlocks(
        shapes,
        sum(depth * width for depth, width in shapes),
        tuple(math.ceil(depth * width * element / request) * request for depth, width in shapes),
        len(widths),
    )


@dataclass(frozen=True)
class _WeightsOf:
    """What the places of a tile's constant weights depend on. array: cores of other arrays have their own copies."""

    group: int
    channels: tuple[int, int]
    step: ReductionStep
    array: tuple[int, int]


@dataclass
class _Weights:
    """Where the constant weights lie: those of tiles that the cores work on at the same time are placed together."""

    plan: Plan
    chip: Chip
    space: AddressSpace
    places: dict[_WeightsOf, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plan.layer.batched is not None:
            return
        for position in range(max(map(len, self.plan.cores))):
            at_work = [(core, tiles[position]) for core, tiles in enumerate(self.plan.cores) if position < len(tiles)]
            steps = [self.plan.part_of(core)[1] for core, _ in at_work]
            for number in range(max(map(len, steps))):
                self._place(
                    [
                        (tile, own[number], self.chip.cores[core])
                        for (core, tile), own in zip(at_work, steps, strict=True)
                        if number < len(own)
                    ]
                )

    def _place(self, together: Sequence[tuple[OutputTile, ReductionStep, CoreConfig]]) -> None:
        pieces = {
            key: self.pieces(tile, step, core)
            for tile, step, core in together
            if (key := _weights_of(tile, step, core)) not in self.places
        }
        if pieces:
            streams = place_streams(self.space, tuple(pieces.values()), self.chip.open_rows)
            self.places |= zip(pieces, streams, strict=True)

    def blocks(self, tile: OutputTile, step: ReductionStep, core: CoreConfig) -> WeightBlocks:
        """The blocks that the tile needs on `core`."""
        units = (self.chip.element_bytes, self.chip.request_bytes)
        exact = self.plan.parts[0].mapping.exact
        return weight_blocks(self.plan.layer.shape, tile.channels[1], step, (core.rows, core.cols), exact, units)

    def pieces(self, tile: OutputTile, step: ReductionStep, core: CoreConfig) -> tuple[int, ...]:
        """Bytes of each of the tile's transfers: its blocks, or all of them in one."""
        blocks = self.blocks(tile, step, core)
        fine = core.rows * core.cols * self.chip.element_bytes >= FINE_BLOCK_BYTES
        return blocks.sizes_bytes if fine and len(blocks.shapes) <= MAX_WEIGHT_ENTRIES else (blocks.total_bytes,)

    def descriptors(self, tile: OutputTile, step: ReductionStep, core: CoreConfig) -> list[Descriptor]:
        """The tile's transfers."""
        request = self.chip.request_bytes
        addresses = self.places[_weights_of(tile, step, core)]
        sizes = self.pieces(tile, step, core)
        return [Descriptor(address // request, size // request) for address, size in zip(addresses, sizes, strict=True)]


def _weights_of(tile: OutputTile, step: ReductionStep, core: CoreConfig) -> _WeightsOf:
    return _WeightsOf(tile.group, tile.channels, step, (core.rows, core.cols))


def _chain_cycles(
    shape: MatmulShape, tile: OutputTile, steps: Sequence[ReductionStep], core: CoreConfig, mapping: Mapping
) -> int:
    """Cycles in which the array of `core` is busy with a chain."""
    groups, array = _groups(tile, core, mapping), (core.rows, core.cols)
    total = 0
    for step in steps:
        blocks = len(weight_blocks(shape, tile.channels[1], step, array, mapping.exact, (1, 1)).shapes)
        total += tile_cycles(blocks, groups, core)
    return total


def _groups(tile: OutputTile, core: CoreConfig, mapping: Mapping) -> RowGroups:
    return group_rows(tile.images[1], tile.rows[1], tile.cols[1], (mapping.P, mapping.Q), core.rows)


# -- instructions


@dataclass
class _Writer:
    builder: ProgramBuilder
    plan: Plan
    chip: Chip
    weights: _Weights
    bias_base: int | None = None
    chains: int = 0

    def chain(self, core_index: int, tile: OutputTile) -> None:
        """All tiles of one output tile, on one core."""
        _, steps = self.plan.part_of(core_index)
        for index, step in enumerate(steps):
            self.builder.begin_tile(core_index, accumulate=index > 0, acc_key=self.chains)
            self._tile(core_index, tile, step, first=index == 0, last=index == len(steps) - 1)
            self.builder.end_tile()
        self.chains += 1

    def _tile(self, core_index: int, tile: OutputTile, step: ReductionStep, first: bool, last: bool) -> None:
        core, layer = self.chip.cores[core_index], self.plan.layer
        groups = _groups(tile, core, self.plan.part_of(core_index)[0])
        blocks = self.weights.blocks(tile, step, core)
        if first and self.bias_base is not None:
            start = self._first_channel(tile) * ACCUMULATOR_BYTES
            length = tile.channels[1] * ACCUMULATOR_BYTES
            bias = Descriptor.contiguous(self.bias_base + start, length, self.chip.request_bytes)
            self.builder.load(_BIAS, bias, acc=True)
        window = self._load_window(tile, step)
        per_block, weight_entries, weight_bytes = self._load_weights(tile, step, core, blocks)
        residual_entry = _WEIGHTS + weight_entries
        residual = self._load_residuals(tile, residual_entry) if last else 0
        self._check_capacity(window + weight_bytes + residual, tile, core_index)
        self.builder.systolic(
            dst=Operand(_SUMS, acc=True),
            src_a=Operand(_X if window else _WEIGHTS),
            src_b=Operand(_WEIGHTS, (int(per_block), 0, 0)),
            counts=(len(blocks.shapes), groups.lines, groups.passes),
            size2=groups.size,
            preload="first",
            first_sums=groups.streamed * blocks.output_blocks * core.cols if first else 0,
        )
        if last:
            self._epilogue(tile, core, residual_entry)
            self.builder.store(_SUMS, self._output(layer.y, tile))

    def _epilogue(self, tile: OutputTile, core: CoreConfig, residual_entry: int) -> None:
        layer = self.plan.layer
        elements = tile.pixels * tile.channels[1]
        units = vector_units(elements * self.chip.element_bytes, core)
        acc, cycles = Operand(_SUMS, acc=True), latency(layer.epilogue, core)
        others = [Operand(residual_entry + index) for index in range(len(layer.residuals))]
        if self.bias_base is not None:
            others.append(Operand(_BIAS, acc=True))
        if not cycles and not others:
            return
        self.builder.vector(
            dst=acc,
            src_a=acc,
            src_b=others[0] if others else None,
            size1=Extent(units),
            size2=Extent(cycles),
            elements=elements,
            operations=times(layer.epilogue, elements),
        )
        # Further operands are awaited by instructions that take no time of their own.
        for other in others[1:]:
            self.builder.vector(dst=acc, src_a=acc, src_b=other, size1=Extent(0), elements=elements)

    # -- loads; each returns the scratchpad bytes it fills (data only: whole requests matter in DRAM, not here)

    def _load_window(self, tile: OutputTile, step: ReductionStep) -> int:
        """The pixels of the input that the tile reads, clipped to the image."""
        shape, x = self.plan.layer.shape, self.plan.layer.x
        rows, cols = (
            input_lines(out, kernel, shape.stride[axis], shape.dilation[axis], shape.pads[axis], size)
            for axis, (out, kernel, size) in enumerate(
                ((tile.rows, step.kernel_rows, shape.in_rows), (tile.cols, step.kernel_cols, shape.in_cols))
            )
        )
        if not rows.count or not cols.count:
            return 0
        channel, channels = self._input_channels(tile, step)
        image = shape.in_rows * shape.in_cols
        first = rows.first * shape.in_cols + cols.first
        batched = self.plan.layer.batched
        if batched is not None:
            first += batched.x_pixels[tile.group]
        else:
            first += tile.images[0] * image
        levels = ((tile.images[1], image), (rows.count, rows.step * shape.in_cols), (cols.count, cols.step))
        self.builder.load(_X, x.region(first, levels, channel, channels))
        return tile.images[1] * rows.count * cols.count * channels * self.chip.element_bytes

    def _load_weights(
        self, tile: OutputTile, step: ReductionStep, core: CoreConfig, blocks: WeightBlocks
    ) -> tuple[bool, int, int]:
        """Returns whether each block has its own entry, the number of entries, and the bytes."""
        batched = self.plan.layer.batched
        if batched is not None:
            first, out = batched.w_pixels[tile.group], tile.channels
            reduction = step.channels
            pixels, channels = (out, reduction) if batched.transposed else (reduction, out)
            descriptor = batched.weights.region(first + pixels[0], ((pixels[1], 1),), channels[0], channels[1])
            self.builder.load(_WEIGHTS, descriptor)
            return False, 1, pixels[1] * channels[1] * self.chip.element_bytes
        transfers = self.weights.descriptors(tile, step, core)
        self.builder.load_many((_WEIGHTS + index, transfer) for index, transfer in enumerate(transfers))
        return len(transfers) > 1, len(transfers), blocks.macs_per_row * self.chip.element_bytes

    def _load_residuals(self, tile: OutputTile, entry: int) -> int:
        residuals = self.plan.layer.residuals
        for index, layout in enumerate(residuals):
            self.builder.load(entry + index, self._output(layout, tile))
        return len(residuals) * tile.pixels * tile.channels[1] * self.chip.element_bytes

    # -- places

    def _first_channel(self, tile: OutputTile) -> int:
        """Output channel of the whole layer at which the tile begins."""
        shape = self.plan.layer.shape
        own = tile.channels[0]
        return own if self.plan.layer.batched is not None else own + tile.group * shape.tile_out_channels

    def _input_channels(self, tile: OutputTile, step: ReductionStep) -> tuple[int, int]:
        """(first, number of) input channels of the whole layer that the tile reads."""
        shape = self.plan.layer.shape
        if shape.diagonal:
            group, groups = tile.channels[0] // shape.out_channels, tile.channels[1] // shape.out_channels
            return group * shape.in_channels, groups * shape.in_channels
        start = step.channels[0]
        if self.plan.layer.batched is None:
            start += tile.group * shape.in_channels
        return start, step.channels[1]

    def _output(self, layout: Layout, tile: OutputTile) -> Descriptor:
        """The tile's outputs in a tensor laid out like `y`."""
        shape, batched, grid = self.plan.layer.shape, self.plan.layer.batched, self.plan.layer.grid
        if grid is not None:
            image = grid.size[0] * grid.size[1]
            line, column = grid.step[0] * grid.size[1], grid.step[1]
            first = tile.images[0] * image + (grid.first[0] + tile.rows[0] * grid.step[0]) * grid.size[1]
            first += grid.first[1] + tile.cols[0] * column
            levels = ((tile.images[1], image), (tile.rows[1], line), (tile.cols[1], column))
            return layout.region(first, levels, self._first_channel(tile), tile.channels[1])
        image = shape.out_rows * shape.out_cols
        first = tile.rows[0] * shape.out_cols + tile.cols[0]
        first += batched.y_pixels[tile.group] if batched is not None else tile.images[0] * image
        levels = ((tile.images[1], image), (tile.rows[1], shape.out_cols), (tile.cols[1], 1))
        return layout.region(first, levels, self._first_channel(tile), tile.channels[1])

    def _check_capacity(self, spad: int, tile: OutputTile, core_index: int) -> None:
        layer, core = self.plan.layer, self.chip.cores[core_index]
        origin = self.plan.part_of(core_index)[0].origin
        acc = tile.pixels * tile.channels[1] * ACCUMULATOR_BYTES
        for what, key, needed, half in (
            ("scratchpad", "cores.spad_kib", spad, core.spad_kib * 512),
            ("accumulators", "cores.acc_kib", acc, core.acc_kib * 512),
        ):
            if needed > half:
                raise MappingError(
                    f"layer {layer.name} ({layer.op}): {origin + ': ' if origin else ''}a tile needs {needed} bytes of "
                    f"{what}, half of them is {half}; use a smaller mapping or enlarge {key}"
                )


@dataclass(frozen=True)
class Lines:
    """`count` input rows (or columns) from `first` on, `step` apart."""

    first: int
    count: int
    step: int


def input_lines(
    out: tuple[int, int], kernel: tuple[int, int], stride: int, dilation: int, pad: int, size: int
) -> Lines:
    """The input lines that outputs `out` = (start, length) read through kernel lines `kernel`, inside 0..size.

    One kernel line reads every `stride`-th input line; more than one reads the whole window between the first and
    the last, as one rectangular transfer.
    """
    start = out[0] * stride - pad + kernel[0] * dilation
    end = (out[0] + out[1] - 1) * stride - pad + (kernel[0] + kernel[1] - 1) * dilation
    step = stride if kernel[1] == 1 else 1
    first = start if start >= 0 else start + -(start // step) * step
    last = min(end, size - 1)
    return Lines(first, max(0, (last - first) // step + 1), step)


def vector_units(n_bytes: int, core: CoreConfig) -> int:
    """Vector-unit operations that cover `n_bytes`."""
    return math.ceil(n_bytes / (core.vector_bits // 8))
