"""Results of a workload of which only the first of many equal layers were simulated.

The last simulated layer of the network (a unit of several program layers, see `lowering.program.Repeat`) is taken to
be in steady state: each layer that was left out lasts as long, and moves as many bytes. Since program layers run one
after another, all that a layer inherits from the one before are open rows, refresh phases and writes on their way.
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
    rows = result.layers
    unit = rows[repeat.first : repeat.end]
    before = rows[repeat.first - 1]["finish_cycle"] if repeat.first else 0
    steady_cycles = unit[-1]["finish_cycle"] - before
    added = [
        _moved(row, (time + 1) * steady_cycles, _name(row["name"], repeat, time))
        for time in range(repeat.times)
        for row in unit
    ]
    shift = repeat.times * steady_cycles
    after = [_moved(row, shift, row["name"]) for row in rows[repeat.end :]]
    cycles = result.cycles + shift
    time_us = result.time_us * cycles / result.cycles
    total = repeat.number + 1 + repeat.times
    return replace(
        result,
        cycles=cycles,
        time_us=time_us,
        layers=(*rows[: repeat.end], *added, *after),
        dram=_dram(result.dram, added, time_us),
        warnings=(
            *result.warnings,
            f"extrapolated: {repeat.number + 1} of {total} layers were simulated ({result.cycles:,} cycles); each of "
            f"the others is taken to last {steady_cycles:,} cycles, as the last simulated one. Row-buffer counts and "
            "the figures of cores, channels and NoC are those of the simulated part",
        ),
        extrapolation={
            "simulated_layers": repeat.number + 1,
            "layers": total,
            "simulated_cycles": result.cycles,
            "steady_layer_cycles": steady_cycles,
        },
    )


def _moved(row: dict[str, Any], cycles: int, name: str) -> dict[str, Any]:
    return row | {
        "name": name,
        "start_cycle": row["start_cycle"] + cycles,
        "finish_cycle": row["finish_cycle"] + cycles,
    }


def _name(name: str, repeat: Repeat, time: int) -> str:
    own = f"{repeat.prefix}{repeat.number}."
    return f"{repeat.prefix}{repeat.number + 1 + time}.{name.removeprefix(own)}{MARK}"


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
