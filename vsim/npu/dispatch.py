"""Dispatch of tiles to cores: ONNXim's `simple` scheduler, one layer at a time (spec onnxim.md sections 1 and 9.2).

In a core tick, cores report and ask in the order of their number: the core whose report completes a layer, and the
cores after it, see the next layer's tiles in the same tick; the cores before it one tick later.
The last axis of every array is the lane.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from lowering.program import TileCol
from vsim.npu.fields import FAR, add, any_of, fold, numbers, one_hot, pick_row, put, settle
from vsim.npu.types import CoreState, NpuParams, ProgramTables, ScheduleState

RADIX_BITS = 30
RADIX_MASK = (1 << RADIX_BITS) - 1


def start(program: ProgramTables, which: Array, layers: int) -> ScheduleState:
    """The first layer is ready before the first tick, unless it is a launch."""
    first, end = _ranges(program, which, jnp.zeros_like(which))
    waiting = _release(program, which, jnp.zeros_like(which)) > 0
    lanes = which.size
    return ScheduleState(
        layer=jnp.zeros(lanes, jnp.int32),
        waiting=waiting,
        tiles_left=jnp.where(waiting, 0, jnp.sum(end - first, axis=0)),
        next_tile=first,
        start=jnp.zeros((layers, 2, lanes), jnp.int32),
        finish=jnp.zeros((layers, 2, lanes), jnp.int32),
        load_requests=jnp.zeros((layers, lanes), jnp.int32),
        store_requests=jnp.zeros((layers, lanes), jnp.int32),
    )


def _ranges(program: ProgramTables, which: Array, layer: Array) -> tuple[Array, Array]:
    """First tile and end of every core's list in a layer (int32[L]), int32[C, L] each."""
    _, layers, cores, _ = program.schedule.shape
    row = ((which * layers + layer) * cores + numbers(cores)) * 2
    table = program.schedule.reshape(-1)
    return table.at[row].get(mode="clip"), table.at[row + 1].get(mode="clip")


def _release(program: ProgramTables, which: Array, layer: Array) -> Array:
    """int32[L]: 0, or 1 + the first core cycle at which the layer (int32[L]) may start."""
    _, layers = program.releases.shape
    return program.releases.reshape(-1).at[which * layers + layer].get(mode="clip")


def _cycles_to_launch(program: ProgramTables, which: Array, s: ScheduleState, core: CoreState) -> Array:
    """int32[L]: core cycles until a waiting layer may start, at most FAR; <= 0 when it may."""
    release = _release(program, which, s.layer) - 1
    high, low = absolute(core)
    high, low = (release >> RADIX_BITS) - high, (release & RADIX_MASK) - low
    # |low| < 2**30: within one step of the high word the sum fits int32.
    near = jnp.where(high > 0, 1, jnp.where(high < 0, -1, 0)) * (1 << RADIX_BITS)
    return jnp.where(high > 1, FAR, jnp.minimum(near + low, FAR))


def next_launch(program: ProgramTables, which: Array, s: ScheduleState, core: CoreState) -> Array:
    """int32[L]: core tick, in the count of `core.now`, at which a waiting layer starts; FAR when none waits."""
    wait = jnp.minimum(_cycles_to_launch(program, which, s, core), FAR - core.now)
    return jnp.where(s.waiting, core.now + wait, FAR)


def dispatch(
    params: NpuParams, program: ProgramTables, which: Array, s: ScheduleState, core: CoreState, on: Array
) -> tuple[ScheduleState, CoreState, Array]:
    """Report at most one finished tile per core, then place at most one per core. Third result: changed, bool[L]."""
    report = settle(on & (core.finished > 0) & ~_awaits_stores(params, s, core))
    core = core.replace(finished=core.finished - report)
    reported = _running_count(report)
    layer_done = settle((s.tiles_left > 0) & (reported[-1] >= s.tiles_left) & on)
    sees_next = layer_done & (reported >= s.tiles_left)

    layers = program.layer_count.at[which].get(mode="clip")
    _, old_end = _ranges(program, which, jnp.minimum(s.layer, layers - 1))
    following = jnp.where(s.waiting, s.layer, s.layer + 1)
    has_next = following < layers
    next_first, next_end = _ranges(program, which, jnp.minimum(following, layers - 1))
    launches = settle(on & s.waiting & (_cycles_to_launch(program, which, s, core) <= 0))
    holds = layer_done & has_next & (_release(program, which, following) > 0)
    begins = launches | (layer_done & has_next & ~holds)

    next_tile = settle(jnp.where(begins, next_first, s.next_tile))
    end = jnp.where(begins, next_end, old_end)
    may_ask = jnp.where(layer_done, sees_next & begins, launches | ((s.layer < layers) & ~s.waiting))
    full = core.resident[:, 0] & core.resident[:, 1]
    asks = settle(on & may_ask & ~full & (next_tile < end))
    core = place_tiles(params, core, tile_fields(program, which, next_tile), asks)
    now = absolute(core)
    s = s.replace(
        layer=s.layer + layer_done,
        waiting=(s.waiting & ~launches) | holds,
        tiles_left=jnp.where(begins, jnp.sum(next_end - next_first, axis=0), s.tiles_left - reported[-1]),
        next_tile=next_tile + asks,
        finish=_record(s.finish, s.layer, now, layer_done),
        start=_record(s.start, following, now, begins),
    )
    return s, core, any_of(report | asks) | launches


def _awaits_stores(params: NpuParams, s: ScheduleState, core: CoreState) -> Array:
    """bool[L]: the reports of this tick would end the layer, but it has stores under way, and stores are strict."""
    ends = fold(jnp.add, (core.finished > 0).astype(jnp.int32), 0) >= s.tiles_left
    return (params.strict_stores > 0) & ends & any_of(core.unacknowledged > 0)


def _running_count(flags: Array) -> Array:
    """int32[C, L]: how many of the cores up to each have the flag."""
    counts = [flags[0].astype(jnp.int32)]
    for core in range(1, flags.shape[0]):
        counts.append(counts[-1] + flags[core])
    return settle(jnp.stack(counts))


def count_traffic(s: ScheduleState, loads: Array, stores: Array) -> ScheduleState:
    """Count requests (int32[L]) for the layer at work: no tile of the next layer starts before all of this one end."""
    return s.replace(
        load_requests=add(s.load_requests, loads > 0, loads, s.layer),
        store_requests=add(s.store_requests, stores > 0, stores, s.layer),
    )


def absolute(core: CoreState) -> Array:
    """int32[2, L]: the core cycle as (high, low) words in radix 2**30."""
    low = core.base_low + core.now
    return jnp.stack([core.base_high + (low >> RADIX_BITS), low & RADIX_MASK])


def _record(table: Array, index: Array, value: Array, when: Array) -> Array:
    """Write a cycle (int32[2, L]) as the row `index` of a table int32[layers, 2, L]."""
    return put(table, jnp.broadcast_to(when, value.shape), value, index, numbers(2))


def tile_fields(program: ProgramTables, which: Array, tile: Array) -> Array:
    """int32[TILE_COLUMNS, C, L] of the tiles int32[C, L]; which: int32[L]."""
    programs, tiles, columns = program.tiles.shape
    row = (which * tiles + tile) * columns + numbers(columns, 2)
    return settle(program.tiles.reshape(programs * tiles * columns).at[row].get(mode="clip"))


def place_tiles(params: NpuParams, s: CoreState, fields: Array, place: Array) -> CoreState:
    """Put tiles (int32[TILE_COLUMNS, C, L]) into the free slots and choose their halves of the double buffers.

    See spec section 2.3. A tile without instructions clears its halves and counts as finished at once.
    """
    first, end = fields[TileCol.FIRST_ROW], fields[TileCol.END_ROW]
    occupied = jnp.any(s.resident, axis=1)
    partner = jnp.where(s.resident[:, 0], 0, 1)
    partner_spad = jnp.where(occupied, pick_row(s.spad_half, partner), 0)
    partner_acc = jnp.where(occupied, pick_row(s.acc_half, partner), 0)
    kept_acc = jnp.where(params.ordered_chains > 0, s.previous_acc, partner_acc)
    continues = (
        (fields[TileCol.ACCUMULATE] > 0)
        & (fields[TileCol.LAYER] == s.previous_layer)
        & (fields[TileCol.ACC_KEY] == s.previous_key)
    )
    spad_half = 1 - partner_spad
    acc_half = settle(jnp.where(continues, kept_acc, 1 - partner_acc))

    spad_clears = jnp.where(place, 1 << spad_half, 0)
    acc_clears = jnp.where(place & ~continues, 4 << acc_half, 0)
    works = place & (end > first)
    slot = jnp.where(occupied, 1 - partner, 0)
    here = one_hot(jnp.where(works, slot, -1), 2)

    def to_slot(values: Array, value: Array) -> Array:
        return jnp.where(here, value[:, None], values)

    return s.replace(
        remaining=_clear(s.remaining, spad_clears | acc_clears),
        resident=s.resident | here,
        front=jnp.where(works & ~occupied, slot, s.front),
        row=to_slot(s.row, first),
        end_row=to_slot(s.end_row, end),
        loop=tuple(jnp.where(here, 0, loop) for loop in s.loop),
        spad_half=to_slot(s.spad_half, spad_half),
        acc_half=to_slot(s.acc_half, acc_half),
        streaming=s.streaming & ~here,
        last_done=s.last_done & ~here,
        previous_acc=jnp.where(place, acc_half, s.previous_acc),
        previous_layer=jnp.where(place, fields[TileCol.LAYER], s.previous_layer),
        previous_key=jnp.where(place, fields[TileCol.ACC_KEY], s.previous_key),
        finished=s.finished + (place & ~works),
    )


def _clear(remaining: Array, halves: Array) -> Array:
    """Unallocate the entries of the halves whose bit is set in int32[C, L]: rare, so only in a batch that has any."""

    def clear(remaining: Array) -> Array:
        cores, entries, lanes = remaining.shape
        bits = (halves[:, None] >> numbers(4)) & 1
        cleared = jnp.where(bits[:, :, None] == 1, -1, remaining.reshape(cores, 4, entries // 4, lanes))
        return cleared.reshape(remaining.shape)

    return lax.cond(jnp.any(halves != 0), clear, lambda remaining: remaining, remaining)
