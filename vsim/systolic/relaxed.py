"""Tiles in real numbers: what the tiling generator would choose if sizes were not whole.

The same order and the same room as `vsim.systolic.tiling`, with quotients in place of whole parts, so that a cost has a
derivative with respect to the size of every memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vsim.systolic.designs import Designs
from vsim.systolic.layers import MatrixTable, VectorTable
from vsim.systolic.operators import VectorOperator
from vsim.systolic.tiling import MatrixTile, VectorTile, in_extent, padded


def relaxed_matrix_tile(layer: MatrixTable, design: Designs) -> MatrixTile:
    """Kernel, input channels, side of the map, batch, output channels; none below its smallest size."""
    rows_cols = design.rows * design.cols * design.weight_bits
    row_bits = design.rows * design.activation_bits
    psum_bits = design.cols * design.accumulator_bits
    all_out, all_in = padded(layer.out_channels, design.cols), padded(layer.in_channels, design.rows)
    area_room = jnp.minimum(design.weight_tile_bits / rows_cols, design.ifmap_tile_bits / row_bits)
    kernel = jnp.clip(jnp.sqrt(area_room), 1, layer.kernel)
    area = kernel * kernel
    in_channels = design.rows * jnp.clip(area_room / area, 1, all_in / design.rows)
    pixels = jnp.minimum(
        design.ofmap_tile_bits / psum_bits,
        design.ifmap_tile_bits / (in_channels * design.activation_bits) / (layer.stride * layer.stride),
    )
    shrink = jnp.sqrt(jnp.clip(pixels / (layer.out_width * layer.out_height), 1e-6, 1))
    width = jnp.maximum(1, layer.out_width * shrink)
    height = jnp.maximum(1, layer.out_height * shrink)
    batch = jnp.clip(pixels / (width * height), 1, layer.batch)
    groups = jnp.minimum(
        design.weight_tile_bits / (area * in_channels * design.cols * design.weight_bits),
        jnp.minimum(
            design.ofmap_tile_bits / (width * height * batch * psum_bits),
            design.bias_tile_bits / (design.cols * design.bias_bits),
        ),
    )
    out_channels = design.cols * jnp.clip(groups, 1, all_out / design.cols)
    return MatrixTile(width, height, out_channels, kernel, in_channels, batch, jnp.ones_like(width, bool))


def relaxed_vector_tile(layer: VectorTable, design: Designs) -> VectorTile:
    """Side of the map, then channels and batch in the operator's order."""
    share = {name: layer.coefficients[index] for name, index in VectorOperator.COLUMNS.items()}
    room = design.vector_tile_bits / design.word_bits - share["fit_lanes"] * design.lanes
    channel_room = design.vector_tile_bits * share["channel_share"] / design.word_bits
    granule = design.channel_granule
    all_channels = padded(layer.channels, granule)

    def words(width: jax.Array, height: jax.Array) -> jax.Array:
        window = in_extent(width, layer.stride, layer.kernel) * in_extent(height, layer.stride, layer.kernel)
        return share["fit_tiles"] * width * height + share["fit_windows"] * window

    shrink = jnp.sqrt(jnp.clip(room / (words(layer.width, layer.height) * granule), 1e-6, 1))
    width, height = jnp.maximum(1, layer.width * shrink), jnp.maximum(1, layer.height * shrink)
    of_channel = words(width, height)

    def channels_beside(batch: jax.Array | float) -> jax.Array:
        fitting = jnp.minimum(room / (of_channel * batch + share["fit_channels"]), channel_room)
        return jnp.clip(fitting, granule, all_channels)

    def batch_beside(channels: jax.Array) -> jax.Array:
        return jnp.clip((room / channels - share["fit_channels"]) / of_channel, 1, layer.batch)

    batch_first = share["batch_first"] > 0
    alone = channels_beside(1.0)
    batch = jnp.where(batch_first, batch_beside(granule), batch_beside(alone))
    channels = jnp.where(batch_first, channels_beside(batch), alone)
    return VectorTile(width, height, channels, batch, jnp.ones_like(width, bool))
