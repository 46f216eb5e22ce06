"""The figure of an isolation study: does a share of the bandwidth keep a tenant's speed, whoever is beside it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from figures.data import FigureError
from figures.style import COLOURS, SINGLE_COLUMN_IN, series_style
from figures.tenants_data import TenantsData, mean

TOLERANCE = 0.10
"""Half the width of the band around the prediction."""
NO_LIMIT = 1.0


@dataclass(frozen=True)
class Isolation:
    """Slowdowns of one tenant against running alone on the whole chip.

    predicted: by its share, with nobody beside it. beside: by the names of those beside it, likewise.
    """

    victim: str
    predicted: Mapping[float, float]
    beside: Mapping[str, Mapping[float, float]]

    @property
    def worst(self) -> float:
        """The largest distance from the prediction, as a part of it, of all limited shares."""
        return max(
            abs(slowdown / self.predicted[share] - 1)
            for slowdowns in self.beside.values()
            for share, slowdown in slowdowns.items()
            if share != NO_LIMIT and share in self.predicted
        )


def isolation_of(data: TenantsData) -> Isolation:
    """Of the first tenant that is also the only one of a mix. Raises FigureError where there is no such study."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for row in data.requests:
        if row["slowdown"] is None or any(row["mix"][key] != value for key, value in data.held.items()):
            continue
        names = row["mix"]["tenants"].split("+")
        others = list(names)
        others.remove(row["name"])
        of_victim = found.setdefault(row["name"], {}).setdefault("+".join(others), {})
        of_victim.setdefault(row["bandwidth_share"], []).append(row["slowdown"])
    for victim, beside in found.items():
        slowdowns = {other: {share: mean(each) for share, each in shares.items()} for other, shares in beside.items()}
        predicted = slowdowns.pop("", {})
        limited = {share for share in predicted if share != NO_LIMIT}
        if any(limited & shares.keys() for shares in slowdowns.values()):
            return Isolation(victim, predicted, slowdowns)
    raise FigureError(
        "needs a tenant with a bandwidth_share in a mix of its own and in mixes with others, and 'alone: true'"
    )


def draw_isolation(study: Isolation) -> Figure:
    """Draw the slowdown of the victim against its share, a line for everyone beside it, and below it the distance from
    the prediction, which is the slowdown with nobody beside it.
    """
    shares = sorted({share for slowdowns in (study.predicted, *study.beside.values()) for share in slowdowns})
    places = {share: place for place, share in enumerate(shares)}
    figure = Figure(figsize=(SINGLE_COLUMN_IN, 3.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    known = sorted(study.predicted.items())
    above.plot([places[share] for share, _ in known], [y for _, y in known], color="0.3", label="nobody (prediction)")
    percent = 100 * TOLERANCE
    below.axhspan(-percent, percent, color="0.85", linewidth=0, label=f"within {TOLERANCE:.0%} of the prediction")
    for index, (other, slowdowns) in enumerate(list(study.beside.items())[: len(COLOURS)]):
        own, style = sorted(slowdowns.items()), series_style(index)
        above.plot([places[share] for share, _ in own], [y for _, y in own], label=other, **style)
        off = [(places[share], 100 * (y / study.predicted[share] - 1)) for share, y in own if share in study.predicted]
        below.plot([x for x, _ in off], [y for _, y in off], **style)
    labels = ["no limit" if share == NO_LIMIT else f"{share:g}" for share in shares]
    below.xaxis.set_major_locator(FixedLocator(range(len(shares))))
    below.xaxis.set_major_formatter(FixedFormatter(labels))
    below.xaxis.set_minor_locator(NullLocator())
    above.set(ylim=(0, None), ylabel="Slowdown")
    below.set(ylabel="Off prediction (%)", xlabel=f"Share of the DRAM's peak that {study.victim} may ask for")
    figure.legend(title=f"Beside {study.victim}", loc="outside upper center", ncols=3)
    return figure
