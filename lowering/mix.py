"""A mix: several workloads that share one chip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from lowering.program import Program

MAX_ARRIVAL_CYCLE = 2**31 - 1


class Scheduler(StrEnum):
    """Which tenant's layers start when, and on which cores; ONNXim's names (`onnxim.md` section 9.2)."""

    SIMPLE = "simple"
    """One tenant after the other, one layer after the other."""
    TIME_MULTIPLEX = "time_multiplex"
    """Tenants take turns layer by layer; the next layer starts once no tile of the last one waits."""
    PARTITION_CPU = "partition_cpu"
    """Every tenant has cores of its own; a core without tiles starts the next layer of its partition."""
    SPATIAL_SPLIT = "spatial_split"
    """Cores are dealt out to the tenants at hand, and take the next tile of their tenant when they are free."""
    DYNAMIC = "dynamic"
    """A core without tiles takes the next of the tenant of highest priority that has any; layers start when they are
    ready. Tiles that add to the same sums stay together. Not in ONNXim."""
    EARLIEST_DEADLINE = "earliest_deadline"
    """As DYNAMIC, with the tenant whose deadline comes first (Liu and Layland, JACM 20(1), 1973) in place of the one of
    highest priority; a tile that has begun is not interrupted."""

    @property
    def code(self) -> int:
        """Number of the scheduler in the tables of the cycle-level model, where a deadline is a kind of priority."""
        same = Scheduler.DYNAMIC if self is Scheduler.EARLIEST_DEADLINE else self
        return list(Scheduler).index(same)

    @property
    def pools_tiles(self) -> bool:
        """Whether a core takes tiles when it is free, from a single list of every layer."""
        return self in (Scheduler.DYNAMIC, Scheduler.EARLIEST_DEADLINE)


ONNXIM_SCHEDULERS = tuple(scheduler for scheduler in Scheduler if not scheduler.pools_tiles)


@dataclass(frozen=True)
class Tenant:
    """A workload with its arrival.

    arrival_cycle: core cycle in whose tick it arrives, 0 <= arrival_cycle <= MAX_ARRIVAL_CYCLE. partition: which cores
    it may use (PARTITION_CPU only). position: its place in the list that the mix was made from. request_time_ms: as
    the list gives it. priority: 0 is served first, equal ones in the order of their arrival (DYNAMIC only). workload:
    index of the workload that it is a request of; None: requests are not told apart by workload. deadline_cycle: core
    cycle by which it should have finished; None: none, it comes last (EARLIEST_DEADLINE only). bandwidth_share: of the
    DRAM's peak, 0 < bandwidth_share <= 1, that it may ask for together with the others of its workload; 1: no limit.
    """

    name: str
    program: Program
    arrival_cycle: int = 0
    partition: int = 0
    position: int = 0
    request_time_ms: float = 0.0
    priority: int = 0
    workload: int | None = None
    deadline_cycle: int | None = None
    bandwidth_share: float = 1.0


@dataclass(frozen=True)
class Mix:
    """Tenants of one chip, in the order of their arrival.

    core_partitions: partition of each core. Programs have one list of tiles a layer for every core that the tenant may
    use: all of the chip, those of its partition, or, under SPATIAL_SPLIT and schedulers that pool tiles, a single list
    for all cores.
    lists_rotate: lists go round the cores from layer to layer (see `Program`), as in ONNXim; else list i is always that
    of the i-th core.
    """

    name: str
    tenants: tuple[Tenant, ...]
    scheduler: Scheduler
    core_partitions: tuple[int, ...]
    lists_rotate: bool = True

    @property
    def priorities(self) -> tuple[int, ...]:
        """Of each tenant, its priority, or its place in the order of deadlines."""
        if self.scheduler is not Scheduler.EARLIEST_DEADLINE:
            return tuple(tenant.priority for tenant in self.tenants)
        due = [math.inf if tenant.deadline_cycle is None else tenant.deadline_cycle for tenant in self.tenants]
        order = sorted(range(len(due)), key=lambda index: (due[index], index))
        return tuple(order.index(index) for index in range(len(due)))
