"""Splitting a budget: the grid is complete, its extremes are right, and the gradient search finds its best."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figures.allocation_figure import draw_allocation
from figures.style import paper_style
from hwconfigs.systolic_schema import load_systolic
from tests.conftest import REPO_ROOT
from vsim.cli import main
from vsim.systolic.allocate import Allocation, AllocationSpec, _compositions, _to_grid, allocate, load_allocation
from vsim.systolic.designs import stack
from vsim.systolic.evaluate import network_cycles
from vsim.systolic.networks import network
from vsim.systolic.rounding import ceil

EXAMPLE = REPO_ROOT / "vsim" / "systolic" / "resnet50.yaml"


def small(**changes: object) -> AllocationSpec:
    data = load_allocation(EXAMPLE).model_dump() | {"network": "simdit:ResNet18", "steps": 8}
    return AllocationSpec.model_validate(data | changes)


@pytest.fixture(scope="module")
def found() -> Allocation:
    return allocate(small())


def test_gradient_reaches_the_best_of_the_grid(found: Allocation):
    assert found.grid_points == comb(7, 3) ** 2
    assert found.best.cycles < found.equal.cycles < found.worst.cycles
    assert found.best.cycles <= found.gradient.cycles <= 1.01 * found.best.cycles
    assert found.gradient_points < found.grid_points / 5
    assert sum(found.best.memories) == sum(found.best.ports) == 8


@pytest.mark.slow
@pytest.mark.parametrize("compat", ["simdit", None])
def test_the_bar_of_resnet50(compat: str | None):
    found = allocate(load_allocation(EXAMPLE).model_copy(update={"compat": compat}))
    assert found.grid_points == comb(15, 3) ** 2
    assert found.gradient.cycles <= 1.01 * found.best.cycles


def test_points_are_designs_of_the_template(found: Allocation):
    """The cycles of a split are those of the design that a user would write down."""
    rows = {row["split"]: row for row in found.to_json()["splits"]}
    for name in ("best", "worst"):
        row = rows[name]
        memories = {f"buffers.{key}": value for key, value in row.items() if key.endswith("_kib")}
        ports = {f"ports.{key}": value for key, value in row.items() if key.endswith("_bits_per_cycle")}
        hw = load_systolic("simdit-inference-09").with_overrides(memories | ports)
        layers = network("ResNet18", "Inference", batch=1)
        assert network_cycles(layers, stack([hw]), faults=True)[0] == row["cycles"]


def test_landscape_is_the_grid(found: Allocation):
    """A cell of the maps holds the best and the worst of its splits; the curve is every split in order."""
    with paper_style():
        figure = draw_allocation(found)
    curve, best, worst = figure.axes[:3]
    maps = [np.asarray(axes.images[0].get_array()) for axes in (best, worst)]
    ratios = found.grid.cycles / found.best.cycles
    assert maps[0].shape == (5, 5)
    for (port, memory), fewest in np.ndenumerate(maps[0]):
        cell = ratios[(found.grid.ports[:, 3] == port + 1) & (found.grid.memories[:, 3] == memory + 1)]
        assert (fewest, maps[1][port, memory]) == (cell.min(), cell.max())
    [line] = curve.lines
    places, drawn = line.get_xdata(), line.get_ydata()
    ordered = np.sort(ratios)
    np.testing.assert_array_equal(drawn, ordered[np.round(np.divide(places, 100) * (len(ordered) - 1)).astype(int)])
    marks = [tuple(mark.get_offsets()[0]) for mark in curve.collections if len(mark.get_offsets())]
    assert [y for _, y in marks] == [
        point.cycles / found.best.cycles for point in (found.best, found.gradient, found.equal, found.worst)
    ]
    assert [x for x, _ in marks][::3] == [0, 100]


def test_descents_begin_at_the_equal_split(found: Allocation):
    assert found.descents.shape == (60, 8, 2, 4)
    np.testing.assert_allclose(found.descents[0, 0], 0.25)
    np.testing.assert_allclose(found.descents.sum(axis=-1), 1)
    with paper_style():
        first = draw_allocation(found).axes[1].lines[0]
    # 4 MiB and 2,048 bits a cycle in eighths, of which the vector unit can get one to five.
    steps = np.clip(8 * found.descents[:, 0, :, 3], 1, 5)
    np.testing.assert_allclose(first.get_xydata(), steps * [512, 256])


def test_splits_are_all_and_only_those():
    splits = list(_compositions(7, 4))
    assert len(set(splits)) == len(splits) == comb(6, 3)
    assert all(sum(split) == 7 and min(split) == 1 for split in splits)


def test_rounding_to_the_grid():
    shares = np.array([[0.25] * 4, [0.97, 0.01, 0.01, 0.01], [0.4, 0.3, 0.2, 0.1], [0.49, 0.49, 0.01, 0.01]])
    rounded = _to_grid(shares, 16)
    assert (rounded.sum(axis=1) == 16).all()
    assert rounded.min() == 1
    assert rounded.tolist() == [[4, 4, 4, 4], [13, 1, 1, 1], [6, 5, 3, 2], [7, 7, 1, 1]]


def test_a_rounded_value_has_the_slope_of_the_line():
    assert float(ceil(jnp.float32(1.25))) == 2
    assert float(jax.grad(lambda x: 3 * ceil(x))(1.25)) == 3


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = tmp_path / "spec.yaml"
    spec.write_text(EXAMPLE.read_text().replace("steps: 16", "steps: 4").replace("ResNet50 ", "ResNet18 "))
    picture = tmp_path / "landscape.png"
    assert main(["allocate", str(spec), "--json", "--figure", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["grid_points"] == 1
    assert {row["of_best"] for row in report["splits"]} == {1.0}
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sram_kib: 4096", "sram_kib: 4100", "is not a multiple of 32"),
        ("port_bits_per_cycle: 2048", "port_bits_per_cycle: 2050", "is not a multiple of 16"),
        ("steps: 16", "steps: 64", "steps"),
        ("budget:", "bugdet:", "did you mean 'budget'?"),
        ("sram_kib: 4096", "sram_kib: 64", "no split of 64 KiB"),
    ],
)
def test_bad_specifications_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
):
    spec = tmp_path / "spec.yaml"
    text = EXAMPLE.read_text()
    # A small grid where a grid is searched at all.
    text = text.replace("steps: 16", "steps: 4") if "64 KiB" in message else text
    spec.write_text(text.replace(old, new))
    assert main(["allocate", str(spec)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_figure_that_cannot_be_written_is_refused_first(capsys: pytest.CaptureFixture[str]):
    assert main(["allocate", str(EXAMPLE), "--figure", "landscape.doc"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("a figure is written as .pdf, .png, .svg")
