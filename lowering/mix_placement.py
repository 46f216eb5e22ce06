"""Mixes of the corrected mode: programs of single models, side by side in memory, with their requests' arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

import numpy as np

from hwconfigs.errors import ConfigError, UserError
from hwconfigs.schema import HwConfig
from lowering.address_space import ALIGNMENT_BYTES
from lowering.mix import MAX_ARRIVAL_CYCLE, Mix, Scheduler, Tenant
from lowering.program import Col, Op, Program, TileCol

SCHEDULERS = tuple(scheduler for scheduler in Scheduler if scheduler is not Scheduler.SPATIAL_SPLIT)
"""Those that do not split chains of partial sums."""
MAX_PRIORITY = 1 << 16
NO_PARTITION = 1 << 10
"""Partition of cores that nobody uses."""


@dataclass(frozen=True)
class Workload:
    """A model that serves requests one after the other, with the same weights and buffers.

    program: lowered for `cores` (for the whole chip where that is empty) and for nothing else. arrival_cycles: of its
    requests, in any order. priority: see `Tenant`, below MAX_PRIORITY. deadline_cycles: from a request's arrival to its
    deadline, >= 1; None: it has none. bandwidth_share: see `Tenant`.
    """

    name: str
    program: Program
    arrival_cycles: tuple[int, ...]
    cores: tuple[int, ...] = ()
    priority: int = 0
    deadline_cycles: int | None = None
    bandwidth_share: float = 1.0


def chip_of_cores(hw: HwConfig, cores: Sequence[int]) -> HwConfig:
    """The chip as a workload sees it that may use only some cores. Raises ConfigError where cores differ."""
    if hw.cores.overrides:
        raise ConfigError(f"{hw.name}: cores of different kinds cannot be divided among tenants")
    return hw.with_overrides({"cores.count": len(cores)})


class PlacedPrograms:
    """Programs as tenants run them, one object for each program, place in memory and form.

    Mixes placed with the same one share the objects, and with them the tables of the cycle-level model.
    """

    def __init__(self) -> None:
        # The originals are kept with the placed: a key holds their identity.
        self._known: dict[tuple[int, int, bool], tuple[Program, Program]] = {}

    def get(self, program: Program, first_block: int, hw: HwConfig, *, one_list: bool) -> Program:
        """The program moved up by `first_block` blocks; one_list: see `Mix`."""
        key = id(program), first_block, one_list
        if key not in self._known:
            moved = _moved(program, first_block)
            self._known[key] = program, _in_one_list(moved, hw) if one_list else moved
        return self._known[key][1]


def place_workloads(
    name: str,
    workloads: Sequence[Workload],
    hw: HwConfig,
    scheduler: Scheduler,
    placed: PlacedPrograms | None = None,
) -> Mix:
    """Every request becomes a tenant; every workload has a region of memory of its own.

    placed: see `PlacedPrograms`. Raises UserError for schedulers that need other programs, programs that stand for more
    than they hold, core sets that overlap or do not exist, workloads without requests, and arrivals outside
    0..MAX_ARRIVAL_CYCLE.
    """
    placed = placed or PlacedPrograms()
    if scheduler not in SCHEDULERS:
        raise UserError(f"scheduler {scheduler.value!r} needs --compat onnxim; valid: {', '.join(SCHEDULERS)}")
    partitions = _partitions(workloads, hw, scheduler)
    requests: list[tuple[int, int, Program]] = []
    next_block = 0
    for index, workload in enumerate(workloads):
        if workload.program.repeats:
            raise UserError(f"tenant {workload.name}: steady_layers are for single models: in a mix every layer runs")
        program = placed.get(workload.program, next_block, hw, one_list=scheduler.pools_tiles)
        if not 0 <= workload.priority < MAX_PRIORITY:
            raise UserError(
                f"tenant {workload.name}: priority {workload.priority} is out of range 0..{MAX_PRIORITY - 1}"
            )
        next_block += _blocks(workload.program)
        if not workload.arrival_cycles:
            raise UserError(f"tenant {workload.name} has no requests")
        for cycle in workload.arrival_cycles:
            if not 0 <= cycle <= MAX_ARRIVAL_CYCLE:
                raise UserError(f"tenant {workload.name}: a request arrives in core cycle {cycle}, out of range")
            requests.append((cycle, index, program))
    tenants = [
        Tenant(
            workloads[index].name,
            program,
            cycle,
            index,
            position,
            request_time_ms=cycle / hw.clocks.core_mhz / 1e3,
            priority=workloads[index].priority,
            workload=index,
            deadline_cycle=_deadline(workloads[index], cycle),
            bandwidth_share=workloads[index].bandwidth_share,
        )
        for position, (cycle, index, program) in enumerate(sorted(requests, key=lambda request: request[:2]))
    ]
    return Mix(name, tuple(tenants), scheduler, partitions, lists_rotate=False)


def _deadline(workload: Workload, arrival_cycle: int) -> int | None:
    return None if workload.deadline_cycles is None else arrival_cycle + workload.deadline_cycles


def _partitions(workloads: Sequence[Workload], hw: HwConfig, scheduler: Scheduler) -> tuple[int, ...]:
    """Of each core, the workload that it belongs to."""
    partitions = [NO_PARTITION] * hw.cores.count
    for index, workload in enumerate(workloads):
        if workload.cores and scheduler is not Scheduler.PARTITION_CPU:
            raise UserError(f"tenant {workload.name}: cores are given with scheduler partition_cpu only")
        if not workload.cores and scheduler is Scheduler.PARTITION_CPU:
            raise UserError(
                f"tenant {workload.name}: with scheduler partition_cpu every tenant has cores, or the mix "
                "core_split: even"
            )
        for core in workload.cores:
            if not 0 <= core < hw.cores.count:
                raise UserError(f"tenant {workload.name}: core {core} of {hw.cores.count} (0 is the first)")
            if partitions[core] != NO_PARTITION:
                other = workloads[partitions[core]].name
                raise UserError(
                    f"tenants {other} and {workload.name} both have core {core}; their sets must not overlap"
                )
            partitions[core] = index
    return tuple(partitions)


def _moved(program: Program, blocks: int) -> Program:
    """The program as a tenant's, its memory moved up."""
    rows = program.rows.copy()
    memory = (rows[:, Col.OP] == Op.LOAD) | (rows[:, Col.OP] == Op.STORE)
    rows[memory, Col.FIRST_BLOCK] += blocks
    chain = tuple((layer + 1,) for layer in range(program.n_layers - 1))
    return replace(program, rows=rows, consumers=(*chain, ()), unbound=(False,) * program.n_layers)


def _in_one_list(program: Program, hw: HwConfig) -> Program:
    """The tiles of each layer in one list: chains of partial sums in one piece, from each core's list in turn."""
    if hw.cores.overrides:
        raise ConfigError(f"{hw.name}: schedulers dynamic and earliest_deadline need cores of one kind")
    order: list[int] = []
    ranges: list[tuple[int, int]] = []
    for lists in program.schedule.tolist():
        chains = [_chains(program, first, end) for first, end in lists]
        start = len(order)
        for turn in zip_longest(*chains, fillvalue=range(0)):
            for chain in turn:
                order.extend(chain)
        ranges.append((start, len(order)))
    schedule = np.asarray(ranges, np.int32).reshape(program.n_layers, 1, 2)
    return replace(program, tiles=program.tiles[order], schedule=schedule)


def _chains(program: Program, first: int, end: int) -> list[range]:
    """A core's tiles, those that add to the same sums together; a core may have none."""
    begins = [tile for tile in range(first, end) if not program.tiles[tile, TileCol.ACCUMULATE]]
    return [range(begin, stop) for begin, stop in pairwise([*begins, end])]


def _blocks(program: Program) -> int:
    """Memory blocks from 0 to the last that the program touches, rounded up to the alignment of tensors."""
    rows = program.rows.astype(np.int64)
    rows = rows[(rows[:, Col.OP] == Op.LOAD) | (rows[:, Col.OP] == Op.STORE)]
    trips = sum((rows[:, count] - 1) * rows[:, step] for count, step in _LOOPS)
    periods = (np.maximum(rows[:, Col.REQUESTS], rows[:, Col.REQUESTS_LAST]) - 1) // rows[:, Col.PERIOD_REQUESTS]
    within = np.where(
        rows[:, Col.PATTERN_START] < 0, rows[:, Col.PERIOD_REQUESTS], int(program.pattern.max(initial=0)) + 1
    )
    ends = rows[:, Col.FIRST_BLOCK] + trips + periods * rows[:, Col.PERIOD_PITCH_BLOCKS] + within
    aligned = ALIGNMENT_BYTES // program.request_bytes
    return -(-int(ends.max(initial=0)) // aligned) * aligned


_LOOPS = ((Col.COUNT1, Col.BLOCK_STEP1), (Col.COUNT2, Col.BLOCK_STEP2))
