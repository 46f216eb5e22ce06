"""Tile sizes of a convolution as ONNXim's built-in heuristic chooses them (`onnxim.md` section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.onnxim.mapping import check_array
from lowering.onnxim.tiling import Loops

_ROWS, _COLS, _OUT_CHANNELS, _IN_CHANNELS = 1, 2, 3, 6
"""Positions in a candidate: images, output rows, output columns, output channels, kernel rows, columns, channels."""


def conv_mapping(hw: HwConfig, layer: Loops, stride: int, pad: int) -> Loops:
    """Extents of a tile of a convolution with square outputs and kernels on the first core of `hw`.

    stride, pad: of the first spatial dimension. Raises UserError for outputs or kernels that are not square, and for
    memories in which no tile fits.
    """
    if layer.q != layer.p or layer.s != layer.r:
        raise UserError(
            f"--compat onnxim maps square kernels on square outputs, not {layer.s}x{layer.r} on {layer.q}x{layer.p}; "
            "a mapping file beside the model can map this layer"
        )
    limits = _Limits.of(hw, stride, pad, layer.s)
    most = (1, layer.p, layer.p, layer.m, layer.s, layer.s, layer.c)
    sizes = list(most)
    _shrink(sizes, limits)
    while _may_rise(sizes, _COLS, most) and limits.fits(_candidate(sizes, _COLS)):
        sizes[_COLS] += 1
    _grow(sizes, most, limits)
    _, rows, columns, out_channels, kernel_rows, kernel_columns, in_channels = sizes
    return Loops(1, in_channels, out_channels, kernel_rows, kernel_columns, q=columns, p=rows)


@dataclass(frozen=True)
class _Limits:
    """Array size d, rows (one array width each) that a tile may fill, half a scratchpad and an element in bytes.

    halved: 1 where only every second pixel is read (1x1 kernel, stride 2, unpadded).
    """

    d: int
    spad_rows: int
    acc_rows: int
    half_spad_bytes: int
    element_bytes: int
    stride: int
    pad: int
    halved: int

    @staticmethod
    def of(hw: HwConfig, stride: int, pad: int, kernel: int) -> _Limits:
        core = hw.core(0)
        d = check_array(core)
        return _Limits(
            d=d,
            spad_rows=core.spad_kib * 1024 // (d * hw.precision_bytes * 2),
            acc_rows=core.acc_kib * 1024 // (d * 4 * 2),
            half_spad_bytes=core.spad_kib * 1024 // 2,
            element_bytes=hw.precision_bytes,
            stride=stride,
            pad=pad,
            halved=int(stride == 2 and kernel == 1 and pad == 0),
        )

    def fits(self, sizes: list[int]) -> bool:
        """Whether input window and weights fit the scratchpad, and the results the accumulators."""
        images, rows, columns, out_channels, kernel_rows, kernel_columns, in_channels = sizes
        in_rows = (rows * self.stride + kernel_rows - 1) >> self.halved
        in_columns = (columns * self.stride + kernel_columns - 1) >> self.halved
        window = -(-in_channels // self.d) * images * in_rows * in_columns
        out_blocks = -(-out_channels // self.d)
        weights = out_blocks * kernel_rows * kernel_columns * in_channels
        return window + weights <= self.spad_rows and out_blocks * images * rows * columns <= self.acc_rows

    def may_grow(self, sizes: list[int]) -> bool:
        """Whether one and a half times the operands of the tile as it is fit half a scratchpad."""
        images, rows, columns, out_channels, kernel_rows, kernel_columns, in_channels = sizes
        weights = images * out_channels * kernel_rows * kernel_columns * in_channels
        inputs = images * (rows + 2 * self.pad) * (columns + 2 * self.pad) * in_channels
        return (weights + inputs) * self.element_bytes * 3 // 2 <= self.half_spad_bytes


def _shrink(sizes: list[int], limits: _Limits) -> None:
    """Cut the largest extent, channels by array widths, until the tile fits. Narrow lines are kept whole."""
    while not limits.fits(sizes):
        spared = sizes[_COLS] <= limits.d and sizes[_ROWS] > 1
        largest = max((i for i in range(len(sizes)) if not (i == _COLS and spared)), key=lambda i: sizes[i])
        if sizes[largest] == 1:
            raise UserError(f"no tile of a convolution fits: {limits.spad_rows} scratchpad rows of {limits.d} elements")
        if largest in (_OUT_CHANNELS, _IN_CHANNELS):
            sizes[largest] = max((sizes[largest] - 1) // limits.d * limits.d, 1)
        else:
            sizes[largest] -= 1


def _grow(sizes: list[int], most: tuple[int, ...], limits: _Limits) -> None:
    """Raise every extent in turn by one, until a whole round raises none."""
    raised = True
    while raised:
        raised = False
        for index in range(len(sizes)):
            candidate = _candidate(sizes, index)
            if _may_rise(sizes, index, most) and limits.fits(candidate) and limits.may_grow(sizes):
                sizes[index] += 1
                raised = True


def _candidate(sizes: list[int], index: int) -> list[int]:
    return [size + (position == index) for position, size in enumerate(sizes)]


def _may_rise(sizes: list[int], index: int, most: tuple[int, ...]) -> bool:
    return sizes[index] < most[index]
