"""Recorded cases in which ONNXim stops with a division by zero: vsim runs them, in both modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lowering import lower
from lowering.onnxim import lower_onnxim
from tests.golden.onnxim_reference import ABORTS, Case, load_cases
from vsim.api import SimPoint, simulate

CASES = (
    "T_encoder_256_seq64",
    "T_bert_tiny_seq64",
    "V_spad256_matmul_512_768_768",
    "V_cores8_matmul_512_768_768",
)


def default_point(case: Case, folder: Path) -> SimPoint:
    hw = case.hw(folder)
    return SimPoint(hw, lower(case.model_path, hw, batch=case.batch, dims=case.open_dims), label=case.name)


def compat_point(case: Case, folder: Path) -> SimPoint:
    hw = case.hw(folder)
    program = lower_onnxim(case.model_path, hw, batch=case.batch, dims=case.dims)
    return SimPoint(hw, program, compat=True, label=case.name)


def check(points: list[SimPoint]) -> None:
    """Each ends well, has moved the bytes of its tiling, and was no faster than its arrays."""
    for point, result in zip(points, simulate(points), strict=True):
        assert result.status == "ok", point.label
        for info, layer in zip(point.program.layers, result.layers, strict=True):
            assert (layer["load_bytes"], layer["store_bytes"]) == (info.load_bytes, info.store_bytes), info.name
        request_bytes = point.hw.dram.request_bytes
        assert result.dram["reads"] * request_bytes == sum(info.load_bytes for info in point.program.layers)
        assert result.dram["writes"] * request_bytes == sum(info.store_bytes for info in point.program.layers)
        core = point.hw.core(0)
        macs_per_cycle = core.rows * core.cols * point.hw.cores.count
        assert result.cycles >= sum(info.macs for info in point.program.layers) / macs_per_cycle, point.label


def test_the_fault_is_named(shared: Path, tmp_path: Path) -> None:
    """In compatibility mode a warning names the node; in default mode there is nothing to warn of."""
    cases = load_cases(shared, ABORTS)
    assert set(cases) == set(CASES)
    for case in cases.values():
        warnings = compat_point(case, tmp_path).program.warnings
        assert warnings, case.name
        assert all("ONNXim divides by zero" in warning for warning in warnings)
        assert default_point(case, tmp_path).program.warnings == ()


@pytest.mark.parametrize("point", [default_point, compat_point], ids=["default", "compat"])
def test_every_case_runs(shared: Path, tmp_path: Path, point: Callable[[Case, Path], SimPoint]) -> None:
    check([point(case, tmp_path) for case in load_cases(shared, ABORTS).values()])
