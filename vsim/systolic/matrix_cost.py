"""SimDIT's cost of a convolution or matrix product (specs/systolic.md section 1.4), faults included.

The array is weight stationary, the tiles follow each other in the order (outer to inner) output channels, input
channels, kernel, batch, output map; a matrix product at batch 1 is output stationary. Tile counts are real numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vsim.systolic.designs import Designs
from vsim.systolic.layers import MatrixTable
from vsim.systolic.rounding import ceil
from vsim.systolic.tiling import MatrixTile, in_extent, padded


class MatrixCost(NamedTuple):
    """Cost of one layer on one design; traffic of each operand in bits."""

    compute_cycles: jax.Array
    stall_cycles: jax.Array
    dram_filter_bits: jax.Array
    dram_ifmap_bits: jax.Array
    dram_psum_bits: jax.Array
    dram_ofmap_bits: jax.Array
    dram_bias_bits: jax.Array
    sram_filter_bits: jax.Array
    sram_ifmap_bits: jax.Array
    sram_psum_bits: jax.Array
    sram_bias_bits: jax.Array
    macs: jax.Array
    fits: jax.Array


class _Trips(NamedTuple):
    """How often each loop over tiles runs."""

    width: jax.Array
    height: jax.Array
    batch: jax.Array
    map_whole: jax.Array
    """Tiles of output map and batch, each count rounded up."""
    in_channels: jax.Array
    kernel: jax.Array
    kernel_whole: jax.Array
    out_channels: jax.Array

    @property
    def map(self) -> jax.Array:
        return self.width * self.height * self.batch

    @property
    def reductions(self) -> jax.Array:
        return self.in_channels * self.kernel

    @property
    def outputs(self) -> jax.Array:
        return self.map * self.out_channels

    @property
    def weights(self) -> jax.Array:
        return self.in_channels * self.kernel * self.out_channels

    @property
    def all(self) -> jax.Array:
        return self.map * self.weights


class _Port(NamedTuple):
    """Cycles that each operand of one tile occupies its port."""

    weights: jax.Array
    weights_and_bias: jax.Array
    ifmap: jax.Array
    psum: jax.Array


def matrix_cost(layer: MatrixTable, design: Designs, tile: MatrixTile) -> MatrixCost:
    """Cost of one layer on one design with the given tile."""
    trips = _trips(layer, design, tile)
    area = tile.kernel * tile.kernel
    in_rows = ceil(tile.in_channels / design.rows)
    out_groups = ceil(tile.out_channels / design.cols)
    outputs = tile.width * tile.height * tile.batch
    busy = outputs * area * in_rows * out_groups + design.rows - 1 + design.cols - 1
    out_trips = ceil(trips.out_channels)
    in_map = in_extent(tile.width, layer.stride, tile.kernel) * in_extent(tile.height, layer.stride, tile.kernel)
    all_outputs = layer.out_width * layer.out_height * padded(layer.out_channels, design.cols) * layer.batch
    # Rounds of partial sums: every pass but the first reads them back, every one but the last writes them.
    passes = ceil(trips.in_channels) * trips.kernel_whole
    weights = area * tile.in_channels * tile.out_channels
    single_row = (layer.is_gemm > 0) & (layer.batch == 1)
    port = _port(design, tile, in_map)
    stall = jnp.where(single_row, _single_row_stall(trips, port, busy), _stall(layer, trips, port, busy))
    macs = outputs * area * tile.in_channels * tile.out_channels * trips.all
    ifmap = in_map * tile.in_channels * tile.batch * trips.map * trips.reductions * out_trips
    # SimDIT works out how often a single row is loaded again, and does not use it.
    ifmap = jnp.where(single_row, padded(layer.in_channels, design.rows) * trips.out_channels, ifmap)
    # Multiplied one count after the other, as SimDIT does: where the counts are fractions, psum is this rounding error.
    written = outputs * tile.out_channels * trips.width * trips.height * trips.batch * trips.out_channels
    psum = written * (2 * passes - 1) - all_outputs
    return MatrixCost(
        compute_cycles=ceil(busy * trips.all),
        stall_cycles=stall,
        dram_filter_bits=weights * trips.weights * design.weight_bits,
        dram_ifmap_bits=ifmap * design.activation_bits,
        dram_psum_bits=jnp.where(single_row, 0, psum * design.accumulator_bits),
        dram_ofmap_bits=jnp.where(layer.fused > 0, 0, all_outputs * design.accumulator_bits),
        dram_bias_bits=padded(layer.out_channels, design.cols) * design.bias_bits,
        sram_filter_bits=weights * outputs * trips.map_whole * trips.weights * design.weight_bits,
        sram_ifmap_bits=tile.in_channels
        * outputs
        * area
        * out_groups
        * trips.map
        * trips.reductions
        * out_trips
        * design.activation_bits,
        sram_psum_bits=outputs
        * tile.out_channels
        * (2 * in_rows * area * passes - 1)
        * trips.outputs
        * design.accumulator_bits,
        sram_bias_bits=outputs * tile.out_channels * trips.outputs * design.bias_bits,
        macs=macs,
        fits=tile.fits,
    )


def _trips(layer: MatrixTable, design: Designs, tile: MatrixTile) -> _Trips:
    wide, high, batch = layer.out_width / tile.width, layer.out_height / tile.height, layer.batch / tile.batch
    kernel = layer.kernel / tile.kernel
    return _Trips(
        width=wide,
        height=high,
        batch=batch,
        map_whole=ceil(wide) * ceil(high) * ceil(batch),
        in_channels=padded(layer.in_channels, design.rows) / tile.in_channels,
        kernel=kernel * kernel,
        kernel_whole=ceil(kernel) * ceil(kernel),
        out_channels=padded(layer.out_channels, design.cols) / tile.out_channels,
    )


def _port(design: Designs, tile: MatrixTile, in_map: jax.Array) -> _Port:
    weight_bits = tile.kernel * tile.kernel * tile.in_channels * tile.out_channels * design.weight_bits
    weights = ceil(weight_bits / design.weight_port_bits)
    psum_bits = tile.width * tile.height * tile.out_channels * tile.batch * design.accumulator_bits
    return _Port(
        weights=weights,
        weights_and_bias=weights + ceil(tile.out_channels * design.bias_bits / design.weight_port_bits),
        ifmap=ceil(in_map * tile.in_channels * tile.batch * design.activation_bits / design.ifmap_port_bits),
        psum=ceil(psum_bits / design.ofmap_port_bits),
    )


def _beyond(busy: jax.Array, *port_cycles: jax.Array) -> jax.Array:
    """Cycles by which the slowest of the transfers outlasts the work on a tile."""
    longest = port_cycles[0]
    for cycles in port_cycles[1:]:
        longest = jnp.maximum(longest, cycles)
    return jnp.maximum(0, longest - busy)


def _stall(layer: MatrixTable, trips: _Trips, port: _Port, busy: jax.Array) -> jax.Array:
    """Weight stationary: classes of tiles by what is loaded and stored beside them.

    The counts suppose at least three tiles; with one tile a class counts -1, as in SimDIT.
    """
    new_outputs = trips.out_channels - 1
    new_weights = trips.weights - trips.out_channels
    read_write = trips.all - trips.outputs - new_weights
    write = trips.outputs - 2 - new_outputs
    classes = (
        new_outputs * _beyond(busy, port.ifmap, port.psum, port.weights_and_bias)
        + new_weights * _beyond(busy, port.ifmap, port.weights, 2 * port.psum)
        + write * _beyond(busy, port.ifmap, port.psum)
        + read_write * _beyond(busy, port.ifmap, 2 * port.psum)
    )
    filling = jnp.maximum(port.ifmap, port.weights_and_bias) + _beyond(busy, port.ifmap)
    emptying = _beyond(busy, port.psum) + port.psum
    # A fused layer hands its output on and does not store it; SimDIT takes that off as an average over the tiles.
    steady = trips.all - 2
    average = jnp.where(steady > 0, ceil(classes / jnp.where(steady > 0, steady, 1)), 0)
    saved = jnp.minimum(classes, average * (trips.outputs - 2)) + emptying
    return classes + filling + emptying - jnp.where(layer.fused > 0, saved, 0)


def _single_row_stall(trips: _Trips, port: _Port, busy: jax.Array) -> jax.Array:
    """Output stationary: a matrix product at batch 1."""
    rounds, depth = trips.out_channels, trips.in_channels
    first = jnp.maximum(port.ifmap, port.weights_and_bias)
    shallow = (
        (rounds - 2) * _beyond(busy, port.weights_and_bias, port.psum)
        + first
        + _beyond(busy, port.weights_and_bias)
        + _beyond(busy, port.psum)
        + port.psum
    )
    shallow = jnp.where(rounds < 2, first + port.psum, shallow)
    deep = (
        (rounds - 1) * _beyond(busy, port.weights_and_bias, port.ifmap)
        + (depth * rounds - rounds - 1 - (rounds - 1)) * _beyond(busy, port.weights, port.ifmap)
        + (rounds - 1) * _beyond(busy, port.weights, port.ifmap, port.psum)
        + first
        + _beyond(busy, port.weights, port.ifmap)
        + port.psum
    )
    return jnp.where(depth > 1, deep, shallow)
