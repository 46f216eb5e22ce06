"""A scalar model of the whole chip: `onnxim.md` sections 1, 2, 6, 7, 8.1 and 9.2 (`simple` scheduler) in plain Python.

It executes a `Program` through `lowering.emit.expand` and is the oracle of the JAX model: written for reading, one
object per hardware unit, no code shared with `vsim`. `run` returns cycle counts and, on demand, everything that
happened: core events as in the recorded event logs, NoC deliveries, DRAM accesses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hwconfigs.schema import HwConfig
from lowering.emit import Instruction, Tile, expand
from lowering.program import LayerInfo, Op, Program
from tests.reference.scalar_dram import Access, DramChannel, DramTiming

WRAPPER_CAPACITY = 256
MINIMUM_STREAM = 4

# Bits of the block number whose XOR is bit i of the channel, by number of channels (section 6).
HASH_BITS = {
    16: ((0, 3, 4, 6, 8, 9, 10, 11), (0, 1, 3, 5, 6, 7, 8, 12), (1, 2, 4, 6, 7, 8, 9), (2, 3, 5, 7, 8, 9, 10)),
    32: (
        (0, 3, 5, 6, 9, 10, 11, 12, 13),
        (1, 4, 6, 7, 10, 11, 12, 13, 14),
        (0, 2, 3, 6, 7, 8, 9, 10, 14),
        (1, 3, 4, 7, 8, 9, 10, 11),
        (2, 4, 5, 8, 9, 10, 11, 12),
    ),
    64: (
        (0, 5, 6, 10, 12, 15, 16, 17, 18),
        (0, 1, 5, 7, 10, 11, 12, 13, 15),
        (1, 2, 6, 8, 11, 12, 13, 14, 16),
        (2, 3, 7, 9, 12, 13, 14, 15, 17),
        (3, 4, 8, 10, 13, 14, 15, 16, 18),
        (4, 5, 9, 11, 14, 15, 16, 17),
    ),
}


def channel_of(block: int, n_channels: int) -> int:
    """The channel that holds memory block `block`."""
    bits = HASH_BITS[max(n_channels, 16)]
    hashed = sum((sum(block >> source & 1 for source in sources) & 1) << i for i, sources in enumerate(bits))
    return hashed % n_channels


@dataclass(frozen=True)
class Event:
    """One line of an event log.

    kind: T+ T- (tile placed, finished), LD ST (transfer takes effect), EX VX (work enters array or vector unit).
    details: named as in the recorded logs; `a` is the first byte address, `n` the number of requests.
    """

    kind: str
    core: int
    cycle: int
    details: dict[str, int]


@dataclass(eq=False)
class Request:
    """One memory request on its way.

    counters, entry: what a read decrements when its data arrive; None for writes.
    issued, delivered: NoC ticks at which it left the core and came back; dram_accept, dram_complete: DRAM cycles.
    """

    core: int
    block: int
    write: bool
    channel: int
    counters: dict[int, int] | None
    entry: int
    issued: int = -1
    delivered: int = -1
    dram_accept: int = -1
    dram_complete: int = -1


@dataclass(eq=False)
class _Resident:
    """A tile in a core: its remaining instructions and its memory halves."""

    tile: Tile
    todo: deque[Instruction]
    spad_half: int
    acc_half: int
    last_done: bool = False


@dataclass(eq=False)
class _InFlight:
    """An issued instruction; `last`: it was the only one left in its tile."""

    instruction: Instruction
    owner: _Resident
    last: bool
    start: int = 0
    finish: int = 0


class Core:
    """One weight-stationary core (section 2). `counters[in accumulator][half]` maps entry -> outstanding parts."""

    def __init__(self, index: int, hw: HwConfig, trace: list[Event] | None) -> None:
        core = hw.core(index)
        self.index, self.rows, self.cols = index, core.rows, core.cols
        self.n_channels, self.request_bytes = hw.dram.channels, hw.dram.request_bytes
        self.trace = trace
        self.now = 0
        self.tiles: list[_Resident] = []
        self.finished: deque[Tile] = deque()
        self.requests: deque[Request] = deque()
        self.unacknowledged = 0
        self.systolic_active_cycles = self.vector_active_cycles = self.idle_cycles = 0
        self._counters = {False: [{}, {}], True: [{}, {}]}
        self._pointer = 0
        self._placed_before: tuple[int, int] | None = None
        self._load: _InFlight | None = None
        self._execute: _InFlight | None = None
        self._stores: deque[_InFlight] = deque()
        self._systolic: deque[_InFlight] = deque()
        self._vector: deque[_InFlight] = deque()

    @property
    def running(self) -> bool:
        """Whether the core still holds work; finished tiles that nobody has fetched do not count."""
        pipelines = self._systolic or self._vector or self._stores or self._load or self._execute
        return bool(self.tiles or pipelines or self.unacknowledged)

    # -- tiles

    def place(self, tile: Tile) -> None:
        """Take a tile: choose its halves and clear them (2.3). Tiles without work are finished at once."""
        spad, acc = (self.tiles[0].spad_half, self.tiles[0].acc_half) if self.tiles else (0, 0)
        spad = 1 - spad
        self._counters[False][spad] = {}
        key = (tile.layer, tile.acc_key)
        if not (tile.accumulate and self._placed_before == key):
            acc = 1 - acc
            self._counters[True][acc] = {}
        self._placed_before = key
        resident = _Resident(tile, deque(tile.instructions), spad, acc)
        self._log("T+", spad=spad, aspad=acc, acc=int(tile.accumulate), inst=len(tile.instructions), layer=tile.layer)
        if tile.instructions:
            self.tiles.append(resident)
        else:
            self.finished.append(tile)

    def _complete_tile(self) -> None:
        for resident in self.tiles:
            if resident.last_done and not resident.todo:
                self.tiles.remove(resident)
                self.finished.append(resident.tile)
                self._log("T-", layer=resident.tile.layer)
                return

    # -- the cycle

    def cycle(self) -> None:
        """One core cycle in the order of section 2.2."""
        self._retire(self._systolic)
        self._retire(self._vector)
        self._load_stage()
        self._execute_stage()
        self._store_stage()
        self.systolic_active_cycles += bool(self._systolic and self._systolic[0].start <= self.now)
        self.vector_active_cycles += bool(self._vector)
        self.idle_cycles += not self.running
        self.now += 1
        if self.tiles:
            self._issue()
            self._complete_tile()

    def _retire(self, pipeline: deque[_InFlight]) -> None:
        if pipeline and pipeline[0].finish <= self.now:
            done = pipeline.popleft()
            counters, entry = self._destination(done)
            counters[entry] -= 1
            done.owner.last_done |= done.last

    def _load_stage(self) -> None:
        if self._load is None:
            return
        load, self._load = self._load, None
        counters, entry = self._destination(load)
        counters[entry] = len(load.instruction.blocks)
        self._send(load, write=False)
        load.owner.last_done |= load.last
        self._log_transfer("LD", load)

    def _store_stage(self) -> None:
        if not self._stores or not self._valid(self._stores[0]):
            return
        store = self._stores.popleft()
        self._send(store, write=True)
        self.unacknowledged += len(store.instruction.blocks)
        store.owner.last_done |= store.last
        self._log_transfer("ST", store)

    def _send(self, transfer: _InFlight, write: bool) -> None:
        counters, entry = self._destination(transfer)
        for block in transfer.instruction.blocks.tolist():
            channel = channel_of(block, self.n_channels)
            self.requests.append(Request(self.index, block, write, channel, None if write else counters, entry))

    def receive(self, request: Request) -> None:
        """A read's data or a write's acknowledgement arrives."""
        if request.write:
            self.unacknowledged -= 1
        elif request.counters is not None:
            request.counters[request.entry] -= 1

    def _execute_stage(self) -> None:
        work = self._execute
        if work is None or not self._can_execute(work.instruction, work.owner):
            return
        self._execute = None
        counters, entry = self._destination(work)
        counters[entry] = counters.get(entry, 0) + 1
        if work.instruction.op is Op.VECTOR:
            work.start, work.finish = self.now, self.now + work.instruction.size
            self._vector.append(work)
            self._log("VX", start=work.start, fin=work.finish)
        else:
            self._enter_array(work)

    def _enter_array(self, work: _InFlight) -> None:
        """Section 2.5. New weights cost a pass only behind other work, or when the array is empty."""
        size, preload = work.instruction.size, work.instruction.preload
        if self._systolic:
            previous = self._systolic[-1]
            gap = max(previous.instruction.size, MINIMUM_STREAM, self.rows if preload else 0)
            work.start = max(self.now, previous.start + gap)
        else:
            work.start = self.now + (2 * self.rows - 1 if preload else 0)
        work.finish = work.start + self.rows + self.cols - 2 + max(size, MINIMUM_STREAM)
        self._systolic.append(work)
        self._log("EX", op=3 if preload else 4, start=work.start, fin=work.finish, cs=size, **self._halves(work.owner))

    # -- issue

    def _issue(self) -> None:
        """At most one instruction a cycle, the front one of a tile; the pointer stays with the tile that issued."""
        n = len(self.tiles)
        for offset in range(n):
            position = (self._pointer + offset) % n
            resident = self.tiles[position]
            if resident.todo and self._try_issue(resident):
                self._pointer = position
                return

    def _try_issue(self, resident: _Resident) -> bool:
        instruction = resident.todo[0]
        work = _InFlight(instruction, resident, last=len(resident.todo) == 1)
        if instruction.op is Op.LOAD:
            self._load = work
        elif instruction.op is Op.STORE:
            if not self._valid(work):
                return False
            self._stores.append(work)
        else:
            if self._execute is not None or not self._can_execute(instruction, resident):
                return False
            self._execute = work
        resident.todo.popleft()
        return True

    def _can_execute(self, instruction: Instruction, owner: _Resident) -> bool:
        if instruction.op is Op.VECTOR:
            if self._vector:
                return False
        elif len(self._systolic) >= self.rows:
            return False
        halves = (owner.spad_half, owner.acc_half)
        return all(self._counters[acc][halves[acc]].get(entry) == 0 for entry, acc in instruction.sources)

    # -- entries

    def _destination(self, work: _InFlight) -> tuple[dict[int, int], int]:
        acc = work.instruction.dst_acc
        half = work.owner.acc_half if acc else work.owner.spad_half
        return self._counters[acc][half], work.instruction.dst

    def _valid(self, work: _InFlight) -> bool:
        counters, entry = self._destination(work)
        return counters.get(entry) == 0

    # -- events

    @staticmethod
    def _halves(owner: _Resident) -> dict[str, int]:
        return {"spad": owner.spad_half, "acc": owner.acc_half}

    def _log(self, kind: str, **details: int) -> None:
        if self.trace is not None:
            self.trace.append(Event(kind, self.index, self.now, details))

    def _log_transfer(self, kind: str, work: _InFlight) -> None:
        blocks = work.instruction.blocks
        if self.trace is not None:
            first = int(blocks[0]) * self.request_bytes
            self._log(kind, n=len(blocks), a=first, **self._halves(work.owner))


class SimpleNoc:
    """Section 8.1: one first-in-first-out queue per (source, destination); one delivery per destination and tick."""

    def __init__(self, n_nodes: int, latency: int) -> None:
        self.n_nodes, self.latency = n_nodes, latency
        self.now = 0
        self.output: list[deque[Request]] = [deque() for _ in range(n_nodes)]
        self._queues: list[dict[int, deque[tuple[int, Request]]]] = [{} for _ in range(n_nodes)]
        self._pointer = [0] * n_nodes

    def push(self, source: int, destination: int, request: Request) -> None:
        """Inject a request or response at `source`."""
        queue = self._queues[destination].setdefault(source, deque())
        queue.append((queue[-1][0] + 1 if queue else self.now + self.latency, request))

    def tick(self) -> None:
        """Every destination takes one packet that is due, round robin over the sources."""
        for destination, queues in enumerate(self._queues):
            due = [source for source, queue in queues.items() if queue[0][0] <= self.now]
            if not due:
                continue
            pointer = self._pointer[destination]
            source = min(due, key=lambda s: (s - pointer) % self.n_nodes)
            self.output[destination].append(queues[source].popleft()[1])
            if not queues[source]:
                del queues[source]
            self._pointer[destination] = (source + 1) % self.n_nodes
        self.now += 1


class _RamulatorChannel:
    """A DRAM controller behind ONNXim's 256-entry queue."""

    def __init__(self, timing: DramTiming, n_channels: int, request_bytes: int) -> None:
        self.controller = DramChannel(timing)
        self._shift = n_channels.bit_length() - 1
        self._request_bytes = request_bytes
        self._waiting: deque[Access] = deque()
        self._returns: deque[Request] = deque()

    def full(self) -> bool:
        return len(self._waiting) >= WRAPPER_CAPACITY

    def push(self, request: Request) -> None:
        address = (request.block >> self._shift) * self._request_bytes
        self._waiting.append(Access(address, request.write, request))

    def tick(self) -> None:
        if self._waiting and self.controller.offer(self._waiting[0]):
            self._waiting.popleft()
        self.controller.tick()
        for access in self.controller.completed:
            request = access.tag
            assert isinstance(request, Request)
            request.dram_accept, request.dram_complete = access.accept, access.complete
            self._returns.append(request)
        self.controller.completed.clear()

    def pop(self) -> Request | None:
        return self._returns.popleft() if self._returns else None


@dataclass
class _SimpleClock:
    """Section 7.1: no access of any channel becomes ready before an earlier accepted one."""

    latency: int
    now: int = 0
    last_ready: int = 0


class _SimpleChannel:
    """A fixed latency; at most one answer per DRAM cycle, and never full."""

    def __init__(self, clock: _SimpleClock) -> None:
        self._clock = clock
        self._waiting: deque[Request] = deque()
        self._returns: deque[Request] = deque()

    def full(self) -> bool:
        return False

    def push(self, request: Request) -> None:
        clock = self._clock
        clock.last_ready = max(clock.now + clock.latency, clock.last_ready)
        request.dram_accept, request.dram_complete = clock.now, clock.last_ready
        self._waiting.append(request)

    def tick(self) -> None:
        if self._waiting and self._waiting[0].dram_complete <= self._clock.now:
            self._returns.append(self._waiting.popleft())

    def pop(self) -> Request | None:
        return self._returns.popleft() if self._returns else None


class _SimpleScheduler:
    """One request; a layer starts when the one before it is complete; every core has its own list of tiles."""

    def __init__(self, program: Program) -> None:
        n_layers = program.n_layers
        self.starts, self.finishes = [-1] * n_layers, [-1] * n_layers
        self._tiles: list[list[deque[Tile]]] = [[deque() for _ in range(program.n_cores)] for _ in range(n_layers)]
        self._left = [0] * n_layers
        for tile in expand(program):
            self._tiles[tile.layer][tile.core].append(tile)
            self._left[tile.layer] += 1
        self._layer = 0
        self.starts[0] = 0

    @property
    def live(self) -> bool:
        """Whether the request still has layers to finish."""
        return self._layer < len(self._left)

    def finish(self, tile: Tile, cycle: int) -> None:
        """A core reports a finished tile; the last one of a layer starts the next layer."""
        self._left[tile.layer] -= 1
        if self._left[tile.layer] == 0:
            self.finishes[tile.layer] = cycle
            self._layer += 1
            if self.live:
                self.starts[self._layer] = cycle

    def take(self, core: int) -> Tile | None:
        """The next tile for `core`, if its list holds one."""
        tiles = self._tiles[self._layer][core]
        return tiles.popleft() if tiles else None


@dataclass
class ScalarResult:
    """What a run produced. Cycles are core cycles; requests appear when `record_requests` is set."""

    layers: tuple[LayerInfo, ...]
    layer_starts: list[int]
    layer_finishes: list[int]
    cycles: int
    hits: int = 0
    misses: int = 0
    conflicts: int = 0
    reads: int = 0
    writes: int = 0
    cores: list[Core] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)


class Chip:
    """All units and the three clocks (section 1)."""

    def __init__(self, program: Program, hw: HwConfig, trace: list[Event] | None, record_requests: bool) -> None:
        self.hw, self.program = hw, program
        self.ports = hw.noc.ports_per_core
        self.cores = [Core(i, hw, trace) for i in range(program.n_cores)]
        self.scheduler = _SimpleScheduler(program)
        self.noc = SimpleNoc(program.n_cores * self.ports + hw.dram.channels, hw.noc.latency_cycles)
        self._simple_clock = _SimpleClock(hw.dram.latency_cycles)
        self.channels = [self._channel() for _ in range(hw.dram.channels)]
        self.cycle = 0
        self.requests: list[Request] | None = [] if record_requests else None
        self.reads = self.writes = 0

    def _channel(self) -> _RamulatorChannel | _SimpleChannel:
        if self.hw.dram.standard == "simple":
            return _SimpleChannel(self._simple_clock)
        return _RamulatorChannel(DramTiming.from_hw(self.hw), self.hw.dram.channels, self.hw.dram.request_bytes)

    @property
    def running(self) -> bool:
        """Whether anything keeps the simulation alive; DRAM and NoC alone do not."""
        return self.scheduler.live or any(core.running for core in self.cores)

    def core_phase(self) -> None:
        """One tick of the core clock."""
        for core in self.cores:
            if core.finished:
                self.scheduler.finish(core.finished.popleft(), self.cycle)
            if self.scheduler.live and len(core.tiles) < 2:
                tile = self.scheduler.take(core.index)
                if tile is not None:
                    core.place(tile)
            core.cycle()
        self.cycle += 1

    def dram_phase(self) -> None:
        """One tick of the DRAM clock."""
        for channel in self.channels:
            channel.tick()
        self._simple_clock.now += 1

    def noc_phase(self) -> None:
        """One tick of the NoC clock: cores inject and receive, channels receive and inject, packets move."""
        first_channel = len(self.cores) * self.ports
        for core in self.cores:
            for node in range(core.index * self.ports, (core.index + 1) * self.ports):
                if core.requests:
                    self._inject(core.requests.popleft(), node, first_channel)
                if self.noc.output[node]:
                    response = self.noc.output[node].popleft()
                    response.delivered = self.noc.now
                    core.receive(response)
        for index, channel in enumerate(self.channels):
            arrived = self.noc.output[first_channel + index]
            if arrived and not channel.full():
                channel.push(arrived.popleft())
            response = channel.pop()
            if response is not None:
                destination = response.core * self.ports + index % self.ports
                self.noc.push(first_channel + index, destination, response)
        self.noc.tick()

    def _inject(self, request: Request, node: int, first_channel: int) -> None:
        request.issued = self.noc.now
        self.writes += request.write
        self.reads += not request.write
        if self.requests is not None:
            self.requests.append(request)
        self.noc.push(node, first_channel + request.channel, request)


def run_chip(chip: Chip, hw: HwConfig, max_cycles: int) -> None:
    """Tick the clocks in order of time until nothing runs. Raises RuntimeError after max_cycles core cycles."""
    clocks = hw.clocks
    periods = [1_000_000 // mhz for mhz in (clocks.core_mhz, clocks.dram_mhz, clocks.noc_mhz)]
    phases: list[Callable[[], None]] = [chip.core_phase, chip.dram_phase, chip.noc_phase]
    times = [0, 0, 0]
    while chip.running:
        now = min(times)
        for domain, phase in enumerate(phases):
            if times[domain] <= now:
                times[domain] += periods[domain]
                phase()
        if chip.cycle > max_cycles:
            raise RuntimeError(f"still running after {max_cycles} core cycles")


def run(
    program: Program,
    hw: HwConfig,
    trace: list[Event] | None = None,
    *,
    record_requests: bool = False,
    max_cycles: int = 10_000_000,
) -> ScalarResult:
    """Execute `program` on `hw` under the rules of the `onnxim` compatibility mode.

    trace: receives the core events in order. record_requests: keep every memory request, in order of injection, with
    its NoC ticks (issued, delivered) and DRAM cycles (accept, complete). Raises RuntimeError after max_cycles.
    """
    chip = Chip(program, hw, trace, record_requests)
    run_chip(chip, hw, max_cycles)
    controllers = [channel.controller for channel in chip.channels if isinstance(channel, _RamulatorChannel)]
    return ScalarResult(
        layers=program.layers,
        layer_starts=chip.scheduler.starts,
        layer_finishes=chip.scheduler.finishes,
        cycles=chip.cycle,
        hits=sum(c.hits for c in controllers),
        misses=sum(c.misses for c in controllers),
        conflicts=sum(c.conflicts for c in controllers),
        reads=chip.reads,
        writes=chip.writes,
        cores=chip.cores,
        requests=chip.requests or [],
    )
