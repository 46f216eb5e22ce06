"""Lowering for a sweep over mixes: each model once for each chip that lowering can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering import lower
from lowering.chip import Chip
from lowering.mix import Mix
from lowering.mix_placement import PlacedPrograms
from lowering.mix_spec import TenantSpec, mix_of
from lowering.program import Program
from sweeps.mix_points import TenantsPoint


def lower_mixes(
    points: Sequence[TenantsPoint], on_progress: Callable[[int, int], None]
) -> tuple[dict[str, Mix], dict[str, UserError]]:
    """Return, by digest, the mixes of the points and the errors of those that cannot be had.

    Programs that are equal, and as far up in memory, are one object. on_progress: called with the number of points done
    and their total. Raises the error when no point at all can be lowered.
    """
    lowered: dict[Hashable, Program | UserError] = {}
    placed = PlacedPrograms()
    mixes: dict[str, Mix] = {}
    errors: dict[str, UserError] = {}
    for done, point in enumerate(points):
        on_progress(done, len(points))
        try:
            mixes[point.digest] = _mix(point, lowered, placed)
        except UserError as error:
            errors[point.digest] = error
    on_progress(len(points), len(points))
    if errors and not mixes:
        raise next(iter(errors.values()))
    return mixes, errors


def _mix(point: TenantsPoint, lowered: dict[Hashable, Program | UserError], placed: PlacedPrograms) -> Mix:
    point.hw.check_modelled()

    def program_of(tenant: TenantSpec, chip: HwConfig) -> Program:
        path = point.model_paths[tenant.model]
        # Of the hardware, all that lowering sees; see `sweeps.programs.program_key`.
        link_clock = chip.clocks.core_mhz if "link_gbps" in tenant.dims else None
        key = path, tenant.batch, frozenset(tenant.dims.items()), Chip.of(chip), link_clock
        if key not in lowered:
            try:
                lowered[key] = lower(path, chip, batch=tenant.batch, dims=tenant.dims)
            except UserError as error:
                lowered[key] = error
        program = lowered[key]
        if isinstance(program, UserError):
            raise program
        return program

    return mix_of(point.tenants, point.mix, point.hw, program_of, placed)
