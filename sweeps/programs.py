"""Lowering for a sweep: each distinct pair of workload and mapping-relevant hardware is lowered once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hwconfigs import HwConfig
from hwconfigs.errors import UserError
from lowering import lower
from lowering.program import Program
from sweeps.points import Point

_HARDWARE_FIELDS = frozenset({"cores", "precision_bytes", "onnxim"})
_DRAM_FIELDS = frozenset({"request_bytes", "size_gib"})


def lowering_hardware(hw: HwConfig) -> dict[str, Any]:
    """Return the part of a hardware description that lowering reads.

    Cores (array, memories, latencies), precision, request size, memory capacity and the imported ONNXim options shape
    the program; clocks, DMA, DRAM timing and channels, and the NoC only shape how long it takes.
    """
    content = hw.model_dump(mode="json", include=set(_HARDWARE_FIELDS))
    return {**content, "dram": hw.dram.model_dump(mode="json", include=set(_DRAM_FIELDS))}


def lower_points(
    points: Sequence[Point], on_progress: Callable[[int, int], None]
) -> tuple[dict[str, Program], dict[str, UserError]]:
    """Return, by digest, the programs of the points and the errors of those that cannot be lowered.

    Equal programs are one object. on_progress: called with the number of points done and their total.
    Raises the error when no point at all can be lowered: then the fault is in the model or the spec, not in a point.
    """
    lowered: dict[str, Program | UserError] = {}
    programs: dict[str, Program] = {}
    errors: dict[str, UserError] = {}
    for done, point in enumerate(points):
        on_progress(done, len(points))
        result = _not_modelled(point)
        if result is None:
            key = _program_key(point)
            if key not in lowered:
                lowered[key] = _lower(point)
            result = lowered[key]
        if isinstance(result, UserError):
            errors[point.digest] = result
        else:
            programs[point.digest] = result
    on_progress(len(points), len(points))
    if errors and not programs:
        raise next(iter(errors.values()))
    return programs, errors


def _not_modelled(point: Point) -> UserError | None:
    """Return the error of hardware that can be described but not simulated."""
    try:
        point.hw.check_modelled()
    except UserError as error:
        return error
    return None


def _lower(point: Point) -> Program | UserError:
    try:
        return lower(
            point.model_path,
            point.hw,
            batch=point.batch,
            dims=point.dims,
            compat=point.compat,
            skip_unknown=point.skip_unknown,
        )
    except UserError as error:
        return error


def _program_key(point: Point) -> str:
    job = {"model": str(point.model_path), "batch": point.batch, "dims": dict(point.dims)}
    return json.dumps({**job, "hw": lowering_hardware(point.hw)}, sort_keys=True)
