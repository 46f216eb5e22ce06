"""Results of a workload of which only the first of many equal units were simulated.

The simulated units (decoder layers, or blocks of a head; several program layers each, see `lowering.program.Repeat`)
are repeated in turn until there are as many as the network has. Since program layers run one after another, all that a
unit inherits from the one before are open rows, the phase of refresh, and writes on their way: a unit whose length is
near the refresh interval may meet one refresh more or less than its neighbour, which averages out over the simulated
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lowering.program import Repeat
from vsim.npu.results import OK, SimResult

MARK = " [extrapolated]"
"""Ends the names of rows that were not simulated."""

Rows = tuple[dict[str, Any], ...]


def extrapolate(result: SimResult, repeats: Sequence[Repeat]) -> SimResult:
    """The result of the whole workload; one that did not end well, or is already whole, is returned as it is.

    Rows, cycles, DRAM requests, bytes and bandwidth are those of the whole; row-buffer counts, figures of single
    channels, cores and the NoC remain those of the simulated part, as the warning says.
    """
    if result.status != OK or not repeats:
        return result
    rows, added = result.layers, []
    # From the last to the first, so that the program layers that a repeat names are still where it says.
    for repeat in reversed(repeats):
        rows, more = _with_repeated(rows, repeat)
        added += more
    cycles = result.cycles + rows[-1]["finish_cycle"] - result.layers[-1]["finish_cycle"]
    time_us = result.time_us * cycles / result.cycles
    parts = " and ".join(f"{len(r.units)} of {r.total} {r.prefix}*" for r in repeats)
    return replace(
        result,
        cycles=cycles,
        time_us=time_us,
        layers=rows,
        dram=_dram(result.dram, added, time_us),
        warnings=(
            *result.warnings,
            f"extrapolated: {parts} were simulated ({result.cycles:,} cycles), the others repeat them in turn; "
            "row-buffer counts and figures of cores, channels and NoC are of the simulated part",
        ),
        extrapolation={
            "simulated_cycles": result.cycles,
            "units": [_unit(result.layers, repeat) for repeat in repeats],
        },
    )


def program_layers(repeats: Sequence[Repeat], layers: int) -> list[int]:
    """Of every row that `extrapolate` makes of a program's `layers` layers, the layer that it is a copy of."""
    order = list(range(layers))
    for repeat in reversed(repeats):
        units, end = repeat.units, repeat.units[-1][1]
        missing = range(len(units), repeat.total)
        order[end:end] = [layer for number in missing for layer in range(*units[number % len(units)])]
    return order


def _unit(rows: Rows, repeat: Repeat) -> dict[str, Any]:
    """What was repeated: prefix of the rows' names, units simulated and in all, mean cycles of a simulated one."""
    simulated, first, end = len(repeat.units), repeat.units[0][0], repeat.units[-1][1]
    cycles = rows[end - 1]["finish_cycle"] - _clock(rows, first)
    return {
        "prefix": repeat.prefix,
        "simulated": simulated,
        "total": repeat.total,
        "cycles_per_unit": cycles / simulated,
    }


def _clock(rows: Rows, first: int) -> int:
    """Cycle at which row `first` could start: the end of the one before it."""
    return rows[first - 1]["finish_cycle"] if first else 0


def _with_repeated(rows: Rows, repeat: Repeat) -> tuple[Rows, list[dict[str, Any]]]:
    """The rows with those of the missing units put in, and the ones put in."""
    units, end = repeat.units, repeat.units[-1][1]
    added: list[dict[str, Any]] = []
    shift = 0
    for number in range(len(units), repeat.total):
        first, last = units[number % len(units)]
        own = f"{repeat.prefix}{number % len(units)}"
        begins = _clock(rows, first)
        for row in rows[first:last]:
            name = f"{repeat.prefix}{number}{row['name'].removeprefix(own)}{MARK}"
            added.append(_moved(row, rows[end - 1]["finish_cycle"] + shift - begins, name))
        shift += rows[last - 1]["finish_cycle"] - begins
    return (*rows[:end], *added, *(_moved(row, shift, row["name"]) for row in rows[end:])), added


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
