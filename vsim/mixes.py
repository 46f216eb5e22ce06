"""Simulation of mixes: several workloads on one chip, many such chips side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from hwconfigs import HwConfig
from lowering.mix import Mix
from lowering.program import Program
from vsim import devices
from vsim.api import Totals, distinct_programs, expected_cycles, run_group
from vsim.engine import Progress
from vsim.npu.compile import ProgramNeeds, alike, params_of, stack_params
from vsim.npu.compile_mix import has_shares, mix_input, mix_needs, mix_shape_of, mix_tables_of, stack_inputs
from vsim.npu.machine import NpuMachine
from vsim.npu.results import SimResult
from vsim.npu.results_mix import mix_result_of

LEAST_NEEDS = ProgramNeeds(1, 1, 1, 1)


@dataclass(frozen=True)
class MixPoint:
    """One configuration with its mix. compat: follow ONNXim to the cycle; max_cycles: core cycles or no limit."""

    hw: HwConfig
    mix: Mix
    compat: bool = False
    max_cycles: int | None = None
    label: str = ""


def simulate_mixes(
    points: Sequence[MixPoint],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_result: Callable[[int, SimResult], None] | None = None,
    idle_skip: bool = True,
    lanes: int | None = None,
    chunk_iterations: int | None = None,
) -> list[SimResult]:
    """Simulate points side by side; results come back in the order of the points. Options: see `vsim.api.simulate`.

    Points may differ in tenants, scheduler, arrivals and hardware. Raises ConfigError for hardware that is not
    modelled, before anything runs.
    """
    devices.prepare()
    results: list[SimResult | None] = [None] * len(points)
    totals = Totals([_estimate(point) for point in points], on_progress)
    for members, machine in _groups(points):
        group = [points[index] for index in members]

        def keep(index: int, state: Any, members: list[int] = members) -> None:
            point = members[index]
            result = results[point] = mix_result_of(points[point].hw, points[point].mix, state)
            if on_result is not None:
                on_result(point, result)

        programs, which = _programs(group)
        lanes_of = zip(group, which, strict=True)
        inputs = [mix_input(point.hw, point.mix, of_lane, machine.shape) for point, of_lane in lanes_of]
        params = [params_of(p.hw, compat=p.compat, max_cycles=p.max_cycles, idle_skip=idle_skip) for p in group]
        estimates = [_estimate(point) for point in group]
        totals.begin_group(estimates)
        shared, stacked, mixes = mix_tables_of(programs, machine.shape), stack_params(params), stack_inputs(inputs)
        inputs, observers = (machine, shared, stacked, mixes, estimates), (keep, totals.of_group)
        run_group(*inputs, lanes, chunk_iterations, *observers)
        totals.end_group()
    return [result for result in results if result is not None]


def _groups(points: Sequence[MixPoint]) -> list[tuple[list[int], NpuMachine]]:
    """Points by shape. Points that differ in nothing but what their mixes need share the larger of the shapes."""
    families = [mix_shape_of(point.hw, LEAST_NEEDS, 1, compat=point.compat) for point in points]
    groups = []
    for members, responses in alike(families):
        needs = [mix_needs(points[index].mix) for index in members]
        most = np.max([[n.inflight, n.descriptors, n.entries, n.layers] for n in needs], axis=0).tolist()
        tenants = max(len(points[index].mix.tenants) for index in members)
        shares = any(has_shares(points[index].mix) for index in members)
        first = points[members[0]]
        shape = mix_shape_of(first.hw, ProgramNeeds(*most), tenants, compat=first.compat, shares=shares)
        shape = replace(shape, responses=max(shape.responses, responses))
        groups.append((members, NpuMachine(shape)))
    return groups


def _programs(points: Sequence[MixPoint]) -> tuple[list[Program], list[list[int]]]:
    """Distinct program objects, and the indices of each lane's programs."""
    programs, which = distinct_programs([tenant.program for point in points for tenant in point.mix.tenants])
    of_all = iter(which)
    return programs, [list(islice(of_all, len(point.mix.tenants))) for point in points]


def _estimate(point: MixPoint) -> float:
    """Expected length in core cycles, to start long lanes first: the last arrival, or all work one after the other."""
    layers = [layer for tenant in point.mix.tenants for layer in tenant.program.layers]
    return max(expected_cycles(point.hw, layers), float(point.mix.tenants[-1].arrival_cycle))
