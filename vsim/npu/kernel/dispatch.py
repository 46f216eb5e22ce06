"""Dispatch of tiles to cores, as `vsim.npu.dispatch` has it. Functions of the same name are the same rule."""

from __future__ import annotations

from typing import Any

from lowering.program import TileCol
from vsim.npu.dispatch import RADIX_BITS, RADIX_MASK
from vsim.npu.fields import FAR
from vsim.npu.kernel.jit import part, rare

FIRST_ROW, END_ROW, LAYER = int(TileCol.FIRST_ROW), int(TileCol.END_ROW), int(TileCol.LAYER)
ACCUMULATE, ACC_KEY = int(TileCol.ACCUMULATE), int(TileCol.ACC_KEY)


@part
def absolute(k: Any) -> tuple[int, int]:
    """The core cycle as (high, low) words in radix 2**30."""
    low = k.base_low + k.now
    return k.base_high + (low >> RADIX_BITS), low & RADIX_MASK


@part
def write_time(times: Any, layer: int, k: Any) -> None:
    """Note the present as the start or finish of a layer."""
    high, low = absolute(k)
    times[layer, 0] = high
    times[layer, 1] = low


@rare
def cycles_until(k: Any, cycle: int) -> int:
    """Core cycles until the one of this number, at most FAR; <= 0 when it has come."""
    high, low = absolute(k)
    high, low = (cycle >> RADIX_BITS) - high, (cycle & RADIX_MASK) - low
    if high > 1:
        return FAR
    near = 1 << RADIX_BITS if high > 0 else (-(1 << RADIX_BITS) if high < 0 else 0)
    return min(near + low, FAR)


@part
def cycles_to_launch(t: Any, k: Any, layer: int) -> int:
    """Core cycles until the waiting layer may start, at most FAR; <= 0 when it may."""
    return cycles_until(k, t.releases[layer] - 1)


@rare
def next_launch(t: Any, h: Any, k: Any) -> int:
    if not h.waiting:
        return FAR
    return k.now + min(cycles_to_launch(t, k, h.layer), FAR - k.now)


@part
def awaits_stores(p: Any, h: Any, k: Any) -> bool:
    """The reports of this tick would end the layer, but it has stores under way, and stores are strict."""
    if p.strict_stores == 0:
        return False
    reports, stores = 0, False
    for c in range(k.finished.size):
        reports += k.finished[c] > 0
        stores = stores or k.unacknowledged[c] > 0
    return stores and reports >= h.tiles_left


@part
def dispatch(z: Any, p: Any, t: Any, s: Any) -> bool:
    """Report at most one finished tile per core, then place at most one per core. Returns whether anything changed."""
    h, k = s.schedule, s.core
    awaits = awaits_stores(p, h, k)
    reports = 0
    for c in range(z.cores):
        reports += k.finished[c] > 0 and not awaits
    layer, left = h.layer, h.tiles_left
    layer_done = left > 0 and reports >= left
    following = layer if h.waiting else layer + 1
    launches = h.waiting and cycles_to_launch(t, k, layer) <= 0
    holds = layer_done and following < t.layer_count and t.releases[following] > 0
    begins = launches or (layer_done and following < t.layer_count and not holds)
    may_ask = launches or (layer < t.layer_count and not h.waiting)
    listed = min(following if begins else layer, t.layer_count - 1)

    reported, changed, total = 0, launches, 0
    for c in range(z.cores):
        if k.finished[c] > 0 and not awaits:
            k.finished[c] -= 1
            reported += 1
            changed = True
        first, end = t.schedule[listed, c, 0], t.schedule[listed, c, 1]
        total += end - first
        if begins:
            h.next_tile[c] = first
        full = k.resident[c, 0] and k.resident[c, 1]
        asks = begins and reported >= left if layer_done else may_ask
        if asks and not full and h.next_tile[c] < end:
            tile = h.next_tile[c]
            place_tile(p, t, k, c, tile, t.tiles[tile, LAYER])
            h.next_tile[c] += 1
            changed = True
    record(h, k, layer, following, layer_done, begins)
    h.layer = layer + layer_done
    h.waiting = (h.waiting and not launches) or holds
    h.tiles_left = total if begins else left - reports
    return changed


@rare
def record(h: Any, k: Any, layer: int, following: int, layer_done: bool, begins: bool) -> None:
    if layer_done:
        write_time(h.finish, layer, k)
    if begins:
        write_time(h.start, following, k)


@rare
def place_tile(p: Any, t: Any, k: Any, c: int, tile: int, layer: int) -> int:
    """Put a tile into the free slot and choose its halves of the double buffers. A tile without instructions clears
    its halves and counts as finished at once. Returns the slot; -1: the tile has finished.
    """
    first, end, key = t.tiles[tile, FIRST_ROW], t.tiles[tile, END_ROW], t.tiles[tile, ACC_KEY]
    occupied = k.resident[c, 0] or k.resident[c, 1]
    partner = 0 if k.resident[c, 0] else 1
    partner_acc = k.acc_half[c, partner] if occupied else 0
    spad_half = 1 - (k.spad_half[c, partner] if occupied else 0)
    acc_half = 1 - partner_acc
    continues = t.tiles[tile, ACCUMULATE] > 0 and layer == k.previous_layer[c] and key == k.previous_key[c]
    if continues:
        acc_half = k.previous_acc[c] if p.ordered_chains > 0 else partner_acc
    clear_half(k, c, spad_half)
    if not continues:
        clear_half(k, c, 2 + acc_half)
    k.previous_acc[c] = acc_half
    k.previous_layer[c] = layer
    k.previous_key[c] = key
    if end <= first:
        k.finished[c] += 1
        return -1
    slot = 1 - partner if occupied else 0
    if not occupied:
        k.front[c] = slot
    k.resident[c, slot] = True
    k.row[c, slot] = first
    k.end_row[c, slot] = end
    k.loop.at0[c, slot] = 0
    k.loop.at1[c, slot] = 0
    k.loop.at2[c, slot] = 0
    k.spad_half[c, slot] = spad_half
    k.acc_half[c, slot] = acc_half
    k.streaming[c, slot] = False
    k.last_done[c, slot] = False
    return slot


@rare
def clear_half(k: Any, c: int, half: int) -> None:
    """Unallocate the entries of a half; half: 0 and 1 of the scratchpad, 2 and 3 of the accumulator."""
    entries = k.remaining.shape[1] // 4
    for entry in range(half * entries, (half + 1) * entries):
        k.remaining[c, entry] = -1
