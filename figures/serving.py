"""Figures of a serving run: latency against throughput, the distribution of latencies, and the cache over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.data import FigureError
from figures.style import DOUBLE_COLUMN_IN, SINGLE_COLUMN_IN, paper_style, save, series_style
from sweeps.serving_store import read_serving
from sweeps.store import read_table

_MEASURES = (("ttft", "Time to first token (s)"), ("tpot", "Time per output token (s)"), ("latency", "Latency (s)"))
_MOST_LINES = 7
"""As many as there are colours."""


def draw_serving(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    """Draw ``throughput-latency``, ``latency-cdf`` and ``kv-occupancy`` as PDF and PNG into `out`.

    Returns the files and what is not shown.

    Raises `UserError` when `folder` holds no serving run, or no lane of it served a request.
    """
    lanes = read_serving(folder)["lanes"]
    lines = _lines(lanes)
    if not lines:
        raise FigureError(f"{folder}: no lane has served a request; nothing to draw")
    remarks = [f"{len(lines) - _MOST_LINES} of {len(lines)} lines are left out"] if len(lines) > _MOST_LINES else []
    unfinished = sum(lane["status"] != "ok" for lane in lanes)
    if unfinished:
        remarks.append(f"{unfinished} of {len(lanes)} lanes did not end with status ok; they are drawn hollow")
    shown = dict(list(lines.items())[:_MOST_LINES])
    requests, windows = read_table(folder, "requests"), read_table(folder, "windows")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with paper_style():
            files = [*save(draw_throughput_latency(lanes, shown), out / "throughput-latency")]
            files += save(draw_latency_cdf(lanes, shown, requests), out / "latency-cdf")
            files += save(draw_kv_occupancy(lanes, shown, windows), out / "kv-occupancy")
    except OSError as error:
        raise FigureError(f"{out}: cannot write the figures there: {error.strerror}") from error
    return files, remarks


def _lines(lanes: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[int]]:
    """Numbers of the lanes of each chip and policy that served anything, by rate."""
    pairs = dict.fromkeys((lane["chip"], lane["policy"]) for lane in lanes)
    numbers = {
        pair: [n for n, lane in enumerate(lanes) if (lane["chip"], lane["policy"]) == pair and lane["completed"]]
        for pair in pairs
    }
    return {pair: sorted(own, key=lambda n: lanes[n]["rate"] or 0) for pair, own in numbers.items() if own}


def _label(pair: tuple[str, str], lanes: Sequence[Mapping[str, Any]]) -> str:
    """The chip, the policy, or both, whichever varies."""
    varies = [len({lane[key] for lane in lanes}) > 1 for key in ("chip", "policy")]
    return ", ".join(name for name, shown in zip(pair, varies, strict=True) if shown) or pair[0]


def draw_throughput_latency(
    lanes: Sequence[Mapping[str, Any]], lines: Mapping[tuple[str, str], Sequence[int]]
) -> Figure:
    """Median (solid) and 95th percentile (dashed) of three times, against tokens per second; call in `paper_style`.

    A point is a lane; lanes of one rate and several seeds are averaged.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN_IN, 2.4), layout="constrained")
    panels = figure.subplots(1, len(_MEASURES))
    for index, (pair, numbers) in enumerate(lines.items()):
        for (axes, (measure, _)), percentile in product(zip(panels, _MEASURES, strict=True), (50, 95)):
            _draw_line(axes, [lanes[n] for n in numbers], f"{measure}_p{percentile}_s", index, percentile == 50)
        panels[0].plot([], [], **series_style(index), label=_label(pair, lanes))
    for axes, (_, label) in zip(panels, _MEASURES, strict=True):
        axes.set(xlabel="Output tokens per second", ylabel=label, yscale="log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _draw_line(axes: Axes, lanes: Sequence[Mapping[str, Any]], column: str, index: int, is_median: bool) -> None:
    style = series_style(index)
    points = []
    for rate in dict.fromkeys(lane["rate"] for lane in lanes):
        known = [lane for lane in lanes if lane["rate"] == rate and lane[column] is not None]
        if known:
            ok = all(lane["status"] == "ok" for lane in known)
            points.append((*(float(np.mean([lane[name] for lane in known])) for name in ("tokens_per_s", column)), ok))
    if not points:
        return
    x, y, ok = zip(*points, strict=True)
    axes.plot(x, y, color=style["color"], linestyle="-" if is_median else "--")
    for at, value, whole in zip(x, y, ok, strict=True):
        axes.plot([at], [value], **style, markerfacecolor=style["color"] if whole else "white", linestyle="")


def draw_latency_cdf(
    lanes: Sequence[Mapping[str, Any]],
    lines: Mapping[tuple[str, str], Sequence[int]],
    requests: Sequence[Mapping[str, Any]],
) -> Figure:
    """Share of the requests served within a time, at the middle one of the rates; call in `paper_style`."""
    figure = Figure(figsize=(SINGLE_COLUMN_IN, 2.4), layout="constrained")
    axes = figure.subplots()
    by_lane: dict[int, list[float]] = {}
    for row in requests:
        if row["served"]:
            by_lane.setdefault(row["lane"], []).append(row["latency_s"])
    for index, (pair, numbers) in enumerate(lines.items()):
        lane = numbers[len(numbers) // 2]
        times = np.sort(by_lane[lane])
        rate = lanes[lane]["rate"]
        text = _label(pair, lanes) + (f", {rate:g}/s" if rate is not None else "")
        axes.step(times, np.arange(1, len(times) + 1) / len(times), color=series_style(index)["color"], label=text)
    axes.set(xlabel="Latency (s)", ylabel="Share of requests", xscale="log", ylim=(0, 1))
    axes.legend()
    return figure


def draw_kv_occupancy(
    lanes: Sequence[Mapping[str, Any]],
    lines: Mapping[tuple[str, str], Sequence[int]],
    windows: Sequence[Mapping[str, Any]],
) -> Figure:
    """Share of the cache's capacity that is in use, over time, at the highest rate; call in `paper_style`."""
    figure = Figure(figsize=(SINGLE_COLUMN_IN, 2.4), layout="constrained")
    axes = figure.subplots()
    for index, (pair, numbers) in enumerate(lines.items()):
        lane = numbers[-1]
        own = [row for row in windows if row["lane"] == lane]
        edges = [*(row["begin_s"] for row in own), *(row["begin_s"] + row["seconds"] for row in own[-1:])]
        rate = lanes[lane]["rate"]
        text = _label(pair, lanes) + (f", {rate:g}/s" if rate is not None else "")
        if own:
            shares = [row["kv_share"] for row in own]
            axes.stairs(shares, edges, baseline=None, color=series_style(index)["color"], label=text)
    axes.axhline(1, color="0.5", linewidth=0.6, linestyle=":")
    axes.set(xlabel="Time (s)", ylabel="Cache in use (share of its capacity)", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=2)
    return figure
