"""The schedulers for several requests in plain Python: `onnxim.md` sections 9.1 and 9.2, and ours, on the scalar chip.

The oracle of `vsim.npu.tenants`: queues of tiles are lists, every event of a tick is a call, nothing is batched.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from hwconfigs.schema import HwConfig
from lowering.emit import Tile, expand
from lowering.mix import Mix, Scheduler, Tenant
from tests.reference.scalar_npu import Chip, Core, run_chip

POOLED = (Scheduler.DYNAMIC, Scheduler.EARLIEST_DEADLINE)
LAYER_STRIDE = 1000
"""Layer i of tenant t has number t * LAYER_STRIDE + i on the chip."""


class _Live:
    """A tenant that has arrived: its layers that are ready, and what each still waits for."""

    def __init__(self, index: int, tenant: Tenant) -> None:
        program = tenant.program
        self.index, self.tenant, self.lists = index, tenant, program.n_cores
        self.waits_for = [0] * program.n_layers
        for consumers in program.consumers:
            for layer in consumers:
                self.waits_for[layer] += 1
        self.ready = deque(layer for layer, count in enumerate(self.waits_for) if count == 0)
        self.unfinished = program.n_layers
        self.tiles: list[list[list[Tile]]] = [[[] for _ in range(self.lists)] for _ in range(program.n_layers)]
        for tile in expand(program):
            numbered = replace(tile, layer=index * LAYER_STRIDE + tile.layer)
            self.tiles[tile.layer][tile.core].append(numbered)
        self.left = [sum(map(len, lists)) for lists in self.tiles]

    def finish_layer(self, layer: int) -> None:
        self.unfinished -= 1
        for consumer in self.tenant.program.consumers[layer]:
            self.waits_for[consumer] -= 1
            if self.waits_for[consumer] == 0:
                self.ready.append(consumer)


@dataclass
class Requests:
    """The scheduler: tenants at hand, queues of tiles, and the counters that place tiles."""

    scheduler: Scheduler
    partitions: tuple[int, ...]
    live: list[_Live] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)
    finishes: dict[int, int] = field(default_factory=dict)
    active: int = 0
    layers_started: int = 0
    tiles_rotated: int = 0
    turn: int = 0

    def __post_init__(self) -> None:
        self.of_core: list[deque[Tile]] = [deque() for _ in self.partitions]
        self.of_tenant: dict[int, deque[Tile]] = {}

    def arrive(self, tenant: _Live, cycle: int) -> None:
        self.live.append(tenant)
        self.of_tenant[tenant.index] = deque()
        self.refresh(cycle)

    def report(self, tile: Tile, cycle: int) -> None:
        index, layer = divmod(tile.layer, LAYER_STRIDE)
        tenant = next(live for live in self.live if live.index == index)
        tenant.left[layer] -= 1
        if tenant.left[layer] == 0:
            self.finishes[tile.layer] = cycle
            self.active -= 1
            tenant.finish_layer(layer)
            if self.scheduler is Scheduler.SPATIAL_SPLIT:
                self.of_tenant[index] = deque()
        self.refresh(cycle)

    def ask(self, core: int, cycle: int) -> Tile | None:
        if self.scheduler is Scheduler.SPATIAL_SPLIT:
            queue = self.of_tenant[self.live[core % len(self.live)].index]
            if queue:
                self.starts.setdefault(queue[0].layer, cycle)
                return queue.popleft()
            return None
        if self.scheduler in POOLED and not self.of_core[core]:
            self._pull(core, cycle)
        if self.of_core[core]:
            return self.of_core[core].popleft()
        self.refresh(cycle)
        return None

    def refresh(self, cycle: int) -> None:
        self.live = [tenant for tenant in self.live if tenant.unfinished]
        if not self.live:
            return
        match self.scheduler:
            case Scheduler.SIMPLE:
                if not any(self.of_core) and not self.active:
                    self._start(self.live[0], range(len(self.of_core)), 0, cycle)
            case Scheduler.TIME_MULTIPLEX:
                if not any(self.of_core):
                    self.turn = (self.turn + 1) % len(self.live)
                    self._start(self.live[self.turn], range(len(self.of_core)), 0, cycle)
            case Scheduler.PARTITION_CPU:
                for core, partition in enumerate(self.partitions):
                    mine = [tenant for tenant in self.live if tenant.tenant.partition == partition]
                    if not self.of_core[core] and mine:
                        cores = [other for other, owner in enumerate(self.partitions) if owner == partition]
                        self._start(mine[0], cores, cores.index(core), cycle)
            case Scheduler.SPATIAL_SPLIT | Scheduler.DYNAMIC | Scheduler.EARLIEST_DEADLINE:
                for tenant in self.live:
                    if not self.of_tenant[tenant.index] and tenant.ready:
                        layer = tenant.ready.popleft()
                        self.active += 1
                        self.of_tenant[tenant.index].extend(tenant.tiles[layer][0])

    def _pull(self, core: int, cycle: int) -> None:
        """A whole chain of the foremost tenant goes to the core."""
        waiting = [tenant for tenant in self.live if self.of_tenant[tenant.index]]
        if not waiting:
            return
        if self.scheduler is Scheduler.DYNAMIC:
            foremost = min(waiting, key=lambda tenant: (tenant.tenant.priority, tenant.index))
        else:
            hurried = [tenant for tenant in waiting if tenant.tenant.deadline_cycle is not None]
            foremost = min(hurried or waiting, key=lambda tenant: (tenant.tenant.deadline_cycle or 0, tenant.index))
        tiles = self.of_tenant[foremost.index]
        self.starts.setdefault(tiles[0].layer, cycle)
        self.of_core[core].append(tiles.popleft())
        while tiles and tiles[0].accumulate:
            self.of_core[core].append(tiles.popleft())
        self.refresh(cycle)

    def _start(self, tenant: _Live, cores: list[int] | range, offset: int, cycle: int) -> None:
        if not tenant.ready:
            return
        layer = tenant.ready.popleft()
        self.layers_started += 1
        self.active += 1
        self.starts[tenant.index * LAYER_STRIDE + layer] = cycle
        unbound = tenant.tenant.program.unbound[layer]
        shift = self.tiles_rotated + offset if unbound else self.layers_started
        for number, tiles in enumerate(tenant.tiles[layer]):
            self.of_core[cores[(number + shift) % len(cores)]].extend(tiles)
            self.tiles_rotated += len(tiles) * unbound


class MixChip(Chip):
    """A chip on which tenants arrive."""

    def __init__(self, mix: Mix, hw: HwConfig) -> None:
        super().__init__(mix.tenants[0].program, hw, None, record_requests=False)
        self._coming = deque(_Live(index, tenant) for index, tenant in enumerate(mix.tenants))
        self.mixed = Requests(mix.scheduler, mix.core_partitions)
        self.cores = [Core(index, hw, None) for index in range(hw.cores.count)]
        self.noc = type(self.noc)(hw.cores.count * self.ports + hw.dram.channels, hw.noc.latency_cycles)

    @property
    def running(self) -> bool:
        """Whether anything keeps the simulation alive; DRAM and NoC alone do not."""
        return bool(self._coming or self.mixed.live) or any(core.running for core in self.cores)

    def core_phase(self) -> None:
        """One tick of the core clock: arrivals, then each core reports, asks, and works."""
        while self._coming and self._coming[0].tenant.arrival_cycle <= self.cycle:
            self.mixed.arrive(self._coming.popleft(), self.cycle)
        for core in self.cores:
            if core.finished:
                self.mixed.report(core.finished.popleft(), self.cycle)
            if self.mixed.live and len(core.tiles) < 2:
                tile = self.mixed.ask(core.index, self.cycle)
                if tile is not None:
                    core.place(tile)
            core.cycle()
        self.cycle += 1


@dataclass
class MixOutcome:
    """Cycles of the layers by number on the chip (see LAYER_STRIDE), end of the run, requests."""

    starts: dict[int, int]
    finishes: dict[int, int]
    cycles: int
    reads: int
    writes: int


def run_mix(mix: Mix, hw: HwConfig, max_cycles: int) -> MixOutcome | None:
    """Execute a mix under the rules of the `onnxim` compatibility mode; None if it still runs after max_cycles."""
    chip = MixChip(mix, hw)
    try:
        run_chip(chip, hw, max_cycles)
    except RuntimeError:
        return None
    return MixOutcome(chip.mixed.starts, chip.mixed.finishes, chip.cycle, chip.reads, chip.writes)
