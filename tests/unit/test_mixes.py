"""Mixes on the batched chip: equal to the scalar schedulers, every tile served once.

Neighbours, order of lanes, idle skip, chunks and the kernel change nothing.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hwconfigs import ConfigError
from lowering.mix import Mix, Scheduler
from tests.mixes import CORES, HW, MOST_TENANTS, LayerPlan, MixPlan, TenantPlan, build_mix, mix_plans
from tests.reference.scalar_tenants import LAYER_STRIDE, run_mix
from vsim.api import run_group
from vsim.mixes import MixPoint, simulate_mixes
from vsim.npu.compile import params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.compile_mix import WINDOWS, mix_input, mix_needs, mix_shape_of, mix_tables_of, stack_inputs
from vsim.npu.machine import NpuMachine
from vsim.npu.results import SimResult
from vsim.npu.results_mix import mix_result_of

LANES = 9
MOST_CYCLES = 20_000
"""Many times the length of any drawn mix: what still runs has lost tiles."""

LARGEST = build_mix((TenantPlan((LayerPlan(6, depth=3),) * 4),) * MOST_TENANTS, Scheduler.SIMPLE)
"""In every batch: it settles the machine's shape, so that all batches share compiled code."""

DIAMOND = (
    LayerPlan(3),
    LayerPlan(5, rows=40, reads=(0,)),
    LayerPlan(2, unbound=True, reads=(0,)),
    LayerPlan(4, depth=3, reads=(1, 2)),
)
"""Two branches of unequal length that meet."""
CHAIN = (LayerPlan(6, unbound=True), LayerPlan(1, rows=0, reads=(0,)), LayerPlan(4, rows=40, reads=(1,)))
PAIR = (TenantPlan(CHAIN), TenantPlan(CHAIN, arrival_cycle=1, partition=1, deadline_cycle=300))
LATE = 12_000
BY_KERNEL = {"lanes": None, "chunk_iterations": 37}
PLANS = (
    *(MixPlan(PAIR, scheduler, (0, 0, 1, 1)) for scheduler in Scheduler),
    MixPlan((TenantPlan(DIAMOND), TenantPlan(CHAIN), TenantPlan(DIAMOND, 40)), Scheduler.TIME_MULTIPLEX),
    MixPlan((TenantPlan(DIAMOND), TenantPlan(DIAMOND, 3, 1)), Scheduler.PARTITION_CPU, (0, 1, 1, 1)),
    MixPlan((*PAIR, TenantPlan(CHAIN, LATE), TenantPlan(CHAIN, LATE)), Scheduler.SPATIAL_SPLIT),
)


def run_batch(
    batch: list[Mix], max_cycles: int = MOST_CYCLES, lanes: int | None = LANES, **options: Any
) -> list[SimResult]:
    """Results of LANES - 1 mixes side by side (lanes=None: by the kernel)."""
    points = [MixPoint(HW, mix, compat=True, max_cycles=max_cycles) for mix in [LARGEST, *batch]]
    return simulate_mixes(points, lanes=lanes, **options)[1:]


@cache
def reference() -> tuple[list[Mix], list[dict[str, Any]]]:
    """The planned mixes and their results, side by side."""
    batch = [plan.build() for plan in PLANS]
    return batch, [result.to_json() for result in run_batch(batch)]


def check_both(batch: list[Mix]) -> None:
    """The mixes side by side are the scalar schedulers', and by the kernel the same."""
    results = run_batch(batch)
    for mix, result in zip(batch, results, strict=True):
        check(mix, result)
    by_kernel = run_batch(batch, lanes=None)
    assert [result.to_json() for result in by_kernel] == [result.to_json() for result in results]


def check(mix: Mix, result: SimResult) -> None:
    """The result is that of the scalar schedulers."""
    expected = run_mix(mix, HW, MOST_CYCLES)
    if expected is None:
        # Only where the original throws tiles away.
        assert (mix.scheduler, result.status) == (Scheduler.SPATIAL_SPLIT, "deadlock")
        return
    assert result.status == "ok"
    for index, row in enumerate(result.tenants):
        layers = range(index * LAYER_STRIDE, index * LAYER_STRIDE + len(row["layers"]))
        assert [layer["start_cycle"] for layer in row["layers"]] == [expected.starts[layer] for layer in layers]
        assert [layer["finish_cycle"] for layer in row["layers"]] == [expected.finishes[layer] for layer in layers]
    counts = result.cycles, result.dram["reads"], result.dram["writes"]
    assert counts == (expected.cycles, expected.reads, expected.writes)
    check_service(mix, result.tenants)


def check_service(mix: Mix, rows: Any) -> None:
    """Every layer moved exactly the bytes of its tiles, after its tenant's arrival and the layers that it reads."""
    for tenant, row in zip(mix.tenants, rows, strict=True):
        assert row["start_cycle"] >= tenant.arrival_cycle
        assert row["finish_cycle"] == max(layer["finish_cycle"] for layer in row["layers"])
        for info, layer, consumers in zip(tenant.program.layers, row["layers"], tenant.program.consumers, strict=True):
            assert (layer["load_bytes"], layer["store_bytes"]) == (info.load_bytes, info.store_bytes)
            for consumer in consumers:
                assert layer["start_cycle"] <= layer["finish_cycle"] <= row["layers"][consumer]["start_cycle"]


@settings(max_examples=3, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(plans=st.lists(mix_plans(), min_size=LANES - 1, max_size=LANES - 1))
def test_random_mixes_equal_the_scalar_schedulers(plans: list[MixPlan]) -> None:
    check_both([plan.build() for plan in plans])


@pytest.mark.slow
@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(plans=st.lists(mix_plans(), min_size=LANES - 1, max_size=LANES - 1))
def test_many_random_mixes_equal_the_scalar_schedulers(plans: list[MixPlan]) -> None:
    check_both([plan.build() for plan in plans])


def test_every_request_is_served_once() -> None:
    batch, results = reference()
    for mix, result in zip(batch, results, strict=True):
        assert result["status"] == "ok"
        check_service(mix, result["tenants"])
        moved = [sum(layer[key] for layer in result["layers"]) for key in ("load_bytes", "store_bytes")]
        assert moved == [result["dram"]["read_bytes"], result["dram"]["write_bytes"]]


def test_schedulers_differ() -> None:
    """The comparisons here would prove nothing if they did not."""
    _, results = reference()
    ends = {tuple(row["finish_cycle"] for row in result["tenants"]) for result in results[: len(Scheduler)]}
    assert len(ends) == len(Scheduler)


def test_lanes_apart() -> None:
    batch, results = reference()
    [alone] = simulate_mixes([MixPoint(HW, batch[-1], compat=True, max_cycles=MOST_CYCLES)], lanes=1)
    assert alone.to_json() == results[-1]


def test_permuted_lanes() -> None:
    batch, results = reference()
    assert [result.to_json() for result in run_batch(batch[::-1])] == results[::-1]


@pytest.mark.parametrize("options", [{"idle_skip": False}, {"chunk_iterations": 37}, BY_KERNEL], ids=str)
def test_idle_skip_and_chunks_change_nothing(options: dict[str, Any]) -> None:
    batch, results = reference()
    assert [result.to_json() for result in run_batch(batch, **options)] == results


def test_what_has_not_ended_is_null() -> None:
    batch, _ = reference()
    result = run_batch(batch, max_cycles=LATE // 2)[-1]
    assert result.status == "cycle_limit"
    assert result.tenants[0]["finish_cycle"] < LATE // 2
    assert [row["start_cycle"] for row in result.tenants[2:]] == [None, None]
    assert [row["finish_cycle"] for row in result.tenants[2:]] == [None, None]


@pytest.mark.parametrize("lanes", [None, pytest.param(6, marks=pytest.mark.slow)], ids=["kernel", "step"])
def test_overflows_have_names(lanes: int | None) -> None:
    """Long tiles on some cores, and many tiles without work of layers that do not wait for them."""
    layers = (LayerPlan(2, rows=40), LayerPlan(6, rows=8), LayerPlan(80, rows=0), LayerPlan(80, rows=0))
    batch = [MixPlan((TenantPlan(layers),), scheduler).build() for scheduler in Scheduler]
    programs = [mix.tenants[0].program for mix in batch]
    shape = dataclasses.replace(mix_shape_of(HW, mix_needs(batch[0]), 1, compat=True), queue_parts=1, reports=1)
    params = params_of(HW, compat=True, max_cycles=MOST_CYCLES, idle_skip=True)
    statuses: dict[Scheduler, str] = {}
    run_group(
        NpuMachine(shape),
        mix_tables_of(programs, shape),
        stack_params([params] * len(batch)),
        stack_inputs([mix_input(HW, mix, [index], shape) for index, mix in enumerate(batch)]),
        [1.0] * len(batch),
        lanes,
        None,
        lambda lane, state: statuses.update({batch[lane].scheduler: mix_result_of(HW, batch[lane], state).status}),
        lambda _: None,
    )
    assert statuses[Scheduler.SIMPLE] == "ok"
    assert statuses[Scheduler.TIME_MULTIPLEX] == "overflow_tile_reports"
    assert statuses[Scheduler.PARTITION_CPU] == "overflow_tile_queue"


def test_programs_that_are_no_tenants_are_refused() -> None:
    mix = PLANS[0].build()
    first, second = mix.tenants
    chain = dataclasses.replace(first, program=dataclasses.replace(first.program, consumers=()))
    with pytest.raises(ConfigError, match="was not lowered as a tenant"):
        simulate_mixes([MixPoint(HW, dataclasses.replace(mix, tenants=(chain, second)), compat=True)])
    small = HW.with_overrides({"cores.count": CORES // 2})
    with pytest.raises(ConfigError, match="lowered for 4 cores, the chip has 2"):
        simulate_mixes([MixPoint(small, mix, compat=True)])


def windows_of(batch: list[Mix], shift: int, lanes: int | None) -> list[list[tuple[int, list[int]]]]:
    """Of every mix and tenant, the length of its windows and its bytes in each, windows of 2**shift cycles at first."""
    which = [
        list(range(number, number + 4))[: len(mix.tenants)] for number, mix in zip(count(0, 4), batch, strict=False)
    ]
    programs = [tenant.program for mix in batch for tenant in (*mix.tenants, *mix.tenants[:1] * 4)[:4]]
    shape = mix_shape_of(HW, mix_needs(LARGEST), MOST_TENANTS, compat=True)
    inputs = [mix_input(HW, mix, of_mix, shape) for mix, of_mix in zip(batch, which, strict=True)]
    params = params_of(HW, compat=True, max_cycles=MOST_CYCLES, idle_skip=True)
    results: dict[int, SimResult] = {}
    run_group(
        NpuMachine(shape),
        mix_tables_of(programs, shape),
        stack_params([params] * len(batch)),
        stack_inputs([one.replace(window_shift=np.int32(shift)) for one in inputs]),
        [1.0] * len(batch),
        lanes,
        None,
        lambda lane, state: results.update({lane: mix_result_of(HW, batch[lane], state)}),
        lambda _: None,
    )
    return [
        [(row["window_cycles"], row["window_bytes"]) for row in results[lane].tenants] for lane in range(len(batch))
    ]


@pytest.mark.parametrize("lanes", [None, 4], ids=["kernel", "step"])
def test_windows_add_up_however_often_they_double(lanes: int | None) -> None:
    """From windows of a cycle up, across 12,000 idle cycles that are skipped at once, and without any doubling."""
    batch, results = reference()
    batch, results = batch[-4:], results[-4:]
    grown, coarse = windows_of(batch, 0, lanes), windows_of(batch, 9, lanes)
    for result, of_grown, of_coarse in zip(results, grown, coarse, strict=True):
        for row, (cycles, found), (wide, expected) in zip(result["tenants"], of_grown, of_coarse, strict=True):
            assert sum(found) == row["load_bytes"] + row["store_bytes"]
            assert len(found) == result["cycles"] // cycles + 1
            assert WINDOWS / 2 < len(found) <= WINDOWS
            assert wide == 512 >= cycles
            parts = 512 // cycles
            assert [sum(found[at : at + parts]) for at in range(0, len(found), parts)] == expected


def test_single_programs_know_nothing_of_mixes() -> None:
    """Their step is the same text whatever the shape says of queues, reports and windows of tenants."""
    program = PLANS[0].build().tenants[0].program
    shape = shape_of(HW, program_needs(program), compat=True)
    tables = tables_of([program], shape)
    params = stack_params([params_of(HW, compat=True, max_cycles=MOST_CYCLES, idle_skip=True)])
    texts = set()
    for other in (shape, dataclasses.replace(shape, queue_parts=8, reports=8, windows=WINDOWS)):
        machine = NpuMachine(other)
        state = jax.eval_shape(machine.init, tables, params, jnp.zeros(1, jnp.int32))
        texts.add(jax.jit(machine.step).lower(tables, params, state).as_text())
    assert len(texts) == 1
