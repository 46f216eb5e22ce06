"""Laws of the batch engine and the step: what may change the speed of a run must not change its result.

All points share one machine shape (the small mobile chip of the golden rows), so that one compilation serves them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwconfigs import ConfigError, load_hw
from lowering import lower
from lowering.models import LoadedModel
from lowering.onnxim import lower_onnxim
from lowering.program import ROW_COLUMNS, Col, LayerInfo, Op, Program
from tests import models
from tests.conftest import REPO_ROOT
from tests.golden.onnxim_reference import CONFIGURATIONS
from vsim import devices, engine
from vsim.api import Progress, SimPoint, run_group, simulate
from vsim.npu import dispatch
from vsim.npu.compile import params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.machine import NpuMachine
from vsim.npu.results import SimResult, result_of
from vsim.npu.types import NpuShape

HW = CONFIGURATIONS["mobile_c1"]


@cache
def matrix(n: int, k: int, m: int) -> Program:
    """A small matrix product."""
    return lower_onnxim(models.mm(n, k, m), HW)


def timing_points() -> list[SimPoint]:
    """Ten points that differ in timing and size; the longest takes about ten times the cycles of the shortest."""
    variants = [
        {"dram.timing.nRP": 10 + index, "noc.latency_cycles": 1 + index % 3, "clocks.dram_mhz": 300 + 40 * index}
        for index in range(5)
    ]
    sizes = [(64, 64, 64), (16, 40, 24)]
    return [SimPoint(HW.with_overrides(variant), matrix(*size), compat=True) for variant in variants for size in sizes]


BOTH_PATHS = pytest.mark.parametrize("lanes", [None, 1], ids=["kernel", "step"])


@cache
def reference() -> list[dict]:
    """The points one by one, by the step."""
    return [result.to_json() for result in simulate(timing_points(), lanes=1)]


def test_points_differ_and_end_well() -> None:
    """The comparison below would prove nothing on equal or failed lanes."""
    assert {result["status"] for result in reference()} == {"ok"}
    assert len({result["cycles"] for result in reference()}) == len(reference())


def test_the_kernel() -> None:
    """It is what `simulate` takes on a CPU."""
    assert NpuMachine(_shape(timing_points())).has_kernel()
    assert [result.to_json() for result in simulate(timing_points())] == reference()


def test_lanes_of_other_latencies() -> None:
    """Latencies that let other numbers of responses be on the way share one machine, each lane with its own number."""
    chips = [load_hw("npu-mobile-8x8x4").with_overrides({"noc.latency_cycles": latency}) for latency in (8, 64)]
    points = [SimPoint(hw, lower(LoadedModel("m", Path("m.onnx"), models.mm(32, 48, 40), 13), hw)) for hw in chips]
    machines = engine.compile_machine.cache_info().misses
    together = simulate(points, lanes=len(points))
    assert engine.compile_machine.cache_info().misses == machines + 1
    alone = simulate(points)
    assert [result.to_json() for result in together] == [result.to_json() for result in alone]


def test_wide_batches() -> None:
    """A lane does not notice its neighbours. One lane to a device, few and many are compiled to different code (see
    `vsim.npu.fields`).
    """
    points = timing_points() * 8
    results = simulate(points, lanes=len(points))
    assert [result.to_json() for result in results] == reference() * 8


@pytest.mark.parametrize("lanes", [2, 6])
def test_two_devices(lanes: int) -> None:
    """Lanes split over devices, one lone lane to each or several, and refilled. The other tests have one device."""
    script = f"""if True:
        import json, jax
        from tests.unit.test_npu_laws import simulate, timing_points
        results = [result.to_json() for result in simulate(timing_points(), lanes={lanes})]
        print(json.dumps([len(jax.local_devices()), results]))
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPO_ROOT, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [2, reference()]


def test_few_points_run_one_to_a_core() -> None:
    """The loop of a lone lane is one kernel: XLA's runtime calls it and has no loop of its own (`vsim.devices`)."""
    assert devices.lanes_side_by_side(100_000, 10) == len(jax.local_devices())
    point = timing_points()[0]
    machine = NpuMachine(_shape([point]))
    params = stack_params([params_of(point.hw, compat=True, max_cycles=None, idle_skip=True)])
    shared, which = tables_of([point.program], machine.shape), jnp.zeros(1, jnp.int32)
    params, which = jax.tree.map(lambda leaf: leaf[None], (params, which))
    compiled = engine.compile_machine(machine, 1)
    arguments = shared, params, compiled.fill(shared, params, which), np.ones((1, 1), bool), np.int32(1), np.int32(0)
    text = compiled.advance.lower(*arguments).compile().as_text()  # pyright: ignore[reportFunctionMemberAccess]
    entry = text[text.index("ENTRY") :]
    assert " while(" not in entry
    assert "xla_cpu_small_call" in entry


@pytest.mark.parametrize("lanes", [None, 4], ids=["kernel", "step"])
def test_permuted_lanes(lanes: int | None) -> None:
    """The order of the points is the order of the results."""
    order = np.random.default_rng(0).permutation(len(reference()))
    permuted = simulate([timing_points()[index] for index in order], lanes=lanes)
    assert [result.to_json() for result in permuted] == [reference()[index] for index in order]


def test_refilled_lanes() -> None:
    """Four places for ten points; every result is reported once, when its lane ends."""
    seen: list[int] = []
    results = simulate(timing_points(), lanes=4, on_result=lambda index, _: seen.append(index))
    assert [result.to_json() for result in results] == reference()
    assert sorted(seen) == list(range(len(results)))


@BOTH_PATHS
@pytest.mark.parametrize("chunk", [37, 1000])
def test_chunks(chunk: int, lanes: int | None) -> None:
    """The step's clocks are rebased after every chunk, here hundreds of times."""
    results = simulate(timing_points(), chunk_iterations=chunk, lanes=lanes)
    assert [result.to_json() for result in results] == reference()


@BOTH_PATHS
def test_idle_skip(lanes: int | None) -> None:
    """Skipping saves iterations and changes nothing else."""
    ticking = simulate(timing_points(), idle_skip=False, lanes=lanes)
    assert [result.to_json() for result in ticking] == reference()


def test_a_sweep_over_traced_values_compiles_once() -> None:
    """Timing, clocks and latencies are traced: no new shape, no new trace."""
    before = engine.compile_machine.cache_info().misses
    reference()
    machines = engine.compile_machine.cache_info().misses
    more = [
        SimPoint(HW.with_overrides({"dram.timing.nRCD": 8 + index, "clocks.core_mhz": 900 + index}), p.program, True)
        for index, p in enumerate(timing_points())
    ]
    machine = NpuMachine(_shape(timing_points()))
    compiled = engine.compile_machine(machine, min(len(jax.local_devices()), len(more)))
    traces = compiled.advance._cache_size()
    simulate(more, lanes=1)
    assert engine.compile_machine.cache_info().misses == max(machines, before)
    assert compiled.advance._cache_size() == traces


def test_occupancy_of_lanes_of_very_different_length() -> None:
    """Places of ended lanes are refilled, the longest lanes first: few stand empty though lengths span 20x."""
    sizes = [(8, 8, 8), (8, 16, 16), (16, 40, 24), (32, 64, 48), (64, 64, 64)]
    points = [SimPoint(HW, matrix(*sizes[index % 5]), compat=True) for index in range(80)]
    marks: list[Progress] = []
    results = simulate(points, lanes=8, on_progress=marks.append)
    cycles = [result.cycles for result in results]
    assert max(cycles) > 20 * min(cycles)
    assert marks[-1].lane_iterations >= 0.85 * marks[-1].place_iterations


def test_a_step_keeps_the_types_of_the_state() -> None:
    """Or the second chunk would compile once more: also a type that is only weak counts for JAX."""
    point = timing_points()[0]
    machine = NpuMachine(_shape([point]))
    shared = tables_of([point.program], machine.shape)
    params = stack_params([params_of(point.hw, compat=True, max_cycles=None, idle_skip=True)])
    before = jax.eval_shape(machine.init, shared, params, jnp.zeros(1, jnp.int32))
    after = jax.eval_shape(lambda state: machine.rebase(machine.step(shared, params, state)), before)
    types = [[(leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)] for state in (before, after)]
    assert types[0] == types[1]


def _shape(points: list[SimPoint]) -> NpuShape:
    needs = [program_needs(point.program) for point in points]
    most = [max(getattr(need, field.name) for need in needs) for field in dataclasses.fields(needs[0])]
    return shape_of(HW, type(needs[0])(*most), compat=True)


@BOTH_PATHS
def test_cycle_limit_ends_only_its_lane(lanes: int | None) -> None:
    """A limit is a named status, and the figures are those up to it."""
    points = timing_points()
    points[2] = dataclasses.replace(points[2], max_cycles=1500)
    results = [result.to_json() for result in simulate(points, lanes=lanes)]
    assert results[2]["status"] == "cycle_limit"
    assert 1500 <= results[2]["cycles"] < 1500 + 20
    assert results[2]["layers"][0]["finish_cycle"] is None
    assert [r for i, r in enumerate(results) if i != 2] == [r for i, r in enumerate(reference()) if i != 2]


def hand_made(*rows: dict[Col, int]) -> Program:
    """A program of one tile with the given rows."""
    table = np.zeros((len(rows), ROW_COLUMNS), np.int32)
    for index, row in enumerate(rows):
        table[index, [Col.COUNT0, Col.COUNT1, Col.COUNT2, Col.PERIOD_REQUESTS, Col.PERIOD_PITCH_BLOCKS]] = 1
        for column, value in row.items():
            table[index, column] = value
    return Program(
        name="hand",
        rows=table,
        tiles=np.asarray([[0, len(rows), 0, 0, 0]], np.int32),
        schedule=np.asarray([[[0, 1]]], np.int32),
        pattern=np.zeros(0, np.int32),
        layers=(LayerInfo("hand", "Hand"),),
        spad_entries=2,
        acc_entries=2,
    )


LOAD = {Col.OP: Op.LOAD, Col.REQUESTS: 1, Col.REQUESTS_LAST: 1, Col.PATTERN_START: -1}


@pytest.mark.parametrize("lanes", [None, 2], ids=["kernel", "step"])
def test_deadlock_is_named(lanes: int | None) -> None:
    """An operation that waits for an entry which nothing loads; a sound lane beside it ends well."""
    waits = {Col.OP: Op.VECTOR, Col.SRC_A: 1, Col.SRC_B: -1, Col.SIZE1: 1, Col.SIZE2: 1}
    points = [SimPoint(HW, hand_made(LOAD, waits), compat=True), timing_points()[1]]
    stuck, sound = simulate(points, lanes=lanes)
    assert stuck.status == "deadlock"
    assert sound.to_json() == reference()[1]


@BOTH_PATHS
def test_memory_that_is_stuck_is_a_deadlock(lanes: int | None) -> None:
    """Controllers without room for a single read under way: refreshes go on for ever, yet nothing will move."""
    point = timing_points()[1]
    shape = shape_of(HW, program_needs(point.program), compat=False)
    shape = dataclasses.replace(shape, dram=dataclasses.replace(shape.dram, pending=1))
    assert _run_on(shape, point, lanes, compat=False).status == "deadlock"


def _run_on(shape: NpuShape, point: SimPoint, lanes: int | None, *, compat: bool) -> SimResult:
    """One point on a shape of our choice."""
    ended = []
    run_group(
        NpuMachine(shape),
        tables_of([point.program], shape),
        stack_params([params_of(point.hw, compat=compat, max_cycles=None, idle_skip=True)]),
        jnp.zeros(1, jnp.int32),
        [1.0],
        lanes,
        None,
        lambda _, state: ended.append(result_of(point.hw, point.program, state)),
        lambda _: None,
    )
    return ended[0]


@pytest.mark.parametrize("lanes", [None, 2], ids=["kernel", "step"])
def test_entry_conflict_is_named(lanes: int | None) -> None:
    """Two loads into one entry."""
    points = [SimPoint(HW, hand_made(LOAD, LOAD), compat=True), timing_points()[1]]
    [result] = simulate(points, lanes=lanes)[:1]
    assert result.status == "program_entry_conflict"


@BOTH_PATHS
def test_overflow_is_named(lanes: int | None) -> None:
    """ONNXim's queues are unbounded; where the arrays are not large enough the lane says so."""
    point = timing_points()[0]
    shape = dataclasses.replace(_shape([point]), inflight=64, descriptors=16)
    assert _run_on(shape, point, lanes, compat=True).status == "overflow_noc_requests"


def test_cycles_beyond_two_to_the_thirty() -> None:
    """A lane whose clock starts just below the radix of the two-word time goes on counting."""
    point = timing_points()[0]
    machine = NpuMachine(_shape(timing_points()))
    shared = tables_of([point.program], machine.shape)
    params = params_of(point.hw, compat=True, max_cycles=None, idle_skip=True)
    offset = (1 << dispatch.RADIX_BITS) - 100
    state = machine.init(shared, stack_params([params]), jnp.zeros(1, jnp.int32))
    state = state.replace(core=state.core.replace(base_low=jnp.full(1, offset, jnp.int32)))
    compiled = engine.compile_machine(machine, 1)
    on_device = jax.tree.map(lambda leaf: leaf[None], (stack_params([params]), state))
    counted, alive = np.ones((1, 1), bool), True
    while alive:
        state, chunk = compiled.advance(shared, *on_device, counted, np.int32(500), np.int32(0))
        on_device, alive = (on_device[0], state), bool(chunk.alive[0, 0])
    late = result_of(
        point.hw, point.program, jax.tree.map(lambda leaf: leaf[0, ..., 0], jax.device_get(compiled.outcome(state)))
    )
    assert late.cycles == reference()[0]["cycles"] + offset
    assert late.layers[0]["finish_cycle"] == reference()[0]["layers"][0]["finish_cycle"] + offset


def test_hardware_that_is_not_modelled_is_refused_before_anything_runs() -> None:
    """A configuration may say what vsim cannot simulate yet."""
    hw = HW.with_overrides({"noc.kind": "booksim2"})
    with pytest.raises(ConfigError, match="booksim2"):
        simulate([SimPoint(hw, matrix(16, 40, 24), compat=True)])
