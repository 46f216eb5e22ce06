"""A convolution as ONNXim tiles it and orders its instructions, faults included (`onnxim.md` section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.onnxim.faults import NONE, Fault, Repairs
from lowering.onnxim.tiling import Loops
from lowering.onnxim.vector_time import VectorUnit
from lowering.program import LayerInfo

WINDOW = 0
"""Scratchpad entry of the input window; the weight blocks follow it, then bias and residual."""


@dataclass(frozen=True)
class Conv:
    """A convolution of one group, images channels-last; addresses in bytes.

    image: rows, columns and channels of the input. stride, dilation, pad: along rows and along columns.
    bias, residual: None where there is none. pad and what follows the address of the result: only for repairs.
    """

    name: str
    extents: Loops
    image: tuple[int, int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    x: int
    w: int
    y: int
    pad: tuple[int, int] = (0, 0)
    bias: int | None = None
    residual: int | None = None
    activated: bool = False


@dataclass(frozen=True)
class _Tile:
    """First index and extent of every loop; starts, ends: its sums are new, its sums are complete."""

    first: Loops
    size: Loops
    starts: bool
    ends: bool


@dataclass(frozen=True)
class _Setting:
    """What all tiles of a layer share. block: side of a weight block and of a block of output pixels."""

    builder: ProgramBuilder
    conv: Conv
    inner: Loops
    block: int
    element_bytes: int
    request_bytes: int
    half_spad_bytes: int
    vector: VectorUnit
    repaired: Repairs

    @property
    def has_epilogue(self) -> bool:
        """Whether bias, residual and activation cost something."""
        conv = self.conv
        return Fault.Q12 in self.repaired and (conv.activated or conv.bias is not None or conv.residual is not None)


def emit_conv(
    builder: ProgramBuilder,
    hw: HwConfig,
    conv: Conv,
    inner: Loops,
    op: str,
    core_of: Callable[[int], int],
    repaired: Repairs = NONE,
) -> None:
    """Append the layer, cut into tiles of extents `inner`; `core_of(i)` places the i-th output tile.

    repaired: Q1, Q2 and Q12 count. Where tiles with what these make them load do not fit, they get fewer channels.
    Raises UserError when a tile does not fit half a scratchpad or reads nothing of its input.
    """
    core = hw.core(0)
    half = core.spad_kib * 1024 // 2
    sizes = hw.precision_bytes, hw.dram.request_bytes, half
    setting = _Setting(builder, conv, inner, core.cols, *sizes, VectorUnit(core), repaired)
    setting = _fitting(setting)
    tiles = list(_tiles(conv.extents, setting.inner))
    builder.begin_layer(_layer_info(setting, tiles, op))
    output_tile = -1
    for tile in tiles:
        output_tile += tile.starts
        builder.begin_tile(core_of(output_tile), accumulate=not tile.starts)
        epilogue = _load(setting, tile)
        _multiply(setting, tile)
        if tile.ends:
            if setting.has_epilogue:
                _epilogue(setting, tile, epilogue)
            builder.store_many(_stores(setting, tile))
        builder.end_tile()
    builder.end_layer()


def _tiles(total: Loops, inner: Loops) -> Iterator[_Tile]:
    """Images outermost, then output columns, rows and channels, the kernel, and input channels innermost."""
    counts = total.tiles(inner)
    order = counts.n, counts.p, counts.q, counts.m, counts.s, counts.r, counts.c
    for n, p, q, m, s, r, c in product(*map(range, order)):
        index = Loops(n, c, m, s, r, q, p)
        first = Loops(*(i * size for i, size in zip(index, inner, strict=True)))
        size = Loops(*(min(most, whole - at) for most, whole, at in zip(inner, total, first, strict=True)))
        yield _Tile(first, size, not (s or r or c), (s, r, c) == (counts.s - 1, counts.r - 1, counts.c - 1))


def _starts(extent: int, block: int) -> range:
    return range(0, extent, block)


def _fitting(setting: _Setting) -> _Setting:
    """The larger of the extents along channels reduced, block by block, until all tiles fit or one block is left."""
    while setting.repaired & {Fault.Q1, Fault.Q2, Fault.Q12}:
        inner, block = setting.inner, setting.block
        tiles = _tiles(setting.conv.extents, inner)
        if max(inner.c, inner.m) <= block or all(_Loads.of(setting, tile).fit for tile in tiles):
            break
        key = "c" if inner.c >= inner.m else "m"
        size = (getattr(inner, key) - 1) // block * block
        setting = replace(setting, inner=inner._replace(**{key: size}))
    return setting


class _Loads(NamedTuple):
    """What a tile loads: (entry, requests) of weights, and of bias and residual; fit: it fits half a scratchpad."""

    window: Descriptor
    weights: list[tuple[int, Descriptor]]
    others: list[tuple[int, Descriptor]]
    n_bytes: int
    fit: bool

    @staticmethod
    def of(setting: _Setting, tile: _Tile) -> _Loads:
        window, weights = _window(setting, tile), _weights(setting, tile)
        others = []
        if tile.ends and setting.has_epilogue:
            others = _epilogue_operands(setting, tile, WINDOW + 1 + len(weights))
        requests = window.requests + sum(block.requests for _, block in [*weights, *others])
        n_bytes = requests * setting.request_bytes
        return _Loads(window, weights, others, n_bytes, n_bytes <= setting.half_spad_bytes)


def _load(setting: _Setting, tile: _Tile) -> int:
    """Returns the scratchpad entry of the bias; the residual's follows."""
    loads = _Loads.of(setting, tile)
    if not loads.fit:
        raise UserError(
            f"node {setting.conv.name}: a tile of {setting.inner} loads {loads.n_bytes} bytes, more than the "
            f"{setting.half_spad_bytes} of half a scratchpad"
        )
    setting.builder.load(WINDOW, loads.window)
    setting.builder.load_many(loads.weights)
    setting.builder.load_many(loads.others)
    return WINDOW + 1 + len(loads.weights)


def _epilogue_operands(setting: _Setting, tile: _Tile, entry: int) -> list[tuple[int, Descriptor]]:
    """Bias and residual of the tile's results, what there is of them (Q12 repaired)."""
    conv, element = setting.conv, setting.element_bytes
    total, first, size = conv.extents, tile.first, tile.size
    items: list[tuple[int, Descriptor]] = []
    if conv.bias is not None:
        of_channels = Descriptor.contiguous(conv.bias + first.m * element, size.m * element, setting.request_bytes)
        items.append((entry, of_channels))
    if conv.residual is not None:
        start = ((first.n * total.q + first.q) * total.p + first.p) * total.m + first.m
        levels = (
            (size.n, total.q * total.p * total.m * element),
            (size.q, total.p * total.m * element),
            (size.p, total.m * element),
        )
        pixels = Descriptor.from_segments(
            conv.residual + start * element, levels, size.m * element, setting.request_bytes
        )
        items.append((entry + 1, pixels))
    return items


def _epilogue(setting: _Setting, tile: _Tile, entry: int) -> None:
    """Residual and activation, block by block; sums start from the bias, which takes no time of its own."""
    conv, size, block, vector = setting.conv, tile.size, setting.block, setting.builder.vector
    entries = _results(setting, tile)
    if conv.bias is not None:
        start = Operand(int(entries[0, 0, 0, 0]), acc=True)
        vector(dst=start, src_a=start, src_b=Operand(entry), size1=Extent(0))
    for image, row, column, channel in np.ndindex(*entries.shape):
        result = Operand(int(entries[image, row, column, channel]), acc=True)
        extents = ((size.q, row), (size.p, column), (size.m, channel))
        n_bytes = setting.element_bytes * prod(min(block, extent - index * block) for extent, index in extents)
        if conv.residual is not None:
            cycles = setting.vector.elementwise("add", n_bytes)
            vector(dst=result, src_a=result, src_b=Operand(entry + 1), size1=Extent(cycles))
        if conv.activated:
            vector(dst=result, src_a=result, size1=Extent(setting.vector.elementwise("comp", n_bytes)))


def _window(setting: _Setting, tile: _Tile) -> Descriptor:
    """The input pixels. Their origin is not multiplied by the stride, and only every stride-th is loaded (Q2)."""
    conv, element = setting.conv, setting.element_bytes
    rows, columns, channels = conv.image
    seen = _touched if Fault.Q2 in setting.repaired else _visible
    first_row, n_rows, row_step = seen(setting, tile, 0)
    first_column, n_columns, column_step = seen(setting, tile, 1)
    pixel = channels * element
    start = ((tile.first.n * rows + first_row) * columns + first_column) * pixel + tile.first.c * element
    levels = (
        (tile.size.n, rows * columns * pixel),
        (n_rows, row_step * columns * pixel),
        (n_columns, column_step * pixel),
    )
    return Descriptor.from_segments(conv.x + start, levels, tile.size.c * element, setting.request_bytes)


def _visible(setting: _Setting, tile: _Tile, axis: int) -> tuple[int, int, int]:
    """First index inside the image that the window of `inner` outputs loads along an axis, how many, and their step."""
    conv, inner = setting.conv, setting.inner
    first_output = (tile.first.q, tile.first.p)[axis]
    outputs, kernel = ((inner.q, conv.extents.s), (inner.p, conv.extents.r))[axis]
    reach = conv.dilation[axis] * (kernel - 1)
    origin = first_output - reach // 2
    loaded = range(origin, origin + (outputs - 1) * conv.stride[axis] + reach + 1, conv.stride[axis])
    inside = [index for index in loaded if 0 <= index < conv.image[axis]]
    if not inside:
        raise UserError(f"node {conv.name}: a tile of {inner} reads nothing of its input")
    return inside[0], len(inside), conv.stride[axis]


def _touched(setting: _Setting, tile: _Tile, axis: int) -> tuple[int, int, int]:
    """Likewise, of the indices that the tile's outputs really need; all between them where they are not even."""
    conv, first, size = setting.conv, tile.first, tile.size
    start, outputs, kernel = ((first.q, size.q, conv.extents.s), (first.p, size.p, conv.extents.r))[axis]
    origins = range(start * conv.stride[axis] - conv.pad[axis], conv.image[axis], conv.stride[axis])[:outputs]
    indices = sorted({origin + step * conv.dilation[axis] for origin in origins for step in range(kernel)})
    inside = [index for index in indices if 0 <= index < conv.image[axis]]
    if not inside:
        raise UserError(f"node {conv.name}: a tile of {setting.inner} reads nothing of its input")
    steps = {after - before for before, after in pairwise(inside)}
    step = steps.pop() if len(steps) == 1 else 1
    return inside[0], (inside[-1] - inside[0]) // step + 1, step


def _weights(setting: _Setting, tile: _Tile) -> list[tuple[int, Descriptor]]:
    """Weight blocks by output channels, kernel position and input channels.

    Output channels that share a block share one address (Q1), so a block is as large as one row of input channels.
    Repaired, the rows of a block lie one behind the other: [S][R][blocks of C][M][C of a block].
    """
    conv, block, element = setting.conv, setting.block, setting.element_bytes
    total, first, size = conv.extents, tile.first, tile.size
    padded = -(-total.c // block) * block
    group = total.s * total.r * padded
    items: list[tuple[int, Descriptor]] = []
    for m, s, r, c in product(_starts(size.m, block), range(size.s), range(size.r), _starts(size.c, block)):
        first_group = (first.m + m) // block
        last_group = (first.m + min(m + block, size.m) - 1) // block
        start = first_group * group + ((first.s + s) * total.r + first.r + r) * padded + first.c + c
        descriptor = Descriptor.from_segments(
            conv.w + start * element,
            ((last_group - first_group + 1, group * element),),
            min(block, size.c - c) * element,
            setting.request_bytes,
        )
        if Fault.Q1 in setting.repaired:
            width = min(block, size.c - c)
            start = (((first.s + s) * total.r + first.r + r) * padded + first.c + c) * total.m + (first.m + m) * width
            n_bytes = min(block, size.m - m) * width * element
            descriptor = Descriptor.contiguous(conv.w + start * element, n_bytes, setting.request_bytes)
        items.append((WINDOW + 1 + len(items), descriptor))
    return items


def _results(setting: _Setting, tile: _Tile) -> NDArray[np.int64]:
    """int64[images, blocks of rows, of columns, of channels]: accumulator entry of every block of results.

    Blocks whose addresses lie in one memory block share an entry, as they share an address in the original.
    """
    inner, size, block = setting.inner, tile.size, setting.block
    images, rows, columns, channels = np.ix_(
        np.arange(size.n), *(np.arange(0, extent, block) for extent in (size.q, size.p, size.m))
    )
    elements = ((images * inner.q + rows) * inner.p + columns) * inner.m + channels
    addresses = elements * setting.element_bytes // setting.request_bytes
    return np.unique(addresses, return_inverse=True)[1].reshape(addresses.shape)


def _multiply(setting: _Setting, tile: _Tile) -> None:
    """For every weight block one pass for each block of output pixels; the first of them loads the weights."""
    size, block = tile.size, setting.block
    entries = _results(setting, tile)
    per_channel_block = size.s * size.r * len(_starts(size.c, block))
    for index in range(entries.shape[3]):
        weight = WINDOW + 1 + index * per_channel_block
        of_channels = entries[..., index]
        steps = _even_steps(of_channels)
        if steps is not None:
            setting.builder.systolic(
                dst=Operand(int(of_channels[0, 0, 0]), (0, *steps), acc=True),
                src_a=Operand(WINDOW),
                src_b=Operand(weight, (1, 0, 0)),
                counts=(per_channel_block, *of_channels.shape[1:]),
                size1=_extent(size.q, block),
                size2=_extent(size.p, block),
                preload="first",
            )
        else:
            for block_index in range(weight, weight + per_channel_block):
                _passes(setting, tile, of_channels, block_index)


def _passes(setting: _Setting, tile: _Tile, entries: NDArray[np.int64], weight: int) -> None:
    """The passes of one weight block, one by one; entries: int64[images, blocks of rows, of columns]."""
    block = setting.block
    for image, row, column in np.ndindex(*entries.shape):
        setting.builder.systolic(
            dst=Operand(int(entries[image, row, column]), acc=True),
            src_a=Operand(WINDOW),
            src_b=Operand(weight),
            size1=Extent(min(block, tile.size.q - row * block)),
            size2=Extent(min(block, tile.size.p - column * block)),
            preload="none" if image or row or column else "all",
        )


def _even_steps(entries: NDArray[np.int64]) -> tuple[int, int] | None:
    """Steps along rows and columns when the entries of a single image are evenly spaced."""
    images, rows, columns = entries.shape
    row_step = int(entries[0, 1, 0] - entries[0, 0, 0]) if rows > 1 else 0
    column_step = int(entries[0, 0, 1] - entries[0, 0, 0]) if columns > 1 else 0
    even = entries[0, 0, 0] + np.arange(rows)[:, None] * row_step + np.arange(columns) * column_step
    return (row_step, column_step) if images == 1 and np.array_equal(entries[0], even) else None


def _extent(size: int, block: int) -> Extent:
    return Extent(min(block, size), (size - 1) % block + 1)


def _stores(setting: _Setting, tile: _Tile) -> list[tuple[int, Descriptor]]:
    """Results by image, rows, columns and channels.

    A block stores the columns up to a whole block even where the tile ends before (they are the next tile's).
    """
    conv, block, element = setting.conv, setting.block, setting.element_bytes
    total, first, size = conv.extents, tile.first, tile.size
    entries = _results(setting, tile)
    pixel = total.m * element
    items: list[tuple[int, Descriptor]] = []
    for image, row, column, channel in np.ndindex(*entries.shape):
        q, p, m = row * block, column * block, channel * block
        start = ((first.n + image) * total.q + first.q + q) * total.p + first.p + p
        descriptor = Descriptor.from_segments(
            conv.y + start * pixel + (first.m + m) * element,
            ((min(block, size.q - q), total.p * pixel), (min(block, size.p - p), pixel)),
            min(block, total.m - first.m - m) * element,
            setting.request_bytes,
        )
        items.append((int(entries[image, row, column, channel]), descriptor))
    return items


def _layer_info(setting: _Setting, tiles: list[_Tile], op: str) -> LayerInfo:
    block, total = setting.block, setting.conv.extents
    systolic_cycles = 0
    for tile in tiles:
        size = tile.size
        rows = [
            min(block, size.q - q) * min(block, size.p - p)
            for q, p in product(_starts(size.q, block), _starts(size.p, block))
        ] * size.n
        weights = len(_starts(size.m, block)) * size.s * size.r * len(_starts(size.c, block))
        # The pass that loads weights occupies the array for as many cycles as it has rows, at least.
        systolic_cycles += weights * (sum(max(count, 4) for count in rows) + max(block - max(rows[0], 4), 0))
    outputs = total.n * total.q * total.p * total.m
    return LayerInfo(
        name=setting.conv.name,
        op=op,
        macs=outputs * total.c * total.s * total.r,
        systolic_cycles=systolic_cycles,
        notes=(f"tile {setting.inner}",),
    )
