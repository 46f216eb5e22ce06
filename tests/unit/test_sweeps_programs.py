"""Lowering for a sweep: points that differ in timing only share one program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sweeps.programs
from hwconfigs.load import load_hw
from hwconfigs.schema import HwConfig
from lowering import Program, lower
from sweeps.points import Point, expand
from sweeps.programs import lower_points
from sweeps.spec import load_spec
from tests import models
from tests.sweep_results import save_model


def points_of(folder: Path, sweep: str) -> tuple[Point, ...]:
    """Expand a sweep of a small matrix multiplication over these axes."""
    save_model(models.mm(32, 32, 32), folder / "mm.onnx")
    spec = folder / "spec.yaml"
    spec.write_text(f"name: t\nmodel: mm.onnx\nbase: npu-mobile-8x8\nsweep: {sweep}\n")
    return expand(load_spec(spec)).points


def test_points_that_differ_in_timing_only_share_a_program(tmp_path: Path):
    points = points_of(tmp_path, "{clocks.dram_mhz: [300, 600, 1200], cores.rows: [8, 16]}")
    programs, errors = lower_points(points, lambda done, total: None)
    assert not errors
    assert len({id(program) for program in programs.values()}) == 2


def test_hardware_that_is_not_modelled_fails_its_points_only(tmp_path: Path):
    points = points_of(tmp_path, "{noc.kind: [simple, booksim2]}")
    programs, errors = lower_points(points, lambda done, total: None)
    assert list(programs) == [points[0].digest]
    assert "booksim2" in str(errors[points[1].digest])


ALTERED = {
    "clocks.core_mhz": 333,
    "clocks.noc_mhz": 333,
    "clocks.dram_mhz": 333,
    "dma.outstanding_requests": 64,
    "dma.descriptors_per_cycle": 1,
    "dram.read_queue": 8,
    "dram.write_queue": 8,
    "dram.latency_cycles": 7,
    "dram.refresh": False,
    "dram.timing": {"nRCD": 30},
    "dram.scheduler": "fr_fcfs_first_ready",
    "noc.kind": "booksim2",
    "noc.latency_cycles": 9,
    "noc.ports_per_core": 2,
    "name": "another",
    "source": "elsewhere",
}
"""Another value for every key that lowering must not read."""


@pytest.mark.parametrize("key", sorted(ALTERED))
@pytest.mark.parametrize("compat", [None, "onnxim"])
def test_lowering_does_not_read_timing(tmp_path: Path, key: str, compat: str | None):
    save_model(models.mlp(48, 40, 24, 16), tmp_path / "mlp.onnx")
    hw = load_hw("npu-mobile-8x8x4")
    assert hw.with_overrides({key: ALTERED[key]}) != hw
    one = lower(tmp_path / "mlp.onnx", hw, compat=compat)
    other = lower(tmp_path / "mlp.onnx", hw.with_overrides({key: ALTERED[key]}), compat=compat)
    for table in ("rows", "tiles", "schedule", "pattern"):
        np.testing.assert_array_equal(getattr(one, table), getattr(other, table))
    assert (one.layers, one.spad_entries, one.acc_entries) == (other.layers, other.spad_entries, other.acc_entries)


def test_a_sweep_of_64_points_lowers_each_distinct_pair_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two models and two arrays, and sixteen memories whose differences lowering does not see: four programs.

    It sees how rows lie in the address space (`lowering.chip.OpenRows`), so other channels are another chip.
    """
    save_model(models.mm(32, 32, 32), tmp_path / "mm.onnx")
    save_model(models.mlp(16, 32, 24, 8), tmp_path / "mlp.onnx")
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: t\nbase: npu-mobile-8x8\nsweep: {model: [mm.onnx, mlp.onnx], cores.rows: [8, 16], "
        "dram.read_queue: [16, 32, 64, 128], clocks.dram_mhz: [300, 600, 900, 1200]}\n"
    )
    lowered: list[tuple[str, int]] = []

    def counting(model: Path, hw: HwConfig, **options: Any) -> Program:
        lowered.append((Path(model).name, hw.cores.rows))
        return lower(model, hw, **options)

    monkeypatch.setattr(sweeps.programs, "lower", counting)
    points = expand(load_spec(spec)).points
    programs, errors = lower_points(points, lambda done, total: None)
    assert (len(points), len(programs), errors) == (64, 64, {})
    assert sorted(lowered) == [("mlp.onnx", 8), ("mlp.onnx", 16), ("mm.onnx", 8), ("mm.onnx", 16)]
    assert len({id(program) for program in programs.values()}) == 4
