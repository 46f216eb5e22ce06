"""Results of a lane: from its final state to the figures that are reported and stored."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hwconfigs import HwConfig
from lowering.program import Program
from vsim.bounds import bounds_of, roofs_of
from vsim.npu.dispatch import RADIX_BITS
from vsim.npu.types import STATUS_NAMES, NpuOutcome

OK = "ok"


@dataclass(frozen=True)
class SimResult:
    """One point's outcome. status: "ok" or the name of what ended the lane; then the figures are those up to its end.

    cycles: core cycles until the last write is acknowledged. layers, cores, dram, noc: as in `to_json`.
    """

    status: str
    cycles: int
    time_us: float
    layers: tuple[dict[str, Any], ...]
    cores: tuple[dict[str, Any], ...]
    dram: dict[str, Any]
    noc: dict[str, Any]
    warnings: tuple[str, ...] = ()
    extrapolation: dict[str, Any] | None = None
    """What of the result was not simulated (see `vsim.npu.steady`); None: all of it was."""
    iterations: int = 0
    """Loop iterations the lane took; fewer than its ticks where idle time was skipped."""
    roofs: dict[str, float] = field(default_factory=dict)
    """Peaks of the chip per core cycle, as in `vsim.bounds.Roofs`."""
    tenants: tuple[dict[str, Any], ...] = ()
    """Of a mix: name, request_time (ms), start_cycle, finish_cycle and layers of every tenant."""

    def to_json(self) -> dict[str, Any]:
        """Plain data: what `vsim run --json` prints and sweeps store."""
        return {
            "status": self.status,
            "cycles": self.cycles,
            "time_us": self.time_us,
            "layers": list(self.layers),
            "cores": list(self.cores),
            "dram": self.dram,
            "noc": self.noc,
            "roofs": self.roofs,
            "warnings": list(self.warnings),
        } | {key: value for key, value in self._only_of_some().items() if value}

    def _only_of_some(self) -> dict[str, Any]:
        return {"extrapolation": self.extrapolation, "tenants": list(self.tenants)}


def result_of(hw: HwConfig, program: Program, state: NpuOutcome) -> SimResult:
    """Read a lane's outcome (NumPy leaves, no lane axis)."""
    return chip_result(hw, state, _layers(hw, program, state), program.warnings)


def chip_result(
    hw: HwConfig, state: NpuOutcome, layers: tuple[dict[str, Any], ...], warnings: tuple[str, ...]
) -> SimResult:
    """Everything of a result that does not depend on how layers were scheduled."""
    cycles = two_words(state.cycles)
    period_ps = 1_000_000 // hw.clocks.core_mhz
    return SimResult(
        status=_status_name(int(state.status)),
        cycles=cycles,
        time_us=cycles * period_ps / 1e6,
        layers=layers,
        cores=_cores(hw, state, cycles),
        dram=_dram(hw, state, cycles * period_ps),
        noc={"requests": int(np.sum(state.requests)), "responses": int(np.sum(state.reads + state.writes))},
        warnings=warnings,
        iterations=int(state.iterations),
        roofs=asdict(roofs_of(hw)),
    )


def _status_name(bits: int) -> str:
    return "+".join(name for bit, name in STATUS_NAMES.items() if bits & bit) or OK


def _layers(hw: HwConfig, program: Program, state: NpuOutcome) -> tuple[dict[str, Any], ...]:
    """Figures per layer; one that did not start or finish has null cycles. Bytes are counted, not predicted.

    utilization: products over what all arrays could compute; systolic, vector and dram: busy time of the array (vector
    unit) over all cores, bytes over the peak of the data bus. bound, bound_cycles, imbalance: see `vsim.bounds`.
    """
    done = int(state.schedule.layer)
    bounds, roofs = bounds_of(hw, program), roofs_of(hw)
    rows = []
    for index, layer in enumerate(program.layers):
        started = index < done or (index == done and not state.schedule.waiting)
        start = two_words(state.schedule.start[index]) if started else None
        finish = two_words(state.schedule.finish[index]) if index < done else None
        duration = finish - start if start is not None and finish is not None else 0
        load = int(state.schedule.load_requests[index]) * hw.dram.request_bytes
        store = int(state.schedule.store_requests[index]) * hw.dram.request_bytes
        bound = bounds.name(index)
        least = math.ceil(bounds.cycles[bound][index]) if bound else 0
        core_cycles = duration * hw.cores.count
        rows.append(
            {
                "name": layer.name,
                "op": layer.op,
                "start_cycle": start,
                "finish_cycle": finish,
                "macs": layer.macs,
                "load_bytes": load,
                "store_bytes": store,
                "macs_per_byte": layer.macs / (load + store) if load + store else None,
                "bound": bound,
                "bound_cycles": least,
                "bound_utilization": share(least, duration),
                "utilization": share(layer.macs, duration * roofs.macs),
                "systolic_utilization": share(int(bounds.work.systolic_cycles[index].sum()), core_cycles),
                "vector_utilization": share(int(bounds.work.vector_cycles[index].sum()), core_cycles),
                "dram_utilization": share(load + store, duration * roofs.dram_bytes),
                "imbalance": bounds.imbalance(index),
            }
        )
    return tuple(rows)


def share(part: float, whole: float) -> float:
    """Part of a whole, 0 of nothing."""
    return part / whole if whole else 0.0


def two_words(words: Any) -> int:
    """The number that two words (high, low) in radix 2**30 stand for."""
    return (int(words[0]) << RADIX_BITS) + int(words[1])


def _cores(hw: HwConfig, state: NpuOutcome, cycles: int) -> tuple[dict[str, Any], ...]:
    pairs = zip(state.activity, state.activity_high, strict=True)
    counts = [(np.asarray(low, np.int64) + (np.asarray(high, np.int64) << RADIX_BITS)).tolist() for low, high in pairs]
    systolic, vector, compute, idle, busy = counts
    return tuple(
        {
            "core": index,
            "systolic_active_cycles": systolic[index],
            "systolic_busy_cycles": busy[index],
            "vector_active_cycles": vector[index],
            "compute_active_cycles": compute[index],
            "idle_cycles": idle[index],
            "systolic_utilization": systolic[index] / cycles if cycles else 0.0,
        }
        for index in range(hw.cores.count)
    )


def _dram(hw: HwConfig, state: NpuOutcome, time_ps: int) -> dict[str, Any]:
    """Requests, row statistics and achieved bandwidth (bytes moved over the whole run), in total and per channel."""
    size = hw.dram.request_bytes
    per_channel = {
        "reads": state.reads,
        "writes": state.writes,
        "row_hits": state.row_hits,
        "row_misses": state.row_misses,
        "row_conflicts": state.row_conflicts,
    }
    channels = [
        {"channel": index, **{name: int(values[index]) for name, values in per_channel.items()}}
        for index in range(hw.dram.channels)
    ]
    total = {name: int(np.sum(values, dtype=np.int64)) for name, values in per_channel.items()}
    moved = (total["reads"] + total["writes"]) * size
    return total | {
        "read_bytes": total["reads"] * size,
        "write_bytes": total["writes"] * size,
        "bandwidth_gbps": moved * 1e3 / time_ps if time_ps else 0.0,
        "channels": channels,
    }
