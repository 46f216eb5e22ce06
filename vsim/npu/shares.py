"""Shares of the memory's bandwidth: a tenant's loads and stores issue no faster than its share of the peak.

A workload has a bucket, which the generic cell rate algorithm keeps (ITU-T I.371, annex A, "virtual scheduling"): `due`
is the core cycle at which everything it has asked for would be through at exactly its rate. A load or store may issue
while `due` lies at most BURST_CYCLES ahead, and moves it on by its requests times the interval between requests; a
workload that asks for nothing saves up no more than the burst. What is regulated is what a core asks for, as in
MemGuard (Yun et al., "MemGuard: memory bandwidth reservation system for efficient performance isolation in multi-core
platforms", RTAS 2013), so that one tenant's excess waits in its core and in no queue that others share.

The rate is exact in the long run. At any moment a workload can be ahead of it by the burst and, for each of its cores,
by the load and the store that were on their way into effect.

The last axis of every array is the lane.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from vsim.npu.accounts import Sent, tenant_of
from vsim.npu.fields import FAR, add, least, pick
from vsim.npu.types import CoreState, NpuShape, TenantSchedule

INTERVAL_BITS = 14
"""Intervals are in units of 2**-14 core cycles: rates are exact to 0.01 % up to 3 requests a cycle, 0.1 % up to 30."""
BURST_CYCLES = 1024


def may_move(shape: NpuShape, s: TenantSchedule, core: CoreState) -> Array:
    """bool[C, 2, L], or [C, 1, L] without shares: loads and stores of the slot's tile may issue in this tick."""
    if not shape.shares:
        return jnp.ones_like(core.resident[:, :1])
    due = pick(s.share_due, _bucket(s, s.slot_layer))
    return due <= core.now + BURST_CYCLES


def charge(shape: NpuShape, s: TenantSchedule, core: CoreState, what: Sent) -> TenantSchedule:
    """Move on the buckets by what took effect in a tick. core: before it."""
    if not shape.shares:
        return s
    asked = add(jnp.zeros_like(s.share_due), what.valid, what.requests, _bucket(s, what.layer))
    charged = (asked > 0) & (s.mix.share_interval > 0)
    total = s.share_rest + asked * s.mix.share_interval
    due = jnp.maximum(s.share_due, core.now) + (total >> INTERVAL_BITS)
    return s.replace(
        share_due=jnp.where(charged, due, s.share_due),
        share_rest=jnp.where(charged, total & ((1 << INTERVAL_BITS) - 1), s.share_rest),
    )


def next_credit(shape: NpuShape, s: TenantSchedule, core: CoreState) -> Array:
    """int32[L]: core tick, in the count of `core.now`, from which a bucket that is full now has room again; or FAR."""
    if not shape.shares:
        return jnp.full_like(core.now, FAR)
    event = s.share_due - BURST_CYCLES
    return least(jnp.where(event >= core.now, event, FAR))


def interval_of(share: float, requests_per_cycle: float) -> int:
    """Interval between requests at a share (0 < share <= 1) of the peak, in 2**-14 core cycles; 0: no limit."""
    return 0 if share == 1 else max(round((1 << INTERVAL_BITS) / (share * requests_per_cycle)), 1)


def most_requests(interval: int, cores: int) -> int:
    """The longest load or store, in requests, that `charge` can count when all cores issue one of each in a tick."""
    return ((1 << 30) // max(interval, 1)) // (2 * cores)


def _bucket(s: TenantSchedule, layer: Array) -> Array:
    """Bucket of the tenant that a layer is of."""
    return pick(s.mix.bucket, tenant_of(s, layer))
