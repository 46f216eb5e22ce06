"""From the cycles of layers to those of a network.

SimDIT runs one layer after the other. The corrected mode lets the vector unit work on what the array puts out while it
puts it out: a matrix layer and the vector layers fused behind it are a chain, and a chain takes as long as the busiest
of the array, the vector unit and the memory, plus the vector unit's share of the last tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsim.systolic.designs import Designs
from vsim.systolic.evaluate import Evaluation
from vsim.systolic.layers import Layer, MatrixLayer, split

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
    designs = found.matrix.compute_cycles.shape[1]
    values = np.zeros((3, len(layers), designs))
    costs = found.matrix
    values[:, matrix] = (
        costs.compute_cycles,
        costs.stall_cycles,
        costs.dram_filter_bits
        + costs.dram_ifmap_bits
        + costs.dram_psum_bits
        + costs.dram_ofmap_bits
        + costs.dram_bias_bits,
    )
    of_vector = found.vector
    values[:, vector] = (
        of_vector.compute_cycles,
        of_vector.stall_cycles,
        of_vector.dram_in_bits + of_vector.dram_out_bits,
    )
    return LayerTimes(*values)


def chain_starts(layers: Sequence[Layer]) -> list[int]:
    """Positions at which a chain begins: every layer but those that work on the output of the one before."""
    return [
        index for index, layer in enumerate(layers) if not index or isinstance(layer, MatrixLayer) or not layer.fused
    ]


def network_cycles(
    layers: Sequence[Layer], found: Evaluation, designs: Designs, *, faults: bool = False
) -> NDArray[np.float64]:
    """Cycles of the whole network on each design, float64 ``(designs,)``."""
    times = layer_times(layers, found)
    if faults:
        return times.cycles.sum(axis=0)
    return chain_cycles(layers, found, times, designs).sum(axis=0)


def chain_cycles(layers: Sequence[Layer], found: Evaluation, times: LayerTimes, designs: Designs) -> Values:
    """Cycles of each chain, float64 ``(chains, designs)``."""
    starts = chain_starts(layers)
    is_matrix = np.array([isinstance(layer, MatrixLayer) for layer in layers])[:, None]
    matrix = np.add.reduceat(np.where(is_matrix, times.cycles, 0), starts)
    vector = np.add.reduceat(np.where(is_matrix, 0, times.cycles), starts)
    memory = np.add.reduceat(times.dram_bits, starts) / np.asarray(designs.dram_bits)
    tiles = np.ones_like(times.cycles)
    tiles[split(layers)[0]] = _output_tiles(layers, found)
    last = np.where(matrix > 0, vector / tiles[starts], 0)
    return np.minimum(np.maximum(np.maximum(matrix, vector), memory) + last, matrix + vector)


def _output_tiles(layers: Sequence[Layer], found: Evaluation) -> Values:
    """Tiles of output of each matrix layer."""
    matrix = [layer for layer in layers if isinstance(layer, MatrixLayer)]
    tile = found.matrix_tile

    def parts(sizes: list[int], tiles: Values) -> Values:
        return np.ceil(np.array(sizes, float).reshape(-1, 1) / tiles)

    return (
        parts([layer.out_width for layer in matrix], np.asarray(tile.width))
        * parts([layer.out_height for layer in matrix], np.asarray(tile.height))
        * parts([layer.batch for layer in matrix], np.asarray(tile.batch))
        * parts([layer.out_channels for layer in matrix], np.asarray(tile.out_channels))
    )
