"""How the cost of a lane-cycle grows with lanes, channels and cores: figures and their picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from tests.benchmarks.cases import scaling
from tests.benchmarks.measure import measure

SECONDS = 4.0
LANES = 128
POINTS = 500
"""By the kernel: enough for all the seconds."""
SERIES = {"lanes": (32, 64, 128, 256, 512), "channels": (4, 8, 16, 32), "cores": (1, 2, 4, 8)}


def measure_all() -> dict[str, list[dict[str, Any]]]:
    """Per series, the figures of each of its values: by the step, and on a CPU of channels and cores by the kernel."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for kind, values in SERIES.items():
        rows[kind] = [_measure(kind, value, value if kind == "lanes" else LANES) for value in values]
        if kind != "lanes" and jax.default_backend() == "cpu":
            rows[kind] += [_measure(kind, value, None) for value in values]
    return rows


def _measure(kind: str, value: int, lanes: int | None) -> dict[str, Any]:
    count = lanes or POINTS
    points = scaling("channels", 16, count) if kind == "lanes" else scaling(kind, value, count)
    row = {"value": value, **measure(points, lanes, SECONDS).to_json()}
    path = "step" if lanes else "kernel"
    print(f"scaling {kind:<8} {value:>4} {path:<6} {row['us_per_lane_iteration']:>8.2f} us/lane-it", flush=True)
    return row


def draw(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One panel per series: microseconds per iteration, and the line through the first point that linear growth is."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axis, (kind, series) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        for by_kernel in (False, True):
            of_path = [row for row in series if (row["lanes"] is None) is by_kernel]
            if of_path:
                _draw_path(axis, kind, of_path, "kernel" if by_kernel else "step")
        values = SERIES[kind]
        axis.set_xlabel(kind)
        axis.set_ylabel("us per iteration of the batch" if kind == "lanes" else "us per lane-iteration")
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_path(axis: Any, kind: str, series: list[dict[str, Any]], label: str) -> None:
    values = [row["value"] for row in series]
    # Of the whole batch for lanes, of one lane for the others.
    cost = [row["us_per_lane_iteration"] * (row["lanes"] if kind == "lanes" else 1) for row in series]
    [line] = axis.loglog(values, cost, "o-", label=label)
    axis.loglog(values, [cost[0] * value / values[0] for value in values], ":", color=line.get_color())
