"""Scheduling of mixes, as `vsim.npu.tenants` has it. Functions of the same name are the same rule.

h, k: the schedule and the cores of the lane's state.
"""

from __future__ import annotations

from typing import Any

from lowering.mix import Scheduler
from vsim.npu.fields import FAR
from vsim.npu.kernel.dispatch import cycles_until, place_tile, write_time
from vsim.npu.kernel.jit import part, rare
from vsim.npu.types import STATUS_REPORTS, STATUS_TILE_QUEUE

SIMPLE, TIME_MULTIPLEX = Scheduler.SIMPLE.code, Scheduler.TIME_MULTIPLEX.code
PARTITION_CPU, SPATIAL_SPLIT = Scheduler.PARTITION_CPU.code, Scheduler.SPATIAL_SPLIT.code
DYNAMIC = Scheduler.DYNAMIC.code


@part
def at_hand(h: Any, tenant: int) -> bool:
    """The tenant has arrived and is not done."""
    return tenant < h.arrived and h.layers_left[tenant] > 0


@part
def count_at_hand(h: Any) -> int:
    count = 0
    for tenant in range(h.arrived):
        count += h.layers_left[tenant] > 0
    return count


@part
def is_done(h: Any) -> bool:
    """Every tenant has arrived and is done, and the lane is between ticks."""
    return not is_expecting(h) and h.cursor == 0 and h.scan < 0 and count_at_hand(h) == 0


@part
def is_expecting(h: Any) -> bool:
    """A tenant has yet to arrive."""
    return h.arrived < h.mix.count


@part
def cycles_to_arrival(h: Any, k: Any) -> int:
    """Core cycles until the next tenant arrives, at most FAR; <= 0 when it does in this tick."""
    return cycles_until(k, h.mix.arrival[h.arrived]) if is_expecting(h) else FAR


@part
def arrives(h: Any, k: Any) -> bool:
    return h.cursor == 0 and cycles_to_arrival(h, k) <= 0


@part
def next_arrival(h: Any, k: Any) -> int:
    return k.now + min(cycles_to_arrival(h, k), FAR - k.now)


# --------------------------------------------------------------------------------------------------------------
# A part of a tick
# --------------------------------------------------------------------------------------------------------------


@part
def dispatch(p: Any, t: Any, a: Any, s: Any) -> tuple[bool, bool]:
    """Take the next event of the tick, then give tiles to all cores up to the one after it. a: `lane.Asks`.

    Returns whether all cores have asked, and whether anything changed.
    """
    h = s.schedule
    take_event(t, h, s.core)
    looks = h.scan >= 0
    if looks:
        start_layer(t, s)
    complete, given = give_tiles(p, t, a, s)
    return complete, looks or given or not complete


@part
def take_event(t: Any, h: Any, k: Any) -> None:
    """An arrival, a report, or a request in vain: each makes the scheduler look for layers to start."""
    if h.scan >= 0:
        return
    at = h.cursor >> 1
    if arrives(h, k):
        h.arrived += 1
        h.scan = 0
    elif h.cursor & 1 == 1:
        # Between iterations the cursor stands before a request only when that is an event.
        h.scan = 0
        if h.mix.scheduler == DYNAMIC:
            # A core that has pulled tiles asks again.
            pull(t, h, k, at)
        else:
            h.cursor += 1
    elif k.finished[at] > 0:
        report(t, h, k, at)
        h.scan = 0
        h.cursor += 1


@rare
def report(t: Any, h: Any, k: Any, c: int) -> None:
    """The oldest finished tile of core c is reported; the last one of a layer completes it."""
    layers = t.schedule.shape[1]
    layer = h.report_layer[c, h.report_head[c] & (h.report_layer.shape[1] - 1)]
    tenant = layer // layers
    h.report_head[c] += 1
    k.finished[c] -= 1
    h.tiles_left[layer] -= 1
    if h.tiles_left[layer] != 0:
        return
    h.layers_left[tenant] -= 1
    h.active -= 1
    write_time(h.finish, layer, k)
    if h.mix.scheduler == SPATIAL_SPLIT:
        # The original throws the tenant's queue away, whatever is in it.
        h.waiting_tiles[tenant] = 0
        h.queue_count[tenant] = 0
    queue_consumers(t, h, tenant, layer % layers)


@part
def queue_consumers(t: Any, h: Any, tenant: int, number: int) -> None:
    """Layers of the tenant that waited for this layer and for no other are ready now."""
    first = tenant * t.schedule.shape[1]
    which = h.mix.program[tenant]
    for index in range(t.consumers.shape[2]):
        consumer = t.consumers[which, number, index]
        if consumer < 0:
            continue
        h.producers_left[first + consumer] -= 1
        if h.producers_left[first + consumer] == 0:
            h.ready[tenant, h.ready_end[tenant]] = consumer
            h.ready_end[tenant] += 1


@rare
def pull(t: Any, h: Any, k: Any, c: int) -> None:
    """Core c, whose queue is empty, takes the next chain of tiles of the foremost tenant that has any."""
    tenants, parts = h.pool_next.size, h.queue_layer.shape[1]
    foremost = FAR
    for tenant in range(tenants):
        if h.pool_next[tenant] < h.pool_end[tenant]:
            foremost = min(foremost, h.mix.priority[tenant] * tenants + tenant)
    tenant = foremost % tenants
    first, layer = h.pool_next[tenant], h.pool_layer[tenant]
    end = min(t.chain_end[first], h.pool_end[tenant])
    place = h.queue_head[c] & (parts - 1)
    h.queue_layer[c, place] = layer
    h.queue_next[c, place] = first
    h.queue_end[c, place] = end
    h.queue_count[c] += 1
    h.waiting_tiles[c] += end - first
    h.pool_next[tenant] = end
    if h.pool_fresh[tenant]:
        h.pool_fresh[tenant] = False
        write_time(h.start, layer, k)


@part
def has_ready(h: Any, tenant: int) -> bool:
    """The tenant is at hand and has a layer that can start."""
    return at_hand(h, tenant) and h.ready_end[tenant] > h.ready_first[tenant]


@part
def is_ready(h: Any, tenant: int) -> bool:
    """The same, of a tenant that may not exist."""
    return tenant < h.arrived and has_ready(h, tenant)


@part
def tenant_of_partition(h: Any, core: int) -> int:
    """The first tenant at hand in a core's partition; as many as there can be if there is none."""
    for tenant in range(h.arrived):
        if at_hand(h, tenant) and h.mix.tenant_partition[tenant] == h.mix.core_partition[core]:
            return tenant
    return h.layers_left.size


@part
def tenant_at(h: Any, position: int) -> int:
    """The tenant at a position among those at hand; 0 beyond the last."""
    for tenant in range(h.arrived):
        if at_hand(h, tenant):
            if position == 0:
                return tenant
            position -= 1
    return 0


@part
def no_tile_waits(h: Any) -> bool:
    for queue in range(h.waiting_tiles.size):
        if h.waiting_tiles[queue] != 0:
            return False
    return True


@rare
def start_layer(t: Any, s: Any) -> None:
    """Start the first layer that can, from the scan on."""
    h = s.schedule
    scheduler = h.mix.scheduler
    if scheduler in (SIMPLE, TIME_MULTIPLEX):
        h.scan = -1
        start_in_turn(t, s)
        return
    for site in range(h.scan, h.waiting_tiles.size):
        tenant = tenant_that_starts_at(h, site)
        if is_ready(h, tenant):
            # The same look goes on behind it, an iteration later, so that it sees what has changed.
            h.scan = site + 1
            queue_tiles(t, s, tenant, h.mix.core_position[site] if scheduler == PARTITION_CPU else 0)
            return
    h.scan = -1


@part
def start_in_turn(t: Any, s: Any) -> None:
    """When no tile waits (SIMPLE: and no layer is active), the next layer starts of the first tenant, or of the one
    whose turn it is.
    """
    h = s.schedule
    count, simple = count_at_hand(h), h.mix.scheduler == SIMPLE
    if count == 0 or not no_tile_waits(h):
        return
    if not simple:
        h.turn = (h.turn + 1) % count
    tenant = tenant_at(h, 0 if simple else h.turn)
    if is_ready(h, tenant) and (not simple or h.active == 0):
        queue_tiles(t, s, tenant, 0)


@part
def tenant_that_starts_at(h: Any, site: int) -> int:
    """Whose layer could start at a core, or as a tenant, that has no tiles; as many as there can be: nobody's."""
    nobody = h.layers_left.size
    if h.mix.scheduler == DYNAMIC:
        return site if site < nobody and h.pool_next[site] >= h.pool_end[site] else nobody
    if h.waiting_tiles[site] != 0:
        return nobody
    return site if h.mix.scheduler == SPATIAL_SPLIT else tenant_of_partition(h, site)


@rare
def queue_tiles(t: Any, s: Any, tenant: int, offset: int) -> None:
    """The next ready layer of a tenant starts: its lists of tiles go to the queues."""
    h = s.schedule
    split, pooled = h.mix.scheduler == SPATIAL_SPLIT, h.mix.scheduler == DYNAMIC
    which, number = h.mix.program[tenant], h.ready[tenant, h.ready_first[tenant]]
    layer, unbound = tenant * t.schedule.shape[1] + number, t.unbound[which, number] > 0
    if not split:
        h.layers_started += 1
    shift = 0
    if h.mix.rotates > 0:
        shift = h.tiles_rotated + offset if unbound else h.layers_started
    lists, tiles = max(t.lists[which], 1), 0
    for queue in range(h.waiting_tiles.size):
        takes, of_list = queue == tenant, 0
        if not (split or pooled):
            takes = h.mix.core_partition[queue] == h.mix.tenant_partition[tenant]
            of_list = (h.mix.core_position[queue] - shift) % lists
        if not takes:
            continue
        first, end = t.schedule[which, number, of_list, 0], t.schedule[which, number, of_list, 1]
        tiles += max(end - first, 0)
        if pooled:
            h.pool_next[tenant] = first
            h.pool_end[tenant] = end
        elif end > first:
            append(s, queue, layer, first, end)
    h.ready_first[tenant] += 1
    h.active += 1
    if unbound and not split:
        h.tiles_rotated += tiles
    if pooled:
        h.pool_layer[tenant] = layer
        h.pool_fresh[tenant] = True
    if not (split or pooled):
        write_time(h.start, layer, s.core)


@part
def append(s: Any, queue: int, layer: int, first: int, end: int) -> None:
    """A part of a layer waits behind the others of a queue."""
    h, parts = s.schedule, s.schedule.queue_layer.shape[1]
    if h.queue_count[queue] >= parts:
        s.status |= STATUS_TILE_QUEUE
    tail = (h.queue_head[queue] + h.queue_count[queue]) & (parts - 1)
    h.queue_layer[queue, tail] = layer
    h.queue_next[queue, tail] = first
    h.queue_end[queue, tail] = end
    h.queue_count[queue] += 1
    h.waiting_tiles[queue] += end - first
    if h.mix.scheduler == SPATIAL_SPLIT:
        h.queue_fresh[queue] = True


@part
def give_tiles(p: Any, t: Any, a: Any, s: Any) -> tuple[bool, bool]:
    """All cores from the cursor to the next event ask. Returns whether the tick's last core has asked, and whether a
    core got a tile.
    """
    h, k = s.schedule, s.core
    if h.scan >= 0 or arrives(h, k):
        return False, False
    cores, count = k.front.size, count_at_hand(h)
    vain, waiting = ask(h, k, a, count)
    vain_starts = vain and could_start(h, a)
    in_turn = h.mix.scheduler == TIME_MULTIPLEX
    given, turns, stop = False, 0, 2 * cores
    for c in range(cores):
        if k.finished[c] > 0 and 2 * c >= h.cursor:
            stop = 2 * c
            break
        if a.gets[c] > 0:
            give(p, t, s, c, a.queue[c])
            given = True
            waiting -= 1
        elif a.asks[c] > 0:
            if vain_starts and (waiting == 0 or not in_turn):
                stop = 2 * c + 1
                break
            turns += waiting == 0
    h.cursor = stop if stop < 2 * cores else 0
    pass_turns(h, turns, count)
    return stop >= 2 * cores, given


@part
def ask(h: Any, k: Any, a: Any, count: int) -> tuple[bool, int]:
    """Which cores ask for a tile of which queue, and who gets one. Returns whether a core asks in vain, and how many
    tiles wait.
    """
    split, vain, waiting = h.mix.scheduler == SPATIAL_SPLIT, False, 0
    for queue in range(h.waiting_tiles.size):
        waiting += h.waiting_tiles[queue]
    for c in range(k.front.size):
        asks = count > 0 and 2 * c + 1 >= h.cursor and not (k.resident[c, 0] and k.resident[c, 1])
        queue, before = c, 0
        if split and asks:
            queue = tenant_at(h, c % count)
            for other in range(c):
                before += a.asks[other] > 0 and a.queue[other] == queue
        gets = asks and before < h.waiting_tiles[queue]
        a.queue[c] = queue
        a.asks[c] = asks
        a.gets[c] = gets
        vain = vain or (asks and not gets)
    return vain, waiting


@rare
def could_start(h: Any, a: Any) -> bool:
    """A request in vain may make a layer start, or pull tiles (TIME_MULTIPLEX: if no tile waits anywhere)."""
    scheduler = h.mix.scheduler
    if scheduler == TIME_MULTIPLEX:
        for tenant in range(h.arrived):
            if has_ready(h, tenant):
                return True
    elif scheduler == PARTITION_CPU:
        # Whether a queue that runs empty in this tick is empty in time is left to the event itself.
        for c in range(a.gets.size):
            if h.waiting_tiles[c] == a.gets[c] and is_ready(h, tenant_of_partition(h, c)):
                return True
    elif scheduler == DYNAMIC:
        for tenant in range(h.pool_next.size):
            if h.pool_next[tenant] < h.pool_end[tenant]:
                return True
    return False


@part
def pass_turns(h: Any, times: int, count: int) -> None:
    """Turns pass with every request that finds no tile anywhere, though no layer can start."""
    if h.mix.scheduler == TIME_MULTIPLEX and times > 0:
        some = max(count, 1)
        h.turn = (h.turn % some + times % some) % some


@rare
def give(p: Any, t: Any, s: Any, c: int, queue: int) -> None:
    """Core c takes the next tile of a queue."""
    h, k = s.schedule, s.core
    head = h.queue_head[queue] & (h.queue_layer.shape[1] - 1)
    layer, tile = h.queue_layer[queue, head], h.queue_next[queue, head]
    h.queue_next[queue, head] = tile + 1
    h.waiting_tiles[queue] -= 1
    if tile + 1 >= h.queue_end[queue, head]:
        h.queue_head[queue] += 1
        h.queue_count[queue] -= 1
    if h.queue_fresh[queue]:
        h.queue_fresh[queue] = False
        write_time(h.start, layer, k)
    waiting = k.finished[c]
    slot = place_tile(p, t, k, c, tile, layer)
    if slot >= 0:
        h.slot_layer[c, slot] = layer
    else:
        await_report(s, c, waiting, layer)


@part
def await_report(s: Any, c: int, waiting: int, layer: int) -> None:
    """A tile of a layer has ended on core c, behind `waiting` others."""
    h, ring = s.schedule, s.schedule.report_layer.shape[1]
    h.report_layer[c, (h.report_head[c] + waiting) & (ring - 1)] = layer
    if waiting >= ring:
        s.status |= STATUS_REPORTS


# --------------------------------------------------------------------------------------------------------------
# Around the cores' tick
# --------------------------------------------------------------------------------------------------------------


@part
def skip(h: Any, k: Any, ticks: int) -> None:
    """Ticks go by in which cores ask in vain and nothing starts: only turns pass."""
    vain, count = 0, count_at_hand(h)
    for c in range(k.front.size):
        vain += not (k.resident[c, 0] and k.resident[c, 1])
    if ticks > 0 and vain > 0 and count > 0 and no_tile_waits(h):
        pass_turns(h, vain % count * (ticks % count) + count, count)
