"""Results of a lane that ran a mix."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hwconfigs import HwConfig
from lowering.mix import Mix, Tenant
from vsim.bounds import Roofs, roofs_of
from vsim.npu.results import SimResult, chip_result, share, two_words
from vsim.npu.types import NpuOutcome


def mix_result_of(hw: HwConfig, mix: Mix, state: NpuOutcome) -> SimResult:
    """Read a lane's outcome (NumPy leaves, no lane axis). Tenants come in the order of the list they were made from.

    layers: those of all tenants in the order in which they finished, each with the place of its tenant in that list.
    """
    roofs, layers_each = roofs_of(hw), state.schedule.producers_left.shape[0] // state.schedule.layers_left.shape[0]
    tenants = [
        _tenant(hw, roofs, tenant, state, index * layers_each) | _rows(hw, state, index) | _windows(hw, state, index)
        for index, tenant in enumerate(mix.tenants)
    ]
    rows = [row for tenant in tenants for row in tenant["layers"]]
    rows.sort(key=lambda row: math.inf if row["finish_cycle"] is None else row["finish_cycle"])
    warnings = tuple(dict.fromkeys(text for tenant in mix.tenants for text in tenant.program.warnings))
    listed = sorted(zip(mix.tenants, tenants, strict=True), key=lambda pair: pair[0].position)
    return replace(chip_result(hw, state, tuple(rows), warnings), tenants=tuple(row for _, row in listed))


def _tenant(hw: HwConfig, roofs: Roofs, tenant: Tenant, state: NpuOutcome, first: int) -> dict[str, Any]:
    """Null start: nothing of it started; null finish: not all of it finished.

    active_cycles: in which a layer of it ran; of layers that have not ended nothing counts. systolic_cycles: what
    the passes of its program stream, all cores together (closed form, without filling and draining the arrays), once it
    has finished. noc_bytes: every block that is loaded or stored crosses the NoC once.
    """
    layers = [_layer(hw, roofs, tenant, state, first + index, index) for index in range(tenant.program.n_layers)]
    starts = [layer["start_cycle"] for layer in layers if layer["start_cycle"] is not None]
    finishes = [layer["finish_cycle"] for layer in layers]
    finish = None if None in finishes else max(finishes)
    loaded, stored = (sum(layer[key] for layer in layers) for key in ("load_bytes", "store_bytes"))
    busy = sum(info.systolic_cycles for info in tenant.program.layers)
    return {
        "name": tenant.name,
        "workload": tenant.workload,
        "request_time": tenant.request_time_ms,
        "arrival_cycle": tenant.arrival_cycle,
        "deadline_cycle": tenant.deadline_cycle,
        "start_cycle": min(starts, default=None),
        "finish_cycle": finish,
        "latency_cycles": None if finish is None else finish - tenant.arrival_cycle,
        "active_cycles": _covered([(layer["start_cycle"], layer["finish_cycle"]) for layer in layers]),
        "systolic_cycles": None if finish is None else busy,
        "macs": sum(layer["macs"] for layer in layers),
        "load_bytes": loaded,
        "store_bytes": stored,
        "noc_bytes": loaded + stored,
        "layers": layers,
    }


def _rows(hw: HwConfig, state: NpuOutcome, tenant: int) -> dict[str, Any]:
    """Row hits, misses and conflicts of the tenant's requests; foreign: with a row opened for another workload.

    Null with the memory that has no rows. Refreshes are no tenant's.
    """
    names = ("row_hits", "row_misses", "row_conflicts", "foreign_conflicts")
    if not hw.dram.is_table:
        return dict.fromkeys(names)
    hits, misses, own, foreign = (int(count) for count in state.schedule.row_states[tenant])
    return dict(zip(names, (hits, misses, own + foreign, foreign), strict=True))


def _windows(hw: HwConfig, state: NpuOutcome, tenant: int) -> dict[str, Any]:
    """Bytes that the cores asked for in every window of `window_cycles` core cycles, up to the end of the run."""
    shift = int(state.schedule.window_shift)
    used = (two_words(state.cycles) >> shift) + 1
    requests = state.schedule.window_requests[tenant, :used]
    return {"window_cycles": 1 << shift, "window_bytes": [int(count) * hw.dram.request_bytes for count in requests]}


def _covered(intervals: list[tuple[int | None, int | None]]) -> int:
    """Cycles in at least one of the intervals that have both ends."""
    total = reached = 0
    for start, finish in sorted((a, b) for a, b in intervals if a is not None and b is not None):
        total += max(finish, reached) - max(start, reached)
        reached = max(finish, reached)
    return total


def _layer(hw: HwConfig, roofs: Roofs, tenant: Tenant, state: NpuOutcome, row: int, index: int) -> dict[str, Any]:
    info, schedule = tenant.program.layers[index], state.schedule
    start, finish = (_cycle(table[row]) for table in (schedule.start, schedule.finish))
    duration = finish - start if start is not None and finish is not None else 0
    load = int(schedule.load_requests[row]) * hw.dram.request_bytes
    store = int(schedule.store_requests[row]) * hw.dram.request_bytes
    return {
        "tenant": tenant.position,
        "name": info.name,
        "op": info.op,
        "start_cycle": start,
        "finish_cycle": finish,
        "macs": info.macs,
        "load_bytes": load,
        "store_bytes": store,
        "macs_per_byte": info.macs / (load + store) if load + store else None,
        "utilization": share(info.macs, duration * roofs.macs),
        "dram_utilization": share(load + store, duration * roofs.dram_bytes),
    }


def _cycle(words: Any) -> int | None:
    return two_words(words) if words[0] >= 0 else None
