"""From a hardware description and its programs to `Shape`, `Params` and program tables.

`HwConfig` fields that become array sizes or choose code go into the shape; everything else is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from hwconfigs import ConfigError, HwConfig
from hwconfigs.schema import SIMPLE_DRAM
from lowering.onnxim.faults import NONE, Fault, Repairs
from lowering.program import ROW_COLUMNS, TILE_COLUMNS, Col, Op, Program, TileCol
from vsim.npu import words
from vsim.npu.dispatch import RADIX_BITS, RADIX_MASK
from vsim.npu.dram import MAX_BANKS, MAX_GROUPS, MAX_QUEUE, DramParams, DramShape
from vsim.npu.fields import FAR
from vsim.npu.types import NpuParams, NpuShape, ProgramTables

NO_CYCLE_LIMIT = 1 << 50
UNBOUNDED = FAR // 2

# ONNXim's constants (spec sections 2.5 and 7.2; specs/dram.md section 2): its queues are 257 entries deep whatever the
# configuration says, its input buffer 256, and a pass through the array occupies four rows at least (Gemmini).
ONNXIM_QUEUE = 257
ONNXIM_WRAPPER = 256
ONNXIM_PENDING = 1024
"""Reads under way in a channel. Unbounded in ONNXim; many are under way where tiles read what was just written: a tick
forwards one read from the write queue, and completes one."""
MIN_ROWS = 4
WRITE_HIGH, WRITE_LOW = 0.8, 0.2
"""Fill of the write queue at which a controller turns to writes, and back to reads."""

# Default mode: buffers that stall their producer when full.
WRAPPER = 4
DESCRIPTORS = 16
RETURNS = 32
LEAST_RESPONSES = 8
"""Or as many as the NoC's latency has cycles: its links are pipelined, so a slow one costs latency, not bandwidth."""
PENDING = 64


def power_of_two(value: int, least: int = 1) -> int:
    """The smallest power of two that is neither below `value` nor below `least`."""
    return 1 << (max(value, least) - 1).bit_length()


@dataclass(frozen=True)
class ProgramNeeds:
    """What a program needs of the structures that are unbounded in ONNXim, per core and at most, and of its tables."""

    inflight: int
    descriptors: int
    entries: int
    layers: int


def program_needs(program: Program) -> ProgramNeeds:
    """Bounds over any three successive tiles of a core: two resident ones and the stores of the one before."""
    of_tile = tile_traffic(program)
    most = np.zeros(2, np.int64)
    for core in range(program.n_cores):
        ranges = program.schedule[:, core]
        order = np.concatenate([np.arange(first, end) for first, end in ranges] or [np.zeros(0, np.int64)]).astype(int)
        mine = np.concatenate([[[0, 0], [0, 0]], of_tile[order]])
        if len(order):
            most = np.maximum(most, (mine[2:] + mine[1:-1] + mine[:-2]).max(axis=0))
    return ProgramNeeds(int(most[0]), int(most[1]), max(program.spad_entries, program.acc_entries, 1), program.n_layers)


def tile_traffic(program: Program) -> NDArray[np.int64]:
    """int64[tiles, 2]: requests, and loads and stores, of every tile."""
    rows, tiles = program.rows.astype(np.int64), program.tiles
    memory = (rows[:, Col.OP] == Op.LOAD) | (rows[:, Col.OP] == Op.STORE)
    trips = np.where(memory, rows[:, Col.COUNT0] * rows[:, Col.COUNT1] * rows[:, Col.COUNT2], 0)
    inner = rows[:, Col.COUNT2]
    outer = rows[:, Col.COUNT0] * rows[:, Col.COUNT1]
    requests = np.where(memory, outer * ((inner - 1) * rows[:, Col.REQUESTS] + rows[:, Col.REQUESTS_LAST]), 0)
    sums = np.concatenate([[[0, 0]], np.cumsum(np.stack([requests, trips], axis=1), axis=0)])
    return sums[tiles[:, TileCol.END_ROW]] - sums[tiles[:, TileCol.FIRST_ROW]]


def _unbounded(compat: bool, repaired: Repairs) -> bool:
    """Whether queues are those of ONNXim (Q16)."""
    return compat and Fault.Q16 not in repaired


def shape_of(hw: HwConfig, needs: ProgramNeeds, *, compat: bool, repaired: Repairs = NONE) -> NpuShape:
    """The shape under which a chip runs programs with these needs. Raises ConfigError for what is not modelled.

    repaired: faults that `compat` is without; Q16 counts.
    """
    hw.check_modelled()
    compat = _unbounded(compat, repaired)
    cores, dram = hw.cores.count, hw.dram
    most_rows = max(hw.core(i).rows for i in range(cores))
    if needs.entries > words.MAX_ENTRIES:
        raise ConfigError(f"a tile needs {needs.entries} entries, more than the {words.MAX_ENTRIES} of a half")
    fixed = dram.standard == SIMPLE_DRAM
    queue = ONNXIM_QUEUE if compat else max(dram.read_queue, dram.write_queue)
    if queue > MAX_QUEUE:
        raise ConfigError(f"{hw.name}: dram queues of {queue} entries; at most {MAX_QUEUE} are modelled")
    common = {
        "cores": cores,
        "channels": dram.channels,
        "ports": hw.noc.ports_per_core,
        "systolic": power_of_two(most_rows),
        "entries": power_of_two(needs.entries, 8),
        "layers": power_of_two(needs.layers, 8),
        "fixed_latency_dram": fixed,
        "dram": _dram_shape(hw, queue, ONNXIM_PENDING if compat else PENDING),
    }
    if compat:
        return NpuShape(
            **common,
            inflight=power_of_two(needs.inflight, 64),
            descriptors=power_of_two(needs.descriptors, 16),
            window=hw.noc.ports_per_core,
            returns=1024,
            responses=_compat_responses(hw, needs),
            back_pressure=False,
        )
    return NpuShape(
        **common,
        inflight=hw.dma.outstanding_requests,
        descriptors=DESCRIPTORS,
        window=min(hw.dma.descriptors_per_cycle, hw.noc.ports_per_core),
        returns=RETURNS,
        responses=_default_responses(hw),
        back_pressure=True,
    )


def _default_responses(hw: HwConfig) -> int:
    return power_of_two(hw.noc.latency_cycles, LEAST_RESPONSES)


def alike(shapes: Sequence[NpuShape]) -> list[tuple[list[int], int]]:
    """Indices of shapes that differ in nothing but their responses, and the most that one of them has.

    Lanes of different latencies run side by side: each has its own number of responses (`NpuParams.noc_responses`).
    """
    families: dict[NpuShape, list[int]] = {}
    for index, shape in enumerate(shapes):
        families.setdefault(replace(shape, responses=0), []).append(index)
    return [(members, max(shapes[index].responses for index in members)) for members in families.values()]


def _compat_responses(hw: HwConfig, needs: ProgramNeeds) -> int:
    """Responses that can wait in the NoC per (channel, core): few where every channel has a port of its own.

    Where channels share a port, all requests in flight may wait; the hash spreads them over the channels, evenly
    within a factor of two.
    """
    if hw.noc.ports_per_core >= hw.dram.channels:
        return 64
    return power_of_two(2 * needs.inflight // hw.dram.channels, 64)


def _dram_shape(hw: HwConfig, queue: int, pending: int) -> DramShape:
    channels = hw.dram.channels
    if hw.dram.standard == SIMPLE_DRAM:
        return DramShape(channels=channels, ranks=1, groups=1, banks=1, queue=1, pending=1)
    organisation = hw.dram.table().organisation
    groups = organisation.ranks * organisation.bank_groups
    if groups > MAX_GROUPS or groups * organisation.banks > MAX_BANKS:
        raise ConfigError(
            f"{hw.dram.standard}: {groups} bank groups of {organisation.banks} banks over all ranks; at most "
            f"{MAX_GROUPS} groups and {MAX_BANKS} banks are modelled"
        )
    return DramShape(
        channels=channels,
        ranks=organisation.ranks,
        groups=groups,
        banks=groups * organisation.banks,
        queue=queue,
        pending=pending,
    )


def params_of(
    hw: HwConfig, *, compat: bool, max_cycles: int | None, idle_skip: bool, repaired: Repairs = NONE
) -> NpuParams:
    """Traced parameters of one lane, as NumPy scalars and arrays (stack them over lanes).

    repaired: faults that `compat` is without; Q7, Q8, Q10, Q11 and Q16 count.
    """
    cores = [hw.core(i) for i in range(hw.cores.count)]
    limit = NO_CYCLE_LIMIT if max_cycles is None else max_cycles
    fixed = hw.dram.standard == SIMPLE_DRAM
    unbounded = _unbounded(compat, repaired)
    wrapper = UNBOUNDED if fixed else ONNXIM_WRAPPER if unbounded else WRAPPER
    values = {
        "core_period_ps": 1_000_000 // hw.clocks.core_mhz,
        "noc_period_ps": 1_000_000 // hw.clocks.noc_mhz,
        "dram_period_ps": 1_000_000 // hw.clocks.dram_mhz,
        "noc_latency": hw.noc.latency_cycles,
        "noc_responses": UNBOUNDED if unbounded else _default_responses(hw),
        "dram_latency": hw.dram.latency_cycles,
        "array_rows": [core.rows for core in cores],
        "array_cols": [core.cols for core in cores],
        "min_rows": MIN_ROWS,
        "exposed_preload": int(not compat or Fault.Q8 in repaired),
        "drains": [0 if compat else int(core.drains_between_tiles) for core in cores],
        "ordered_chains": int(not compat or Fault.Q7 in repaired),
        "strict_stores": int(Fault.Q11 in repaired),
        "wrapper_capacity": wrapper,
        "idle_skip": int(idle_skip),
        "max_cycles_high": limit >> RADIX_BITS,
        "max_cycles_low": limit & RADIX_MASK,
    }
    # NumPy until `stack_params`: a transfer to the device for every field of every lane would cost more than the rest.
    arrays: dict[str, Any] = {name: np.asarray(value, np.int32) for name, value in values.items()}
    return NpuParams(**arrays, dram=_dram_params(hw, compat, repaired))


def _dram_params(hw: HwConfig, compat: bool, repaired: Repairs) -> DramParams:
    dram = hw.dram
    unbounded = _unbounded(compat, repaired)
    read_capacity, write_capacity = (ONNXIM_QUEUE, ONNXIM_QUEUE) if unbounded else (dram.read_queue, dram.write_queue)
    # ONNXim's watermarks count against 256 whatever the buffers really hold.
    full = write_capacity - 1 if unbounded else write_capacity
    timing = np.zeros((4, 6, 6), np.int32)
    values: dict[str, int] = {
        "four_activate_window": 0, "read_latency": 0, "refresh_interval": FAR, "rank_shift": 0, "group_shift": 0,
        "bank_shift": 0, "row_shift": 0, "row_mask": 0,
    }  # fmt: skip
    if dram.standard != SIMPLE_DRAM:
        table = dram.table()
        timing = np.asarray(table.constraint_table(), np.int32)
        fields = table.organisation.address_fields()
        # The fields count accesses, the controller's block numbers count requests.
        finer = (table.organisation.access_bytes // dram.request_bytes).bit_length() - 1
        values = {
            "four_activate_window": table.faw,
            "read_latency": table.read_latency_cycles,
            "refresh_interval": table.refresh_interval_cycles if table.refreshable and dram.refresh else FAR,
            "rank_shift": fields["rank"].shift + finer,
            "group_shift": fields["bank_group"].shift + finer,
            "bank_shift": fields["bank"].shift + finer,
            "row_shift": fields["row"].shift + finer,
            "row_mask": (1 << fields["row"].bits) - 1,
        }
    values |= {
        "write_high": int(WRITE_HIGH * full) + 1,
        "write_low": int(WRITE_LOW * full),
        "read_capacity": read_capacity,
        "write_capacity": write_capacity,
        "bank_hash": int(dram.bank_hash and not compat),
        "hit_first": int(dram.scheduler == "fr_fcfs" and (not compat or Fault.Q10 in repaired)),
    }
    arrays: dict[str, Any] = {name: np.int32(value) for name, value in values.items()}
    return DramParams(**arrays, timing=cast(Array, timing))


def stack_params(params: Sequence[NpuParams]) -> NpuParams:
    """Lanes' parameters as one pytree, the lane the last axis."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves, axis=-1)), *params)


def check_requests(program: Program) -> None:
    """Raises ConfigError for loads and stores that are too long."""
    rows = program.rows
    memory = (rows[:, Col.OP] == Op.LOAD) | (rows[:, Col.OP] == Op.STORE)
    most = rows[memory][:, [Col.REQUESTS, Col.REQUESTS_LAST]].max(initial=0)
    if most >= words.MAX_REQUESTS:
        raise ConfigError(f"a load or store makes {most} requests; fewer than {words.MAX_REQUESTS} are modelled")


def tables_of(programs: Sequence[Program], shape: NpuShape) -> ProgramTables:
    """Stack programs into one set of tables, padded to powers of two so that similar batches share compiled code."""
    for program in programs:
        check_requests(program)
    n_rows = power_of_two(max(len(p.rows) for p in programs), 64)
    n_tiles = power_of_two(max(len(p.tiles) for p in programs), 16)
    n_pattern = power_of_two(max(len(p.pattern) for p in programs), 16)
    count = power_of_two(len(programs))

    def stacked(arrays: list[NDArray[np.int32]], *dims: int) -> Array:
        table = np.zeros((count, *dims), np.int32)
        for index, array in enumerate(arrays):
            table[(index, *(slice(0, size) for size in array.shape))] = array
        return jnp.asarray(table)

    return ProgramTables(
        rows=stacked([p.rows for p in programs], n_rows, ROW_COLUMNS),
        tiles=stacked([p.tiles for p in programs], n_tiles, TILE_COLUMNS),
        schedule=stacked([p.schedule for p in programs], shape.layers, shape.cores, 2),
        pattern=stacked([p.pattern for p in programs], n_pattern),
        layer_count=stacked([np.asarray(p.n_layers, np.int32) for p in programs]),
        releases=stacked([p.releases for p in programs], shape.layers),
    )
