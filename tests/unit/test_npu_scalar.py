"""The batched step and the kernel equal the scalar model of the chip on random matrix products and random hardware."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwconfigs import HwConfig
from lowering.onnxim import lower_onnxim
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS
from tests.reference import scalar_npu
from vsim.api import SimPoint, simulate

POINTS = 8
LARGEST = (80, 96, 96)
"""In every batch: it settles the machine's shape, so that all examples of a configuration share compiled code."""

SIZES = st.tuples(*(st.integers(1, most) for most in (48, 64, 64)))
OVERRIDES = st.fixed_dictionaries(
    {
        "clocks.core_mhz": st.sampled_from([500, 800, 1000, 1500]),
        "clocks.noc_mhz": st.sampled_from([500, 1000, 1300, 2000]),
        "clocks.dram_mhz": st.sampled_from([400, 700, 1200]),
        "noc.latency_cycles": st.integers(1, 20),
        "dram.timing": st.fixed_dictionaries(
            {
                "nRCD": st.integers(5, 25),
                "nRP": st.integers(5, 25),
                "nCL": st.integers(8, 25),
                "nREFI": st.sampled_from([1000, 6240]),
            }
        ),
    }
)


def figures(result: Any) -> tuple[Any, ...]:
    """What both models report, in one form."""
    if isinstance(result, scalar_npu.ScalarResult):
        states = result.hits, result.misses, result.conflicts
        return result.layer_starts, result.layer_finishes, result.cycles, result.reads, result.writes, states
    assert result.status == "ok"
    dram = result.dram
    states = dram["row_hits"], dram["row_misses"], dram["row_conflicts"]
    layers = [[layer[key] for layer in result.layers] for key in ("start_cycle", "finish_cycle")]
    return *layers, result.cycles, dram["reads"], dram["writes"], states


Workload = tuple[tuple[int, int, int], dict[str, Any]]


def check(configuration: str, workloads: list[Workload]) -> None:
    """Matrix products of these sizes on these variants of the chip, by step, kernel and scalar model."""
    base = CONFIGURATIONS[configuration]
    hardware: list[HwConfig] = [base, *(base.with_overrides(overrides) for _, overrides in workloads)]
    programs = [lower_onnxim(models.mm(*size), base) for size in [LARGEST, *(size for size, _ in workloads)]]
    points = [SimPoint(hw, program, compat=True) for hw, program in zip(hardware, programs, strict=True)]
    results = simulate(points, lanes=len(points))
    assert [result.to_json() for result in simulate(points)] == [result.to_json() for result in results]
    for point, ours in zip(points, results, strict=True):
        assert figures(ours) == figures(scalar_npu.run(point.program, point.hw)), point.program.name


@pytest.mark.parametrize("configuration", ["mobile_c1", "mobile_c4"])
@settings(max_examples=2)
@given(workloads=st.lists(st.tuples(SIZES, OVERRIDES), min_size=POINTS - 1, max_size=POINTS - 1))
def test_random_batches(configuration: str, workloads: list[Workload]) -> None:
    check(configuration, workloads)


def test_a_run_that_ends_within_a_refresh() -> None:
    """A refresh is counted as a row miss at its first command, which closes the banks, as every other request is."""
    timing = {"nCL": 13, "nREFI": 1000, "nRP": 11, "nRCD": 6}
    clocks = {"clocks.core_mhz": 500, "clocks.noc_mhz": 1000, "clocks.dram_mhz": 1200}
    check("mobile_c4", [((32, 19, 52), clocks | {"noc.latency_cycles": 18, "dram.timing": timing})])
