"""Which fault of ONNXim moves which layer by how much: a heat map of `vsim explain-compat --json`.

Colour: cycles moved by the repair, as a share of what the original takes for the whole model; the number is in
thousands of cycles. The last columns are all repairs together and what is left from there to the default mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from figures.roofline import check_target, save_as
from figures.style import DOUBLE_COLUMN_IN, paper_style

_ROW_IN = 0.14
_MARGIN_IN = 0.9
_NUMBER_POINTS = 5
_LEAST_CYCLES = 50
"""Smaller numbers would read 0.0."""


def save_compat_faults(content: Mapping[str, Any], path: Path) -> None:
    """Draw the comparison into a file; its suffix is the format. Raises FigureError where that is not possible."""
    check_target(path)
    with paper_style():
        save_as(draw_compat_faults(content), path)


def draw_compat_faults(content: Mapping[str, Any]) -> Figure:
    """Draw the heat map. Call in `paper_style`."""
    lines = [*content["layers"], content["total"]]
    faults = [fault["id"] for fault in content["faults"]]
    moved = np.array([_moved(line, faults) for line in lines], float)
    shares = moved / content["total"]["original_cycles"]
    limit = max(float(np.abs(shares[:-1]).max(initial=0.0)), 1e-9)

    figure = Figure(figsize=(DOUBLE_COLUMN_IN, _MARGIN_IN + _ROW_IN * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    image = axes.imshow(shares, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), cycles in np.ndenumerate(moved):
        if abs(cycles) >= _LEAST_CYCLES:
            # White numbers where the colour is dark.
            colour = "white" if abs(shares[row, column]) > 0.6 * limit else "black"
            text = f"{cycles / 1e3:+.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=_NUMBER_POINTS, color=colour)
    axes.axhline(len(lines) - 1.5, color="black", linewidth=0.6)
    axes.axvline(len(faults) - 0.5, color="black", linewidth=0.6)
    axes.set_xticks(range(len(faults) + 2), [*faults, "all", "left"])
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(lines)), [line["name"] for line in lines])
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="cycles moved / cycles of the model in ONNXim", format="{x:.0%}")
    return figure


def _moved(line: Mapping[str, Any], faults: list[str]) -> list[int]:
    return [*(line["moved_cycles"][fault] for fault in faults), line["together_cycles"], line["remaining_cycles"]]
