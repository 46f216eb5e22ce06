"""Where the time and energy of a network go on the closed-form model, in inference and in training.

`draw_breakdown`: shares of the layers' cycles and energy, by unit, kind of layer and role. `draw_non_conv`: the share
that is neither convolution nor matrix product, against the size of the array and the batch. What they draw is the
content of `vsim.systolic.phases.compare_phases`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, NullLocator

from figures.data import FigureError
from figures.style import COLOURS, DOUBLE_COLUMN_IN, SINGLE_COLUMN_IN, paper_style, save, series_style
from vsim.systolic.kinds import KINDS

_FILLS = (*COLOURS[:6], "#999999")
"""Grey instead of black, whose numbers would not be read."""
_BAR_WIDTH = 0.7
_LEAST_WRITTEN = 8.0
"""Percent from which a part has its number inside."""
_ROW_IN = 1.5
_LEGEND_IN = 0.9


@dataclass(frozen=True)
class _Grouping:
    """A way to part the layers: the column of a report that tells, and the name of each of its values, from below."""

    title: str
    column: str
    names: Mapping[str, str]

    def members(self, layers: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
        """The layers of a value; inference has no roles, all of it is forward."""
        return [layer for layer in layers if layer.get(self.column, "forward") == key]


_GROUPINGS = (
    _Grouping("Convolution or not", "unit", {"array": "conv and matrix product", "vector": "non-conv"}),
    _Grouping("Type of layer", "kind", {kind: kind for kind in KINDS}),
    _Grouping(
        "Part of the iteration",
        "role",
        {
            "forward": "forward",
            "recompute": "recomputation",
            "loss": "loss",
            "grad_input": "gradient of inputs",
            "grad_weight": "gradient of weights",
            "accumulate": "sum of gradients",
            "update": "parameter update",
        },
    ),
)


def save_systolic(content: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw ``breakdown`` and ``non-conv`` as PDF and PNG into `out`; return the files. Raises FigureError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with paper_style():
            drawn = {"breakdown": draw_breakdown(content), "non-conv": draw_non_conv(content)}
            return [file for name, figure in drawn.items() for file in save(figure, out / name)]
    except OSError as error:
        raise FigureError(f"{out}: cannot write the figures there: {error.strerror}") from error


def draw_breakdown(content: Mapping[str, Any]) -> Figure:
    """Draw inference beside training, a column a grouping: runtime, and below it energy where the reports have it.

    Runtime is that of the layers one after the other; the sums of all layers stand on the bars of the first column.
    SimDIT's own networks have no roles. Call in `paper_style`.
    """
    reports: Mapping[str, Mapping[str, Any]] = content["phases"]
    columns = {"cycles": "Share of runtime (%)"}
    if all("energy" in report for report in reports.values()):
        columns["microjoules"] = "Share of energy (%)"
    groupings = _GROUPINGS if any("roles" in report for report in reports.values()) else _GROUPINGS[:-1]
    height = _ROW_IN * len(columns) + _LEGEND_IN
    figure = Figure(figsize=(DOUBLE_COLUMN_IN, height), layout="constrained")
    panels = figure.subplots(len(columns), len(groupings), sharex=True, sharey=True, squeeze=False)
    for row, (column, label) in zip(panels, columns.items(), strict=True):
        row[0].set_ylabel(label)
        for x, report in enumerate(reports.values()):
            row[0].annotate(
                _total(report, column), (x, 100), (0, 2), textcoords="offset points", ha="center", fontsize=6
            )
            for axes, grouping in zip(row, groupings, strict=True):
                _draw_bar(axes, x, report["layers"], column, grouping)
    for axes, grouping in zip(panels[0], groupings, strict=True):
        axes.set_title(grouping.title, pad=10)
    every = [layer for report in reports.values() for layer in report["layers"]]
    for axes, grouping in zip(panels[-1], groupings, strict=True):
        axes.set_xticks(range(len(reports)), list(reports))
        parts = [
            Patch(color=colour, label=name)
            for (key, name), colour in zip(grouping.names.items(), _FILLS, strict=False)
            if grouping.members(every, key)
        ]
        axes.legend(handles=parts, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, handlelength=1.0)
    panels[0][0].set(xlim=(-0.6, len(reports) - 0.4), ylim=(0, 100))
    return figure


def _total(report: Mapping[str, Any], column: str) -> str:
    """Sum of all layers in seconds or joules, with a prefix."""
    total = sum(layer[column] for layer in report["layers"])
    if column == "microjoules":
        return EngFormatter("J", places=1)(1e-6 * total)
    return EngFormatter("s", places=1)(1e-3 * total * report["milliseconds"] / report["cycles"])


def _draw_bar(axes: Axes, x: int, layers: Sequence[Mapping[str, Any]], column: str, grouping: _Grouping) -> None:
    """Stack the shares of the groups, in percent."""
    total = sum(layer[column] for layer in layers)
    below = 0.0
    for key, colour in zip(grouping.names, _FILLS, strict=False):
        share = 100 * sum(layer[column] for layer in grouping.members(layers, key)) / total
        axes.bar(x, share, _BAR_WIDTH, below, color=colour, linewidth=0)
        if share >= _LEAST_WRITTEN:
            middle = below + share / 2
            axes.text(x, middle, f"{share:.0f}", ha="center", va="center", fontsize=6, color=_readable_on(colour))
        below += share
    axes.grid(False, axis="x")


def _readable_on(colour: str) -> str:
    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def draw_non_conv(content: Mapping[str, Any]) -> Figure:
    """Draw the non-conv share of the cycles, layers one after the other: a panel a phase, a line a batch.

    Raises FigureError for more batches than there are colours. Call in `paper_style`.
    """
    rows = content["non_conv"]
    phases, batches, sides = (list(dict.fromkeys(row[key] for row in rows)) for key in ("phase", "batch", "array"))
    if len(batches) > len(COLOURS):
        raise FigureError(f"{len(batches)} batches: a figure has at most {len(COLOURS)} lines")
    figure = Figure(figsize=(SINGLE_COLUMN_IN, 2.1), layout="constrained")
    panels = figure.subplots(1, len(phases), sharey=True, squeeze=False)[0]
    for axes, phase in zip(panels, phases, strict=True):
        for index, batch in enumerate(batches):
            own = [row for row in rows if (row["phase"], row["batch"]) == (phase, batch)]
            shares = [100 * row["share"] for row in own]
            axes.plot([row["array"] for row in own], shares, label=str(batch), clip_on=False, **series_style(index))
        axes.set_title(phase)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sides))
        axes.xaxis.set_major_formatter(FixedFormatter([str(side) for side in sides]))
        axes.xaxis.set_minor_locator(NullLocator())
    panels[0].set(ylim=(0, 100), ylabel="Non-conv share of runtime (%)")
    figure.supxlabel("Rows and columns of the array", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), title="Batch size", loc="outside upper center", ncols=7)
    return figure
