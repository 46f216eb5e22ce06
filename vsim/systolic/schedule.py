"""Cycles and traffic of each layer by itself, in the order of the list of layers.

SimDIT runs one layer after the other. The corrected mode lets the vector unit work on what the array puts out while it
puts it out: a matrix layer and the vector layers fused behind it are a chain, and a chain takes as long as the busiest
of the array, the vector unit and the memory, plus the vector unit's share of the last tile
(`vsim.systolic.evaluate.network_cycles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsim.systolic.evaluate import Evaluation
from vsim.systolic.layers import Layer, split

Values = NDArray[np.float64]


@dataclass(frozen=True)
class LayerTimes:
    """Float64 ``(layers, designs)`` in the order of the list of layers."""

    compute_cycles: Values
    stall_cycles: Values
    dram_bits: Values

    @property
    def cycles(self) -> Values:
        """Cycles of each layer by itself."""
        return self.compute_cycles + self.stall_cycles


def layer_times(layers: Sequence[Layer], found: Evaluation) -> LayerTimes:
    """Cycles and traffic of each layer."""
    matrix, vector = split(layers)
    values = np.zeros((3, len(layers), found.matrix.compute_cycles.shape[1]))
    array, unit = found.matrix, found.vector
    values[:, matrix] = (
        array.compute_cycles,
        array.stall_cycles,
        array.dram_filter_bits
        + array.dram_ifmap_bits
        + array.dram_psum_bits
        + array.dram_ofmap_bits
        + array.dram_bias_bits,
    )
    values[:, vector] = (unit.compute_cycles, unit.stall_cycles, unit.dram_in_bits + unit.dram_out_bits)
    return LayerTimes(*values)
