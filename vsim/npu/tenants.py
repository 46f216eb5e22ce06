"""Scheduling of mixes: which tenant's layers start when, and which core gets which tile (`onnxim.md` section 9).

A core tick is a sequence: tenants arrive, then every core in turn reports a finished tile and asks for the next one.
Arrivals, reports, and requests that find no tile make the scheduler look for layers to start, and whether it finds any
depends on all that came before in the tick. So a lane takes one such event an iteration, and hands out tiles to all
cores up to the next event at once; most ticks have no event. The cores' own tick follows when all have asked.

The schedulers differ in a few rules, each of which is a selection by the lane's scheduler number:

* SIMPLE, TIME_MULTIPLEX: when no tile waits (SIMPLE: and no layer is active), the next layer of the first tenant (of
  the tenant whose turn it is) starts;
* PARTITION_CPU: the cores are gone through, and for each without tiles the next layer of the first tenant of its
  partition starts;
* SPATIAL_SPLIT: every tenant without tiles starts its next layer, but cores that ask in vain change nothing. Here the
  tiles wait in a queue per tenant, otherwise in one per core;
* DYNAMIC: layers start likewise, and their tiles wait in a pool per tenant. A core whose queue is empty takes a chain
  of tiles from a pool into its queue, which is an event of its own.

The last axis of every array is the lane.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lowering.mix import Scheduler
from lowering.program import TileCol
from vsim.npu.dispatch import RADIX_BITS, RADIX_MASK, absolute, place_tiles, tile_fields
from vsim.npu.fields import FAR, PAST, add, any_of, fold, least, numbers, pick, pick_row, put, settle
from vsim.npu.types import (
    STATUS_REPORTS,
    STATUS_TILE_QUEUE,
    CoreState,
    MixInput,
    MixTables,
    NpuParams,
    NpuShape,
    TenantSchedule,
)


def start(shape: NpuShape, program: MixTables, mix: MixInput) -> TenantSchedule:
    """Nobody has arrived; of every tenant the layers that wait for no other are ready, in order."""
    tenants, lanes = mix.program.shape
    layers = program.producers.shape[1]

    def of_layers(table: Array) -> Array:
        """int32[T, N, L] of a table int32[programs, N]."""
        return jnp.moveaxis(table[mix.program], -1, 1)

    def zeros(*dims: int) -> Array:
        return jnp.zeros((*dims, lanes), jnp.int32)

    present = numbers(tenants) < mix.count
    layers_left = jnp.where(present, program.layer_count[mix.program], 0)
    producers, index = of_layers(program.producers), numbers(layers)[None]
    free = (producers == 0) & (index < layers_left[:, None])
    place = jnp.cumsum(free, axis=1) - 1
    ready = put(zeros(tenants, layers), free, jnp.broadcast_to(index, free.shape), numbers(tenants, 2), place)
    queues, parts, cores = shape.queues, shape.queue_parts, shape.cores
    return TenantSchedule(
        mix=mix, arrived=zeros(), cursor=zeros(), scan=zeros() - 1, layers_started=zeros(), tiles_rotated=zeros(),
        turn=zeros(), active=zeros(), layers_left=layers_left, ready=ready, ready_first=zeros(tenants),
        ready_end=jnp.sum(free, axis=1, dtype=jnp.int32),
        producers_left=producers.reshape(tenants * layers, lanes),
        tiles_left=of_layers(program.tile_count).reshape(tenants * layers, lanes),
        queue_layer=zeros(queues, parts), queue_next=zeros(queues, parts), queue_end=zeros(queues, parts),
        queue_head=zeros(queues), queue_count=zeros(queues), queue_fresh=jnp.zeros((queues, lanes), bool),
        waiting_tiles=zeros(queues), pool_layer=zeros(tenants), pool_next=zeros(tenants), pool_end=zeros(tenants),
        pool_fresh=jnp.zeros((tenants, lanes), bool), slot_layer=zeros(cores, 2),
        report_layer=zeros(cores, shape.reports),
        report_head=zeros(cores), start=zeros(tenants * layers, 2) - 1, finish=zeros(tenants * layers, 2) - 1,
        load_requests=zeros(tenants * layers), store_requests=zeros(tenants * layers),
        window_requests=zeros(tenants, shape.windows), window_shift=mix.window_shift,
        share_due=zeros(tenants) + PAST, share_rest=zeros(tenants), row_states=zeros(tenants, 4),
    )  # fmt: skip


def _is(s: TenantSchedule, scheduler: Scheduler) -> Array:
    """bool[L]"""
    return s.mix.scheduler == scheduler.code


def _running_count(flags: Array) -> Array:
    """int32[n, L]: how many of the elements before each have the flag."""
    counts = [jnp.zeros_like(flags[0], jnp.int32)]
    for index in range(flags.shape[0] - 1):
        counts.append(counts[-1] + flags[index])
    return jnp.stack(counts)


def _first(flags: Array) -> Array:
    """int32[L]: the first element (of bool[n, L]) that has the flag, n if none has."""
    return least(jnp.where(flags, numbers(flags.shape[0]), flags.shape[0]))


def at_hand(s: TenantSchedule) -> Array:
    """bool[T, L]: the tenant has arrived and is not done."""
    return (numbers(s.layers_left.shape[0]) < s.arrived) & (s.layers_left > 0)


def is_done(s: TenantSchedule) -> Array:
    """bool[L]: every tenant has arrived and is done, and the lane is between ticks."""
    return (s.arrived >= s.mix.count) & ~any_of(s.layers_left > 0) & (s.cursor == 0) & (s.scan < 0)


def _cycles_to_arrival(s: TenantSchedule, core: CoreState) -> Array:
    """int32[L]: core cycles until the next tenant arrives, at most FAR; <= 0 when it does in this tick."""
    tenants = s.mix.arrival.shape[0]
    arrival = pick(s.mix.arrival, jnp.minimum(s.arrived, tenants - 1))
    high, low = absolute(core)
    high, low = (arrival >> RADIX_BITS) - high, (arrival & RADIX_MASK) - low
    # |low| < 2**30: within one step of the high word the sum fits int32.
    near = jnp.where(high > 0, 1, jnp.where(high < 0, -1, 0)) * (1 << RADIX_BITS)
    wait = jnp.where(high > 1, FAR, jnp.minimum(near + low, FAR))
    return jnp.where(s.arrived < s.mix.count, wait, FAR)


def is_expecting(s: TenantSchedule) -> Array:
    """bool[L]: a tenant has yet to arrive."""
    return s.arrived < s.mix.count


def next_arrival(s: TenantSchedule, core: CoreState) -> Array:
    """int32[L]: core tick, in the count of `core.now`, in which the next tenant arrives; FAR when none does."""
    return core.now + jnp.minimum(_cycles_to_arrival(s, core), FAR - core.now)


# --------------------------------------------------------------------------------------------------------------
# A part of a tick
# --------------------------------------------------------------------------------------------------------------


def dispatch(
    shape: NpuShape, params: NpuParams, program: MixTables, s: TenantSchedule, core: CoreState, on: Array
) -> tuple[TenantSchedule, CoreState, Array, Array, Array]:
    """Take the next event of the tick, then give tiles to all cores up to the one after it.

    Further results, per lane: whether all cores have asked (bool), whether anything changed (bool), status bits.
    """
    event = _next_event(s, core, on)
    looks = on & (s.scan >= 0)
    none = jnp.zeros_like(on)

    def work() -> tuple[TenantSchedule, Array, Array, Array]:
        after, finished = _take_event(program, s, core, event)
        after, begins, overflow = _start_layer(program, after, core, on)
        return after, finished, begins, overflow

    # Most ticks of most lanes have no event.
    worked = lax.cond(jnp.any(event.happens | looks), work, lambda: (s, core.finished, none, none))
    s, finished, begins, overflow = worked
    core = core.replace(finished=finished)
    s, core, complete, given, late = _give_tiles(shape, params, program, s, core, on)
    changed = event.happens | looks | begins | given | (on & ~complete)
    status = jnp.where(overflow, STATUS_TILE_QUEUE, 0) | jnp.where(late, STATUS_REPORTS, 0)
    return s, core, complete, changed, status


class _Event(NamedTuple):
    """What comes next in the tick, bool[L] each, at most one of them."""

    arrives: Array
    reports: Array
    """The core at the cursor."""
    requests: Array
    """It asks in vain."""

    @property
    def happens(self) -> Array:
        return self.arrives | self.reports | self.requests


def _next_event(s: TenantSchedule, core: CoreState, on: Array) -> _Event:
    free = on & (s.scan < 0)
    arrives = settle(free & (s.cursor == 0) & (_cycles_to_arrival(s, core) <= 0))
    asks = (s.cursor & 1) == 1
    reports = settle(free & ~arrives & ~asks & (pick(core.finished, s.cursor >> 1) > 0))
    # Between iterations the cursor stands before a request only when that is an event.
    return _Event(arrives, reports, free & asks)


def _take_event(program: MixTables, s: TenantSchedule, core: CoreState, event: _Event) -> tuple[TenantSchedule, Array]:
    """An arrival, a report, or a request in vain: each makes the scheduler look for layers to start.

    Second result: `CoreState.finished`.
    """
    at, pulls = s.cursor >> 1, event.requests & _is(s, Scheduler.DYNAMIC)
    s, finished = _report(program, s, core, at, event.reports)
    s = _pull(program, s, core, at, pulls)
    s = s.replace(
        arrived=s.arrived + event.arrives,
        scan=jnp.where(event.happens, 0, s.scan),
        # A core that has pulled tiles asks again.
        cursor=s.cursor + (event.reports | (event.requests & ~pulls)),
    )
    return s, finished


def _report(
    program: MixTables, s: TenantSchedule, core: CoreState, at: Array, reports: Array
) -> tuple[TenantSchedule, Array]:
    """The oldest finished tile of core `at` (int32[L]) is reported; the last one of a layer completes it.

    Second result: `CoreState.finished`.
    """
    layers = program.producers.shape[1]
    ring = s.report_layer.shape[1]
    layer = pick(s.report_layer, at, pick(s.report_head, at) & (ring - 1))
    tenant, number = layer // layers, layer % layers
    completes = settle(reports & (pick(s.tiles_left, layer) == 1))
    drops = completes & _is(s, Scheduler.SPATIAL_SPLIT)
    now = jnp.broadcast_to(absolute(core), (2, *layer.shape))
    s = s.replace(
        report_head=add(s.report_head, reports, 1, at),
        tiles_left=add(s.tiles_left, reports, -1, layer),
        layers_left=add(s.layers_left, completes, -1, tenant),
        active=s.active - completes,
        finish=put(s.finish, jnp.broadcast_to(completes, now.shape), now, layer, numbers(2)),
        # The original throws the tenant's queue away, whatever is in it.
        waiting_tiles=put(s.waiting_tiles, drops, 0, tenant),
        queue_count=put(s.queue_count, drops, 0, tenant),
    )
    return _queue_consumers(program, s, tenant, number, completes), add(core.finished, reports, -1, at)


def _pull(program: MixTables, s: TenantSchedule, core: CoreState, at: Array, pulls: Array) -> TenantSchedule:
    """Core `at` (int32[L]), whose queue is empty, takes the next chain of tiles of the foremost tenant that has any."""
    tenants, parts = s.pool_next.shape[0], s.queue_layer.shape[1]
    rank = s.mix.priority * tenants + numbers(tenants)
    foremost = least(jnp.where(s.pool_next < s.pool_end, rank, FAR))
    tenant = settle(jnp.where(foremost == FAR, 0, foremost % tenants))
    first, layer = pick(s.pool_next, tenant), pick(s.pool_layer, tenant)
    end = jnp.minimum(program.chain_end.at[first].get(mode="clip"), pick(s.pool_end, tenant))
    begins = settle(pulls & pick(s.pool_fresh, tenant))
    place = pick(s.queue_head, at) & (parts - 1)
    now = jnp.broadcast_to(absolute(core), (2, *layer.shape))
    return s.replace(
        queue_layer=put(s.queue_layer, pulls, layer, at, place),
        queue_next=put(s.queue_next, pulls, first, at, place),
        queue_end=put(s.queue_end, pulls, end, at, place),
        queue_count=add(s.queue_count, pulls, 1, at),
        waiting_tiles=add(s.waiting_tiles, pulls, end - first, at),
        pool_next=put(s.pool_next, pulls, end, tenant),
        pool_fresh=s.pool_fresh & ~((numbers(tenants) == tenant) & pulls),
        start=put(s.start, jnp.broadcast_to(begins, now.shape), now, layer, numbers(2)),
    )


def _queue_consumers(
    program: MixTables, s: TenantSchedule, tenant: Array, number: Array, completes: Array
) -> TenantSchedule:
    """Layers of `tenant` that waited for layer `number` (int32[L]) and for no other are ready now."""
    _, layers, most = program.consumers.shape
    row = pick(s.mix.program, tenant) * layers + number
    consumers = program.consumers.reshape(-1).at[row * most + numbers(most)].get(mode="clip")
    waits = settle(completes & (consumers >= 0))
    layer = tenant * layers + jnp.maximum(consumers, 0)
    is_ready = settle(waits & (pick(s.producers_left, layer) == 1))
    place = pick(s.ready_end, tenant) + _running_count(is_ready)
    return s.replace(
        producers_left=add(s.producers_left, waits, -1, layer),
        ready=put(s.ready, is_ready, consumers, jnp.broadcast_to(tenant, place.shape), place),
        ready_end=add(s.ready_end, completes, fold(jnp.add, is_ready.astype(jnp.int32), 0), tenant),
    )


def _has_ready(s: TenantSchedule) -> Array:
    """bool[T, L]: the tenant is at hand and has a layer that can start."""
    return at_hand(s) & (s.ready_end > s.ready_first)


def _tenants_of_partitions(s: TenantSchedule) -> Array:
    """int32[W, L]: of each core, the first tenant at hand in its partition; T if there is none."""
    tenants = s.layers_left.shape[0]
    here, first = at_hand(s), jnp.full_like(s.mix.core_partition, tenants)
    for tenant in reversed(range(tenants)):
        mine = here[tenant] & (s.mix.tenant_partition[tenant] == s.mix.core_partition)
        first = jnp.where(mine, tenant, first)
    return first


def _tenant_at(s: TenantSchedule, position: Array) -> Array:
    """int32[..., L]: the tenant at each position (int32[..., L]) among those at hand; 0 beyond the last."""
    here = at_hand(s)
    rank = _running_count(here)
    tenant = jnp.zeros_like(position)
    for index in range(here.shape[0]):
        tenant = jnp.where(here[index] & (rank[index] == position), index, tenant)
    return tenant


def _is_ready(s: TenantSchedule, tenant: Array) -> Array:
    """bool[..., L] of tenants int32[..., L], False where there is none (T)."""
    ready, result = _has_ready(s), jnp.zeros(tenant.shape, bool)
    for index in range(ready.shape[0]):
        result |= (tenant == index) & ready[index]
    return result


def _start_layer(
    program: MixTables, s: TenantSchedule, core: CoreState, on: Array
) -> tuple[TenantSchedule, Array, Array]:
    """Start the first layer that can, from the scan on. Further results: bool[L] one started, a queue is too short."""
    looks = settle(on & (s.scan >= 0))
    partitioned, split = _is(s, Scheduler.PARTITION_CPU), _is(s, Scheduler.SPATIAL_SPLIT)
    no_tiles = s.waiting_tiles == 0
    count = fold(jnp.add, at_hand(s).astype(jnp.int32), 0)

    pooled = _is(s, Scheduler.DYNAMIC)
    idle = looks & ~any_of(~no_tiles) & (count > 0) & ~partitioned & ~split & ~pooled
    turn = jnp.where(idle & _is(s, Scheduler.TIME_MULTIPLEX), (s.turn + 1) % jnp.maximum(count, 1), s.turn)
    simple = _is(s, Scheduler.SIMPLE)
    next_tenant = _tenant_at(s, jnp.where(simple, 0, turn))
    one = idle & _is_ready(s, next_tenant) & (~simple | (s.active == 0))

    of_core, queues = _tenants_of_partitions(s), numbers(s.waiting_tiles.shape[0])
    further = queues >= s.scan
    tenant_of_queue = jnp.where(split | pooled, queues, of_core)
    no_pool = jnp.concatenate([s.pool_next >= s.pool_end, jnp.zeros_like(no_tiles[s.pool_next.shape[0] :])])
    none_waits = jnp.where(pooled, no_pool, no_tiles)
    can = settle(none_waits & further & _is_ready(s, tenant_of_queue) & (partitioned | split | pooled))
    site = _first(can)
    many = looks & (site < can.shape[0])
    site = jnp.minimum(site, can.shape[0] - 1)
    tenant = settle(jnp.where(many, pick(tenant_of_queue, site), next_tenant))
    begins = settle(one | many)
    offset = jnp.where(many & partitioned, pick(s.mix.core_position, site), 0)
    # After a layer the same look goes on behind it; an iteration later, so that it sees what has changed.
    s = s.replace(turn=turn, scan=jnp.where(looks, jnp.where(many, site + 1, -1), s.scan))
    s, overflow = _queue_tiles(program, s, core, tenant, offset, begins)
    return s, begins, overflow


def _queue_tiles(
    program: MixTables, s: TenantSchedule, core: CoreState, tenant: Array, offset: Array, begins: Array
) -> tuple[TenantSchedule, Array]:
    """The next ready layer of `tenant` starts: its lists of tiles go to the queues. Second result: one is too short."""
    _, layers, cores, _ = program.schedule.shape
    queues, parts = s.queue_layer.shape[:2]
    split = _is(s, Scheduler.SPATIAL_SPLIT)
    number = pick(s.ready, tenant, jnp.minimum(pick(s.ready_first, tenant), layers - 1))
    which = pick(s.mix.program, tenant)
    row, layer = which * layers + number, tenant * layers + number
    unbound = program.unbound.reshape(-1).at[row].get(mode="clip") > 0
    lists = jnp.maximum(program.lists.at[which].get(mode="clip"), 1)
    started = s.layers_started + (begins & ~split)
    shift = jnp.where(s.mix.rotates > 0, jnp.where(unbound, s.tiles_rotated + offset, started), 0)
    own = s.mix.core_partition == pick(s.mix.tenant_partition, tenant)
    pooled = _is(s, Scheduler.DYNAMIC)
    single = split | pooled
    takes = jnp.where(single, numbers(queues) == tenant, own)
    number_of_list = jnp.where(single, 0, (s.mix.core_position - shift) % lists)
    place = (row * cores + number_of_list) * 2
    table = program.schedule.reshape(-1)
    first, end = (table.at[place + column].get(mode="clip") for column in range(2))
    count = settle(jnp.where(takes & begins, end - first, 0))
    push = (count > 0) & ~pooled
    tail = (s.queue_head + s.queue_count) & (parts - 1)
    where, queue = push, numbers(queues)
    now = jnp.broadcast_to(absolute(core), (2, *layer.shape))
    starts_now = jnp.broadcast_to(begins & ~single, now.shape)
    tenants = s.pool_next.shape[0]
    fills = (numbers(tenants) == tenant) & begins & pooled
    overflow = any_of(push & (s.queue_count >= parts))
    s = s.replace(
        ready_first=add(s.ready_first, begins, 1, tenant),
        layers_started=started,
        active=s.active + begins,
        tiles_rotated=s.tiles_rotated + jnp.where(begins & unbound & ~split, fold(jnp.add, count, 0), 0),
        queue_layer=put(s.queue_layer, where, jnp.broadcast_to(layer, count.shape), queue, tail),
        queue_next=put(s.queue_next, where, first, queue, tail),
        queue_end=put(s.queue_end, where, end, queue, tail),
        queue_count=s.queue_count + push,
        queue_fresh=s.queue_fresh | (push & split),
        waiting_tiles=s.waiting_tiles + jnp.where(pooled, 0, count),
        pool_layer=jnp.where(fills, layer, s.pool_layer),
        pool_next=jnp.where(fills, first[:tenants], s.pool_next),
        pool_end=jnp.where(fills, end[:tenants], s.pool_end),
        pool_fresh=s.pool_fresh | fills,
        start=put(s.start, starts_now, now, layer, numbers(2)),
    )
    return s, overflow


def _give_tiles(
    shape: NpuShape, params: NpuParams, program: MixTables, s: TenantSchedule, core: CoreState, on: Array
) -> tuple[TenantSchedule, CoreState, Array, Array, Array]:
    """All cores from the cursor to the next event ask. Further results, bool[L]: the tick's last core has asked,
    a core got a tile, a core has more finished tiles than can wait.
    """
    cores = numbers(shape.cores)
    goes = settle(on & (s.scan < 0) & ~((s.cursor == 0) & (_cycles_to_arrival(s, core) <= 0)))
    count = fold(jnp.add, at_hand(s).astype(jnp.int32), 0)
    full = core.resident[:, 0] & core.resident[:, 1]
    asks = settle(goes & (count > 0) & ~full & (2 * cores + 1 >= s.cursor))
    split = _is(s, Scheduler.SPATIAL_SPLIT)
    queue = settle(jnp.where(split, _tenant_at(s, cores % jnp.maximum(count, 1)), cores))
    before = _earlier_on_same(queue, asks)
    gets = settle(asks & (before < pick(s.waiting_tiles, queue)))
    vain = asks & ~gets
    nothing_waits = fold(jnp.add, s.waiting_tiles, 0) - _running_count(gets) == 0
    stop = _place_of_next_event(s, core, cores, gets, vain, nothing_waits)
    reached = settle(2 * cores + 1 < stop)
    gets = settle(gets & reached)
    complete = goes & (stop >= 2 * shape.cores)
    turns = fold(jnp.add, (reached & vain & nothing_waits).astype(jnp.int32), 0)
    s = s.replace(
        cursor=jnp.where(goes, jnp.where(complete, 0, stop), s.cursor),
        turn=_turned(s, turns, count),
    )

    def give() -> tuple[TenantSchedule, CoreState, Array]:
        after, tile, layer = _take(s, core, queue, before, gets)
        return _place(params, program, after, core, tile, layer, gets)

    s, core, late = lax.cond(jnp.any(gets), give, lambda: (s, core, jnp.zeros_like(complete)))
    return s, core, complete, any_of(gets), late


def _earlier_on_same(queue: Array, asks: Array) -> Array:
    """int32[C, L]: of each core, how many cores before it ask for a tile of the same queue."""
    cores = numbers(queue.shape[0])
    same = asks[None] & (queue[None] == queue[:, None]) & (cores[None] < cores[:, None])
    return fold(jnp.add, same.astype(jnp.int32), 1)


def _turned(s: TenantSchedule, times: Array, count: Array) -> Array:
    """Turns pass with every request that finds no tile anywhere, though no layer can start."""
    count = jnp.maximum(count, 1)
    passes = _is(s, Scheduler.TIME_MULTIPLEX) & (times > 0)
    return jnp.where(passes, (s.turn % count + times % count) % count, s.turn)


def _place_of_next_event(
    s: TenantSchedule, core: CoreState, cores: Array, gets: Array, vain: Array, nothing_waits: Array
) -> Array:
    """int32[L]: place in the tick of the first report, or vain request that may make a layer start; 2 C: none."""
    size = cores.shape[0]
    ready = _has_ready(s)
    could_turn = _is(s, Scheduler.TIME_MULTIPLEX) & any_of(ready) & nothing_waits
    # Whether a queue that runs empty in this tick is empty in time is left to the event itself.
    empties = (s.waiting_tiles[:size] - gets) == 0
    could_part = _is(s, Scheduler.PARTITION_CPU) & any_of(empties & _is_ready(s, _tenants_of_partitions(s)[:size]))
    could_pull = _is(s, Scheduler.DYNAMIC) & any_of(s.pool_next < s.pool_end)
    request = jnp.where(vain & (could_turn | could_part | could_pull), 2 * cores + 1, 2 * size)
    report = jnp.where((core.finished > 0) & (2 * cores >= s.cursor), 2 * cores, 2 * size)
    return least(settle(jnp.minimum(request, report)))


def _take(
    s: TenantSchedule, core: CoreState, queue: Array, before: Array, gets: Array
) -> tuple[TenantSchedule, Array, Array]:
    """Tiles int32[C, L] and their layers for the cores that get one; `before` is how many others take before each."""
    queues, parts = s.queue_layer.shape[:2]
    head = s.queue_head & (parts - 1)
    layer_of, next_of, end_of = (pick_row(ring, head) for ring in (s.queue_layer, s.queue_next, s.queue_end))
    split = _is(s, Scheduler.SPATIAL_SPLIT)
    tile = pick(next_of, queue) + jnp.where(split, before, 0)
    layer = pick(layer_of, queue)
    taken = settle(add(jnp.zeros_like(s.queue_head), gets, 1, queue))
    ends = settle((taken > 0) & (next_of + taken >= end_of))
    begins = settle((taken > 0) & s.queue_fresh)
    now = jnp.broadcast_to(absolute(core)[None], (queues, 2, *split.shape))
    row = jnp.broadcast_to(layer_of[:, None], now.shape)
    s = s.replace(
        queue_next=put(s.queue_next, taken > 0, next_of + taken, numbers(queues), head),
        queue_head=s.queue_head + ends,
        queue_count=s.queue_count - ends,
        queue_fresh=s.queue_fresh & ~begins,
        waiting_tiles=s.waiting_tiles - taken,
        start=put(s.start, jnp.broadcast_to(begins[:, None], now.shape), now, row, numbers(2)[None]),
    )
    return s, tile, layer


def _place(
    params: NpuParams, program: MixTables, s: TenantSchedule, core: CoreState, tile: Array, layer: Array, gets: Array
) -> tuple[TenantSchedule, CoreState, Array]:
    """Third result: bool[L], a core has more finished tiles than can wait."""
    none = jnp.zeros_like(s.arrived)
    fields = tile_fields(program, none, tile).at[TileCol.LAYER].set(layer)
    placed = place_tiles(params, core, fields, gets)
    slots = placed.resident & ~core.resident
    s = s.replace(slot_layer=jnp.where(slots, layer[:, None], s.slot_layer))
    without_work = gets & (placed.finished > core.finished)
    s, late = _await_report(s, core.finished, layer, without_work)
    return s, placed, late


def _await_report(s: TenantSchedule, waiting: Array, layer: Array, ends: Array) -> tuple[TenantSchedule, Array]:
    """A tile of `layer` has ended on the cores of `ends`, behind `waiting` others; all [C, L].

    Second result: bool[L], there was no room.
    """
    cores, ring = s.report_layer.shape[:2]
    at = (s.report_head + waiting) & (ring - 1)
    s = s.replace(report_layer=put(s.report_layer, ends, layer, numbers(cores), at))
    return s, any_of(ends & (waiting >= ring))


# --------------------------------------------------------------------------------------------------------------
# Around the cores' tick
# --------------------------------------------------------------------------------------------------------------


def after_tick(s: TenantSchedule, before: CoreState, core: CoreState) -> tuple[TenantSchedule, Array]:
    """Note the tiles that ended in the cores' tick. Second result: status."""
    gone = before.resident & ~core.resident
    layer = jnp.where(gone[:, 0], s.slot_layer[:, 0], s.slot_layer[:, 1])
    s, late = _await_report(s, before.finished, layer, settle(gone[:, 0] | gone[:, 1]))
    return s, jnp.where(late, STATUS_REPORTS, 0)


def skip(s: TenantSchedule, core: CoreState, ticks: Array) -> TenantSchedule:
    """Ticks (int32[L]) go by in which cores ask in vain and nothing starts: only turns pass."""
    full = core.resident[:, 0] & core.resident[:, 1]
    count = fold(jnp.add, at_hand(s).astype(jnp.int32), 0)
    vain = fold(jnp.add, (~full).astype(jnp.int32), 0)
    passes = (ticks > 0) & ~any_of(s.waiting_tiles > 0) & (vain > 0) & (count > 0)
    some = jnp.maximum(count, 1)
    times = vain % some * (ticks % some)
    return s.replace(turn=_turned(s, jnp.where(passes, times + some, 0), count))
