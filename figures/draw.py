"""Draws every figure of a result folder."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from figures.data import FigureError, SweepData, load_layers, load_sweep
from figures.isolation import NO_LIMIT, draw_isolation, isolation_of
from figures.layers_figure import draw_layers
from figures.roofline import draw_roofline
from figures.style import paper_style, save
from figures.sweep_figure import assign_roles, draw_sweep
from figures.tenants_data import TenantsData, load_tenants, load_windows
from figures.tenants_figures import (
    MOST_PANELS,
    draw_bandwidth,
    draw_fairness,
    draw_latency_against_batch,
    draw_latency_cdfs,
    draw_slowdowns,
)


def draw_figures(folder: Path, out: Path, *, point: int | None = None) -> tuple[list[Path], list[str]]:
    """Draw ``sweep``, ``layers`` and ``roofline`` as PDF and PNG into `out`; return files and what is not shown.

    Of mixes, draw ``latency_against_batch``, ``slowdowns``, ``latency_cdfs``, ``fairness``, ``bandwidth`` and,
    where tenants have shares of it, ``isolation`` instead.
    point: which point the layer figures, or the bandwidth, are of; by default the first that finished well.
    Raises `UserError` when `folder` holds no finished results or not that point.
    """
    data = load_sweep(folder)
    shown = data.rows[0]["point"] if point is None else point
    if shown not in {row["point"] for row in data.rows}:
        raise FigureError(
            f"{folder}: point {shown} is not one of the {len(data.rows)} points that finished with status ok"
        )
    remarks = []
    missing = data.total_points - len(data.rows)
    if missing:
        remarks.append(f"{missing} of {data.total_points} points did not finish with status ok and are left out")
    if data.of_mixes:
        files, own = _draw_mixes(folder, data, out, shown)
        return files, [*remarks, *own]
    layers = load_layers(folder, shown)
    roles = assign_roles(data)
    for axis, values in ((roles.series, roles.lines), (roles.panel, roles.panels)):
        if axis and len(values) < len(axis.values):
            remarks.append(f"{axis.key}: {len(values)} of its {len(axis.values)} values are shown")
    remarks += [f"{key}: only {value} is shown" for key, value in roles.held.items()]
    row = next(row for row in data.rows if row["point"] == shown)
    roofs = {name: row[f"roofs_{name}"] for name in ("macs", "dram_bytes", "noc_bytes") if f"roofs_{name}" in row}
    has_roofline = len(roofs) == 3 and any(layer["macs"] and layer["load_bytes"] for layer in layers)
    if not has_roofline:
        remarks.append(f"roofline: point {shown} has no layer with products, or was simulated by an older vsim")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with paper_style():
            files = [*save(draw_sweep(data), out / "sweep")]
            if layers:
                files += save(draw_layers(layers), out / "layers")
            if has_roofline:
                files += save(draw_roofline(layers, roofs, row["cycles"] / row["time_us"]), out / "roofline")
    except OSError as error:
        raise FigureError(f"{out}: cannot write the figures there: {error.strerror}") from error
    return files, remarks


def _isolation(tenants: TenantsData, remarks: list[str]) -> Figure:
    study = isolation_of(tenants)
    remarks.append(f"isolation: {study.victim} is at most {study.worst:.1%} off the prediction of its share")
    return draw_isolation(study)


def _draw_mixes(folder: Path, data: SweepData, out: Path, shown: int) -> tuple[list[Path], list[str]]:
    """Files, and a remark for every figure that these results do not have."""
    tenants, windows = load_tenants(folder, data), load_windows(folder, shown)
    row = next(row for row in data.rows if row["point"] == shown)
    of_point = [request for request in tenants.requests if request["point"] == shown]
    figures = {
        "latency_against_batch": lambda: draw_latency_against_batch(tenants),
        "slowdowns": lambda: draw_slowdowns(tenants),
        "latency_cdfs": lambda: draw_latency_cdfs(tenants),
        "fairness": lambda: draw_fairness(tenants),
        "bandwidth": lambda: draw_bandwidth(windows, of_point, row["cycles"] / row["time_us"]),
    }
    if any(request["bandwidth_share"] < NO_LIMIT for request in tenants.requests):
        figures["isolation"] = lambda: _isolation(tenants, remarks)
    files: list[Path] = []
    remarks = [f"pairs of tenants: only {key} = {value} is shown" for key, value in tenants.held.items()]
    if len(tenants.schedulers) > MOST_PANELS:
        remarks.append(f"pairs of tenants: {MOST_PANELS} of {len(tenants.schedulers)} schedulers are shown")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with paper_style():
            for name, draw in figures.items():
                try:
                    files += save(draw(), out / name)
                except FigureError as error:
                    remarks.append(f"{name}: {error}")
    except OSError as error:
        raise FigureError(f"{out}: cannot write the figures there: {error.strerror}") from error
    return files, remarks
