"""Compute-busy cycles against Gemmini's RTL, 24 published layers with their mappings (tests/data/gemmini_rtl.json).

The rules and how they were found: `lowering.systolic_rules`. The layers, of up to 34 million cycles, are checked
through the lowering's closed form, to which the cycle-level model is equal.
"""

from __future__ import annotations

import json
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from hwconfigs import HwConfig, load_hw
from lowering import lower
from lowering.program import Program
from tests import models
from tests.conftest import DATA
from vsim.api import SimPoint, simulate

CASES = json.loads((DATA / "gemmini_rtl.json").read_text())["cases"]
CONVOLUTIONS = {
    "ResNet18_Conv1": (3, 64, 7, 2, 3, 224),
    "ResNet18_layer1_0_Conv1": (64, 64, 3, 1, 1, 56),
    "ResNet18_layer2_0_Conv1": (64, 128, 3, 2, 1, 56),
    "ResNet18_layer2_0_downsample_0": (64, 128, 1, 2, 0, 56),
    "ResNet18_layer2_0_Conv2": (128, 128, 3, 1, 1, 28),
    "ResNet18_layer3_0_Conv1": (128, 256, 3, 2, 1, 28),
    "ResNet18_layer3_0_Conv2": (256, 256, 3, 1, 1, 14),
    "ResNet18_layer3_0_downsample_0": (128, 256, 1, 2, 0, 28),
    "ResNet18_layer4_0_Conv1": (256, 512, 3, 2, 1, 14),
    "ResNet18_layer4_0_downsample_0": (256, 512, 1, 2, 0, 14),
    "ResNet18_layer4_0_Conv2": (512, 512, 3, 1, 1, 7),
}
"""Channels, filters, kernel, stride, padding, image size of the mapped layers of ResNet-18."""


def hardware(convolution: bool) -> HwConfig:
    """Gemmini as in the measurements: 8x8, one byte, a memory that answers every request in a cycle."""
    return load_hw("gemmini-16x16").with_overrides(
        {
            "cores.rows": 8,
            "cores.cols": 8,
            "cores.spad_kib": 96 if convolution else 64,
            "cores.acc_kib": 16,
            "dram.standard": "simple",
            "dram.latency_cycles": 1,
            "dram.request_bytes": 32,
            "clocks.dram_mhz": 1000,
        }
    )


@cache
def lowered(name: str) -> tuple[HwConfig, Program]:
    """Hardware and program of a case."""
    [case] = [case for case in CASES if case["case"] == name]
    if name in CONVOLUTIONS:
        model = models.conv(*CONVOLUTIONS[name])
    else:
        n, k, m = map(int, re.findall(r"\[T\] N(\d+) C(\d+) M(\d+)", case["mapping"])[0])
        model = models.mm(n, k, m)
    hw = hardware(name in CONVOLUTIONS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        onnx.save(model, path)
        return hw, lower(path, hw, mapping=case["mapping"])


def closed_form(program: Program) -> int:
    """Array-busy cycles of the whole program on its one core."""
    return sum(layer.systolic_cycles for layer in program.layers)


def test_error_bars() -> None:
    """Within 1.5 % on average and 5 % at worst, convolutions included."""
    errors = {}
    for case in CASES:
        _, program = lowered(case["case"])
        errors[case["case"]] = closed_form(program) / case["gemmini_rtl_cycles"] - 1
    size = np.abs(list(errors.values()))
    assert size.mean() <= 0.015 and size.max() <= 0.05, errors


def test_the_cycle_model_is_busy_as_long_as_the_closed_form() -> None:
    """Every case, up to 34 million cycles."""
    points = {case["case"]: SimPoint(*lowered(case["case"])) for case in CASES}
    for (name, point), result in zip(points.items(), simulate(list(points.values())), strict=True):
        assert result.status == "ok"
        assert result.cores[0]["systolic_busy_cycles"] == closed_form(point.program), name
