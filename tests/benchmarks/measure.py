"""Measuring a batch through the public door: rate, occupancy, compile time, memory."""

from __future__ import annotations

import contextlib
import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import monitoring

from vsim import engine
from vsim.api import Progress, SimPoint, SimResult, simulate
from vsim.mixes import MixPoint, simulate_mixes
from vsim.npu.compile import params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.compile_mix import has_shares, mix_input, mix_needs, mix_shape_of, mix_tables_of, stack_inputs
from vsim.npu.machine import NpuMachine

CHUNK = 1024
_compile_seconds = 0.0


def _count_compilation(event: str, duration_secs: float, **_: Any) -> None:
    global _compile_seconds
    if event == "/jax/core/compile/backend_compile_duration":
        _compile_seconds += duration_secs


monitoring.register_event_duration_secs_listener(_count_compilation)


@dataclass(frozen=True)
class Figures:
    """Figures of one batch. Rates are per second of wall time, compilation apart."""

    lanes: int | None
    """None: one to a core, by the kernel."""
    lane_cycles_per_second: int
    cycles_per_iteration: float
    us_per_lane_iteration: float
    points_per_hour: int | None
    """None when no point ended in the time measured."""
    occupancy: float
    compile_seconds: float
    state_bytes_per_lane: int
    peak_rss_mib: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data for `bench.json`."""
        return asdict(self)


class _Enough(Exception):
    """The time to measure is over."""


def measure(points: list[SimPoint] | list[MixPoint], lanes: int | None, seconds: float) -> Figures:
    """Simulate the points, `lanes` side by side or one to a core by the kernel, for about so many seconds after the
    first chunk.
    """
    before, called = _compile_seconds, time.perf_counter()
    marks: list[tuple[float, Progress]] = []
    finished: list[SimResult] = []

    def on_progress(progress: Progress) -> None:
        marks.append((time.perf_counter(), progress))
        if marks[-1][0] - marks[0][0] > seconds:
            raise _Enough

    run: Any = simulate_mixes if isinstance(points[0], MixPoint) else simulate
    with contextlib.suppress(_Enough):
        run(
            points,
            lanes=lanes,
            chunk_iterations=CHUNK if lanes else None,
            on_progress=on_progress,
            on_result=lambda _, result: finished.append(result),
        )
    # Figures of the first chunk, which compiles, do not count; the last one is where the points ran out or time did.
    (start, first), (end, last) = marks[0], marks[-1]
    cycles, span = last.lane_cycles - first.lane_cycles, end - start
    iterations = last.lane_iterations - first.lane_iterations
    places = last.place_iterations - first.place_iterations
    mean = np.mean([result.cycles for result in finished]) if finished else None
    return Figures(
        lanes=lanes,
        lane_cycles_per_second=round(cycles / span),
        cycles_per_iteration=round(cycles / iterations, 3),
        us_per_lane_iteration=round(span / iterations * 1e6, 3),
        points_per_hour=None if mean is None else round(cycles / span / float(mean) * 3600),
        occupancy=round(iterations / places, 3),
        # The kernel is compiled by Numba, before anything is reported.
        compile_seconds=round(_compile_seconds - before if lanes else start - called, 1),
        state_bytes_per_lane=_state_bytes(points[0]),
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        seconds=round(span, 1),
    )


def _state_bytes(point: SimPoint | MixPoint) -> int:
    """Bytes of state per lane, of the shape that the point alone needs."""
    params = stack_params([params_of(point.hw, compat=point.compat, max_cycles=None, idle_skip=True)])
    if isinstance(point, MixPoint):
        programs = [tenant.program for tenant in point.mix.tenants]
        needs, shares = mix_needs(point.mix), has_shares(point.mix)
        shape = mix_shape_of(point.hw, needs, len(programs), compat=point.compat, shares=shares)
        tables: Any = mix_tables_of(programs, shape)
        own: Any = stack_inputs([mix_input(point.hw, point.mix, range(len(programs)), shape)])
    else:
        shape = shape_of(point.hw, program_needs(point.program), compat=point.compat)
        tables, own = tables_of([point.program], shape), jnp.zeros(1, jnp.int32)
    return engine.bytes_per_lane(NpuMachine(shape), tables, params, own)
