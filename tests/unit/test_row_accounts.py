"""Row hits, misses and conflicts by tenant: they add up to the memory's, and know whose row was in the way."""

from __future__ import annotations

import dataclasses
from functools import cache

from lowering.mix import Mix, Scheduler
from tests.golden.onnxim_reference import CONFIGURATIONS
from tests.mixes import LayerPlan, MixPlan, TenantPlan, build_program
from vsim.mixes import MixPoint, simulate_mixes
from vsim.npu.results import SimResult

HW = CONFIGURATIONS["mobile_c4"]
"""One channel of DDR4."""
PLAN = TenantPlan((LayerPlan(6, depth=3),) * 3)
OTHER_ROWS = 1 << 20
"""First block of the second tenant: other rows of the banks that the first one uses."""
COUNTS = ("row_hits", "row_conflicts")


def of_one_workload(mix: Mix) -> Mix:
    """The mix, its tenants requests of one workload."""
    return dataclasses.replace(mix, tenants=tuple(dataclasses.replace(tenant, workload=0) for tenant in mix.tenants))


@cache
def results() -> tuple[SimResult, SimResult, SimResult]:
    """A tenant alone, two on cores of their own, and the same two as requests of one workload."""
    pair = (PLAN, dataclasses.replace(PLAN, partition=1))
    apart = MixPlan(pair, Scheduler.PARTITION_CPU, (0, 0, 1, 1)).build()
    first, second = apart.tenants
    beyond = build_program(second.name, PLAN.layers, second.program.n_cores, OTHER_ROWS)
    apart = dataclasses.replace(apart, tenants=(first, dataclasses.replace(second, program=beyond)))
    alone = dataclasses.replace(apart, tenants=(first,))
    mixes = alone, apart, of_one_workload(apart)
    of_alone, of_apart, of_one = simulate_mixes([MixPoint(HW, mix) for mix in mixes])
    return of_alone, of_apart, of_one


def test_tenants_have_all_that_the_memory_counts() -> None:
    """Hits and conflicts; of misses, the memory has those of its refreshes, too."""
    for result in results():
        assert result.status == "ok"
        for name in COUNTS:
            assert sum(tenant[name] for tenant in result.tenants) == result.dram[name]
        assert 0 < sum(tenant["row_misses"] for tenant in result.tenants) <= result.dram["row_misses"]
        for tenant in result.tenants:
            accesses = tenant["row_hits"] + tenant["row_misses"] + tenant["row_conflicts"]
            assert accesses == (tenant["load_bytes"] + tenant["store_bytes"]) // HW.dram.request_bytes


def test_only_others_make_foreign_conflicts() -> None:
    alone, apart, of_one = results()
    assert [tenant["foreign_conflicts"] for tenant in (*alone.tenants, *of_one.tenants)] == [0, 0, 0]
    for tenant in apart.tenants:
        assert 0 < tenant["foreign_conflicts"] <= tenant["row_conflicts"]
    # Whose requests they are called changes nothing else.
    assert [tenant["row_conflicts"] for tenant in apart.tenants] == [t["row_conflicts"] for t in of_one.tenants]
