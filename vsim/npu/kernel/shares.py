"""Shares of the memory's bandwidth, as `vsim.npu.shares` has it. Functions of the same name are the same rule."""

from __future__ import annotations

from typing import Any

from vsim.npu.fields import FAR
from vsim.npu.kernel.accounts import tenant_of
from vsim.npu.kernel.jit import part, rare
from vsim.npu.shares import BURST_CYCLES, INTERVAL_BITS

REST_MASK = (1 << INTERVAL_BITS) - 1


@part
def bucket(h: Any, layer: int) -> int:
    """Bucket of the tenant that a layer is of."""
    return h.mix.bucket[tenant_of(h, layer)]


@part
def may_move(z: Any, h: Any, k: Any, c: int, slot: int) -> bool:
    """Loads and stores of the slot's tile may issue in this tick."""
    return not z.shares or h.share_due[bucket(h, h.slot_layer[c, slot])] <= k.now + BURST_CYCLES


@rare
def charge(h: Any, k: Any, asked: Any) -> None:
    """Move on the buckets by what took effect in a tick, before `now` advances. asked: requests by bucket."""
    for number in range(asked.size):
        if asked[number] > 0 and h.mix.share_interval[number] > 0:
            total = h.share_rest[number] + asked[number] * h.mix.share_interval[number]
            h.share_due[number] = max(h.share_due[number], k.now) + (total >> INTERVAL_BITS)
            h.share_rest[number] = total & REST_MASK
        asked[number] = 0


@part
def next_credit(z: Any, h: Any, k: Any) -> int:
    """Core tick from which a bucket that is full now has room again; FAR: none is full."""
    earliest = FAR
    if z.shares:
        for number in range(h.share_due.size):
            event = h.share_due[number] - BURST_CYCLES
            if event >= k.now:
                earliest = min(earliest, event)
    return earliest
