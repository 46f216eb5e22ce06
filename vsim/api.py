"""Simulation of points: hardware descriptions with lowered programs go in, results come out.

Points are grouped by the static shape they need, each group runs as batches of lanes through `vsim.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwconfigs import HwConfig
from lowering.onnxim.faults import NONE, Repairs
from lowering.program import LayerInfo, Program
from vsim import alone, devices, engine
from vsim.bounds import bounds_of
from vsim.engine import Progress
from vsim.npu.compile import ProgramNeeds, alike, params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.machine import NpuMachine
from vsim.npu.results import SimResult, result_of
from vsim.npu.steady import extrapolate

__all__ = ["Progress", "SimPoint", "SimResult", "simulate"]


@dataclass(frozen=True)
class SimPoint:
    """One configuration with its workload.

    compat: follow ONNXim to the cycle, but for the faults in `repaired`; max_cycles: core cycles or no limit.
    """

    hw: HwConfig
    program: Program
    compat: bool = False
    max_cycles: int | None = None
    label: str = ""
    repaired: Repairs = NONE


def simulate(
    points: Sequence[SimPoint],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_result: Callable[[int, SimResult], None] | None = None,
    idle_skip: bool = True,
    lanes: int | None = None,
    chunk_iterations: int | None = None,
) -> list[SimResult]:
    """Simulate points; results come back in the order of the points.

    on_result(index, result) is called as soon as a point has ended. lanes: points side by side in one JAX program, at
    least 1; None: what measured best. That is, on a CPU, one point to a core by the compiled kernel (`vsim.alone`)
    where the machine has one, else as many side by side as suit the devices and the size of the machine.
    idle_skip and chunk_iterations change how fast a result comes, never the result.
    Raises ConfigError for hardware that is not modelled, before anything runs.
    """
    devices.prepare()
    results: list[SimResult | None] = [None] * len(points)
    estimate, parameters = _once_per_object(_estimate), _once_per_object(params_of)
    totals = Totals([estimate(point.hw, point.program) for point in points], on_progress)
    for members, machine in _groups(points):

        def keep(index: int, state: Any, members: list[int] = members) -> None:
            point = members[index]
            program = points[point].program
            result = result_of(points[point].hw, program, state)
            result = results[point] = extrapolate(result, program.repeats)
            if on_result is not None:
                on_result(point, result)

        group = [points[index] for index in members]
        programs, which = distinct_programs([point.program for point in group])
        params = [
            parameters(p.hw, compat=p.compat, max_cycles=p.max_cycles, idle_skip=idle_skip, repaired=p.repaired)
            for p in group
        ]
        estimates = [estimate(point.hw, point.program) for point in group]
        totals.begin_group(estimates)
        shared, stacked, which = tables_of(programs, machine.shape), stack_params(params), jnp.asarray(which, jnp.int32)
        inputs, observers = (machine, shared, stacked, which, estimates), (keep, totals.of_group)
        run_group(*inputs, lanes, chunk_iterations, *observers)
        totals.end_group()
    return [result for result in results if result is not None]


def run_group(
    machine: NpuMachine,
    shared: Any,
    params: Any,
    own: Any,
    estimates: Sequence[float],
    lanes: int | None,
    chunk_iterations: int | None,
    on_lane: Callable[[int, Any], None],
    on_progress: Callable[[Progress], None],
) -> None:
    """Run the lanes of one machine to their ends, the way that `simulate` says."""
    observers: dict[str, Any] = {"on_lane": on_lane, "on_progress": on_progress}
    if chunk_iterations is not None:
        observers["chunk_iterations"] = chunk_iterations
    if lanes is None and machine.has_kernel():
        threads = len(jax.local_devices())
        alone.run(machine, shared, params, own, estimates, threads=threads, **observers)
        return
    bytes_per_lane = engine.bytes_per_lane(machine, shared, params, own)
    width = lanes or devices.lanes_side_by_side(bytes_per_lane, len(estimates))
    engine.run(machine, shared, params, own, estimates, width=width, **observers)


class Totals:
    """Adds the progress of the groups up to the progress of the whole."""

    def __init__(self, estimates: Sequence[float], report: Callable[[Progress], None] | None) -> None:
        self._points, self._left, self._report = len(estimates), sum(estimates), report
        self._before = self._latest = Progress(0, self._points, 0, 0.0)
        self._group = 0.0

    def begin_group(self, estimates: Sequence[float]) -> None:
        self._group = sum(estimates)
        self._left -= self._group

    def of_group(self, progress: Progress) -> None:
        # Groups to come are expected to exceed their estimates as this one does.
        of_group = progress.expected_lane_cycles
        expected = of_group * (1 + self._left / self._group) if self._group else of_group
        self._latest = Progress(
            self._before.lanes_done + progress.lanes_done,
            self._points,
            self._before.lane_cycles + progress.lane_cycles,
            self._before.seconds + progress.seconds,
            self._before.lane_cycles + int(expected) if of_group else 0,
            self._before.lane_iterations + progress.lane_iterations,
            self._before.place_iterations + progress.place_iterations,
        )
        if self._report is not None:
            self._report(self._latest)

    def end_group(self) -> None:
        self._before = self._latest


def _groups(points: Sequence[SimPoint]) -> list[tuple[list[int], NpuMachine]]:
    """Points by shape. Points that differ in nothing but what their programs need share the larger of the shapes."""
    programs, which = distinct_programs([point.program for point in points])
    needs_of = [program_needs(program) for program in programs]
    needs = [needs_of[index] for index in which]
    least, family_of = ProgramNeeds(1, 1, 1, 1), _once_per_object(shape_of)
    families = [family_of(point.hw, least, compat=point.compat, repaired=point.repaired) for point in points]
    groups = []
    for members, responses in alike(families):
        of_members = [needs[index] for index in members]
        most = ProgramNeeds(
            *np.max([[n.inflight, n.descriptors, n.entries, n.layers] for n in of_members], axis=0).tolist()
        )
        first = points[members[0]]
        shape = shape_of(first.hw, most, compat=first.compat, repaired=first.repaired)
        shape = replace(shape, responses=max(shape.responses, responses))
        groups.append((members, NpuMachine(shape)))
    return groups


def distinct_programs(programs: Sequence[Program]) -> tuple[list[Program], list[int]]:
    """Distinct program objects and, for every lane, the index of its own."""
    index: dict[int, int] = {}
    distinct: list[Program] = []
    for program in programs:
        if id(program) not in index:
            index[id(program)] = len(distinct)
            distinct.append(program)
    return distinct, [index[id(program)] for program in programs]


def _once_per_object(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called once for the same objects and options: points of a sweep share chips and programs.

    Objects are known by identity, so they must outlive the result.
    """
    known: dict[tuple[Any, ...], Any] = {}

    def call(*objects: Any, **options: Any) -> Any:
        key = (*map(id, objects), *options.items())
        if key not in known:
            known[key] = function(*objects, **options)
        return known[key]

    return call


def _estimate(hw: HwConfig, program: Program) -> float:
    """Expected length in core cycles, to start long lanes first: what every layer's own bound needs.

    On 16 mobile chips it ranks a small convolutional network nearly as the simulation does, better than
    `expected_cycles` and than the closed form (figures in `vsim/systolic/MODEL.md`).
    """
    return bounds_of(hw, program).total_cycles + _round_trips(hw, program.layers)


def expected_cycles(hw: HwConfig, layers: Sequence[LayerInfo]) -> float:
    """Expected core cycles of a mix: the larger of the compute and the memory bound of all layers together."""
    core = hw.core(0)
    compute = sum(layer.macs for layer in layers) / (core.rows * core.cols * hw.cores.count)
    moved = sum(layer.load_bytes + layer.store_bytes for layer in layers)
    bytes_per_cycle = hw.dram.channels * hw.dram.request_bytes * hw.clocks.dram_mhz / hw.clocks.core_mhz / 2
    return max(compute, moved / bytes_per_cycle) + _round_trips(hw, layers)


def _round_trips(hw: HwConfig, layers: Sequence[LayerInfo]) -> float:
    """A way to the memory and back through the NoC for every layer, which nothing hides: of chips that differ in it
    alone, those with a slow NoC take longer.
    """
    return len(layers) * 2 * hw.noc.latency_cycles * hw.clocks.core_mhz / hw.clocks.noc_mhz
