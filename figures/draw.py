"""Draws every figure of a result folder."""

from __future__ import annotations

from pathlib import Path

from figures.data import FigureError, load_layers, load_sweep
from figures.layers_figure import draw_layers
from figures.style import paper_style, save
from figures.sweep_figure import assign_roles, draw_sweep


def draw_figures(folder: Path, out: Path, *, point: int | None = None) -> tuple[list[Path], list[str]]:
    """Draw ``sweep`` and ``layers`` as PDF and PNG into `out`; return the files and remarks on what is not shown.

    point: which point the layer figure is of; by default the first that finished well.
    Raises `UserError` when `folder` holds no finished results or not that point.
    """
    data = load_sweep(folder)
    shown = data.rows[0]["point"] if point is None else point
    if shown not in {row["point"] for row in data.rows}:
        raise FigureError(
            f"{folder}: point {shown} is not one of the {len(data.rows)} points that finished with status ok"
        )
    layers = load_layers(folder, shown)
    remarks = []
    missing = data.total_points - len(data.rows)
    if missing:
        remarks.append(f"{missing} of {data.total_points} points did not finish with status ok and are left out")
    roles = assign_roles(data)
    for axis, values in ((roles.series, roles.lines), (roles.panel, roles.panels)):
        if axis and len(values) < len(axis.values):
            remarks.append(f"{axis.key}: {len(values)} of its {len(axis.values)} values are shown")
    remarks += [f"{key}: only {value} is shown" for key, value in roles.held.items()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with paper_style():
            files = [*save(draw_sweep(data), out / "sweep")]
            if layers:
                files += save(draw_layers(layers), out / "layers")
    except OSError as error:
        raise FigureError(f"{out}: cannot write the figures there: {error.strerror}") from error
    return files, remarks
