"""The gradient of weights on the systolic array: dW = X^T dY, the reduction running over the pixels of the batch.

A block of the gradient (pixels x output channels) is stationary; what streams through is, for every input channel and
kernel position, the inputs that these pixels see. Each pass adds array-rows pixels to the sums in the accumulators.
Both operands are loaded as they lie (pixels x channels) and the input is transposed on its way to the array at no cost,
as by Gemmini's transposer (Genc et al., DAC 2021), the assumption that attention makes for its keys. Shapes are those
of `systolic.md` 1.6 (the kernel is the gradient, the batch its input channels) without its faults: the gradient is not
dilated by zeros, and only the kernel's positions are computed.

The output is small and the reduction long: where there are fewer output blocks than cores, the reduction is divided
among them, and a layer of the vector unit adds their partial sums (4 bytes each).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hwconfigs.schema import CoreConfig
from lowering.address_space import AddressSpace
from lowering.array_timing import RowGroups, group_rows, tile_cycles
from lowering.balance import balance
from lowering.chip import Chip
from lowering.emit import Operand, ProgramBuilder
from lowering.layout import Layout
from lowering.mapper import TILE_OVERHEAD_CYCLES
from lowering.mapping import ACCUMULATOR_BYTES, MappingError, ranges
from lowering.matmul import input_lines
from lowering.program import LayerInfo
from lowering.streams import Read, StreamLayer, emit_stream
from lowering.vector_layers import TILES_PER_CORE, Identity

Pair = tuple[int, int]

BYTES_PER_ARRAY_ROW = 4
"""DRAM bytes per cycle and array row that prices assume, as those of mappings do."""

_X, _DY, _SUMS = 0, 1, 0


@dataclass(frozen=True)
class WeightGradient:
    """One layer.

    products: independent products (a batch of matrices); images: of each. in_channels, out_channels: of one group.
    x: pixels (product, image, row, column) of all input channels. dy: the same of the outputs. result: pixels (product,
    input channel of a group, kernel row, kernel column) of all output channels.
    """

    identity: Identity
    x: Layout
    dy: Layout
    result: Layout
    in_channels: int
    out_channels: int
    in_size: Pair
    out_size: Pair
    images: int = 1
    products: int = 1
    groups: int = 1
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    pads: Pair = (0, 0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, products with padding zeros included."""
        pixels = self.products * self.images * math.prod(self.out_size)
        return pixels * self.groups * self.in_channels * self.out_channels * math.prod(self.kernel)


@dataclass(frozen=True)
class _Cut:
    """Sizes of a tile: groups, output and input channels of each, kernel rows; images, rows, columns."""

    groups: int
    out_channels: int
    in_channels: int
    kernel_rows: int
    images: int
    rows: int
    cols: int


@dataclass(frozen=True)
class _Block:
    """One output block: (start, length) of everything that it covers, and its share of the reduction."""

    product: int
    groups: Pair
    out_channels: Pair
    in_channels: Pair
    kernel_rows: Pair
    part: int


@dataclass(frozen=True)
class _Chunk:
    """Pixels of one step: (start, length) of images, rows, columns."""

    images: Pair
    rows: Pair
    cols: Pair

    @property
    def pixels(self) -> int:
        return self.images[1] * self.rows[1] * self.cols[1]


def emit_weight_gradient(builder: ProgramBuilder, layer: WeightGradient, chip: Chip, space: AddressSpace) -> None:
    """Write the layer, and the sum of its parts. Raises MappingError when the smallest tile does not fit."""
    cut = _choose(layer, chip)
    chunks = list(_chunks(layer, cut))
    whole = list(_blocks(layer, cut, 0))
    parts = _parts(len(whole), len(chunks), chip)
    shares = [
        chunks[start : start + length]
        for start, length in ranges(len(chunks), math.ceil(len(chunks) / parts), 1, False)
    ]
    targets = [layer.result] if len(shares) == 1 else [_partial(layer.result, space) for _ in shares]
    blocks = [replace(block, part=part) for part in range(len(shares)) for block in whole]
    costs = {
        core: [sum(_cycles(layer, block, chunk, core) for chunk in shares[block.part]) for block in blocks]
        for core in dict.fromkeys(chip.cores)
    }
    assigned = balance([costs[core] for core in chip.cores])
    busy = sum(costs[core][item] for core, items in zip(chip.cores, assigned, strict=True) for item in items)
    name = layer.identity.name if len(shares) == 1 else f"{layer.identity.name} ({len(shares)} parts)"
    info = LayerInfo(name, layer.identity.op, macs=layer.macs, systolic_cycles=busy, notes=(_note(cut),))
    builder.begin_layer(info)
    for core, items in enumerate(assigned):
        for item in items:
            block = blocks[item]
            for step, chunk in enumerate(shares[block.part]):
                builder.begin_tile(core, accumulate=step > 0, acc_key=item)
                _tile(builder, layer, block, chunk, chip.cores[core], first=step == 0)
                if step == len(shares[block.part]) - 1:
                    _store(builder, layer, block, targets[block.part])
                builder.end_tile()
    builder.end_layer()
    if len(shares) > 1:
        reads = tuple(Read(target) for target in targets)
        summed = StreamLayer(layer.identity, reads, layer.result, {"add": len(shares) - 1})
        emit_stream(builder, summed, chip)


def _note(cut: _Cut) -> str:
    return (
        f"tiles of {cut.images} images x {cut.rows} x {cut.cols} pixels, {cut.groups * cut.out_channels} output and "
        f"{cut.groups * cut.in_channels} input channels, {cut.kernel_rows} kernel rows"
    )


def _partial(result: Layout, space: AddressSpace) -> Layout:
    """Room for partial sums of the result."""
    pitch = result.pitch_bytes * ACCUMULATOR_BYTES // result.element_bytes
    base = space.allocate(result.pixels * pitch)
    return Layout(base, result.physical, ACCUMULATOR_BYTES, pitch, result.request_bytes)


# -- tiling


def _choose(layer: WeightGradient, chip: Chip) -> _Cut:
    """The cheapest cut that fits, by array cycles or DRAM bytes, whichever takes longer."""
    found = [(_price(layer, cut, chip), index, cut) for index, cut in enumerate(_fitting(layer, chip))]
    if not found:
        raise MappingError(
            f"layer {layer.identity.name} ({layer.identity.op}): no tile fits half the scratchpad "
            f"({chip.spad_bytes} bytes) and half the accumulators ({chip.acc_bytes} bytes); enlarge cores.spad_kib or "
            "cores.acc_kib"
        )
    return min(found)[2]


def _fitting(layer: WeightGradient, chip: Chip) -> Iterator[_Cut]:
    """All cuts that fit. Several groups are taken whole.

    Output channels of one group are cut in whole memory blocks, which are then written once.
    """
    lanes = max(1, chip.request_bytes // chip.element_bytes)
    for groups in _halvings(layer.groups, max(1, min(layer.groups, lanes // layer.out_channels))):
        alone = groups == 1
        for out_channels in _halvings(layer.out_channels, lanes if alone else layer.out_channels):
            for in_channels in _halvings(layer.in_channels, min(lanes, 8) if alone else layer.in_channels):
                for kernel_rows in _halvings(layer.kernel[0], 1):
                    yield from _with_pixels(layer, chip, _Cut(groups, out_channels, in_channels, kernel_rows, 1, 1, 1))


def _with_pixels(layer: WeightGradient, chip: Chip, cut: _Cut) -> Iterator[_Cut]:
    """The cut with the largest runs of pixels that fit, and shorter ones while there are too few to divide."""
    side_by_side = min(cut.groups, _groups_of_a_pass(layer, chip.array_cols))
    sums = cut.groups * side_by_side * cut.out_channels * cut.in_channels * cut.kernel_rows * layer.kernel[1]
    if sums * ACCUMULATOR_BYTES > chip.acc_bytes:
        return
    rows, cols = layer.out_size
    sizes = [(images, rows, cols) for images in _halvings(layer.images, 1)]
    sizes += [(1, part, cols) for part in _halvings(rows, 1)[1:]]
    sizes += [(1, 1, part) for part in _halvings(cols, 1)[1:]]
    for images, part_rows, part_cols in sizes:
        found = replace(cut, images=images, rows=part_rows, cols=part_cols)
        if _spad_bytes(layer, found, chip) <= chip.spad_bytes:
            yield found
            if _count(layer, found)[1] >= TILES_PER_CORE * chip.n_cores:
                return


def _groups_of_a_pass(layer: WeightGradient, array_cols: int) -> int:
    """Groups whose output channels share a pass; of its results, those of other groups' inputs are not kept."""
    return max(1, min(layer.groups, array_cols // layer.out_channels))


def _count(layer: WeightGradient, cut: _Cut) -> Pair:
    """Number of output blocks, and of runs of pixels."""
    rows, cols = layer.out_size
    chunks = math.ceil(layer.images / cut.images) * math.ceil(rows / cut.rows) * math.ceil(cols / cut.cols)
    blocks = layer.products * math.ceil(layer.groups / cut.groups) * math.ceil(layer.kernel[0] / cut.kernel_rows)
    blocks *= math.ceil(layer.out_channels / cut.out_channels) * math.ceil(layer.in_channels / cut.in_channels)
    return blocks, chunks


def _window(layer: WeightGradient, cut: _Cut) -> int:
    """Input pixels that a tile loads, unclipped."""
    rows = (cut.rows - 1) * layer.stride[0] + (cut.kernel_rows - 1) * layer.dilation[0] + 1
    cols = (cut.cols - 1) * layer.stride[1] + (layer.kernel[1] - 1) * layer.dilation[1] + 1
    return cut.images * min(rows, layer.in_size[0]) * min(cols, layer.in_size[1])


def _spad_bytes(layer: WeightGradient, cut: _Cut, chip: Chip) -> int:
    pixels = cut.images * cut.rows * cut.cols
    window = _window(layer, cut) * cut.in_channels
    return (window + pixels * cut.out_channels) * cut.groups * chip.element_bytes


def _loaded_bytes(layer: WeightGradient, cut: _Cut, chip: Chip) -> int:
    """Bytes that a tile loads: of a pixel whole memory blocks, unless several pixels share one."""
    lanes = max(1, chip.request_bytes // chip.element_bytes)
    extra = 0
    if cut.in_channels < layer.in_channels:
        extra = _window(layer, cut) * (-cut.in_channels % min(lanes, layer.in_channels)) * chip.element_bytes
    return _spad_bytes(layer, cut, chip) + extra


def _price(layer: WeightGradient, cut: _Cut, chip: Chip) -> float:
    """Cycles of the layer on its cores when nothing stalls, from the largest tile and the number of tiles."""
    block, chunk = next(_blocks(layer, cut, 0)), _Chunk((0, cut.images), (0, cut.rows), (0, cut.cols))
    blocks, chunks = _count(layer, cut)
    parts = _parts(blocks, chunks, chip)
    chains = math.ceil(blocks * parts / chip.n_cores)
    cycles = chains * math.ceil(chunks / parts) * (_cycles(layer, block, chunk, chip.cores[0]) + TILE_OVERHEAD_CYCLES)
    moved = blocks * chunks * _loaded_bytes(layer, cut, chip)
    if parts > 1:
        moved += 2 * parts * layer.result.pixels * layer.result.channels * ACCUMULATOR_BYTES
        cycles += TILE_OVERHEAD_CYCLES
    return max(cycles, moved / (BYTES_PER_ARRAY_ROW * chip.array_rows))


def _parts(blocks: int, chunks: int, chip: Chip) -> int:
    """Into how many parts the reduction is divided."""
    return min(chunks, math.ceil(chip.n_cores / blocks)) if blocks < chip.n_cores else 1


def _halvings(size: int, granule: int) -> list[int]:
    sizes = [size]
    while sizes[-1] > granule:
        half = max(granule, math.ceil(sizes[-1] / 2 / granule) * granule)
        if half == sizes[-1]:
            break
        sizes.append(half)
    return sizes


def _blocks(layer: WeightGradient, cut: _Cut, part: int) -> Iterator[_Block]:
    for product in range(layer.products):
        for groups in ranges(layer.groups, cut.groups, 1, False):
            for out_channels in ranges(layer.out_channels, cut.out_channels, 1, True):
                for in_channels in ranges(layer.in_channels, cut.in_channels, 1, True):
                    for kernel_rows in ranges(layer.kernel[0], cut.kernel_rows, 1, True):
                        yield _Block(product, groups, out_channels, in_channels, kernel_rows, part)


def _chunks(layer: WeightGradient, cut: _Cut) -> Iterator[_Chunk]:
    for images in ranges(layer.images, cut.images, 1, False):
        for rows in ranges(layer.out_size[0], cut.rows, 1, False):
            for cols in ranges(layer.out_size[1], cut.cols, 1, False):
                yield _Chunk(images, rows, cols)


# -- tiles


def _streamed(layer: WeightGradient, block: _Block, core: CoreConfig) -> RowGroups:
    """What streams over a stationary block: each input channel and kernel position of the groups that share a pass."""
    groups = min(block.groups[1], _groups_of_a_pass(layer, core.cols))
    rows = groups * block.in_channels[1] * block.kernel_rows[1] * layer.kernel[1]
    return group_rows(1, 1, rows, (1, rows), core.rows)


def _stationary(layer: WeightGradient, block: _Block, chunk: _Chunk, core: CoreConfig) -> int:
    """Blocks of the gradient in a tile."""
    return math.ceil(chunk.pixels / core.rows) * _results(layer, block, core)


def _results(layer: WeightGradient, block: _Block, core: CoreConfig) -> int:
    """Blocks of a tile with different results."""
    passes = math.ceil(block.groups[1] / _groups_of_a_pass(layer, core.cols))
    return passes * math.ceil(block.out_channels[1] / core.cols)


def _cycles(layer: WeightGradient, block: _Block, chunk: _Chunk, core: CoreConfig) -> int:
    return tile_cycles(_stationary(layer, block, chunk, core), _streamed(layer, block, core), core)


def _tile(
    builder: ProgramBuilder, layer: WeightGradient, block: _Block, chunk: _Chunk, core: CoreConfig, first: bool
) -> None:
    loaded = _load_inputs(builder, layer, block, chunk)
    image = math.prod(layer.out_size)
    start = (block.product * layer.images + chunk.images[0]) * image + chunk.rows[0] * layer.out_size[1] + chunk.cols[0]
    levels = ((chunk.images[1], image), (chunk.rows[1], layer.out_size[1]), (chunk.cols[1], 1))
    builder.load(_DY, layer.dy.region(start, levels, *_channels(block, layer.out_channels, block.out_channels)))
    groups = _streamed(layer, block, core)
    builder.systolic(
        dst=Operand(_SUMS, acc=True),
        src_a=Operand(_X if loaded else _DY),
        src_b=Operand(_DY),
        counts=(_stationary(layer, block, chunk, core), groups.lines, groups.passes),
        size2=groups.size,
        preload="first",
        first_sums=groups.streamed * _results(layer, block, core) * core.cols if first else 0,
    )


def _load_inputs(builder: ProgramBuilder, layer: WeightGradient, block: _Block, chunk: _Chunk) -> bool:
    """The input pixels that the chunk's outputs see, clipped to the image; False when all are padding."""
    rows, cols = (
        input_lines(out, kernel, layer.stride[axis], layer.dilation[axis], layer.pads[axis], layer.in_size[axis])
        for axis, (out, kernel) in enumerate(
            ((chunk.rows, block.kernel_rows), (chunk.cols, (0, layer.kernel[1])))
        )
    )  # fmt: skip
    if not rows.count or not cols.count:
        return False
    image = math.prod(layer.in_size)
    first = (block.product * layer.images + chunk.images[0]) * image + rows.first * layer.in_size[1] + cols.first
    levels = ((chunk.images[1], image), (rows.count, rows.step * layer.in_size[1]), (cols.count, cols.step))
    builder.load(_X, layer.x.region(first, levels, *_channels(block, layer.in_channels, block.in_channels)))
    return True


def _channels(block: _Block, per_group: int, own: Pair) -> Pair:
    """(first, number of) channels of the whole tensor; more than one group is taken whole."""
    if block.groups[1] > 1:
        return block.groups[0] * per_group, block.groups[1] * per_group
    return block.groups[0] * per_group + own[0], own[1]


def _store(builder: ProgramBuilder, layer: WeightGradient, block: _Block, target: Layout) -> None:
    positions = math.prod(layer.kernel)
    first = (block.product * layer.in_channels + block.in_channels[0]) * positions
    first += block.kernel_rows[0] * layer.kernel[1]
    levels = ((block.in_channels[1], positions), (block.kernel_rows[1] * layer.kernel[1], 1))
    builder.store(
        _SUMS, target.region(first, levels, *_channels(block, layer.out_channels, block.out_channels))
    )  # fmt: skip
