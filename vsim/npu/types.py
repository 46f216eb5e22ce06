"""Shape, parameters, program tables and state of the cycle-level NPU. All state is int32, uint32 or bool.

Params and state have a lane as the last axis of every array (see `vsim.npu.fields`); L stands for it below and is left
out in the shapes of `NpuParams`, `CoreState`, `ScheduleState`, `NocState` and `NpuState`.

Letters in the shapes: C cores, P NoC ports per core, M memory channels, K in-flight requests per core (ring),
G descriptors per core (ring), S instructions in the systolic array (ring), E entries per memory and half, N layers.
Of a mix: T tenants, Q parts of layers per queue of tiles (ring), W queues: max(C, T), one per core or per tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from flax import struct
from jax import Array

from vsim.npu.dram import DramParams, DramShape, DramState
from vsim.npu.words import Descriptor, Execute

STATUS_ENTRY = 1 << 8
"""A load into an entry that was still in use: the program and the scratchpad disagree."""
STATUS_INFLIGHT = 1 << 9
STATUS_DESCRIPTORS = 1 << 10
STATUS_RETURN = 1 << 11
STATUS_RESPONSE = 1 << 12
STATUS_DEADLOCK = 1 << 13
STATUS_CYCLE_LIMIT = 1 << 14
STATUS_TILE_QUEUE = 1 << 15
STATUS_REPORTS = 1 << 16

STATUS_NAMES = {
    1: "overflow_dram_pending",
    2: "overflow_dram_order",
    STATUS_ENTRY: "program_entry_conflict",
    STATUS_INFLIGHT: "overflow_noc_requests",
    STATUS_DESCRIPTORS: "overflow_dma_descriptors",
    STATUS_RETURN: "overflow_dram_return",
    STATUS_RESPONSE: "overflow_noc_responses",
    STATUS_DEADLOCK: "deadlock",
    STATUS_CYCLE_LIMIT: "cycle_limit",
    STATUS_TILE_QUEUE: "overflow_tile_queue",
    STATUS_REPORTS: "overflow_tile_reports",
}


@dataclass(frozen=True)
class NpuShape:
    """Array capacities and structural choices; only a new shape compiles anew. Rings are powers of two."""

    cores: int
    channels: int
    ports: int
    inflight: int
    """Requests per core between its DMA queue and the DRAM controllers."""
    descriptors: int
    window: int
    """Descriptors a core's DMA can draw requests from in one NoC tick."""
    systolic: int
    entries: int
    layers: int
    returns: int
    """Completed accesses waiting at a channel."""
    responses: int
    """Responses in the NoC per (channel, core), of the lane that has most of them (`NpuParams.noc_responses`)."""
    back_pressure: bool
    """True: a full structure stalls its producer. False (ONNXim, unbounded queues): it ends the lane by a status."""
    fixed_latency_dram: bool
    """ONNXim's "simple" DRAM in place of the controllers."""
    dram: DramShape
    tenants: int = 0
    """0: every lane runs one program, layer by layer (`vsim.npu.dispatch`); else a mix (`vsim.npu.tenants`)."""
    queue_parts: int = 1
    """Parts of layers that wait in a queue of tiles. Mixes only, and likewise below."""
    reports: int = 1
    """Finished tiles of a core that wait to be reported."""
    windows: int = 1
    """Windows of time by which a tenant's requests are counted; a power of two."""
    shares: bool = False
    """A tenant has a share of the memory's bandwidth (`vsim.npu.shares`)."""

    @property
    def core_bits(self) -> int:
        """Bits of the number of any core."""
        return (self.cores - 1).bit_length()

    @property
    def queues(self) -> int:
        """Queues of tiles."""
        return max(self.cores, self.tenants)


class NpuParams(struct.PyTreeNode):
    """Traced parameters of one lane, int32.

    core_period_ps, noc_period_ps, dram_period_ps; noc_latency: NoC ticks; dram_latency: DRAM ticks (fixed only).
    noc_responses: most responses on the way from a channel to a core; above `NpuShape.responses`: as many as that.
    array_rows[C], array_cols[C]; min_rows: least rows a pass through the array occupies.
    idle_skip: 1 lets a lane's clocks jump over ticks in which nothing can change.
    wrapper_capacity: requests a channel accepts ahead of its controller.
    max_cycles_high, max_cycles_low: core cycles after which a lane ends with the status cycle_limit, radix 2**30.
    """

    core_period_ps: Array
    noc_period_ps: Array
    dram_period_ps: Array
    noc_latency: Array
    noc_responses: Array
    dram_latency: Array
    array_rows: Array
    array_cols: Array
    min_rows: Array
    exposed_preload: Array
    """1: new weights hide behind the preceding pass only (Gemmini's RTL); 0: ONNXim's rule."""
    drains: Array
    """int32[C], 1: a tile's first pass waits until the array is empty."""
    ordered_chains: Array
    """1: an accumulate tile keeps the half of the tile before it even on an empty core, and computes and stores after
    it; 0: ONNXim's quirk Q7, and whichever tile has its operands first computes first."""
    strict_stores: Array
    """1: a layer ends when all of its stores are acknowledged; 0: when its tiles are done."""
    wrapper_capacity: Array
    idle_skip: Array
    max_cycles_high: Array
    max_cycles_low: Array
    dram: DramParams


class ProgramTables(struct.PyTreeNode):
    """Programs of a batch, stacked and padded; `lowering.program` says what the columns mean.

    rows: int32[programs, rows, ROW_COLUMNS], tiles: int32[programs, tiles, TILE_COLUMNS],
    schedule: int32[programs, N, C, 2], pattern: int32[programs, entries], layer_count: int32[programs],
    releases: int32[programs, N].
    """

    rows: Array
    tiles: Array
    schedule: Array
    pattern: Array
    layer_count: Array
    releases: Array


class MixTables(ProgramTables):
    """Tables of the programs that mixes are made of. Rows, tiles and patterns are in one piece, as if of one program,
    and refer to each other accordingly.

    schedule: int32[programs, N, C, 2], of each list of tiles; lists: int32[programs], how many there are.
    consumers: int32[programs, N, most], layers that wait for a layer, -1 where there are fewer; producers:
    int32[programs, N], for how many a layer waits. unbound: int32[programs, N]. tile_count: int32[programs, N].
    chain_end: int32[tiles], the tile behind those that add to the same sums as each.
    """

    lists: Array
    consumers: Array
    producers: Array
    unbound: Array
    tile_count: Array
    chain_end: Array


class Pass(NamedTuple):
    """A pass through the systolic array: core cycles of start and finish, and the retire word."""

    start: Array
    finish: Array
    retire: Array


class Activity(NamedTuple):
    """Of a core: something that holds in a cycle, or the number of cycles in which it held."""

    systolic: Array
    """The oldest pass in the array streams."""
    vector: Array
    compute: Array
    """Either of them."""
    idle: Array
    busy: Array
    """The array holds a pass, be it that its weights are still on their way."""


class CoreState(struct.PyTreeNode):
    """Cores. Two physical tile slots; `front` is the first placed. Latches hold the instruction issued last tick."""

    now: Array
    """int32[], core cycles since the last rebase."""
    base_high: Array
    """int32[]; cycles before the last rebase = base_high * 2**30 + base_low."""
    base_low: Array
    resident: Array
    """bool[C, 2]"""
    front: Array
    """int32[C]"""
    issue_from: Array
    """int32[C], position (0 the front tile) from which the issue round robin starts."""
    row: Array
    """int32[C, 2], next instruction's row; end_row when the tile has issued everything."""
    end_row: Array
    loop: tuple[Array, Array, Array]
    """int32[C, 2] each, indices of the three loops of that row."""
    spad_half: Array
    """int32[C, 2], and likewise acc_half"""
    acc_half: Array
    streaming: Array
    """bool[C, 2], the tile has issued a systolic instruction."""
    last_done: Array
    """bool[C, 2], the tile's last instruction has taken effect."""
    previous_layer: Array
    """int32[C], layer and accumulation key of the tile placed last."""
    previous_key: Array
    previous_acc: Array
    """int32[C], its accumulator half."""
    remaining: Array
    """int32[C, 4 * E]: outstanding requests and writers of (memory, half, entry); -1 unallocated, 0 valid."""
    load_valid: Array
    """bool[C]"""
    load: Descriptor
    """int32[C], and likewise store"""
    store_valid: Array
    store: Descriptor
    store_last: Array
    """int32[C]: the slot whose last instruction this store is, -1 otherwise."""
    execute_valid: Array
    execute: Execute
    """int32[C]"""
    systolic: Pass
    """int32[C, S] rings"""
    systolic_head: Array
    systolic_count: Array
    tail_start: Array
    """int32[C], start and streamed rows of the instruction accepted last."""
    tail_rows: Array
    vector_busy: Array
    vector_finish: Array
    vector_retire: Array
    finished: Array
    """int32[C], finished tiles not yet reported."""
    unacknowledged: Array
    """int32[C], stores without acknowledgement."""
    activity: Activity
    """int32[C] each, cycles modulo 2**30; what is beyond in `activity_high`."""
    activity_high: Activity


class ScheduleState(struct.PyTreeNode):
    """The `simple` scheduler: one layer at a time, each core works through its own list of tiles."""

    layer: Array
    """int32[], N when all are done."""
    waiting: Array
    """bool[], the layer is a launch that has not started yet."""
    tiles_left: Array
    """int32[], tiles of the layer not yet reported finished."""
    next_tile: Array
    """int32[C]"""
    start: Array
    """int32[N, 2] (high, low words in radix 2**30), and likewise finish"""
    finish: Array
    load_requests: Array
    """int32[N], requests that the layer's loads and stores sent on their way (up to 2**31, 64 GiB)"""
    store_requests: Array


class MixInput(struct.PyTreeNode):
    """A lane's mix. Tenants are numbered by arrival; int32."""

    program: Array
    """int32[T], index into the program tables."""
    count: Array
    """int32[], tenants that the mix has, at most T."""
    arrival: Array
    """int32[T], core cycle in whose tick the tenant arrives, not decreasing."""
    scheduler: Array
    """int32[], `lowering.mix.Scheduler.code`."""
    tenant_partition: Array
    """int32[T]"""
    core_partition: Array
    """int32[W], -1 beyond the cores; equal for all where the scheduler knows no partitions."""
    core_position: Array
    """int32[W], of a core within its partition."""
    priority: Array
    """int32[T], below 2**16, 0 first (DYNAMIC only)."""
    bucket: Array
    """int32[T], of the workload whose share of the bandwidth the tenant has; and of each bucket, int32[T], the core
    cycles between requests at its rate (`vsim.npu.shares.interval_of`; 0: it has no limit)."""
    share_interval: Array
    rotates: Array
    """int32[], 1: a layer's lists of tiles go round the cores (see `lowering.mix.Mix`)."""
    window_shift: Array
    """int32[], 0..24, log2 of the core cycles of a window at the start."""


class TenantSchedule(struct.PyTreeNode):
    """The scheduler of a mix. A layer is numbered tenant * N + its number in the tenant's program."""

    mix: MixInput
    arrived: Array
    """int32[], tenants that have arrived."""
    cursor: Array
    """int32[], how far the present tick has come: 2 * core before the core's report, 2 * core + 1 before it asks for a
    tile; 0 between ticks."""
    scan: Array
    """int32[], core (or tenant) from which on the scheduler still looks for layers to start, -1 when it is done."""
    layers_started: Array
    """int32[]"""
    tiles_rotated: Array
    """int32[], tiles of unbound layers started."""
    turn: Array
    """int32[], whose turn it was last, as a position among the tenants at hand."""
    active: Array
    """int32[], layers that have started and not finished."""
    layers_left: Array
    """int32[T]"""
    ready: Array
    """int32[T, N], layers in the order in which they became ready."""
    ready_first: Array
    """int32[T], ready layers that have started."""
    ready_end: Array
    """int32[T], ready layers."""
    producers_left: Array
    """int32[T * N], and likewise tiles_left: tiles not yet reported."""
    tiles_left: Array
    queue_layer: Array
    """int32[W, Q] rings of parts of layers: layer, next tile, and end of its tiles."""
    queue_next: Array
    queue_end: Array
    queue_head: Array
    """int32[W]"""
    queue_count: Array
    queue_fresh: Array
    """bool[W], no tile of the layer at the head has been taken (SPATIAL_SPLIT only)."""
    waiting_tiles: Array
    """int32[W], tiles in the queue."""
    pool_layer: Array
    """int32[T], DYNAMIC only: the layer that started last, next tile that no core has taken, and end of its tiles."""
    pool_next: Array
    pool_end: Array
    pool_fresh: Array
    """bool[T], no tile of it has been taken."""
    slot_layer: Array
    """int32[C, 2], layer of the tile in the slot."""
    report_layer: Array
    """int32[C, reports] ring, layers of the tiles that `CoreState.finished` counts."""
    report_head: Array
    """int32[C]"""
    start: Array
    """int32[T * N, 2] (high, low words in radix 2**30), -1 before it; and likewise finish."""
    finish: Array
    load_requests: Array
    """int32[T * N]"""
    store_requests: Array
    window_requests: Array
    """int32[T, V], requests by the window of time in which the core gave them to its DMA queue."""
    window_shift: Array
    """int32[], log2 of the core cycles of a window; windows double when time runs out of them."""
    share_due: Array
    """int32[T], of each bucket: core cycle at which all it has asked for would be through at its rate, and the fraction
    of a cycle beyond it."""
    share_rest: Array
    row_states: Array
    """int32[T, 4], of its requests: row hits, misses, conflicts with rows of its own workload, and of others."""


class NocState(struct.PyTreeNode):
    """The simple NoC and the DMA queues that feed it. A request node stays in its core's ring up to the controller."""

    now: Array
    """int32[], NoC ticks since the last rebase"""
    descriptor: Descriptor
    """int32[C, G] ring of loads and stores in effect, in program order."""
    descriptor_head: Array
    descriptor_count: Array
    cursor: Array
    """int32[C], requests of the head descriptor that have left."""
    sequence: Array
    """int32[C], next position in the node ring."""
    link: Array
    """int32[C*K], next node of the list the node is in; END, or FREE."""
    block: Array
    """int32[C*K], in-channel block number (fixed-latency DRAM: the tick it is ready)."""
    meta: Array
    """int32[C*K], request word."""
    head: Array
    """int32[C*P, M], request queue per (port, channel): first and last node, -1 empty."""
    tail: Array
    stamp: Array
    """int32[C*P, M], NoC tick from which the first node may move, FAR where there is none."""
    turn: Array
    """int32[M], source after the one served last."""
    out_head: Array
    """int32[M], list of delivered requests per channel; its first `wrapped` belong to the channel's input buffer."""
    out_tail: Array
    out_count: Array
    wrapped: Array
    out_fresh: Array
    """int32[M], first node of that list not yet in the input buffer (fixed-latency DRAM only), -1 none."""
    returned: Array
    """int32[M, returns] ring of completed accesses (request words)."""
    returned_head: Array
    returned_count: Array
    response: Array
    """int32[M, C, responses] ring"""
    response_head: Array
    """int32[M, C]"""
    response_count: Array
    response_stamp: Array
    response_turn: Array
    """int32[ports that can receive, C]"""
    arrived: Array
    """int32[ports that can receive, C], request word at the core's port, -1 none."""
    latest_ready: Array
    """int32[], fixed-latency DRAM only."""
    requests: Array
    """int32[C], injected."""
    reads: Array
    """int32[M], requests taken by the controllers, and likewise writes"""
    writes: Array


class NpuState(struct.PyTreeNode):
    """One lane."""

    core: CoreState
    schedule: Any
    """`ScheduleState`, or `TenantSchedule` of a mix."""
    noc: NocState
    dram: DramState
    core_time: Array
    """int32[], time of the next core tick in ps, relative; only differences matter. Likewise below."""
    noc_time: Array
    dram_time: Array
    core_quiet: Array
    """bool[], the domain's last tick changed nothing and nothing has reached it since. Likewise below."""
    noc_quiet: Array
    dram_quiet: Array
    iterations: Array
    """int32[], loop iterations this lane took."""
    program: Array
    """int32[], index into the program tables; 0 in a mix."""
    status: Array
    """int32[], STATUS_* bits; a non-zero status freezes the lane."""
    done: Array
    """bool[]"""


class NpuOutcome(struct.PyTreeNode):
    """What results are made of; fields as in the state. cycles: int32[2], (high, low) in radix 2**30."""

    cycles: Array
    status: Array
    iterations: Array
    schedule: Any
    activity: Activity
    activity_high: Activity
    requests: Array
    reads: Array
    writes: Array
    row_hits: Array
    row_misses: Array
    row_conflicts: Array
