"""Figures of mixes: what tenants do to each other, under which scheduler. All are called in `paper_style`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from figures.data import FigureError
from figures.style import COLOURS, DOUBLE_COLUMN_IN, MARKERS, SINGLE_COLUMN_IN, series_style
from figures.tenants_data import Row, TenantsData, mean, smallest_batches

MOST_PANELS = 4
"""Schedulers that figures with a panel each show."""
_LOG_RATIO = 30.0
_PANEL_IN = 1.75


def draw_latency_against_batch(data: TenantsData) -> Figure:
    """Draw the latency of a tenant against the batch of the one beside it, a panel a scheduler, a line a pair.

    Raises FigureError without pairs in which one model comes in several batches beside the same other tenant.
    """
    batches: dict[tuple[str, str], set[int]] = defaultdict(set)
    latencies: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    names = {model: name for model, (_, name) in smallest_batches(data.requests).items()}
    for victim, other in data.pairs():
        if victim["latency_us"] is not None:
            batches[victim["name"], other["model"]].add(other["batch"])
            latencies[victim["scheduler"], victim["name"], other["model"]][other["batch"]].append(victim["latency_us"])
    lines = [pair for pair, found in batches.items() if len(found) > 1][: len(COLOURS)]
    if not lines:
        raise FigureError("needs mixes of two tenants, one of them the same model in two batches or more")
    figure, panels = _panels(data.schedulers)
    for axes, scheduler in zip(panels, data.schedulers, strict=False):
        for index, (victim, model) in enumerate(lines):
            points = sorted((batch, mean(found)) for batch, found in latencies[scheduler, victim, model].items())
            label = f"{victim} beside {names[model]}"
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, **series_style(index))
        axes.set_title(scheduler)
        axes.set_xscale("log", base=2)
        ticks = sorted({batch for pair in lines for batch in batches[pair]})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
    highest = max(np.max(line.get_ydata(), initial=0) for axes in panels for line in axes.lines)
    panels[0].set_ylim(0, 1.08 * highest)
    panels[0].set_ylabel("Latency (µs)")
    figure.supxlabel("Batch of the other tenant", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def draw_slowdowns(data: TenantsData) -> Figure:
    """Draw the slowdown of every model (a row) beside every other (a column), a heat map a scheduler.

    Models in their smallest batch. Raises FigureError without pairs or without runs of the models alone.
    """
    if all(row["slowdown"] is None for row in data.requests):
        raise FigureError("needs the models alone: run the sweep with 'alone: true'")
    smallest = smallest_batches(data.requests)
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for pair in data.pairs():
        victim, other = (smallest[row["model"]][1] for row in pair)
        if pair[0]["slowdown"] is not None and all(row["batch"] == smallest[row["model"]][0] for row in pair):
            found[pair[0]["scheduler"], victim, other].append(pair[0]["slowdown"])
    if not found:
        raise FigureError("needs mixes of two tenants")
    names = [name for _, name in smallest.values() if any(name in key[1:] for key in found)]
    values = {key: mean(each) for key, each in found.items()}
    figure, panels = _panels(data.schedulers)
    image = None
    for axes, scheduler in zip(panels, data.schedulers, strict=False):
        grid = np.array([[values.get((scheduler, row, column), np.nan) for column in names] for row in names])
        image = axes.imshow(grid, cmap="YlOrRd", vmin=1, vmax=max(values.values()))
        for row, column in np.argwhere(~np.isnan(grid)):
            dark = grid[row, column] > (1 + 2 * max(values.values())) / 3
            colour = "white" if dark else "black"
            axes.text(column, row, f"{grid[row, column]:.2f}", ha="center", va="center", fontsize=6, color=colour)
        axes.set_title(scheduler)
        axes.grid(False)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    panels[0].set_ylabel("Tenant")
    figure.supxlabel("Beside", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=panels, label="Slowdown", pad=0.01)
    return figure


def draw_latency_cdfs(data: TenantsData) -> Figure:
    """Draw which share of all requests ends within a time, a line a scheduler.

    Raises FigureError when none has ended.
    """
    ended = [row for row in data.requests if row["latency_us"] is not None]
    if not ended:
        raise FigureError("needs a request that has ended")
    figure = Figure(figsize=(SINGLE_COLUMN_IN, 2.2), layout="constrained")
    axes = figure.subplots()
    for index, scheduler in enumerate(data.schedulers[: len(COLOURS)]):
        times = sorted(row["latency_us"] for row in ended if row["scheduler"] == scheduler)
        shares = np.arange(len(times) + 1) / max(len(times), 1)
        axes.step([*times[:1], *times], shares, where="post", color=COLOURS[index], label=scheduler)
    longest, shortest = (pick(row["latency_us"] for row in ended) for pick in (max, min))
    if longest > _LOG_RATIO * shortest:
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, None)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("Latency (µs)")
    axes.set_ylabel("Share of requests")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def draw_fairness(data: TenantsData) -> Figure:
    """Draw weighted speedup against Jain's fairness index, a marker a mix, a colour a scheduler.

    Raises FigureError without runs of the models alone. The indices are those of `sweeps.tenants_table`.
    """
    known = [row for row in data.mixes if row.get("fairness") is not None]
    if not known:
        raise FigureError("needs the models alone: run the sweep with 'alone: true'")
    figure = Figure(figsize=(SINGLE_COLUMN_IN, 2.4), layout="constrained")
    axes = figure.subplots()
    for index, scheduler in enumerate(data.schedulers[: len(COLOURS)]):
        mine = [row for row in known if row["scheduler"] == scheduler]
        axes.scatter(
            [row["fairness"] for row in mine],
            [row["weighted_speedup"] for row in mine],
            s=9,
            color=COLOURS[index],
            marker=MARKERS[index],
            alpha=0.7,
            linewidths=0,
            label=scheduler,
        )
    axes.set_xlabel("Fairness (Jain's index of 1 / slowdown)")
    axes.set_ylabel("Weighted speedup")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def draw_bandwidth(windows: Sequence[Row], tenants: Sequence[Row], core_mhz: float) -> Figure:
    """Draw the DRAM bandwidth that each tenant of a mix asks for over time, one above the other.

    windows, tenants: rows of the point. Raises FigureError when nothing was moved.
    """
    if not any(row["bytes"] for row in windows):
        raise FigureError("needs a point whose tenants moved something")
    cycles = windows[0]["window_cycles"]
    end = max(row["window"] for row in windows) + 1
    moved = np.zeros((len(tenants), end))
    for row in windows:
        moved[row["tenant"], row["window"]] = row["bytes"]
    figure = Figure(figsize=(SINGLE_COLUMN_IN, 2.2), layout="constrained")
    axes = figure.subplots()
    edges = np.arange(end + 1) * cycles / core_mhz
    rates = moved / cycles * core_mhz / 1e3
    below = np.zeros(end)
    for index, (tenant, rate) in enumerate(zip(tenants, rates, strict=True)):
        colour, label = COLOURS[index % len(COLOURS)], f"{tenant['tenant']}: {tenant['name']}"
        axes.stairs(below + rate, edges, baseline=below, fill=True, linewidth=0, color=colour, label=label)
        below = below + rate
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, None)
    axes.set_xlabel(f"Time (µs), in windows of {cycles:,} core cycles")
    axes.set_ylabel("Requested (GB/s)")
    if len(tenants) <= 2 * len(COLOURS):
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _panels(schedulers: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A panel for each of the first schedulers."""
    count = min(len(schedulers), MOST_PANELS)
    width = SINGLE_COLUMN_IN if count <= 2 else DOUBLE_COLUMN_IN
    figure = Figure(figsize=(width, _PANEL_IN + 0.6), layout="constrained")
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
