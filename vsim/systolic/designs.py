"""The hardware of the closed-form model as arrays: one entry of every field a design."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from hwconfigs.systolic_schema import SystolicHw

KIB_BITS = 8 * 1024
WORD_BITS = 32
"""The vector unit of SimDIT's template works on 32-bit words."""
PIPELINE_FILL_CYCLES = 5
"""Its six stages; its lanes start one after the other."""


@struct.dataclass
class Designs:
    """All fields are float64 of shape ``(designs,)`` and hold whole numbers; a formula sees one design."""

    rows: jax.Array
    cols: jax.Array
    activation_bits: jax.Array
    weight_bits: jax.Array
    bias_bits: jax.Array
    accumulator_bits: jax.Array
    output_bits: jax.Array
    weight_tile_bits: jax.Array
    """What one tile may occupy: half of a double-buffered memory, all of a single-buffered one."""
    ifmap_tile_bits: jax.Array
    ofmap_tile_bits: jax.Array
    bias_tile_bits: jax.Array
    vector_tile_bits: jax.Array
    weight_port_bits: jax.Array
    """Bits a cycle."""
    ifmap_port_bits: jax.Array
    ofmap_port_bits: jax.Array
    vector_port_bits: jax.Array
    dram_bits: jax.Array
    """Bits a cycle of the memory behind all ports; the compatibility mode has none."""
    div_cycles: jax.Array
    exp_cycles: jax.Array
    rsqrt_cycles: jax.Array
    spare_weights: jax.Array
    """1 where weights are loaded through the rows of the array."""
    lanes: jax.Array
    """Of the vector unit."""
    word_bits: jax.Array
    """Of an element in the vector memories, and in DRAM but for what a matrix layer reads."""
    vector_fill_cycles: jax.Array
    """From the start of a tile to the first result of the last lane."""
    packed: jax.Array
    """1 where tensors are stored without padding; else channels are padded to the sides of the array or the lanes."""
    keeps_sums: jax.Array
    """1 where sums stay in the accumulators until they are complete, and weights are loaded again for each tile of the
    map; else weights stay, and partial sums travel."""

    @property
    def channel_granule(self) -> jax.Array:
        """What the channels of a vector tile are a multiple of."""
        return jnp.where(self.packed > 0, 1, self.lanes)

    @property
    def count(self) -> int:
        """Number of designs."""
        return self.rows.shape[0]


def stack(hardware: Sequence[SystolicHw]) -> Designs:
    """Arrays of so many designs."""
    columns = np.array([_row(hw) for hw in hardware], np.float64).T
    return Designs(*columns)


def _row(hw: SystolicHw) -> tuple[float, ...]:
    precision, buffers, ports, latency = hw.precision, hw.buffers, hw.ports, hw.vector_latency
    half_kib_bits = KIB_BITS // 2
    return (
        hw.array.rows,
        hw.array.cols,
        precision.activation_bits,
        precision.weight_bits,
        precision.bias_bits,
        precision.accumulator_bits,
        precision.output_bits or precision.accumulator_bits,
        buffers.weight_kib * half_kib_bits,
        buffers.ifmap_kib * half_kib_bits,
        buffers.ofmap_kib * half_kib_bits,
        buffers.bias_kib * half_kib_bits,
        buffers.vector_kib * half_kib_bits,
        _weight_port_bits(hw),
        ports.ifmap_bits_per_cycle,
        ports.ofmap_bits_per_cycle,
        ports.vector_bits_per_cycle,
        hw.shared_dram_bits_per_cycle,
        latency.div_cycles,
        latency.exp_cycles,
        latency.rsqrt_cycles,
        hw.array.spare_weights,
        hw.array.cols,
        WORD_BITS,
        PIPELINE_FILL_CYCLES + hw.array.cols - 1,
        False,
        False,
    )


def _weight_port_bits(hw: SystolicHw) -> int:
    """Memories of weights inside the array take in one weight for each row; a weight buffer beside it takes all."""
    port = hw.ports.weight_bits_per_cycle
    return port if hw.array.spare_weights else min(hw.array.rows * hw.precision.weight_bits, port)
