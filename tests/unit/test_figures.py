"""Figures: what they show is what is stored, and they are fit for print."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from figures.data import load_sweep
from figures.draw import draw_figures
from figures.style import paper_style
from figures.sweep_figure import assign_roles, draw_sweep
from hwconfigs.errors import UserError
from tests.sweep_results import SPEC, load, store_results

HEAD = "name: t\nmodel: onnx:light_squeezenet\nbase: npu-mobile-8x8\n"


def drawn(folder: Path, text: str) -> Figure:
    with paper_style():
        figure = draw_sweep(load_sweep(store_results(folder, text)))
        figure.draw_without_rendering()
    return figure


def test_lines_show_the_stored_numbers(tmp_path: Path):
    figure = drawn(tmp_path, SPEC)
    latency, bandwidth = figure.axes
    assert [line.get_label() for line in latency.lines] == ["600", "1200"]
    for line in latency.lines:
        np.testing.assert_allclose(line.get_xydata(), [[1, 1.0], [2, 0.5], [4, 0.25]])
    for line in bandwidth.lines:
        np.testing.assert_allclose(line.get_xydata(), [[1, 2.5], [2, 5.0], [4, 10.0]])
    assert latency.get_ylabel() == "Latency (ms)"
    assert bandwidth.get_ylabel() == "DRAM bandwidth (GB/s)"
    assert [text.get_text() for text in bandwidth.get_xticklabels()] == ["1", "2", "4"]


def test_failed_points_are_left_out_and_mentioned(tmp_path: Path):
    out = store_results(tmp_path, failed=frozenset({0, 5}))
    _, remarks = draw_figures(out, tmp_path / "figures")
    assert remarks == ["2 of 6 points did not finish with status ok and are left out"]
    with paper_style():
        figure = draw_sweep(load_sweep(out))
    assert [len(np.asarray(line.get_xdata())) for line in figure.axes[0].lines] == [2, 2]


@pytest.mark.parametrize(
    ("axes", "x", "series", "panel", "held"),
    [
        ("batch: [1, 2]", "batch", None, None, []),
        ("dram.scheduler: [fr_fcfs, fr_fcfs_first_ready]", "dram.scheduler", None, None, []),
        ("dram.scheduler: [fr_fcfs, fr_fcfs_first_ready], batch: [1, 2]", "batch", "dram.scheduler", None, []),
        (
            "batch: [1, 2], dram.channels: [1, 2], cores.rows: [4, 8], noc.latency_cycles: [1, 2], cores.cols: [4]",
            "batch",
            "dram.channels",
            "cores.rows",
            ["noc.latency_cycles"],
        ),
    ],
)
def test_roles_of_the_axes(tmp_path: Path, axes: str, x: str, series: str, panel: str, held: list[str]):
    roles = assign_roles(load_sweep(store_results(tmp_path, f"{HEAD}sweep: {{{axes}}}\n")))
    assert roles.x.key == x
    assert (roles.series.key if roles.series else None) == series
    assert (roles.panel.key if roles.panel else None) == panel
    assert list(roles.held) == held


def test_a_zipped_group_is_one_axis(tmp_path: Path):
    text = f"{HEAD}zip: {{dram.scheduler: [fr_fcfs, fr_fcfs_first_ready], batch: [1, 2]}}\n"
    figure = drawn(tmp_path, text)
    assert len(figure.axes[0].lines) == 1
    assert assign_roles(load_sweep(tmp_path / "out")).x.key == "batch"


@pytest.mark.parametrize(("panels", "width"), [("[4]", 3.5), ("[4, 8]", 3.5), ("[4, 8, 16]", 7.16)])
def test_width_is_an_ieee_column_or_two(tmp_path: Path, panels: str, width: float):
    text = f"{HEAD}sweep: {{batch: [1, 2], dram.channels: [1, 2], cores.rows: {panels}}}\n"
    assert drawn(tmp_path, text).get_figwidth() == width


def test_nothing_overlaps(tmp_path: Path):
    text = f"""\
{HEAD}sweep:
  clocks.core_mhz: {{start: 500, stop: 2500, step: 50}}
  dram.timing.nRCD: {{start: 14, stop: 23, step: 1}}
  cores.rows: [4, 8]
"""
    figure = drawn(tmp_path, text)
    figure.draw_without_rendering()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    [legend] = figure.legends
    assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
    for axes in figure.axes[-2:]:
        labels = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        assert len(labels) >= 3
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(labels))
    page = figure.bbox
    assert legend.get_window_extent().x0 >= page.x0
    assert legend.get_window_extent().x1 <= page.x1


def test_files_are_fit_for_print(tmp_path: Path):
    out = store_results(tmp_path)
    files, _ = draw_figures(out, tmp_path / "figures")
    names = [f"{stem}.{suffix}" for stem in ("layers", "roofline", "sweep") for suffix in ("pdf", "png")]
    assert sorted(file.name for file in files) == names
    for file in files:
        if file.suffix == ".pdf":
            content = file.read_bytes()
            assert b"/Type3" not in content
            assert b"/CIDFontType2" in content, "TrueType fonts are embedded (fonttype 42)"
            [(width, _)] = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content)
            assert float(width) == pytest.approx(3.5 * 72)


def test_equal_results_give_equal_files(tmp_path: Path):
    out = store_results(tmp_path)
    first, _ = draw_figures(out, tmp_path / "a")
    second, _ = draw_figures(out, tmp_path / "b")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_bad_folders_are_user_errors(tmp_path: Path):
    with pytest.raises(UserError, match="no result folder"):
        draw_figures(tmp_path, tmp_path / "figures")
    out = store_results(tmp_path, failed=frozenset(range(6)))
    with pytest.raises(UserError, match="no point of this sweep finished with status ok"):
        draw_figures(out, tmp_path / "figures")
    (out / "results.parquet").write_bytes(b"garbage")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        draw_figures(out, tmp_path / "figures")
    (out / "results.parquet").unlink()
    with pytest.raises(UserError, match="has the sweep finished a point"):
        draw_figures(out, tmp_path / "figures")


def test_point_of_the_layer_figure(tmp_path: Path):
    out = store_results(tmp_path, failed=frozenset({3}))
    draw_figures(out, tmp_path / "figures", point=4)
    for point in (3, 99):
        with pytest.raises(UserError, match=f"point {point} is not one of the 5 points"):
            draw_figures(out, tmp_path / "figures", point=point)


@pytest.mark.filterwarnings("error")
def test_a_line_without_points_leaves_the_panels_their_size(tmp_path: Path):
    out = store_results(tmp_path, SPEC, failed=frozenset(range(1, 6)))
    with paper_style():
        figure = draw_sweep(load_sweep(out))
        figure.draw_without_rendering()
    assert all(axes.get_window_extent().height > 0.25 * figure.bbox.height for axes in figure.axes)


def test_a_single_point_can_be_drawn(tmp_path: Path):
    assert len(load(tmp_path, HEAD)[1].points) == 1
    figure = drawn(tmp_path, HEAD)
    assert len(figure.axes[0].lines) == 1
