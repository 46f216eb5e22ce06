"""The landscape of `vsim allocate`: cycles over all splits of a budget of memory and port width.

Eight numbers make a split. The maps show two of them, what the vector unit gets of memory and of ports; the rest is the
array's. A cell holds many splits: one map has its best, the other its worst. Beside them is every split, by cycles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from figures.roofline import check_target, save_as
from figures.style import COLOURS, DOUBLE_COLUMN_IN, paper_style
from vsim.systolic.allocate import MEMORIES, PORTS, Allocation

_VECTOR_MEMORY, _VECTOR_PORT = MEMORIES.index("vector"), PORTS.index("vector")
_CURVE_POINTS = 1001
_DESCENT = COLOURS[1]
_NAMES = {"best": "best", "equal": "equal split", "worst": "worst", "gradient": "best of gradient search"}
_MARKS: dict[str, dict[str, Any]] = {
    "best": {"marker": "*", "s": 55, "color": COLOURS[4]},
    "equal": {"marker": "s", "s": 18, "color": "white"},
    "worst": {"marker": "X", "s": 28, "color": "white"},
    "gradient": {"marker": "o", "s": 70, "color": "none"},
}


def save_allocation(found: Allocation, path: Path) -> None:
    """Draw the landscape into a file; its suffix is the format. Raises FigureError where that is not possible."""
    check_target(path)
    with paper_style():
        save_as(draw_allocation(found), path)


def draw_allocation(found: Allocation) -> Figure:
    """Draw both maps and the curve. Call in `paper_style`."""
    figure = Figure(figsize=(DOUBLE_COLUMN_IN, 2.5), layout="constrained")
    curve, best, worst = figure.subplots(1, 3)
    maps = (_over_vector(found, np.fmin), _over_vector(found, np.fmax))
    # A single split has no range.
    norm = LogNorm(1, max(1.1, found.worst.cycles / found.best.cycles))
    image = None
    for axes, values in zip((best, worst), maps, strict=True):
        image = axes.imshow(values, origin="lower", extent=_extent(found), aspect="auto", cmap="cividis_r", norm=norm)
        axes.grid(False)
        axes.set_xlabel("Vector memory (KiB)")
        for axis, ticks in zip((axes.xaxis, axes.yaxis), _position(found, *2 * [_ticks(found)]), strict=True):
            axis.set_major_locator(FixedLocator(ticks))
    best.set_title("Best split of a cell")
    worst.set_title("Worst split of a cell")
    best.set_ylabel("Vector port (bits/cycle)")
    worst.tick_params(labelleft=False)
    _draw_descents(best, found)
    for axes, names in ((best, ("best", "gradient", "equal")), (worst, ("worst", "equal"))):
        for name in names:
            point = getattr(found, name)
            _mark(axes, name, *_position(found, point.memories[_VECTOR_MEMORY], point.ports[_VECTOR_PORT]))
    _draw_curve(curve, found)
    if image is not None:
        bar = figure.colorbar(image, ax=worst, label="Cycles / cycles of the best", pad=0.02)
        bar.ax.yaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 6, 8, 12, 16]))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    handles = [curve.scatter([], [], label=_NAMES[name], **_style(name)) for name in _NAMES]
    path = {"color": _DESCENT, "linewidth": 0.7, "marker": ".", "markersize": 3}
    handles += best.plot([], [], label="descents, from the dot", **path)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _over_vector(found: Allocation, pick: np.ufunc) -> NDArray[np.float64]:
    """Cycles over those of the best, of the picked split of each cell, ``(ports, memories)`` of the vector unit.

    Not a number where no split of a cell can run the network.
    """
    most = found.spec.steps - len(MEMORIES) + 1
    cycles = np.where(np.isfinite(found.grid.cycles), found.grid.cycles / found.best.cycles, np.nan)
    cells = np.full((most, most), np.nan)
    pick.at(cells, (found.grid.ports[:, _VECTOR_PORT] - 1, found.grid.memories[:, _VECTOR_MEMORY] - 1), cycles)
    return cells


def _position(found: Allocation, memory: Any, port: Any) -> tuple[Any, Any]:
    """Steps of the budget in KiB and in bits per cycle."""
    budget, steps = found.spec.budget, found.spec.steps
    return memory * budget.sram_kib / steps, port * budget.port_bits_per_cycle / steps


def _extent(found: Allocation) -> tuple[float, float, float, float]:
    most = found.spec.steps - len(MEMORIES) + 1
    (left, low), (right, high) = (_position(found, edge, edge) for edge in (0.5, most + 0.5))
    return left, right, low, high


def _ticks(found: Allocation) -> NDArray[np.int64]:
    """Every quarter of the budget that the vector unit can get, in steps."""
    quarter = found.spec.steps // 4
    return np.arange(quarter, found.spec.steps - len(MEMORIES) + 2, quarter)


def _draw_descents(axes: Axes, found: Allocation) -> None:
    """Lines of what the vector unit got along every descent, in real numbers; what lies beyond the grid at its edge."""
    steps = np.clip(found.descents * found.spec.steps, 1, found.spec.steps - len(MEMORIES) + 1)
    x, y = _position(found, steps[:, :, 0, _VECTOR_MEMORY], steps[:, :, 1, _VECTOR_PORT])
    axes.plot(x, y, color=_DESCENT, linewidth=0.7)
    axes.plot(x[0], y[0], color=_DESCENT, linestyle="", marker=".", markersize=3)


def _draw_curve(axes: Axes, found: Allocation) -> None:
    """Every split that can run the network, from the best: its cycles over the share of splits before it."""
    ordered = np.sort(found.grid.cycles[np.isfinite(found.grid.cycles)]) / found.best.cycles
    places = np.unique(np.linspace(0, len(ordered) - 1, _CURVE_POINTS).round().astype(int))
    most = max(len(ordered) - 1, 1)
    axes.plot(100 * places / most, ordered[places], color=COLOURS[0])
    for name in ("best", "gradient", "equal", "worst"):
        ratio = getattr(found, name).cycles / found.best.cycles
        if np.isfinite(ratio):
            _mark(axes, name, 100 * min(np.searchsorted(ordered, ratio), most) / most, ratio)
    axes.set_title("All splits")
    axes.set_xlabel("Splits, by cycles (%)")
    axes.set_ylabel("Cycles / cycles of the best")


def _mark(axes: Axes, name: str, x: float, y: float) -> None:
    axes.scatter([x], [y], zorder=4, clip_on=False, **_style(name))


def _style(name: str) -> dict[str, Any]:
    return {"linewidths": 0.6, "edgecolors": "black", **_MARKS[name]}
