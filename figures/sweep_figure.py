"""Latency and achieved DRAM bandwidth over the swept axes: x axis, series, and small multiples side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from figures.data import PlotAxis, SweepData, value_label
from figures.style import DOUBLE_COLUMN_IN, SINGLE_COLUMN_IN, series_style

MAX_PANELS = 4
MAX_SERIES = 7
_PANEL_HEIGHT_IN = 1.35
_LEGEND_ROW_IN = 0.14
_LETTER_IN = 0.055
"""Mean width of a letter of the tick and legend labels."""
_LOG_Y_RATIO = 30.0
_CATEGORY_SPREAD = 0.6
"""Share of the distance between two names on the x axis over which the markers of all series are set side by side."""

_Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Roles:
    """Which axis is drawn how. lines and panels are the values of `series` and `panel` that are shown ((None,) without
    such an axis); `held` axes stay at one value.
    """

    x: PlotAxis
    series: PlotAxis | None
    lines: tuple[Any, ...]
    panel: PlotAxis | None
    panels: tuple[Any, ...]
    held: Mapping[str, Any]


def assign_roles(data: SweepData) -> Roles:
    """Choose the x axis (the first numeric one, else the first), the series, the panels, and what is held fixed."""
    axes = list(data.axes) or [PlotAxis("point", (0,))]
    x = next((axis for axis in axes if axis.numeric), axes[0])
    rest = [axis for axis in axes if axis is not x]
    series = rest[0] if rest else None
    panel = rest[1] if len(rest) > 1 else None
    return Roles(
        x=x,
        series=series,
        lines=_spread(series.values, MAX_SERIES) if series else (None,),
        panel=panel,
        panels=_spread(panel.values, MAX_PANELS) if panel else (None,),
        held={axis.key: axis.values[0] for axis in rest[2:]},
    )


def draw_sweep(data: SweepData) -> Figure:
    """Draw the figure: the upper row is latency, the lower DRAM bandwidth; one column of panels per panel value.

    One or two columns are an IEEE column (3.5 in) wide, more are two columns (7.16 in) wide. Call in `paper_style`.
    """
    roles = assign_roles(data)
    columns = len(roles.panels)
    width = SINGLE_COLUMN_IN if columns <= 2 else DOUBLE_COLUMN_IN
    legend_rows, legend_columns = _legend_shape(roles, width)
    height = 2 * _PANEL_HEIGHT_IN + 0.45 + legend_rows * _LEGEND_ROW_IN
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(2, columns, sharex=True, sharey="row", squeeze=False)
    unit, scale = _time_unit(max(row["time_us"] for row in data.rows))
    quantities = (("time_us", scale, f"Latency ({unit})"), ("dram_bandwidth_gbps", 1.0, "DRAM bandwidth (GB/s)"))
    for row_axes, (column, factor, label) in zip(grid, quantities, strict=True):
        for axes, panel_value in zip(row_axes, roles.panels, strict=True):
            _draw_series(axes, data, roles, panel_value, column, factor)
        _finish_y(row_axes, label, may_be_log=column == "time_us")
    for axes in grid.flat:
        _finish_x(axes, roles.x, width / columns)
    for axes, title in zip(grid[0], _titles(roles, width / columns), strict=True):
        axes.set_title(title, fontsize=7)
    figure.supxlabel(roles.x.label, fontsize=8)
    if roles.series:
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, title=roles.series.label, loc="outside upper center", ncols=legend_columns)
    figure.align_ylabels(grid[:, 0])
    return figure


def _draw_series(axes: Axes, data: SweepData, roles: Roles, panel_value: object, column: str, factor: float) -> None:
    fixed = dict(roles.held)
    if roles.panel:
        fixed[roles.panel.key] = panel_value
    for index, value in enumerate(roles.lines):
        wanted = {**fixed, roles.series.key: value} if roles.series else fixed
        points = _select(data, roles.x, wanted, column)
        style = series_style(index)
        shift = 0.0
        if not roles.x.numeric:
            # Names have no order that a line could follow; markers side by side hide none.
            style["linestyle"] = ""
            shift = _CATEGORY_SPREAD * (index - (len(roles.lines) - 1) / 2) / len(roles.lines)
        label = value_label(value) if roles.series else None
        # A line without points counts as one at the figure's corner when the layout is made, unless it is clipped.
        style["clip_on"] = not points
        axes.plot([x + shift for x, _ in points], [y * factor for _, y in points], label=label, **style)


def _titles(roles: Roles, panel_width_in: float) -> list[str]:
    """Return a title a panel, all in two lines when one of them is too long for its panel."""
    if roles.panel is None:
        return [""]
    values = [value_label(value) for value in roles.panels]
    titles = [f"{roles.panel.label} = {value}" for value in values]
    if _LETTER_IN * max(map(len, titles)) < panel_width_in - 0.3:
        return titles
    return [f"{roles.panel.label}\n{value}" for value in values]


def _select(data: SweepData, x: PlotAxis, wanted: Mapping[str, Any], column: str) -> _Points:
    """Return (x, value) of the points that match, by x. Names stand at 0, 1, 2, ... in the order they were swept."""
    rows = [row for row in data.rows if all(_same(row.get(key), value) for key, value in wanted.items())]
    position = {str(value): float(value) if x.numeric else float(index) for index, value in enumerate(x.values)}
    points = [(position[str(_value(row, x, index))], row[column]) for index, row in enumerate(rows)]
    return sorted(points)


def _value(row: Mapping[str, Any], x: PlotAxis, index: int) -> object:
    """Return the swept value of a row, spelt as in the axis (a table column may have turned 4 into 4.0)."""
    if x.key not in row:
        return x.values[index]
    return next(value for value in x.values if _same(row[x.key], value))


def _same(stored: object, value: object) -> bool:
    return stored == value or str(stored) == str(value)


def _time_unit(longest_us: float) -> tuple[str, float]:
    """Return the largest unit in which the longest time is at least 1, and its factor from microseconds."""
    for unit, factor in (("s", 1e-6), ("ms", 1e-3)):
        if longest_us * factor >= 1:
            return unit, factor
    return "µs", 1.0


def _finish_y(row_axes: Sequence[Axes], label: str, *, may_be_log: bool) -> None:
    first = row_axes[0]
    first.set_ylabel(label)
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for axes in row_axes for line in axes.lines] or [[0.0]])
    positive = drawn[drawn > 0]
    if may_be_log and positive.size and positive.max() > _LOG_Y_RATIO * positive.min():
        first.set_yscale("log")
    elif positive.size:
        first.set_ylim(0, positive.max() * 1.08)


def _finish_x(axes: Axes, x: PlotAxis, panel_width_in: float) -> None:
    positions = [float(value) if x.numeric else float(index) for index, value in enumerate(x.values)]
    if x.numeric and _is_geometric(positions):
        axes.set_xscale("log", base=2)
    elif not x.numeric:
        axes.set_xlim(-0.5, len(positions) - 0.5)
        axes.grid(False, axis="x")
    labels = [value_label(value) for value in x.values]
    shown = _fitting_ticks(axes, positions, labels, panel_width_in)
    axes.xaxis.set_major_locator(FixedLocator([positions[index] for index in shown]))
    axes.xaxis.set_major_formatter(FixedFormatter([labels[index] for index in shown]))
    axes.xaxis.set_minor_locator(NullLocator())


def _is_geometric(values: Sequence[float]) -> bool:
    """Tell whether the values are spread more evenly on a log scale than on a linear one."""
    if len(values) < 3 or min(values) <= 0:
        return False
    ordered = np.sort(np.asarray(values, float))

    def unevenness(gaps: np.ndarray) -> float:
        return float(np.std(gaps) / np.mean(gaps))

    return unevenness(np.diff(np.log(ordered))) < unevenness(np.diff(ordered)) - 1e-9


def _fitting_ticks(axes: Axes, positions: Sequence[float], labels: Sequence[str], width_in: float) -> list[int]:
    """Return the indices of tick labels that fit side by side without touching: every one, every second, third, ..."""
    scaled = axes.transScale.transform([(position, 1.0) for position in positions])[:, 0]
    inches = scaled / max(float(np.ptp(scaled)), 1e-9) * width_in * 0.8
    order = [int(index) for index in np.argsort(inches)]
    for stride in range(1, len(order)):
        shown = order[::stride]
        widths = [_LETTER_IN * len(labels[index]) for index in shown]
        gaps = np.diff(inches[shown])
        if all(gap > (a + b) / 2 + 0.04 for gap, a, b in zip(gaps, widths, widths[1:], strict=False)):
            return shown
    return order[:1]


def _legend_shape(roles: Roles, width_in: float) -> tuple[int, int]:
    """Return rows (with the title's) and columns of the legend, so that it stays within the figure's width."""
    if roles.series is None:
        return 0, 1
    count = len(roles.lines)
    entry_in = 0.5 + _LETTER_IN * max(len(value_label(value)) for value in roles.lines)
    rows = math.ceil(count / max(1, int((width_in - 0.2) / entry_in)))
    return 1 + rows, math.ceil(count / rows)


def _spread(values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """Return at most `count` of the values, evenly spaced, the first and last included."""
    if len(values) <= count:
        return tuple(values)
    return tuple(values[round(index * (len(values) - 1) / (count - 1))] for index in range(count))
