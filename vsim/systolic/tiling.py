"""SimDIT's greedy tiling generator (specs/systolic.md section 1.3): the tile of one layer on one design.

Scalars in, scalars out; `vsim.systolic.evaluate` maps them over layers and designs. A search for the smallest number
of parts that fits is a chain of selections over the candidate tiles of the layer, from the smallest tile up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vsim.npu.fields import settle
from vsim.systolic.designs import Designs
from vsim.systolic.layers import MatrixTable, VectorTable
from vsim.systolic.operators import VectorOperator
from vsim.systolic.rounding import ceil

_PACKED = 1 << 16
"""More than any side of a map."""


class MatrixTile(NamedTuple):
    """What is on the chip at once: output map, channels, part of the kernel and of the batch."""

    width: jax.Array
    height: jax.Array
    out_channels: jax.Array
    kernel: jax.Array
    in_channels: jax.Array
    batch: jax.Array
    fits: jax.Array
    """False where even the smallest tile does not fit: the design cannot run the layer."""


class VectorTile(NamedTuple):
    """Output map, channels and batch of a tile of the vector unit."""

    width: jax.Array
    height: jax.Array
    channels: jax.Array
    batch: jax.Array
    fits: jax.Array


def padded(size: jax.Array, side: jax.Array) -> jax.Array:
    """``size`` as a multiple of ``side``."""
    return ceil(size / side) * side


def in_extent(out_extent: jax.Array, stride: jax.Array, kernel: jax.Array) -> jax.Array:
    """Input rows (or columns) that so many output rows read."""
    return (out_extent - 1) * stride + kernel


def _largest_map(
    layer: MatrixTable | VectorTable, fits: Callable[[jax.Array, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The last width and height that fit; the first if none do. One number holds both on the way."""
    pairs = layer.width_tiles * _PACKED + layer.height_tiles
    chosen = pairs[0]
    for position in range(1, pairs.shape[0]):
        chosen = jnp.where(fits(layer.width_tiles[position], layer.height_tiles[position]), pairs[position], chosen)
    chosen = settle(chosen)
    width = jnp.floor(chosen / _PACKED)
    return width, chosen - width * _PACKED


def _largest(candidates: jax.Array, fits: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The last candidate that fits; the first if none does."""
    chosen = candidates[0]
    for position in range(1, candidates.shape[0]):
        chosen = jnp.where(fits(candidates[position]), candidates[position], chosen)
    return settle(chosen)


def matrix_tile(layer: MatrixTable, design: Designs) -> MatrixTile:
    """Kernel, input channels, output map, batch and output channels, each as large as what came before leaves room."""
    weights_bits = design.rows * design.cols * design.weight_bits
    row_bits = design.rows * design.activation_bits
    psum_bits = design.cols * design.accumulator_bits
    all_out, all_in = padded(layer.out_channels, design.cols), padded(layer.in_channels, design.rows)

    # Quotients of whole numbers below 2^52: no comparison with a whole number suffers from their rounding.
    area_room = jnp.minimum(design.weight_tile_bits / weights_bits, design.ifmap_tile_bits / row_bits)

    def kernel_fits(kernel: jax.Array) -> jax.Array:
        return kernel * kernel <= area_room

    kernel = _largest(layer.kernel_tiles, kernel_fits)
    area = kernel * kernel
    in_groups = jnp.minimum(
        jnp.floor(design.weight_tile_bits / (area * weights_bits)),
        jnp.floor(design.ifmap_tile_bits / (area * row_bits)),
    )
    in_channels = settle(design.rows * jnp.maximum(1, jnp.minimum(all_in / design.rows, in_groups)))

    output_room = design.ofmap_tile_bits / psum_bits
    input_room = design.ifmap_tile_bits / (in_channels * design.activation_bits)
    beyond_stride = kernel - layer.stride

    def map_fits(width: jax.Array, height: jax.Array, batch: jax.Array | float) -> jax.Array:
        window = (width * layer.stride + beyond_stride) * (height * layer.stride + beyond_stride)
        return (width * height * batch <= output_room) & (window * batch <= input_room)

    width, height = _largest_map(layer, lambda width, height: map_fits(width, height, 1))
    batch = _largest(layer.batch_tiles, lambda batch: map_fits(width, height, batch))
    bias_bits = design.cols * design.bias_bits
    out_groups = jnp.minimum(
        jnp.floor(design.weight_tile_bits / (area * in_channels * design.cols * design.weight_bits)),
        jnp.minimum(
            jnp.floor(design.ofmap_tile_bits / (width * height * batch * psum_bits)),
            jnp.floor(design.bias_tile_bits / bias_bits),
        ),
    )
    out_channels = settle(design.cols * jnp.maximum(1, jnp.minimum(all_out / design.cols, out_groups)))
    fits = kernel_fits(kernel) & map_fits(width, height, batch) & (bias_bits <= design.bias_tile_bits)
    return MatrixTile(width, height, out_channels, kernel, in_channels, batch, fits)


def vector_tile(layer: VectorTable, design: Designs) -> VectorTile:
    """Output map, then channels and batch in the operator's order."""
    column = VectorOperator.COLUMNS
    share = layer.coefficients
    room = design.vector_tile_bits / design.word_bits - share[column["fit_lanes"]] * design.lanes
    channel_room = jnp.floor(design.vector_tile_bits * share[column["channel_share"]] / design.word_bits)
    granule = design.channel_granule
    all_channels = padded(layer.channels, granule)

    def words_of_channel(width: jax.Array, height: jax.Array, batch: jax.Array | float) -> jax.Array:
        window = in_extent(width, layer.stride, layer.kernel) * in_extent(height, layer.stride, layer.kernel)
        tiles = share[column["fit_tiles"]] * width * height + share[column["fit_windows"]] * window
        return tiles * batch + share[column["fit_channels"]]

    width, height = _largest_map(layer, lambda width, height: words_of_channel(width, height, 1) * granule <= room)

    def channels_beside(batch: jax.Array | float) -> jax.Array:
        groups = jnp.minimum(
            jnp.floor(room / (words_of_channel(width, height, batch) * granule)),
            jnp.floor(channel_room / granule),
        )
        return granule * jnp.maximum(1, jnp.minimum(all_channels / granule, groups))

    batch_first = share[column["batch_first"]] > 0
    beside = jnp.where(batch_first, granule, channels_beside(1))
    batch = _largest(layer.batch_tiles, lambda batch: words_of_channel(width, height, batch) * beside <= room)
    channels = settle(jnp.where(batch_first, channels_beside(batch), beside))
    fits = words_of_channel(width, height, batch) * channels <= room
    return VectorTile(width, height, channels, batch, fits)
