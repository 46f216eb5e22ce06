"""Results of a workload of which only the first of many equal layers were simulated.

The simulated layers of the network (units of several program layers, see `lowering.program.Repeat`) are repeated in
turn until there are as many as the network has. Since program layers run one after another, all that a layer inherits
from the one before are open rows, the phase of refresh, and writes on their way: a layer whose length is near the
refresh interval may meet one refresh more or less than its neighbour, which averages out over the simulated ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowering.program import Repeat
from vsim.npu.results import OK, SimResult

MARK = " [extrapolated]"
"""Ends the names of rows that were not simulated."""


def extrapolate(result: SimResult, repeat: Repeat) -> SimResult:
    """The result of the whole workload; one that did not end well is returned as it is.

    Rows, cycles, DRAM requests, bytes and bandwidth are those of the whole; row-buffer counts, figures of single
    channels, cores and the NoC remain those of the simulated part, as the warning says.
    """
    if result.status != OK:
        return result
    rows, units = result.layers, repeat.units
    start, end = units[0][0], units[-1][1]
    simulated = len(units)
    added: list[dict[str, Any]] = []
    shift = 0
    for number in range(simulated, repeat.total):
        first, last = units[number % simulated]
        # A unit lasts from the end of what was before it to its own end; `clock` is where the added part has got to.
        begins = rows[first - 1]["finish_cycle"] if first else 0
        clock = rows[end - 1]["finish_cycle"] + shift
        own = f"{repeat.prefix}{number % simulated}."
        for row in rows[first:last]:
            name = f"{repeat.prefix}{number}.{row['name'].removeprefix(own)}{MARK}"
            added.append(_moved(row, clock - begins, name))
        shift += rows[last - 1]["finish_cycle"] - begins
    cycles = result.cycles + shift
    time_us = result.time_us * cycles / result.cycles
    before = rows[start - 1]["finish_cycle"] if start else 0
    return replace(
        result,
        cycles=cycles,
        time_us=time_us,
        layers=(*rows[:end], *added, *(_moved(row, shift, row["name"]) for row in rows[end:])),
        dram=_dram(result.dram, added, time_us),
        warnings=(
            *result.warnings,
            f"extrapolated: {simulated} of {repeat.total} layers were simulated ({result.cycles:,} cycles), the others "
            "repeat them in turn; row-buffer counts and figures of cores, channels and NoC are of the simulated part",
        ),
        extrapolation={
            "simulated_layers": simulated,
            "layers": repeat.total,
            "simulated_cycles": result.cycles,
            "cycles_per_layer": (rows[end - 1]["finish_cycle"] - before) / simulated,
        },
    )


def _moved(row: dict[str, Any], cycles: int, name: str) -> dict[str, Any]:
    return row | {
        "name": name,
        "start_cycle": row["start_cycle"] + cycles,
        "finish_cycle": row["finish_cycle"] + cycles,
    }


def _dram(dram: dict[str, Any], added: list[dict[str, Any]], time_us: float) -> dict[str, Any]:
    """Requests and bytes with those of the added rows; a request is as large as the simulated ones."""
    whole = dict(dram)
    for requests, total_bytes, row_bytes in (
        ("reads", "read_bytes", "load_bytes"),
        ("writes", "write_bytes", "store_bytes"),
    ):
        more = sum(row[row_bytes] for row in added)
        if dram[requests]:
            whole[requests] += more * dram[requests] // dram[total_bytes]
        whole[total_bytes] += more
    whole["bandwidth_gbps"] = (whole["read_bytes"] + whole["write_bytes"]) / time_us / 1e3
    return whole
