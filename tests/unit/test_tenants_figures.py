"""Figures of mixes show what the tables hold, and say what they need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from figures.data import load_sweep
from figures.draw import draw_figures
from figures.isolation import draw_isolation, isolation_of
from figures.style import paper_style
from figures.tenants_data import TenantsData, load_tenants, load_windows
from figures.tenants_figures import (
    draw_bandwidth,
    draw_fairness,
    draw_latency_against_batch,
    draw_latency_cdfs,
    draw_slowdowns,
)
from hwconfigs.errors import UserError
from tests.tenants_sweep import SPEC, WINDOW_CYCLES, store_results

BATCHES = SPEC.replace(
    "  tenants: [[wide, deep], [deep, deep]]\n",
    "  tenants: [[wide, deep], [wide, wide]]\n  tenants.deep.batch: [1, 2, 4]\n",
)
NAMES = ("latency_against_batch", "slowdowns", "latency_cdfs", "fairness", "bandwidth")


def data_of(folder: Path, text: str = BATCHES) -> TenantsData:
    out = store_results(folder, text)
    return load_tenants(out, load_sweep(out))


def drawn(figure: Figure) -> Figure:
    with paper_style():
        figure.draw_without_rendering()
    return figure


def test_every_figure_is_drawn(tmp_path: Path):
    out = store_results(tmp_path, BATCHES)
    files, remarks = draw_figures(out, tmp_path / "figures", point=3)
    assert [file.name for file in files] == [f"{name}.{suffix}" for name in NAMES for suffix in ("pdf", "png")]
    assert remarks == ["pairs of tenants: only clocks.dram_mhz = 300 is shown"]


def test_latency_grows_with_the_batch_beside(tmp_path: Path):
    figure = drawn(draw_latency_against_batch(data_of(tmp_path)))
    assert [axes.get_title() for axes in figure.axes] == ["simple", "partition_cpu"]
    for axes in figure.axes:
        [line] = axes.lines
        assert line.get_label() == "wide beside deep"
        np.testing.assert_allclose(line.get_xydata(), [[1, 2.0], [2, 3.0], [4, 5.0]])
        assert axes.get_ylim() == (0, pytest.approx(1.08 * 5.0))


def test_slowdowns_are_those_of_the_table(tmp_path: Path):
    """Larger batches are not shown; of two alike the mean is."""
    figure = drawn(draw_slowdowns(data_of(tmp_path)))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["wide", "deep"]
    for axes in figure.axes[:2]:
        shown = {text.get_position(): text.get_text() for text in axes.texts}
        assert shown == {(0, 0): "2.25", (1, 0): "2.00", (0, 1): "2.50"}


def test_cdfs_end_at_one(tmp_path: Path):
    data = data_of(tmp_path)
    [axes] = drawn(draw_latency_cdfs(data)).axes
    assert [line.get_label() for line in axes.lines] == ["simple", "partition_cpu"]
    for line, scheduler in zip(axes.lines, data.schedulers, strict=True):
        times = sorted(row["latency_us"] for row in data.requests if row["scheduler"] == scheduler)
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float)[1:], times)
        assert np.asarray(line.get_ydata(), float)[[0, -1]].tolist() == [0, 1]


def test_fairness_has_a_marker_a_mix(tmp_path: Path):
    data = data_of(tmp_path)
    [axes] = drawn(draw_fairness(data)).axes
    for markers, scheduler in zip(axes.collections, data.schedulers, strict=True):
        assert isinstance(markers, PathCollection)
        mine = [row for row in data.mixes if row["scheduler"] == scheduler]
        np.testing.assert_allclose(markers.get_offsets(), [[row["fairness"], row["weighted_speedup"]] for row in mine])


def test_bandwidth_is_bytes_by_time(tmp_path: Path):
    out = store_results(tmp_path, BATCHES)
    requests = [row for row in load_tenants(out, load_sweep(out)).requests if row["point"] == 2]
    [axes] = drawn(draw_bandwidth(load_windows(out, 2), requests, 1000)).axes
    first, second = (patch.get_data() for patch in axes.patches)
    np.testing.assert_allclose(first.edges, np.arange(4) * WINDOW_CYCLES / 1000)
    np.testing.assert_allclose(first.values, [2, 0, 1])
    np.testing.assert_allclose(second.values - second.baseline, [2, 1, 1])
    np.testing.assert_allclose(second.baseline, first.values)


SHARES = SPEC.replace(
    "  tenants: [[wide, deep], [deep, deep]]\n  scheduler: [simple, partition_cpu]\n  clocks.dram_mhz: [300, 1200]\n",
    "  tenants: [[wide], [wide, deep], [wide, deep, deep]]\n"
    "zip:\n  - tenants.wide.bandwidth_share: [0.1, 0.5, 1]\n    tenants.deep.bandwidth_share: [0.2, 0.2, 1]\n",
)


def test_isolation_compares_with_nobody_beside(tmp_path: Path):
    """In these results shares change nothing, and everyone beside a tenant costs it as much as it takes alone."""
    data = data_of(tmp_path, SHARES)
    study = isolation_of(data)
    assert (study.victim, study.predicted) == ("wide", {0.1: 1.0, 0.5: 1.0, 1.0: 1.0})
    assert study.beside["deep"] == {0.1: 2.0, 0.5: 2.0, 1.0: 2.0}
    assert study.worst == pytest.approx(2.0)
    axes, below = drawn(draw_isolation(study)).axes
    lines = {line.get_label(): np.asarray(line.get_ydata(), float).tolist() for line in axes.lines}
    assert lines["deep"] == [2.0] * 3
    assert lines["deep+deep"] == [3.0] * 3
    assert [np.asarray(line.get_ydata(), float).tolist() for line in below.lines] == [[100.0] * 3, [200.0] * 3]
    assert [label.get_text() for label in below.get_xticklabels()] == ["0.1", "0.5", "no limit"]


def test_isolation_says_how_far_off_it_is(tmp_path: Path):
    files, remarks = draw_figures(store_results(tmp_path, SHARES), tmp_path / "figures")
    assert "isolation.pdf" in [file.name for file in files]
    assert "isolation: wide is at most 200.0% off the prediction of its share" in remarks


def test_isolation_needs_the_victim_by_itself(tmp_path: Path):
    text = SHARES.replace("[[wide], [wide, deep], [wide, deep, deep]]", "[[wide, deep], [wide, deep, deep]]")
    _, remarks = draw_figures(store_results(tmp_path, text), tmp_path / "figures")
    assert any(
        remark.startswith("isolation: needs a tenant with a bandwidth_share in a mix of its own") for remark in remarks
    )


def test_what_a_figure_lacks_is_named(tmp_path: Path):
    text = SPEC.replace("alone: true", "alone: false").replace("[[wide, deep], [deep, deep]]", "[[wide, deep, deep]]")
    _, remarks = draw_figures(store_results(tmp_path, text), tmp_path / "figures")
    needs = {remark.split(": ")[0]: remark for remark in remarks[1:]}
    assert "needs mixes of two tenants" in needs["latency_against_batch"]
    assert "run the sweep with 'alone: true'" in needs["slowdowns"]
    assert "run the sweep with 'alone: true'" in needs["fairness"]
    assert set(needs) == {"latency_against_batch", "slowdowns", "fairness"}


def test_a_folder_without_tenants_is_named(tmp_path: Path):
    out = store_results(tmp_path)
    (out / "tenants.parquet").unlink()
    with pytest.raises(UserError, match=r"tenants.parquet: not there"):
        draw_figures(out, tmp_path / "figures")
