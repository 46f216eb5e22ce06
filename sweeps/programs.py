"""Lowering for a sweep: each distinct pair of workload and mapping-relevant hardware is lowered once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from hwconfigs.errors import UserError
from lowering import lower
from lowering.chip import Chip
from lowering.program import Program
from sweeps.points import Point


def lower_points(
    points: Sequence[Point], on_progress: Callable[[int, int], None]
) -> tuple[dict[str, Program], dict[str, UserError]]:
    """Return, by digest, the programs of the points and the errors of those that cannot be lowered.

    Equal programs are one object. on_progress: called with the number of points done and their total.
    Raises the error when no point at all can be lowered: then the fault is in the model or the spec, not in a point.
    """
    lowered: dict[Hashable, Program | UserError] = {}
    programs: dict[str, Program] = {}
    errors: dict[str, UserError] = {}
    for done, point in enumerate(points):
        on_progress(done, len(points))
        result = _not_modelled(point)
        if result is None:
            key = program_key(point)
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


def program_key(point: Point) -> Hashable:
    """Return what decides the program of a point, among the points of one sweep.

    Of the hardware that is its `Chip` (cores, element and request size, how DRAM rows lie in the address space), all
    that lowering gets to see, and the options of an imported ONNXim configuration. Clocks, DMA, DRAM timing and queues,
    and the NoC do not shape a program.
    """
    # The link between the chips of a tensor-parallel model has a bandwidth; programs know it in bytes per core cycle.
    link_clock = point.hw.clocks.core_mhz if "link_gbps" in point.dims else None
    return point.model_path, point.batch, frozenset(point.dims.items()), Chip.of(point.hw), point.hw.onnxim, link_clock
