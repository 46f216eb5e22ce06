"""What the figures of mixes read: the requests of the mixes that finished well, and their windows of time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures.data import FigureError, SweepData
from sweeps.store import read_table

Row = Mapping[str, Any]
_OWN_AXES = ("tenants", "scheduler")
_TOLD_BY_REQUESTS = (".model", ".batch", ".bandwidth_share")


@dataclass(frozen=True)
class TenantsData:
    """mixes: rows of the results table. requests: rows of the tenants table, each with its mix's scheduler and tenants.

    held: of each axis other than tenants and scheduler the value that stands for it in figures that show one.
    """

    mixes: tuple[Row, ...]
    requests: tuple[Row, ...]
    held: Mapping[str, Any]

    @property
    def schedulers(self) -> list[str]:
        """Schedulers in the order in which they were swept."""
        return list(dict.fromkeys(row["scheduler"] for row in self.mixes))

    def pairs(self) -> list[tuple[Row, Row]]:
        """Requests of mixes of two tenants, each with one of the other tenant; held axes at their values."""
        by_point: dict[int, list[Row]] = {}
        for row in self.requests:
            if all(row["mix"][key] == value for key, value in self.held.items()):
                by_point.setdefault(row["point"], []).append(row)
        pairs = []
        for rows in by_point.values():
            first = {row["workload"]: row for row in reversed(rows)}
            if len(first) == 2:
                pairs += [(row, first[1 - row["workload"]]) for row in rows]
        return pairs


def load_tenants(folder: Path, data: SweepData) -> TenantsData:
    """Read the tenants of a sweep over mixes; `UserError` when the folder has no table of them."""
    mixes = {row["point"]: row for row in data.rows}
    requests = [
        {**row, "mix": mixes[row["point"]], "scheduler": mixes[row["point"]]["scheduler"]}
        for row in read_table(folder, "tenants")
        if row["point"] in mixes
    ]
    if not requests:
        raise FigureError(f"{folder}: its table of tenants has no request of a mix that finished with status ok")
    keys = [axis.key for axis in data.axes if axis.key not in _OWN_AXES]
    held = {key: data.rows[0][key] for key in keys if not key.endswith(_TOLD_BY_REQUESTS)}
    return TenantsData(data.rows, tuple(requests), held)


def load_windows(folder: Path, point: int) -> list[Row]:
    """Return the windows of one point; `UserError` when the folder has no table of them."""
    return [row for row in read_table(folder, "windows") if row["point"] == point]


def smallest_batches(rows: Iterable[Row]) -> dict[str, tuple[int, str]]:
    """Return, by model, the smallest batch that it comes in, and the name of a tenant that has it."""
    found: dict[str, tuple[int, str]] = {}
    for row in rows:
        here = row["batch"], row["name"]
        found[row["model"]] = min(found.get(row["model"], here), here)
    return found


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)
