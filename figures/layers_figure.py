"""Where the time of one point goes: the share of every layer in the latency, in order of execution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import COLOURS, SINGLE_COLUMN_IN

_HEIGHT_IN = 1.9
_OTHER = "other"


def draw_layers(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw one bar a layer, coloured by operator. Call in `paper_style`.

    layers: rows with op, start_cycle and finish_cycle (core cycles), in order of execution.
    """
    figure = Figure(figsize=(SINGLE_COLUMN_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.subplots()
    cycles = np.array([layer["finish_cycle"] - layer["start_cycle"] for layer in layers], float)
    share = 100 * cycles / max(cycles.sum(), 1)
    groups = _operator_groups([str(layer["op"]) for layer in layers], share)
    for colour, (operator, members) in zip(COLOURS, groups.items(), strict=False):
        axes.bar(np.array(members) + 1, share[members], width=0.85, color=colour, linewidth=0, label=operator)
    axes.set_xlim(0.25, len(layers) + 0.75)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(False, axis="x")
    axes.set_xlabel("Layer, in order of execution")
    axes.set_ylabel("Share of latency (%)")
    figure.legend(loc="outside upper center", ncols=min(4, len(groups)), handlelength=1.0)
    return figure


def _operator_groups(operators: Sequence[str], share: np.ndarray) -> dict[str, list[int]]:
    """Return layer positions by operator, most time first; those beyond the colours are gathered as "other"."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, operator in enumerate(operators):
        members[operator].append(position)
    ranked = sorted(members.items(), key=lambda item: -share[item[1]].sum())
    if len(ranked) <= len(COLOURS):
        return dict(ranked)
    kept, rest = ranked[: len(COLOURS) - 1], ranked[len(COLOURS) - 1 :]
    return {**dict(kept), _OTHER: sorted(position for _, positions in rest for position in positions)}
