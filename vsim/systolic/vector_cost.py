"""SimDIT's cost of a layer of the vector unit (specs/systolic.md section 1.5), one formula for all operators.

The vector memories are single buffered: a tile is loaded, worked on and stored, one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vsim.systolic.designs import Designs
from vsim.systolic.layers import VectorTable
from vsim.systolic.operators import VectorOperator
from vsim.systolic.rounding import ceil
from vsim.systolic.tiling import VectorTile, in_extent, padded


class VectorCost(NamedTuple):
    """Cost of one layer on one design; memory traffic in bits, operations by kind."""

    compute_cycles: jax.Array
    stall_cycles: jax.Array
    dram_in_bits: jax.Array
    dram_out_bits: jax.Array
    vector_memory_bits: jax.Array
    immediate_bits: jax.Array
    instruction_bits: jax.Array
    simple_operations: jax.Array
    divides: jax.Array
    exps: jax.Array
    rsqrts: jax.Array
    fits: jax.Array


def vector_cost(layer: VectorTable, design: Designs, tile: VectorTile) -> VectorCost:
    """Cost of one layer on one design with the given tile."""
    c = {name: layer.coefficients[index] for name, index in VectorOperator.COLUMNS.items()}
    out_bits = jnp.where(layer.feeds_matrix > 0, design.activation_bits, design.word_bits)
    all_channels = padded(layer.channels, design.channel_granule)
    inner = layer.width / tile.width * (layer.height / tile.height) * (layer.batch / tile.batch)
    inner = jnp.where(c["whole_batch"] > 0, layer.width / tile.width * (layer.height / tile.height), inner)
    outer = all_channels / tile.channels
    of_map = tile.width * tile.height * tile.channels
    outputs = of_map * tile.batch
    worked_on = of_map * jnp.where(c["whole_batch"] > 0, layer.batch, tile.batch)
    window = in_extent(tile.width, layer.stride, layer.kernel) * in_extent(tile.height, layer.stride, layer.kernel)
    inputs = window * tile.channels * tile.batch
    area = layer.kernel * layer.kernel

    of_output = c["cycles"] + c["cycles_of_window"] * area + c["divides"] * design.div_cycles
    of_output = of_output + c["exps"] * design.exp_cycles
    of_channel = (
        c["channel_cycles"] + c["channel_divides"] * design.div_cycles + c["channel_rsqrts"] * design.rsqrt_cycles
    )
    fill = c["passes"] * design.vector_fill_cycles
    of_tile = of_output * (worked_on / design.lanes) + fill
    compute = of_tile * inner * outer + of_channel * (tile.channels / design.lanes) * outer

    def moved(words: jax.Array, bits: jax.Array) -> jax.Array:
        return ceil(words * bits / design.vector_port_bits)

    # A fused layer finds one of its operands on the chip.
    tile_loads = c["tile_loads"] - jnp.where((layer.fused > 0) & (c["tile_loads"] > 0), 1, 0)
    of_tile_moved = (
        tile_loads * moved(outputs, design.word_bits)
        + c["window_loads"] * moved(inputs, design.word_bits)
        + c["tile_stores"] * moved(outputs, out_bits)
        + c["window_stores"] * moved(inputs, out_bits)
    )
    of_channels_moved = c["channel_loads"] * moved(tile.channels, design.word_bits) + c["channel_stores"] * moved(
        tile.channels, out_bits
    )
    tiles = inner * outer
    loaded = (tile_loads * worked_on + c["window_loads"] * inputs) * tiles + c["channel_loads"] * all_channels
    stored_words = c["tile_stores"] * outputs + c["window_stores"] * inputs
    stored = stored_words * tiles + c["channel_stores"] * all_channels

    worked = worked_on * tiles
    simple = (c["operations"] + c["window_operations"] * area) * worked + c["channel_operations"] * all_channels
    divides = c["divides"] * worked + c["channel_divides"] * all_channels
    rsqrts = c["channel_rsqrts"] * all_channels
    exps = c["exps"] * worked
    instructions = simple + divides + exps + rsqrts
    immediate_words = c["immediate_operations"] * worked + c["channel_immediates"] * all_channels
    # Two operands read, one written. Immediates come from a memory of their own; the last result is as wide as the
    # output.
    memory_words = 3 * instructions - immediate_words
    narrowed = (design.word_bits - out_bits) * worked * jnp.where(c["tile_stores"] + c["window_stores"] > 0, 1, 0)
    return VectorCost(
        compute_cycles=ceil(compute),
        stall_cycles=of_tile_moved * tiles + of_channels_moved * outer,
        dram_in_bits=loaded * design.word_bits,
        dram_out_bits=stored * out_bits,
        vector_memory_bits=memory_words * design.word_bits - narrowed,
        immediate_bits=(c["immediate_operations"] * worked / design.lanes + c["channel_immediates"] * all_channels)
        * design.word_bits,
        instruction_bits=instructions / design.lanes * design.word_bits,
        simple_operations=simple,
        divides=divides,
        exps=exps,
        rsqrts=rsqrts,
        fits=tile.fits,
    )
