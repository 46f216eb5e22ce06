"""What the closed form expects of the points of a sweep, and which of them a specification prunes by it.

All points of a workload (model, batch, dims) are evaluated in one batch, before anything is lowered. The closed form
(`vsim.systolic.chips`) sees arrays, memories, vector units, precision, clocks, and the peak bandwidth of DRAM and NoC;
it does not see queues, latencies, timing, refresh or schedulers: points that differ in those alone tie, and points that
tie are kept or pruned together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwconfigs.errors import UserError
from lowering.llm.configs import is_config
from lowering.models import load_model
from lowering.onnx_reader import read_graph
from sweeps.points import Point
from sweeps.spec import LoadedSpec, Prune
from vsim import devices
from vsim.systolic.bridge import bridge
from vsim.systolic.chips import chip_cycles, no_closed_form
from vsim.systolic.layers import Layer


@dataclass(frozen=True)
class Estimate:
    """cycles: core cycles in closed form, time_us: how long they take; None: there are none, `reason` says why."""

    cycles: float | None = None
    time_us: float | None = None
    reason: str = ""

    def columns(self) -> dict[str, float | None]:
        """What the results table says."""
        return {"estimate_cycles": self.cycles, "estimate_us": self.time_us}


Workload = tuple[Path, int, frozenset[tuple[str, int]], bool]


def workload(point: Point) -> Workload:
    """What points must have in common to be compared: all but their hardware."""
    return point.model_path, point.batch, frozenset(point.dims.items()), point.skip_unknown


def estimate_points(points: Sequence[Point]) -> dict[str, Estimate]:
    """The estimates of points by their digest; a point, or a whole workload, may have none."""
    devices.prepare()
    groups: dict[Workload, dict[str, Point]] = {}
    for point in points:
        groups.setdefault(workload(point), {})[point.digest] = point
    estimates: dict[str, Estimate] = {}
    for members in groups.values():
        estimates |= _of_workload(list(members.values()))
    return estimates


def _of_workload(points: Sequence[Point]) -> dict[str, Estimate]:
    reasons = {point.digest: _no_estimate(point) for point in points}
    able = [point for point in points if reasons[point.digest] is None]
    estimates = {digest: Estimate(reason=reason) for digest, reason in reasons.items() if reason is not None}
    if not able:
        return estimates
    try:
        layers = _layers(able[0])
    except UserError as error:
        return estimates | {point.digest: Estimate(reason=str(error)) for point in able}
    for point, cycles in zip(able, chip_cycles(layers, [point.hw for point in able]), strict=True):
        estimates[point.digest] = _estimate(point, float(cycles))
    return estimates


def _no_estimate(point: Point) -> str | None:
    if point.compat is not None:
        return f"the closed form does not have the faults of compat: {point.compat}"
    if is_config(point.model_path):
        return f"language models ({point.model}) have no closed form"
    return no_closed_form(point.hw)


def _layers(point: Point) -> list[Layer]:
    """Raises `UserError` for a model that the closed form does not know in whole."""
    graph = read_graph(load_model(point.model_path), point.batch, point.dims)
    layers = bridge(graph, skip_unknown=point.skip_unknown).layers
    if not layers:
        raise UserError(f"{point.model} has no layer that the closed form knows")
    return layers


def _estimate(point: Point, cycles: float) -> Estimate:
    if not math.isfinite(cycles):
        return Estimate(reason="the closed form finds no tile of some layer that fits in the memories")
    return Estimate(cycles, cycles / point.hw.clocks.core_mhz)


def pruned(loaded: LoadedSpec, points: Sequence[Point], estimates: Mapping[str, Estimate]) -> dict[str, str]:
    """Digests of the points that the specification prunes, and why; by estimated time, every workload by itself.

    Raises `SpecError` for a point without an estimate: it could be neither kept nor pruned fairly.
    """
    prune = loaded.spec.prune
    if prune is None:
        return {}
    groups: dict[Workload, dict[str, float]] = {}
    for point in points:
        estimate = estimates[point.digest]
        if estimate.time_us is None:
            raise loaded.error(("prune",), f"point {point.label} cannot be pruned: {estimate.reason}; exclude it")
        groups.setdefault(workload(point), {})[point.digest] = estimate.time_us
    return {
        digest: f"estimated {time_us:,.1f} µs; the slowest point kept has {limit:,.1f} µs"
        for times in groups.values()
        for limit in (_longest_kept(prune, sorted(times.values())),)
        for digest, time_us in times.items()
        if time_us > limit
    }


def _longest_kept(prune: Prune, times_us: Sequence[float]) -> float:
    """Longest of the sorted times that is kept."""
    if prune.keep is not None:
        return times_us[math.ceil(prune.keep * len(times_us)) - 1]
    assert prune.factor is not None
    return max(time for time in times_us if time <= prune.factor * times_us[0])
