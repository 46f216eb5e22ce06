"""Structures that ONNXim leaves unbounded: where an array is too small, the lane ends with a status, never wrongly.

By the kernel, and (slow) side by side by the step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest

from hwconfigs import HwConfig
from lowering.onnxim import lower_onnxim
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS
from vsim.api import SimPoint, SimResult, run_group, simulate
from vsim.npu.compile import params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.machine import NpuMachine
from vsim.npu.results import result_of

HW = CONFIGURATIONS["mobile_c4"]
SLOW_NOC = HW.with_overrides({"clocks.noc_mhz": 100, "clocks.dram_mhz": 1200, "dram.timing.nREFI": 1000})
"""Its memory answers faster than the network takes the answers away."""
PROGRAMS = [lower_onnxim(models.mm(*size), HW) for size in [(64, 64, 64), (8, 8, 8)]]
"""The first is too large for every shrunken structure, the second fits some."""


def run_on_shrunken(hw: HwConfig, changes: dict[str, Any], lanes: int | None) -> list[SimResult]:
    """Both programs on the shape they need, some of its sizes replaced (`pending` is the DRAM's)."""
    needs = [program_needs(program) for program in PROGRAMS]
    most = [max(getattr(need, field.name) for need in needs) for field in dataclasses.fields(needs[0])]
    shape = shape_of(hw, type(needs[0])(*most), compat=True)
    if "pending" in changes:
        changes = {"dram": dataclasses.replace(shape.dram, **changes)}
    shape = dataclasses.replace(shape, **changes)
    results: dict[int, SimResult] = {}
    params = params_of(hw, compat=True, max_cycles=None, idle_skip=True)

    def keep(index: int, state: Any) -> None:
        results[index] = result_of(hw, PROGRAMS[index], state)

    run_group(
        NpuMachine(shape),
        tables_of(PROGRAMS, shape),
        stack_params([params] * len(PROGRAMS)),
        jnp.arange(len(PROGRAMS), dtype=jnp.int32),
        [1.0] * len(PROGRAMS),
        lanes,
        None,
        keep,
        lambda _: None,
    )
    return [results[index] for index in range(len(PROGRAMS))]


@pytest.mark.parametrize("lanes", [None, pytest.param(len(PROGRAMS), marks=pytest.mark.slow)], ids=["kernel", "step"])
@pytest.mark.parametrize(
    ("hw", "changes", "status", "small_fits"),
    [
        (HW, {"inflight": 16}, "overflow_noc_requests", True),
        (HW, {"descriptors": 4}, "overflow_dma_descriptors", True),
        (SLOW_NOC, {"returns": 1}, "overflow_dram_return", True),
        (SLOW_NOC, {"responses": 1}, "overflow_noc_responses", False),
        (HW, {"pending": 2}, "overflow_dram_pending", False),
    ],
    ids=["requests", "descriptors", "returns", "responses", "pending"],
)
def test_overflow_is_named_and_stays_in_its_lane(
    hw: HwConfig, changes: dict[str, int], status: str, small_fits: bool, lanes: int | None
) -> None:
    large, small = run_on_shrunken(hw, changes, lanes)
    assert status in large.status.split("+")
    if small_fits:
        [undisturbed] = simulate([SimPoint(hw, PROGRAMS[1], compat=True)])
        assert small.to_json() == undisturbed.to_json()
    else:
        assert small.status == status
