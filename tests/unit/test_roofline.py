"""The roofline: markers and roofs show the stored numbers, files are what their suffix says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from figures.data import FigureError
from figures.draw import draw_figures
from figures.roofline import draw_roofline, save_roofline
from figures.style import paper_style
from tests.sweep_results import store_results

ROOFS = {"macs": 64.0, "dram_bytes": 16.0, "noc_bytes": 32.0}


def layer(macs: int, moved: int, start: int, finish: int | None, bound: str) -> dict[str, Any]:
    span = {"start_cycle": start, "finish_cycle": finish}
    return {"macs": macs, "load_bytes": moved, "store_bytes": 0, "bound": bound, **span}


LAYERS = [
    layer(3200, 100, 0, 100, "compute"),
    layer(0, 800, 100, 200, "dram"),
    layer(800, 400, 200, 400, "dram"),
    layer(800, 400, 400, None, "dram"),
]


def test_markers_and_roofs():
    with paper_style():
        figure = draw_roofline(LAYERS, ROOFS, core_mhz=500.0)
    [axes] = figure.axes
    markers = [item for item in axes.collections if isinstance(item, PathCollection) and len(item.get_offsets())]
    # 32 MAC/byte at 32 MAC/cycle; 2 MAC/byte at 4 MAC/cycle; half a cycle a nanosecond.
    np.testing.assert_allclose([item.get_offsets()[0] for item in markers], [[32, 16], [2, 2]])
    np.testing.assert_allclose(markers[1].get_sizes() / markers[0].get_sizes(), 2)
    ridges = [line.get_xydata()[-1].tolist() for line in axes.lines[1:]]
    assert ridges == [[4, 32], [2, 32]]
    assert axes.get_title() == "layers without products, 25% of the time, are not shown"


def test_a_result_without_products_is_refused(tmp_path: Path):
    result = {"layers": LAYERS[1:2], "roofs": ROOFS, "cycles": 100, "time_us": 0.1}
    with pytest.raises(FigureError, match="no layer that has products"):
        save_roofline(result, tmp_path / "roof.png")
    with pytest.raises(FigureError, match=r"\.pdf, \.png, \.svg"):
        save_roofline(result | {"layers": LAYERS}, tmp_path / "roof.doc")
    with pytest.raises(FigureError, match="there is no folder"):
        save_roofline(result | {"layers": LAYERS}, tmp_path / "nowhere" / "roof.png")


def test_sweeps_have_a_roofline(tmp_path: Path):
    files, _ = draw_figures(store_results(tmp_path), tmp_path / "figures")
    assert {"roofline.pdf", "roofline.png"} <= {file.name for file in files}
    assert (tmp_path / "figures" / "roofline.png").read_bytes()[:4] == b"\x89PNG"
