"""The corrected cost of a layer: what SimDIT's template costs without the shortcuts of SimDIT's code.

Differences from `matrix_cost` and `vector_cost` (specs/systolic.md section 1.9 lists what is wrong there):

* Tile counts are whole numbers, and tiles at the edge are as large as what is left: work adds up to the layer.
* Tiles follow one another through the array; it fills and empties once a layer, not once a tile.
* The number of transfers follows the number of tiles, also where there are few; an input that stays is not reloaded.
* All ports share one memory: a step takes at least its bits over the width of the memory.
* Inserted zeros are neither multiplied, nor loaded (`MatrixLayer.useful_kernel`, `useful_input`).
* The vector unit loads and stores one tile while it works on another; it holds two in each of its memories.

The tiles are those of the same generator. Where the array loads weights through its rows (``array.spare_weights``),
the rules of `lowering.systolic_rules` hold: a block of weights hides behind the one pass before it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vsim.systolic.designs import Designs
from vsim.systolic.layers import MatrixTable, VectorTable
from vsim.systolic.matrix_cost import MatrixCost, matrix_cost
from vsim.systolic.operators import VectorOperator
from vsim.systolic.rounding import ceil
from vsim.systolic.tiling import MatrixTile, VectorTile, padded
from vsim.systolic.vector_cost import VectorCost, vector_cost


class _Counts(NamedTuple):
    """Whole numbers of tiles."""

    maps: jax.Array
    reductions: jax.Array
    outputs: jax.Array


class _Transfers(NamedTuple):
    """Bits of each operand that a tile moves."""

    weights: jax.Array
    bias: jax.Array
    ifmap: jax.Array
    psum: jax.Array


def corrected_matrix_cost(layer: MatrixTable, design: Designs, tile: MatrixTile) -> MatrixCost:
    """Cost of one layer on one design with the given tile; ``groups`` of them one after the other."""
    plain = matrix_cost(layer, design, tile)
    wide, high = ceil(layer.out_width / tile.width), ceil(layer.out_height / tile.height)
    images = ceil(layer.batch / tile.batch)
    all_in, all_out = padded(layer.in_channels, design.rows), padded(layer.out_channels, design.cols)
    kernel_parts = ceil(layer.kernel / tile.kernel)
    counts = _Counts(
        maps=wide * high * images,
        reductions=ceil(all_in / tile.in_channels) * kernel_parts * kernel_parts,
        outputs=ceil(all_out / tile.out_channels),
    )
    tiles = counts.maps * counts.reductions * counts.outputs
    pixels = layer.out_width * layer.out_height * layer.batch
    useful = layer.useful_kernel * layer.useful_input
    taps = layer.kernel * layer.kernel * useful
    # Where weights come through the rows, kernel positions of few channels share a block of weights.
    together = jnp.where(design.spare_weights > 0, jnp.floor(design.rows / layer.in_channels), 1)
    deep = jnp.where(together > 1, ceil(taps / jnp.maximum(1, together)), taps * (all_in / design.rows))
    blocks = deep * (all_out / design.cols)
    streamed = pixels * blocks + blocks * counts.maps * _exposed_preload(layer, design, tile)
    fill = design.rows - 1 + design.cols - 1 + jnp.where(design.spare_weights > 0, design.rows, 0)

    # Partial sums that never leave the accumulators cost the weights of every position of the reduction a map tile.
    keeps = design.keeps_sums > 0
    reloads = jnp.where(keeps & (counts.reductions > 1), counts.maps, 1)
    # Groups of a convolution with few channels lie along the diagonal of the array, several in one pass.
    beside = jnp.minimum(jnp.floor(design.rows / layer.in_channels), jnp.floor(design.cols / layer.out_channels))
    beside = jnp.where(layer.is_gemm > 0, 1, jnp.clip(beside, 1, layer.groups))
    groups = ceil(layer.groups / beside)
    in_stored = jnp.where(design.packed > 0, layer.in_channels * beside, all_in)
    out_stored = jnp.where(design.packed > 0, layer.out_channels * beside, all_out)
    of_weights = in_stored * out_stored / jnp.where(design.packed > 0, beside, 1)
    rows_in = _halo(layer.out_height, high, layer.stride, layer.kernel)
    columns_in = _halo(layer.out_width, wide, layer.stride, layer.kernel)
    # One tile of inputs stays where neither the map nor the reduction moves on.
    passes = jnp.where(counts.maps * counts.reductions > 1, counts.outputs, 1)
    ifmap = rows_in * columns_in * layer.batch * in_stored * layer.useful_input * passes * design.activation_bits
    weights = layer.kernel * layer.kernel * layer.useful_kernel * of_weights * design.weight_bits
    outputs = pixels * all_out
    stored = pixels * out_stored
    psum = jnp.where(keeps, 0, stored * (2 * counts.reductions - 2) * design.accumulator_bits)
    ofmap = jnp.where(layer.fused > 0, 0, stored * design.output_bits)
    bias = out_stored * design.bias_bits
    busy = streamed / tiles
    moved = _Transfers(
        weights=weights / (counts.reductions * counts.outputs),
        bias=bias / counts.outputs,
        ifmap=ifmap / (tiles / counts.outputs * passes),
        psum=stored * design.accumulator_bits / (counts.maps * counts.outputs),
    )
    total = _pipeline(layer, design, counts, moved, busy) + fill
    compute = streamed + fill
    return plain._replace(
        compute_cycles=compute * groups,
        stall_cycles=(total - compute) * groups,
        dram_filter_bits=weights * reloads * groups,
        dram_ifmap_bits=ifmap * groups,
        dram_psum_bits=psum * groups,
        dram_ofmap_bits=ofmap * groups,
        dram_bias_bits=bias * groups,
        sram_filter_bits=outputs * all_in * taps * design.weight_bits * groups,
        sram_ifmap_bits=pixels * all_in * taps * (all_out / design.cols) * design.activation_bits * groups,
        sram_psum_bits=outputs * (2 * (all_in / design.rows) * taps - 1) * design.accumulator_bits * groups,
        sram_bias_bits=outputs * design.bias_bits * groups,
        macs=pixels * layer.out_channels * layer.in_channels * taps * layer.groups,
    )


def _exposed_preload(layer: MatrixTable, design: Designs, tile: MatrixTile) -> jax.Array:
    """Cycles of loading a block of weights that the last pass over the block before it does not hide."""
    # The rows of a matrix product are one long line; a pass over an image never crosses the end of a line.
    line = jnp.where(layer.is_gemm > 0, tile.batch, jnp.maximum(tile.width, tile.height))
    last = line - (ceil(line / design.rows) - 1) * design.rows
    return jnp.where(design.spare_weights > 0, design.rows - last, 0)


def _halo(outputs: jax.Array, tiles: jax.Array, stride: jax.Array, kernel: jax.Array) -> jax.Array:
    """Input rows (or columns) that all tiles of a side load, what neighbours share counted for each."""
    return (outputs - tiles) * stride + tiles * kernel


def _step(design: Designs, busy: jax.Array | float, load: _Transfers, store: jax.Array | float) -> jax.Array:
    """Cycles of working on one tile while the next is loaded and the last is stored; the slowest part decides."""
    weights = load.weights + load.bias
    psums = load.psum + store
    together = weights + load.ifmap + psums
    ports = jnp.maximum(
        jnp.maximum(weights / design.weight_port_bits, load.ifmap / design.ifmap_port_bits),
        psums / design.ofmap_port_bits,
    )
    return jnp.maximum(busy, jnp.maximum(ports, together / design.dram_bits))


def _pipeline(layer: MatrixTable, design: Designs, counts: _Counts, moved: _Transfers, busy: jax.Array) -> jax.Array:
    """Cycles of a layer from its first load to its last store.

    Between two tiles one of four things happens: new output channels begin, a new position of the reduction, or the map
    moves on, at the first position of the reduction or at a later one, where partial sums are read back. Where the
    design keeps sums instead, all positions of the reduction follow one another on a tile of the map, and weights are
    loaded for each.
    """
    maps, reductions, outputs = counts
    none = jnp.zeros_like(busy)
    results = jnp.where(layer.fused > 0, 0, moved.psum * design.output_bits / design.accumulator_bits)
    keeps = design.keeps_sums > 0
    psum = jnp.where(keeps, 0, moved.psum)
    # Sums that are not complete are stored as such; with several positions of the reduction most tiles are.
    stored = jnp.where(keeps | (reductions == 1), results, moved.psum)
    partial = jnp.where(keeps, 0, stored)
    again = jnp.where(keeps & (reductions > 1), moved.weights, 0)
    ifmap = jnp.where(maps * reductions > 1, moved.ifmap, 0)
    new_outputs = _Transfers(moved.weights, moved.bias, ifmap, none)
    new_weights = _Transfers(moved.weights, none, ifmap, psum)
    next_map = _Transfers(again, none, ifmap, none)
    next_sums = _Transfers(again, none, ifmap, psum)
    between = (
        (outputs - 1) * _step(design, busy, new_outputs, stored)
        + outputs * (reductions - 1) * _step(design, busy, new_weights, partial)
        + outputs * (maps - 1) * _step(design, busy, next_map, stored)
        + outputs * (reductions - 1) * (maps - 1) * _step(design, busy, next_sums, partial)
    )
    first = _step(design, 0, moved._replace(psum=none), 0)
    before_last = jnp.where(maps * reductions * outputs > 1, stored, 0)
    nothing = _Transfers(none, none, none, none)
    return first + between + _step(design, busy, nothing, before_last) + _step(design, 0, nothing, results)


def corrected_vector_cost(layer: VectorTable, design: Designs, tile: VectorTile) -> VectorCost:
    """Cost of one layer of the vector unit; its tile was cut for half of each memory."""
    plain = vector_cost(layer, design, tile)
    sides = layer.width / tile.width * (layer.height / tile.height) * (layer.batch / tile.batch)
    channels = padded(layer.channels, design.channel_granule) / tile.channels
    whole = sides * ceil(channels)
    # The pipeline fills for whole tiles only.
    passes = layer.coefficients[VectorOperator.COLUMNS["passes"]]
    compute = plain.compute_cycles + (whole - sides * channels) * passes * design.vector_fill_cycles
    bits = plain.dram_in_bits + plain.dram_out_bits
    moving = bits / jnp.minimum(design.vector_port_bits, design.dram_bits)
    # The first tile is loaded before there is work, the last is stored after it.
    at_ends = jnp.minimum(moving, compute) / whole
    total = jnp.maximum(moving, compute) + at_ends
    return plain._replace(compute_cycles=compute, stall_cycles=total - compute)


def halved(design: Designs) -> Designs:
    """The design with half of its vector memories, for tiles that are double buffered."""
    return design.replace(vector_tile_bits=design.vector_tile_bits / 2)  # pyright: ignore[reportAttributeAccessIssue]
