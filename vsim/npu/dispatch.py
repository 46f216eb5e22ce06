"""Dispatch of tiles to cores: ONNXim's `simple` scheduler, one layer at a time (spec onnxim.md sections 1 and 9.2).

In a core tick, cores report and ask in the order of their number: the core whose report completes a layer, and the
cores after it, see the next layer's tiles in the same tick; the cores before it one tick later.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lowering.program import TileCol
from vsim.npu.fields import one_hot, pick, settle
from vsim.npu.types import CoreState, NpuParams, ProgramTables, ScheduleState

RADIX_BITS = 30
RADIX_MASK = (1 << RADIX_BITS) - 1


def start(program: ProgramTables, which: Array, layers: int) -> ScheduleState:
    """The first layer is ready before the first tick."""
    ranges = program.schedule[which, 0]
    return ScheduleState(
        layer=jnp.int32(0),
        tiles_left=jnp.sum(ranges[:, 1] - ranges[:, 0]),
        next_tile=ranges[:, 0],
        start=jnp.zeros((layers, 2), jnp.int32),
        finish=jnp.zeros((layers, 2), jnp.int32),
        load_requests=jnp.zeros(layers, jnp.int32),
        store_requests=jnp.zeros(layers, jnp.int32),
    )


def dispatch(
    params: NpuParams, program: ProgramTables, which: Array, s: ScheduleState, core: CoreState, on: Array
) -> tuple[ScheduleState, CoreState, Array]:
    """Report at most one finished tile per core, then place at most one per core. Third result: changed, bool[]."""
    report = on & (core.finished > 0)
    core = core.replace(finished=core.finished - report)
    reported = jnp.cumsum(report.astype(jnp.int32))
    layer_done = (s.tiles_left > 0) & (reported[-1] >= s.tiles_left) & on
    sees_next = layer_done & (reported >= s.tiles_left)

    layers = program.layer_count[which]
    old_range_end = program.schedule[which, jnp.minimum(s.layer, layers - 1), :, 1]
    following = s.layer + 1
    has_next = following < layers
    next_range = program.schedule[which, jnp.minimum(following, layers - 1)]
    begins = layer_done & has_next

    next_tile = jnp.where(begins, next_range[:, 0], s.next_tile)
    end = jnp.where(begins, next_range[:, 1], old_range_end)
    may_ask = jnp.where(layer_done, sees_next & has_next, s.layer < layers)
    asks = on & may_ask & ~jnp.all(core.resident, axis=1) & (next_tile < end)
    core = _place(params, program, which, core, next_tile, asks)
    now = absolute(core)
    s = s.replace(
        layer=s.layer + layer_done,
        tiles_left=jnp.where(begins, jnp.sum(next_range[:, 1] - next_range[:, 0]), s.tiles_left - reported[-1]),
        next_tile=next_tile + asks,
        finish=_record(s.finish, s.layer, now, layer_done),
        start=_record(s.start, following, now, begins),
    )
    return s, core, jnp.any(report | asks)


def count_traffic(s: ScheduleState, loads: Array, stores: Array) -> ScheduleState:
    """Count requests (int32[]) for the layer at work: no tile of the next layer starts before all of this one end."""
    return s.replace(
        load_requests=s.load_requests.at[s.layer].add(loads, mode="drop"),
        store_requests=s.store_requests.at[s.layer].add(stores, mode="drop"),
    )


def absolute(core: CoreState) -> Array:
    """int32[2]: the core cycle as (high, low) words in radix 2**30."""
    low = core.base_low + core.now
    return jnp.stack([core.base_high + (low >> RADIX_BITS), low & RADIX_MASK])


def _record(table: Array, index: Array, value: Array, when: Array) -> Array:
    return table.at[jnp.where(when, index, table.shape[0])].set(value, mode="drop")


def _place(
    params: NpuParams, program: ProgramTables, which: Array, s: CoreState, tile: Array, place: Array
) -> CoreState:
    """Put a tile into the free slot and choose its halves of the double buffers (spec section 2.3).

    A tile without instructions clears its halves and counts as finished at once.
    """
    fields = program.tiles[which, tile]
    first, end = fields[:, TileCol.FIRST_ROW], fields[:, TileCol.END_ROW]
    occupied = jnp.any(s.resident, axis=1)
    partner = jnp.where(s.resident[:, 0], 0, 1)
    partner_spad = jnp.where(occupied, pick(s.spad_half, partner), 0)
    partner_acc = jnp.where(occupied, pick(s.acc_half, partner), 0)
    kept_acc = jnp.where(params.ordered_chains > 0, s.previous_acc, partner_acc)
    continues = (
        (fields[:, TileCol.ACCUMULATE] > 0)
        & (fields[:, TileCol.LAYER] == s.previous_layer)
        & (fields[:, TileCol.ACC_KEY] == s.previous_key)
    )
    spad_half = 1 - partner_spad
    acc_half = jnp.where(continues, kept_acc, 1 - partner_acc)

    # One settled word per core says what to clear: XLA would else redo this choice for every entry.
    spad_clears = jnp.where(place, 1 << spad_half, 0)
    acc_clears = jnp.where(place & ~continues, 4 << acc_half, 0)
    cleared = settle(spad_clears | acc_clears)
    clears = (cleared[:, None] >> jnp.arange(4)) & 1 == 1
    works = place & (end > first)
    slot = jnp.where(occupied, 1 - partner, 0)
    here = one_hot(jnp.where(works, slot, -1), 2)

    def put(values: Array, value: Array) -> Array:
        return jnp.where(here, value[:, None], values)

    return s.replace(
        remaining=jnp.where(clears[:, :, None], -1, s.remaining),
        resident=s.resident | here,
        front=jnp.where(works & ~occupied, slot, s.front),
        row=put(s.row, first),
        end_row=put(s.end_row, end),
        loop=jnp.where(here[:, :, None], 0, s.loop),
        spad_half=put(s.spad_half, spad_half),
        acc_half=put(s.acc_half, acc_half),
        streaming=s.streaming & ~here,
        last_done=s.last_done & ~here,
        previous_acc=jnp.where(place, acc_half, s.previous_acc),
        previous_layer=jnp.where(place, fields[:, TileCol.LAYER], s.previous_layer),
        previous_key=jnp.where(place, fields[:, TileCol.ACC_KEY], s.previous_key),
        finished=s.finished + (place & ~works),
    )
