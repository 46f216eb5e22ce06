"""How the cost of a lane-cycle grows with lanes, channels and cores: figures and their picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.benchmarks.cases import scaling
from tests.benchmarks.measure import measure

SECONDS = 4.0
LANES = 128
SERIES = {"lanes": (32, 64, 128, 256, 512), "channels": (4, 8, 16, 32), "cores": (1, 2, 4, 8)}


def measure_all() -> dict[str, list[dict[str, Any]]]:
    """Per series, the figures of each of its values."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for kind, values in SERIES.items():
        rows[kind] = []
        for value in values:
            lanes = value if kind == "lanes" else LANES
            points = scaling("channels", 16, lanes) if kind == "lanes" else scaling(kind, value, lanes)
            rows[kind].append({"value": value, **measure(points, lanes, SECONDS).to_json()})
            print(
                f"scaling {kind:<8} {value:>4} {rows[kind][-1]['us_per_lane_iteration']:>8.2f} us/lane-it", flush=True
            )
    return rows


def draw(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One panel per series: microseconds per iteration, and the line through the first point that linear growth is."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axis, (kind, series) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        values = [row["value"] for row in series]
        # Of the whole batch for lanes, of one lane for the others.
        cost = [row["us_per_lane_iteration"] * (row["lanes"] if kind == "lanes" else 1) for row in series]
        axis.loglog(values, cost, "o-", label="measured")
        axis.loglog(values, [cost[0] * value / values[0] for value in values], ":", color="grey", label="linear")
        axis.set_xlabel(kind)
        axis.set_ylabel("us per iteration of the batch" if kind == "lanes" else "us per lane-iteration")
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
