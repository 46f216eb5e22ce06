"""The roofline of one point: products per second over products per byte, one marker a layer, and the chip's roofs.

Model: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures",
CACM 52(4), 2009; the roofs are those of `vsim.bounds`. A marker's area is the layer's share of the time of all layers
shown, its colour what bounds it. Layers without products (pools, copies) have no place on the axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.data import FigureError
from figures.style import COLOURS, PNG_DPI, SINGLE_COLUMN_IN, paper_style

_HEIGHT_IN = 2.6
_BOUND_COLOURS: dict[str, str] = dict(zip(("compute", "dram", "noc", "vector", "dispatch"), COLOURS, strict=False))
_BOUND_NAMES: dict[str, str] = {
    "compute": "compute",
    "dram": "DRAM",
    "noc": "NoC",
    "vector": "vector",
    "dispatch": "dispatch",
}
_ALL_TIME_POINTS2 = 900.0
"""Area of the marker of a layer that takes all the time, in square points."""
_LEAST_POINTS2 = 4.0
_FORMATS = (".pdf", ".png", ".svg")


def save_roofline(result: Mapping[str, Any], path: Path) -> None:
    """Draw the roofline of a result (`SimResult.to_json`) into a file; its suffix is the format.

    Raises FigureError for a file that `check_target` refuses, a file that cannot be written, and results without a
    finished layer that has products.
    """
    check_target(path)
    with paper_style():
        save_as(draw_roofline(result["layers"], result["roofs"], result["cycles"] / result["time_us"]), path)


def check_target(path: Path) -> None:
    """Raise FigureError for a file whose suffix is not .pdf, .png or .svg, or whose folder does not exist."""
    if path.suffix not in _FORMATS:
        raise FigureError(f"{path}: a figure is written as {', '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise FigureError(f"{path}: there is no folder {path.parent} to write the figure to")


def save_as(figure: Figure, path: Path) -> None:
    """Write one file, its suffix the format; to be called in `paper_style`. Raises FigureError."""
    try:
        figure.savefig(path, dpi=PNG_DPI, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    except OSError as error:
        raise FigureError(f"{path}: cannot write the figure there: {error.strerror}") from error


def draw_roofline(layers: Sequence[Mapping[str, Any]], roofs: Mapping[str, float], core_mhz: float) -> Figure:
    """Draw the roofline. Call in `paper_style`.

    layers: rows with macs, load_bytes, store_bytes, start_cycle, finish_cycle and bound. roofs: macs, dram_bytes and
    noc_bytes per core cycle. Raises FigureError when no layer has a place on the axes.
    """
    ended = [layer for layer in layers if layer["finish_cycle"] is not None]
    shown = [layer for layer in ended if layer["macs"] and layer["load_bytes"] + layer["store_bytes"]]
    if not shown:
        raise FigureError("roofline: no layer that has products and DRAM traffic has ended; nothing to draw")
    macs = np.array([layer["macs"] for layer in shown], float)
    cycles = np.array([layer["finish_cycle"] - layer["start_cycle"] for layer in shown], float)
    intensity = macs / np.array([layer["load_bytes"] + layer["store_bytes"] for layer in shown], float)
    rate = macs / cycles * core_mhz / 1e3
    bounds = np.array([layer["bound"] for layer in shown])
    total = sum(layer["finish_cycle"] - layer["start_cycle"] for layer in ended)

    figure = Figure(figsize=(SINGLE_COLUMN_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.subplots()
    _draw_roofs(axes, intensity, roofs, core_mhz / 1e3)
    for bound, colour in _BOUND_COLOURS.items():
        mine = bounds == bound
        area = np.maximum(_LEAST_POINTS2, _ALL_TIME_POINTS2 * cycles[mine] / total)
        axes.scatter(intensity[mine], rate[mine], s=area, color=colour, alpha=0.6, linewidths=0, zorder=3)
    axes.set_ylim(rate.min() / 2, roofs["macs"] * core_mhz / 1e3 * 2)
    axes.set_xlabel("Arithmetic intensity (MAC/byte of DRAM traffic)")
    axes.set_ylabel("GMAC/s")
    rest = 1 - cycles.sum() / total
    if rest > 0:
        axes.set_title(f"layers without products, {rest:.0%} of the time, are not shown", fontsize=6)
    figure.legend(handles=_legend(bounds), loc="outside upper center", ncols=5, handletextpad=0.3)
    return figure


def _draw_roofs(axes: Axes, intensity: np.ndarray, roofs: Mapping[str, float], giga_cycles: float) -> None:
    """The slopes end where they meet the roof of the arrays."""
    ridges = [roofs["macs"] / roofs[memory] for memory in ("dram_bytes", "noc_bytes")]
    low, high = min(intensity.min(), *ridges) / 2, max(intensity.max(), *ridges) * 2
    top = roofs["macs"] * giga_cycles
    axes.loglog([min(ridges), high], [top, top], color="black", linewidth=0.9)
    axes.annotate("arrays", (high, top), textcoords="offset points", xytext=(-2, 2), ha="right", fontsize=6)
    for memory, name, style in (("dram_bytes", "DRAM", "-"), ("noc_bytes", "NoC", "--")):
        ridge = roofs["macs"] / roofs[memory]
        label = f"{name} {roofs[memory] * giga_cycles:.3g} GB/s"
        axes.plot([low, ridge], [low * roofs[memory] * giga_cycles, top], style, color="black", lw=0.9, label=label)
    axes.legend(loc="lower right", fontsize=6)
    axes.set_xlim(low, high)


def _legend(bounds: np.ndarray) -> list[Line2D]:
    present = [bound for bound in _BOUND_COLOURS if (bounds == bound).any()]
    return [
        Line2D([], [], linestyle="", marker="o", color=_BOUND_COLOURS[bound], label=f"{_BOUND_NAMES[bound]}-bound")
        for bound in present
    ]
