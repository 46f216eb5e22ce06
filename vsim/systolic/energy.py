"""What the layers of the closed-form model did, for `vsim.energy`.

The model's SRAM counts are those of SimDIT: every operand of every multiplication comes from its buffer, partial sums
go to their buffer and back (specs/systolic.md section 1.4); registers inside the array are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwconfigs.systolic_schema import SystolicHw
from vsim.energy import Activity, Arithmetic, Memory
from vsim.systolic.evaluate import Evaluation
from vsim.systolic.layers import Layer, split
from vsim.systolic.schedule import LayerTimes


def layer_activity(
    layers: Sequence[Layer],
    found: Evaluation,
    times: LayerTimes,
    hw: SystolicHw,
    *,
    design: int = 0,
    arithmetic: Arithmetic = "integer",
) -> Activity:
    """Activity of every layer on design number ``design``: each field an array in the order of the layers."""
    matrix, vector = split(layers)

    def spread(positions: list[int], values: np.ndarray) -> np.ndarray:
        column = np.zeros(len(layers))
        column[positions] = values[:, design]
        return column

    array, unit, buffers = found.matrix, found.vector, hw.buffers
    return Activity(
        cycles=times.cycles[:, design],
        macs=spread(matrix, np.asarray(array.macs)),
        operand_bits=max(hw.precision.activation_bits, hw.precision.weight_bits),
        sum_bits=hw.precision.accumulator_bits,
        arithmetic=arithmetic,
        simple_operations=spread(vector, np.asarray(unit.simple_operations)),
        divides=spread(vector, np.asarray(unit.divides)),
        exps=spread(vector, np.asarray(unit.exps)),
        rsqrts=spread(vector, np.asarray(unit.rsqrts)),
        memories={
            "weight_buffer": (Memory(spread(matrix, np.asarray(array.sram_filter_bits)), buffers.weight_kib),),
            "ifmap_buffer": (Memory(spread(matrix, np.asarray(array.sram_ifmap_bits)), buffers.ifmap_kib),),
            "ofmap_buffer": (Memory(spread(matrix, np.asarray(array.sram_psum_bits)), buffers.ofmap_kib),),
            "bias_buffer": (Memory(spread(matrix, np.asarray(array.sram_bias_bits)), buffers.bias_kib),),
            "vector_memory": (Memory(spread(vector, np.asarray(unit.vector_memory_bits)), buffers.vector_kib),),
        },
        dram_bits=times.dram_bits[:, design],
        memory_kib=sum(dict(buffers).values()),
    )
