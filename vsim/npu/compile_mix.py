"""From mixes to shape, program tables and lane inputs. Like `vsim.npu.compile`, for several programs in a lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from hwconfigs import ConfigError, HwConfig
from lowering.mix import Mix, Scheduler
from lowering.program import ROW_COLUMNS, TILE_COLUMNS, Col, Op, Program, TileCol
from vsim.bounds import dram_peak_bytes_per_cycle
from vsim.npu.compile import ProgramNeeds, check_requests, power_of_two, shape_of, tile_traffic
from vsim.npu.shares import interval_of, most_requests
from vsim.npu.types import MixInput, MixTables, NpuShape
from vsim.npu.words import OWNER_BITS

QUEUE_PARTS = 8
"""Layers of which tiles can wait at one core. Unbounded in ONNXim; a tenant has more than one only where independent
branches of its graph run side by side."""
REPORTS = 8
"""Finished tiles that can wait at one core: one is reported a tick, and at most two end."""
WINDOWS = 64
FIRST_WINDOW_SHIFT = 6
"""A run of n >= 4,096 core cycles fills 33 to 64 windows."""
RESIDENT_AND_DRAINING = 3
"""Tiles of a core whose requests can be under way: two resident ones, and the stores of the one before."""


def mix_needs(mix: Mix) -> ProgramNeeds:
    """What the programs of a mix need at most, whichever of their tiles meet on a core."""
    most = np.zeros(2, np.int64)
    for tenant in mix.tenants:
        most = np.maximum(most, tile_traffic(tenant.program).max(axis=0, initial=0))
    programs = [tenant.program for tenant in mix.tenants]
    return ProgramNeeds(
        RESIDENT_AND_DRAINING * int(most[0]),
        RESIDENT_AND_DRAINING * int(most[1]),
        max(max(program.spad_entries, program.acc_entries, 1) for program in programs),
        max(program.n_layers for program in programs),
    )


def mix_shape_of(hw: HwConfig, needs: ProgramNeeds, tenants: int, *, compat: bool, shares: bool = False) -> NpuShape:
    """The shape under which a chip runs mixes of up to `tenants` tenants with these needs. Raises ConfigError.

    shares: a tenant may have less than all of the memory's bandwidth.
    """
    shape = shape_of(hw, needs, compat=compat)
    tenants = power_of_two(tenants)
    if tenants << shape.core_bits > 1 << OWNER_BITS:
        raise ConfigError(
            f"{hw.name}: {tenants} tenants on {shape.cores} cores: at most {1 << OWNER_BITS} of both in all"
        )
    return replace(shape, tenants=tenants, queue_parts=QUEUE_PARTS, reports=REPORTS, windows=WINDOWS, shares=shares)


def has_shares(mix: Mix) -> bool:
    """Whether a tenant may ask for less than all of the memory's bandwidth."""
    return any(tenant.bandwidth_share < 1 for tenant in mix.tenants)


def mix_tables_of(programs: Sequence[Program], shape: NpuShape) -> MixTables:
    """Put programs behind each other, padded to powers of two so that similar batches share compiled code."""
    for program in programs:
        check_requests(program)
        _check_tenant(program, shape)
    rows, tiles, pattern, schedules = _joined(programs)
    count, cores, layers = power_of_two(len(programs)), shape.cores, shape.layers
    most = power_of_two(max(len(waiting) for program in programs for waiting in program.consumers))

    def table(values: Sequence[NDArray[Any]], *dims: int, fill: int = 0) -> Array:
        result = np.full((count, *dims), fill, np.int32)
        for index, value in enumerate(values):
            result[(index, *map(slice, value.shape))] = value
        return jnp.asarray(result)

    return MixTables(
        rows=_padded(rows, 64, ROW_COLUMNS),
        tiles=_padded(tiles, 16, TILE_COLUMNS),
        pattern=_padded(pattern, 16),
        schedule=table(schedules, layers, cores, 2),
        layer_count=table([np.asarray(program.n_layers) for program in programs]),
        releases=jnp.zeros((count, 1), jnp.int32),
        lists=table([np.asarray(program.n_cores) for program in programs]),
        consumers=table([_consumers(program) for program in programs], layers, most, fill=-1),
        producers=table([_producers(program) for program in programs], layers),
        unbound=table([np.asarray(program.unbound, np.int32) for program in programs], layers),
        tile_count=table([(s[..., 1] - s[..., 0]).sum(axis=1) for s in schedules], layers),
        chain_end=_chain_ends(tiles),
    )


def _check_tenant(program: Program, shape: NpuShape) -> None:
    tiles = (program.schedule[..., 1] - program.schedule[..., 0]).sum(axis=1)
    if not program.n_layers or not tiles.all():
        raise ConfigError(f"{program.name}: a tenant needs layers, and every layer tiles")
    if len(program.consumers) != program.n_layers or len(program.unbound) != program.n_layers:
        raise ConfigError(f"{program.name} was not lowered as a tenant of a mix")
    if program.n_cores > shape.cores:
        raise ConfigError(f"{program.name} was lowered for {program.n_cores} cores, the chip has {shape.cores}")


def _joined(programs: Sequence[Program]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[NDArray[Any]]]:
    """Rows, tiles, patterns and schedules that refer to each other across programs."""
    rows, tiles, pattern, schedules = [], [], [], []
    n_rows = n_tiles = n_pattern = 0
    for program in programs:
        moved = program.rows.copy()
        memory = (moved[:, Col.OP] == Op.LOAD) | (moved[:, Col.OP] == Op.STORE)
        moved[memory & (moved[:, Col.PATTERN_START] >= 0), Col.PATTERN_START] += n_pattern
        rows.append(moved)
        tiles.append(program.tiles.copy())
        tiles[-1][:, [TileCol.FIRST_ROW, TileCol.END_ROW]] += n_rows
        pattern.append(program.pattern)
        schedules.append(program.schedule + n_tiles)
        n_rows, n_tiles, n_pattern = n_rows + len(moved), n_tiles + len(tiles[-1]), n_pattern + len(program.pattern)
    return np.concatenate(rows), np.concatenate(tiles), np.concatenate(pattern), schedules


def _padded(table: NDArray[Any], least: int, *columns: int) -> Array:
    result = np.zeros((1, power_of_two(len(table), least), *columns), np.int32)
    result[0, : len(table)] = table
    return jnp.asarray(result)


def _chain_ends(tiles: NDArray[Any]) -> Array:
    """A tile that accumulates continues the chain of the one before it."""
    begins = np.flatnonzero(tiles[:, TileCol.ACCUMULATE] == 0)
    ends = np.append(begins[1:], len(tiles))
    of_chain = np.searchsorted(begins, np.arange(len(tiles)), side="right") - 1
    result = np.zeros(power_of_two(len(tiles), 16), np.int32)
    result[: len(tiles)] = ends[of_chain]
    return jnp.asarray(result)


def _consumers(program: Program) -> NDArray[np.int32]:
    most = max((len(waiting) for waiting in program.consumers), default=0)
    rows = [[*waiting, *[-1] * (most - len(waiting))] for waiting in program.consumers]
    return np.asarray(rows, np.int32).reshape(program.n_layers, most)


def _producers(program: Program) -> NDArray[np.int32]:
    waiting = [layer for layers in program.consumers for layer in layers]
    return np.bincount(np.asarray(waiting, np.int64), minlength=program.n_layers).astype(np.int32)


def mix_input(hw: HwConfig, mix: Mix, which: Sequence[int], shape: NpuShape) -> MixInput:
    """One lane's input, NumPy. which: indices of the tenants' programs in the tables.

    Raises ConfigError for a share of the bandwidth that is too small to be counted.
    """

    def of_tenants(values: Sequence[int]) -> NDArray[np.int32]:
        return np.asarray([*values, *[0] * (shape.tenants - len(values))], np.int32)

    by_partition = mix.scheduler is Scheduler.PARTITION_CPU
    partitions = mix.core_partitions if by_partition else (0,) * shape.cores
    positions = [partitions[:core].count(partition) for core, partition in enumerate(partitions)]
    beyond = shape.queues - shape.cores
    bucket, intervals = _buckets(hw, mix)
    arrays: dict[str, Any] = {
        "program": of_tenants(which),
        "count": np.int32(len(mix.tenants)),
        "arrival": of_tenants([tenant.arrival_cycle for tenant in mix.tenants]),
        "scheduler": np.int32(mix.scheduler.code),
        "tenant_partition": of_tenants([tenant.partition if by_partition else 0 for tenant in mix.tenants]),
        "core_partition": np.asarray([*partitions, *[-1] * beyond], np.int32),
        "core_position": np.asarray([*positions, *[0] * beyond], np.int32),
        "priority": of_tenants(mix.priorities),
        "bucket": of_tenants(bucket),
        "share_interval": of_tenants(intervals),
        "rotates": np.int32(mix.lists_rotate),
        "window_shift": np.int32(FIRST_WINDOW_SHIFT),
    }
    return MixInput(**arrays)


def _buckets(hw: HwConfig, mix: Mix) -> tuple[list[int], list[int]]:
    """Of each tenant its bucket, and of each bucket its interval; tenants of one workload have one."""
    names = [(index, None) if t.workload is None else (-1, t.workload) for index, t in enumerate(mix.tenants)]
    bucket = [list(dict.fromkeys(names)).index(name) for name in names]
    peak = dram_peak_bytes_per_cycle(hw) / hw.dram.request_bytes
    intervals = [0] * len(bucket)
    for tenant, number in zip(mix.tenants, bucket, strict=True):
        intervals[number] = interval_of(tenant.bandwidth_share, peak)
        longest = int(tenant.program.rows[:, [Col.REQUESTS, Col.REQUESTS_LAST]].max(initial=0))
        most = most_requests(intervals[number], hw.cores.count)
        if longest > most:
            raise ConfigError(
                f"tenant {tenant.name}: a bandwidth share of {tenant.bandwidth_share} is too small for this chip: one "
                f"of its loads or stores has {longest} requests, and only up to {most} can be counted at that rate"
            )
    return bucket, intervals


def stack_inputs(inputs: Sequence[MixInput]) -> MixInput:
    """Lanes' inputs as one pytree, the lane the last axis."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves, axis=-1)), *inputs)
