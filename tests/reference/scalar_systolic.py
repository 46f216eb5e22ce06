"""SimDIT's tiling generator in plain Python, loop by loop as specs/systolic.md section 1.3 puts it."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from hwconfigs.systolic_schema import SystolicHw
from vsim.systolic.layers import MatrixLayer


class Tile(NamedTuple):
    width: int
    height: int
    out_channels: int
    kernel: int
    in_channels: int
    batch: int


def matrix_tile(layer: MatrixLayer, hw: SystolicHw) -> Tile | None:
    """The tile, or None where no tile fits."""
    rows, cols = hw.array.rows, hw.array.cols
    bits = hw.precision
    weights, inputs, outputs, bias = (
        kib * 4096 for kib in (hw.buffers.weight_kib, hw.buffers.ifmap_kib, hw.buffers.ofmap_kib, hw.buffers.bias_kib)
    )
    out_channels, in_channels = ceil(layer.out_channels / cols) * cols, ceil(layer.in_channels / rows) * rows
    parts, kernel = 1, layer.kernel
    while kernel**2 * rows * cols * bits.weight_bits > weights or kernel**2 * rows * bits.activation_bits > inputs:
        if kernel == 1:
            return None
        parts += 1
        kernel = ceil(layer.kernel / parts)
    groups = min(
        in_channels // rows,
        weights // (kernel**2 * rows * cols * bits.weight_bits),
        inputs // (kernel**2 * rows * bits.activation_bits),
    )
    depth = rows * max(1, groups)

    def fits(width: int, height: int, batch: int) -> bool:
        window = ((width - 1) * layer.stride + kernel) * ((height - 1) * layer.stride + kernel)
        return (
            width * height * batch * cols * bits.accumulator_bits <= outputs
            and window * batch * depth * bits.activation_bits <= inputs
        )

    for parts in range(1, max(layer.out_width, layer.out_height) + 1):
        width, height = ceil(layer.out_width / parts), ceil(layer.out_height / parts)
        exact = layer.out_width % parts == 0 and layer.out_height % parts == 0
        if (layer.kernel > 3 or exact) and fits(width, height, 1):
            break
    else:
        return None
    batch = next(layer.batch // n for n in range(1, layer.batch + 1) if layer.batch % n == 0
                 and fits(width, height, layer.batch // n))  # fmt: skip
    if cols * bits.bias_bits > bias:
        return None
    groups = min(
        out_channels // cols,
        weights // (kernel**2 * depth * cols * bits.weight_bits),
        outputs // (width * height * batch * cols * bits.accumulator_bits),
        bias // (cols * bits.bias_bits),
    )
    return Tile(width, height, cols * max(1, groups), kernel, depth, batch)
