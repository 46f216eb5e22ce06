"""The look of every figure: IEEE column widths, embedded TrueType fonts, colour-blind-safe colours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

SINGLE_COLUMN_IN = 3.5
DOUBLE_COLUMN_IN = 7.16
PNG_DPI = 400

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's set (https://jfly.uni-koeln.de/color/), without its yellow, which is lost on white paper."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_RC: dict[Any, Any] = {
    # STIX looks like the Times of IEEE papers and comes with Matplotlib, so figures are the same on every machine.
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.0,
    "legend.labelspacing": 0.3,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.visible": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    # Type 3 fonts, Matplotlib's default, are refused by IEEE PDF eXpress.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Apply the style to all that is drawn and saved inside the block."""
    with mpl.rc_context(_RC):
        yield


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write ``stem.pdf`` and ``stem.png``, without dates, so that equal figures are equal files; return both paths."""
    pdf, png = stem.with_name(stem.name + ".pdf"), stem.with_name(stem.name + ".png")
    figure.savefig(pdf, metadata={"CreationDate": None})
    figure.savefig(png, dpi=PNG_DPI)
    return pdf, png


def series_style(index: int) -> dict[str, Any]:
    """Return colour and marker of the series at this position, 0..6."""
    return {"color": COLOURS[index], "marker": MARKERS[index]}
