"""A chip of the cycle-level model as a design of the closed form.

What becomes what:

* the array and the latencies of divide, exponential and square root are those of core 0; weights come through its rows;
* half of the scratchpad is what a tile may fill; weights and inputs get a half of that each, and so does a tile of an
  operand of the vector unit. Partial sums fill half of the accumulators and stay there (`Designs.keeps_sums`);
* memory is what the slower of the data bus of all channels and the ports of the NoC carries at its peak
  (`vsim.bounds.roofs_of`), tensors lie in it without padding (`Designs.packed`);
* ``n`` cores are one core that does an n-th of every layer with an n-th of the memory.

What this leaves out is in `left_out`, for every chip, and `notes_on`, for one chip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from hwconfigs import HwConfig
from hwconfigs.errors import ConfigError
from lowering.mapping import ACCUMULATOR_BYTES
from vsim.bounds import roofs_of
from vsim.systolic.designs import KIB_BITS, Designs
from vsim.systolic.evaluate import DESIGNS_TOGETHER, network_cycles
from vsim.systolic.layers import Layer, MatrixLayer

LEFT_OUT = (
    "contention: latency, rows, refresh and queues of the DRAM, the NoC's latency, requests in flight",
    "the cycle level's own tiles: the closed form cuts layers by its own rule, half of a tile's scratchpad for weights",
    "how tiles share cores: every core does an equal part of every layer, nothing is loaded twice for two of them",
    "whole requests, and layers that only rearrange data between two others",
)
"""What the closed form of a chip never has."""

_ONE_CYCLE = ("add", "mul", "mac", "add_tree", "scalar_add", "scalar_mul")
"""Latencies that the closed form takes for one cycle."""


def no_closed_form(hw: HwConfig) -> str | None:
    """Why a chip has no closed form; None: it has one."""
    if any(hw.core(index) != hw.core(0) for index in range(1, hw.cores.count)):
        return "its cores differ (cores.overrides)"
    return None


def notes_on(hw: HwConfig) -> list[str]:
    """What the closed form does not know of this chip."""
    core, notes = hw.core(0), []
    if core.drains_between_tiles:
        notes.append("cores.drains_between_tiles: the closed form does not empty the array between tiles")
    slow = [name for name in _ONE_CYCLE if getattr(core.latency, name) != 1]
    notes += [f"cores.latency.{name}: the closed form takes one cycle" for name in slow]
    return notes


def chip_designs(chips: Sequence[HwConfig]) -> Designs:
    """The designs of chips; of several cores, the share of one. Raises `ConfigError` for a chip without one."""
    for hw in chips:
        reason = no_closed_form(hw)
        if reason is not None:
            raise ConfigError(f"{hw.name}: has no closed form: {reason}")
    columns: dict[str, Any] = {name: np.array(values, np.float64) for name, values in _columns(chips).items()}
    return Designs(**columns)


def _columns(chips: Sequence[HwConfig]) -> dict[str, list[float]]:
    rows = [_row(hw) for hw in chips]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _row(hw: HwConfig) -> dict[str, float]:
    core, element_bits = hw.core(0), 8 * hw.precision_bytes
    roofs = roofs_of(hw)
    memory_bits = 8 * min(roofs.dram_bytes, roofs.noc_bytes) / hw.cores.count
    operand_bits = core.spad_kib * KIB_BITS / 4
    sum_bits = core.acc_kib * KIB_BITS / 2
    return {
        "rows": core.rows,
        "cols": core.cols,
        **dict.fromkeys(("activation_bits", "weight_bits", "bias_bits", "output_bits", "word_bits"), element_bits),
        "accumulator_bits": 8 * ACCUMULATOR_BYTES,
        "weight_tile_bits": operand_bits,
        "ifmap_tile_bits": operand_bits,
        "ofmap_tile_bits": sum_bits,
        # Biases lie in the accumulators, where they become sums.
        "bias_tile_bits": sum_bits,
        # A tile of the vector unit is cut for half of this (`vsim.systolic.corrected.halved`).
        "vector_tile_bits": 2 * operand_bits,
        **dict.fromkeys(("weight_port_bits", "ifmap_port_bits", "ofmap_port_bits", "vector_port_bits"), memory_bits),
        "dram_bits": memory_bits,
        "div_cycles": core.latency.div,
        "exp_cycles": core.latency.exp,
        "rsqrt_cycles": core.latency.scalar_sqrt,
        "spare_weights": 1,
        "lanes": core.vector_bits / element_bits,
        "vector_fill_cycles": 0,
        "packed": 1,
        "keeps_sums": 1,
    }


def on_chips(layers: Sequence[Layer]) -> list[Layer]:
    """The layers as chips cut them: into tiles that need not divide the map."""
    return [replace(layer, uneven_tiles=True) if isinstance(layer, MatrixLayer) else layer for layer in layers]


def chip_cycles(layers: Sequence[Layer], chips: Sequence[HwConfig]) -> NDArray[np.float64]:
    """Core cycles of a network on each chip, ``(chips,)``; infinite where the closed form finds no tile that fits.

    All chips are evaluated in one batch. Raises `ConfigError` for a chip without a closed form.
    """
    cores = np.array([hw.cores.count for hw in chips], np.float64)
    # Always a whole batch: another number of designs would compile another function.
    missing = -len(chips) % DESIGNS_TOGETHER
    designs = jax.tree.map(lambda values: np.pad(values, (0, missing), mode="edge"), chip_designs(chips))
    return network_cycles(on_chips(layers), designs)[: len(chips)] / cores
