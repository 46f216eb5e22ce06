"""Runs a sweep: points not finished yet are lowered, simulated side by side, and stored one by one as they finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hwconfigs.errors import UserError
from lowering.mix import Mix
from lowering.program import Program
from sweeps.estimates import Estimate, estimate_points, pruned
from sweeps.manifest import RunRecord
from sweeps.mix_points import TenantsPoint
from sweeps.mix_programs import lower_mixes
from sweeps.points import Expansion, Point
from sweeps.programs import lower_points
from sweeps.spec import LoadedSpec
from sweeps.store import STATUS_PRUNED, ResultFolder, write_tables
from vsim.api import Progress, SimPoint, SimResult, simulate
from vsim.mixes import MixPoint, simulate_mixes
from vsim.npu.energy import with_energy

STATUS_OK = "ok"
STATUS_NOT_LOWERED = "not_lowered"


@dataclass(frozen=True)
class SweepSummary:
    """What a run of a sweep did.

    failed: label and status (with reason) of every stored point that is neither ok nor pruned.
    """

    folder: Path
    points: int
    reused: int
    simulated: int
    pruned: int
    failed: tuple[tuple[str, str], ...]
    lane_cycles: int
    seconds: float


class Observer:
    """Hears how a run advances. This one says nothing."""

    def estimating(self, total: int) -> None:
        """Take note that the closed form is evaluated for `total` points."""

    def lowering(self, done: int, total: int) -> None:
        """Take note that `done` of `total` points are lowered."""

    def simulating(self, before: int, progress: Progress) -> None:
        """Take note of simulation progress.

        before: points that had ended before the simulation began.
        """


def run_sweep(
    loaded: LoadedSpec,
    expansion: Expansion[Point] | Expansion[TenantsPoint],
    out: Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> SweepSummary:
    """Simulate every point of a sweep that `out` does not hold yet, and write its tables and manifest.

    A point that fails (deadlock, cycle limit, overflow, a tile that does not fit) is stored with its status and does
    not stop the others. An interrupted run keeps every finished point, and the same call continues it.
    """
    observer = observer or Observer()
    points = expansion.points
    started = time.perf_counter()
    with ResultFolder.open(out, points, resume=resume) as folder:
        record = RunRecord(loaded, expansion, folder)
        record.write("running")
        reused = sum(folder.has_finished(point.digest) for point in points)
        todo: list[Point | TenantsPoint] = []
        state = "interrupted"
        try:
            estimates, discarded = _estimates(loaded, points, folder, observer)
            unfinished = {point.digest: point for point in points if not folder.has_finished(point.digest)}
            todo = [point for digest, point in unfinished.items() if digest not in discarded]
            for digest in [digest for digest in discarded if digest in unfinished]:
                _keep_pruned(folder, digest, discarded[digest], estimates[digest])
            _run_points(todo, estimates, folder, record, loaded.spec.lanes, reused, observer)
            state = "finished"
        finally:
            write_tables(folder.path, points, folder.results)
            record.write(state)
        return SweepSummary(
            folder=out,
            points=len(points),
            reused=reused,
            simulated=len(todo),
            pruned=sum(folder.results[point.digest]["status"] == STATUS_PRUNED for point in points),
            failed=tuple(_failures(points, folder.results)),
            lane_cycles=record.lane_cycles,
            seconds=time.perf_counter() - started,
        )


def _estimates(
    loaded: LoadedSpec, points: Sequence[Point | TenantsPoint], folder: ResultFolder, observer: Observer
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Of every point its estimate, and of the pruned ones why; nothing where nothing is to be pruned.

    Which points are pruned depends on all points of the specification, finished or not. Without pruning there are no
    estimates: compiling them takes longer than a small sweep.
    """
    models = [point for point in points if isinstance(point, Point)]
    if loaded.spec.prune is None or all(folder.has_finished(point.digest) for point in models):
        return {}, {}
    observer.estimating(len(models))
    estimates = estimate_points(models)
    return estimates, pruned(loaded, models, estimates)


def _keep_pruned(folder: ResultFolder, digest: str, reason: str, estimate: Estimate) -> None:
    result = {"status": STATUS_PRUNED, "message": reason, "cycles": None, **estimate.columns()}
    if folder.results.get(digest) != result:
        folder.append(digest, result)


def _run_points(
    todo: Sequence[Point | TenantsPoint],
    estimates: Mapping[str, Estimate],
    folder: ResultFolder,
    record: RunRecord,
    lanes: int | None,
    reused: int,
    observer: Observer,
) -> None:
    if not todo:
        return
    ready = _prepare(todo, observer)

    def columns(digest: str) -> dict[str, float | None]:
        return estimates[digest].columns() if digest in estimates else {}

    for digest, error in ready.errors.items():
        folder.append(digest, {"status": STATUS_NOT_LOWERED, "message": str(error), **columns(digest)})

    def keep(index: int, result: SimResult) -> None:
        digest = ready.digests[index]
        folder.append(digest, {**ready.content(index, result), **columns(digest)})

    def advance(progress: Progress) -> None:
        record.lane_cycles = progress.lane_cycles
        observer.simulating(reused + len(ready.errors), progress)

    ready.simulation(on_progress=advance, on_result=keep, lanes=lanes)


@dataclass(frozen=True)
class _Ready:
    """Lowered points: digests of those that can run, errors of the others, the simulation of the former, and what is
    stored of their results, by their place among the digests.
    """

    digests: list[str]
    errors: dict[str, UserError]
    simulation: Callable[..., Any]
    content: Callable[[int, SimResult], dict[str, Any]]


def _prepare(todo: Sequence[Point | TenantsPoint], observer: Observer) -> _Ready:
    mixes = [point for point in todo if isinstance(point, TenantsPoint)]
    if mixes:
        lowered, errors = lower_mixes(mixes, observer.lowering)
        runnable = [point for point in mixes if point.digest in lowered]
        mix_points = [_mix_point(point, lowered[point.digest]) for point in runnable]
        digests = [point.digest for point in runnable]
        return _Ready(digests, errors, partial(simulate_mixes, mix_points), lambda _, result: result.to_json())
    models = [point for point in todo if isinstance(point, Point)]
    programs, errors = lower_points(models, observer.lowering)
    runnable = [point for point in models if point.digest in programs]
    sim_points = [_sim_point(point, programs[point.digest]) for point in runnable]

    def content(index: int, result: SimResult) -> dict[str, Any]:
        point, plain = runnable[index], result.to_json()
        if point.technology is None:
            return plain
        return with_energy(plain, point.hw, programs[point.digest], point.technology)

    return _Ready([point.digest for point in runnable], errors, partial(simulate, sim_points), content)


def _mix_point(point: TenantsPoint, mix: Mix) -> MixPoint:
    return MixPoint(hw=point.hw, mix=mix, max_cycles=point.max_cycles, label=point.label)


def _sim_point(point: Point, program: Program) -> SimPoint:
    return SimPoint(
        hw=point.hw,
        program=program,
        compat=point.compat is not None,
        max_cycles=point.max_cycles,
        label=point.label,
    )


def _failures(points: Sequence[Point | TenantsPoint], results: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    failures = []
    for point in points:
        result = results[point.digest]
        if result["status"] not in (STATUS_OK, STATUS_PRUNED):
            reason = f": {result['message']}" if result.get("message") else ""
            failures.append((point.label, result["status"] + reason))
    return failures
