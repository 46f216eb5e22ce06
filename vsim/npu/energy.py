"""Energy of a cycle-level run: added to its result, for the whole and for every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hwconfigs import HwConfig
from hwconfigs.energy_schema import Technology
from lowering.program import Program
from vsim.energy import Activity, Energy, energy, leakage_pj
from vsim.npu.activity import program_activity
from vsim.npu.results import OK
from vsim.npu.steady import program_layers


def with_energy(content: Mapping[str, Any], hw: HwConfig, program: Program, technology: Technology) -> dict[str, Any]:
    """A result (`SimResult.to_json`) with what it cost; one that did not end well is returned as it is.

    Adds ``energy`` (picojoules by part: ``mac_pj``, ``vector_pj``, ``spad_pj``, ``acc_pj``, ``dram_pj``,
    ``leakage_pj``, and the table: ``table``, ``node_nm``, ``supply_v``), ``energy_j``, ``power_w`` (average) and
    ``edp_js`` (energy x time); to every layer ``dynamic_pj``, everything but leakage.
    """
    if content["status"] != OK or not content["time_us"]:
        return dict(content)
    rows = content["layers"]
    order = program_layers(program.repeats, program.n_layers)
    activity = _of_rows(program_activity(hw, program), np.array(order, np.int64))
    moved = np.array([row["load_bytes"] + row["store_bytes"] for row in rows], np.float64)
    # The clock that was simulated: its period is a whole number of picoseconds.
    clock_mhz = content["cycles"] / content["time_us"]
    of_rows = energy(replace(activity, dram_bits=8 * moved), technology, clock_mhz)
    dynamic = of_rows.joules * 1e12
    seconds = content["time_us"] * 1e-6
    parts = {name: float(np.sum(values)) for name, values in of_rows.picojoules.items()}
    whole = Energy(parts | {"leakage": leakage_pj(technology, activity.memory_kib, seconds)}, seconds)
    uncounted = sum(bool(layer.vector_cycles) and not layer.activity for layer in program.layers)
    note = f"energy: vector operations of {uncounted} layers are not known by kind and count as additions"
    return {
        **content,
        "warnings": [*content["warnings"], *([note] if uncounted else [])],
        "layers": [row | {"dynamic_pj": float(value)} for row, value in zip(rows, dynamic, strict=True)],
        "energy": {
            "table": technology.name,
            "node_nm": technology.node_nm,
            "supply_v": technology.supply_v,
            **{f"{name}_pj": value for name, value in whole.picojoules.items()},
        },
        "energy_j": float(whole.joules),
        "power_w": float(whole.watts),
        "edp_js": float(whole.joule_seconds),
    }


def _of_rows(activity: Activity, order: Any) -> Activity:
    """The activity of each row of a result from that of the program's layers, some of which stand for several."""
    counts = ("cycles", "macs", "simple_operations", "multiplications", "divides", "exps", "rsqrts")
    return replace(
        activity,
        **{name: getattr(activity, name)[order] for name in counts},
        memories={
            name: tuple(replace(memory, bits=memory.bits[order]) for memory in memories)
            for name, memories in activity.memories.items()
        },
    )
