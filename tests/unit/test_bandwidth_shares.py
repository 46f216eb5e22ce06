"""Shares of the memory's bandwidth: no tenant asks for more than its rate, and those without a share notice nothing."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hwconfigs import ConfigError
from lowering.mix import Mix, Scheduler
from tests.mixes import CORES, HW, LayerPlan, MixPlan, TenantPlan, mix_plans
from tests.unit.test_mixes import LARGEST, check_service
from vsim.bounds import dram_peak_bytes_per_cycle
from vsim.mixes import MixPoint, simulate_mixes
from vsim.npu.results import SimResult
from vsim.npu.shares import BURST_CYCLES

LANES = 9
MOST_CYCLES = 200_000
PEAK_BYTES = dram_peak_bytes_per_cycle(HW)
SLACK_BYTES = 2 * CORES * 16 * HW.dram.request_bytes
"""A load and a store for every core, each of no more than 16 requests, that the bucket did not see in time."""
STREAM = TenantPlan((LayerPlan(6, rows=1, depth=3),) * 4)
"""Memory-bound: 72 loads of 4 to 9 requests, and 24 stores of 4."""
HEAVY = dataclasses.replace(
    LARGEST, tenants=tuple(dataclasses.replace(t, bandwidth_share=0.9) for t in LARGEST.tenants)
)


def run_batch(batch: list[Mix], lanes: int | None = LANES, **options: Any) -> list[SimResult]:
    """Results of LANES - 1 mixes beside the largest, which settles the machine's shape.

    In default mode: ONNXim knows no shares, and its chains of sums rely on tiles that end in order (Q7).
    """
    points = [MixPoint(HW, mix, max_cycles=MOST_CYCLES) for mix in [HEAVY, *batch]]
    return simulate_mixes(points, lanes=lanes, **options)[1:]


def with_shares(mix: Mix, shares: list[float]) -> Mix:
    """The mix with a share for every tenant."""
    tenants = [dataclasses.replace(t, bandwidth_share=s) for t, s in zip(mix.tenants, shares, strict=False)]
    return dataclasses.replace(mix, tenants=tuple(tenants))


@cache
def of_streams() -> list[tuple[float, SimResult]]:
    """One memory-bound tenant by share."""
    shares = [0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.5, 1.0]
    batch = [MixPlan((dataclasses.replace(STREAM, bandwidth_share=s),), Scheduler.SIMPLE).build() for s in shares]
    return list(zip(shares, run_batch(batch), strict=True))


def test_a_share_is_a_rate() -> None:
    """Small shares decide how long a memory-bound tenant takes: its bytes at its rate, less the burst at the start.

    And less what it need not wait for at its end, when every core may have issued a load or store at once.
    """
    for share, result in of_streams()[:4]:
        rate = share * PEAK_BYTES
        row = result.tenants[0]
        expected = (row["load_bytes"] + row["store_bytes"]) / rate - BURST_CYCLES
        last = 9 * HW.dram.request_bytes / rate
        assert expected - CORES * last <= row["finish_cycle"] <= expected + last + 200


def test_no_limit_is_the_largest_share() -> None:
    cycles = [result.cycles for _, result in of_streams()]
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[-1] < cycles[0] / 4


def check_rates(mix: Mix, result: SimResult) -> None:
    """Up to the end of every window, no tenant has asked for more than its rate and burst allow."""
    for tenant, row in zip(mix.tenants, result.tenants, strict=True):
        for window, moved in enumerate(accumulate(row["window_bytes"])):
            active = max((window + 1) * row["window_cycles"] - tenant.arrival_cycle, 0)
            assert moved <= (active + BURST_CYCLES) * tenant.bandwidth_share * PEAK_BYTES + SLACK_BYTES


# Spatial split, which the default mode does not have, throws tiles away as the original does.
default_plans = mix_plans().filter(lambda plan: plan.scheduler is not Scheduler.SPATIAL_SPLIT)
shared_plans = st.tuples(default_plans, st.lists(st.sampled_from([0.01, 0.05, 0.3, 1.0]), min_size=4, max_size=4))


@settings(max_examples=2, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(plans=st.lists(shared_plans, min_size=LANES - 1, max_size=LANES - 1))
def test_random_shares(plans: list[tuple[MixPlan, list[float]]]) -> None:
    """Every request is still served once, no rate is exceeded; idle skip, chunks and the kernel change nothing."""
    batch = [with_shares(plan.build(), shares) for plan, shares in plans]
    results = run_batch(batch)
    for mix, result in zip(batch, results, strict=True):
        assert result.status == "ok"
        check_service(mix, result.tenants)
        check_rates(mix, result)
    expected = [result.to_json() for result in results]
    assert [result.to_json() for result in run_batch(batch, idle_skip=False, chunk_iterations=37)] == expected
    assert [result.to_json() for result in run_batch(batch, lanes=None)] == expected


@settings(max_examples=1, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(plans=st.lists(default_plans, min_size=LANES - 1, max_size=LANES - 1))
def test_without_shares_nothing_changes(plans: list[MixPlan]) -> None:
    """A lane without shares is the same beside one with shares, where other code runs, as beside none."""
    batch = [plan.build() for plan in plans]
    points = [MixPoint(HW, mix, max_cycles=MOST_CYCLES) for mix in [LARGEST, *batch]]
    expected = [result.to_json() for result in simulate_mixes(points, lanes=LANES)[1:]]
    assert [result.to_json() for result in run_batch(batch)] == expected


def test_requests_of_a_workload_have_one_share() -> None:
    """Two tenants on cores of their own, each with a share or both with one."""
    plans = tuple(dataclasses.replace(STREAM, bandwidth_share=0.05, partition=index) for index in range(2))
    apart = MixPlan(plans, Scheduler.PARTITION_CPU, (0, 0, 1, 1)).build()
    together = dataclasses.replace(
        apart, tenants=tuple(dataclasses.replace(tenant, workload=0) for tenant in apart.tenants)
    )
    one, two = run_batch([apart, together, *[apart] * (LANES - 3)])[:2]
    assert two.cycles > 1.8 * one.cycles


def test_a_share_too_small_to_count() -> None:
    mix = MixPlan((dataclasses.replace(STREAM, bandwidth_share=1e-7),), Scheduler.SIMPLE).build()
    with pytest.raises(ConfigError, match="tenant tenant0: a bandwidth share of 1e-07 is too small"):
        simulate_mixes([MixPoint(HW, mix)])
