"""Accounts of the tenants of a mix: their requests by layer and by window of time, and their luck with open rows.

The last axis of every array is the lane.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from vsim.npu import words
from vsim.npu.core import CoreTick
from vsim.npu.dispatch import RADIX_BITS, absolute
from vsim.npu.dram import Outcome
from vsim.npu.fields import add, numbers, pick, settle
from vsim.npu.types import CoreState, NpuShape, TenantSchedule


class Sent(NamedTuple):
    """Loads, then stores, that took effect in a tick of the cores: [2 C, L] each; words have the sender's tenant."""

    valid: Array
    requests: Array
    layer: Array
    """int32: of tenant * N + its number in the tenant's program."""
    word: Array


def sent(shape: NpuShape, s: TenantSchedule, before: CoreState, did: CoreTick) -> Sent:
    """Whose loads and stores took effect. before: the cores ahead of the tick."""
    layer = jnp.concatenate([_layer_of(shape, s, before, did.load), _layer_of(shape, s, before, did.store)])
    word = jnp.concatenate([did.load.word, did.store.word])
    return Sent(
        jnp.concatenate([did.load_valid, did.store_valid]),
        jnp.concatenate([did.load.requests, did.store.requests]),
        layer,
        words.with_tenant(word, tenant_of(s, layer), shape.core_bits),
    )


def count_sent(s: TenantSchedule, core: CoreState, what: Sent) -> TenantSchedule:
    """Count requests to their layers, and to the present window of time of their tenants."""
    cores = what.layer.shape[0] // 2
    s = s.replace(
        load_requests=add(s.load_requests, what.valid[:cores], what.requests[:cores], what.layer[:cores]),
        store_requests=add(s.store_requests, what.valid[cores:], what.requests[cores:], what.layer[cores:]),
    )
    return _count_by_time(s, core, what.valid, what.requests, what.layer)


def count_rows(shape: NpuShape, s: TenantSchedule, did: Outcome) -> TenantSchedule:
    """Count hits, misses and conflicts to the tenants whose requests had them, and whose rows were in their way.

    A conflict is foreign where the row in the way was opened for a request of another workload.
    """
    assert did.opener_meta is not None
    mine, opener = (words.tenant_of(word, shape.core_bits) for word in (did.command_meta, did.opener_meta))
    tenant = settle(jnp.where(did.counted, mine, 0))
    other = pick(s.mix.bucket, tenant) != pick(s.mix.bucket, jnp.where(did.conflict, opener, 0))
    state = jnp.where(did.hit, 0, jnp.where(did.conflict, 2 + other, 1))
    return s.replace(row_states=add(s.row_states, did.counted, 1, tenant, state))


def tenant_of(s: TenantSchedule, layer: Array) -> Array:
    """The tenant that a layer is of, by the layer's number in the schedule."""
    return layer // (s.producers_left.shape[0] // s.layers_left.shape[0])


def _layer_of(shape: NpuShape, s: TenantSchedule, core: CoreState, sent: words.Descriptor) -> Array:
    """int32[C, L]: layer of the tile whose half of the memory the requests fill, or empty."""
    flat = words.flat_entry_of(sent.word)
    memory, half = flat // (2 * shape.entries), flat // shape.entries & 1
    # Two tiles with the same half are of one layer.
    in_first = core.resident[:, 0] & (jnp.where(memory == 1, core.acc_half[:, 0], core.spad_half[:, 0]) == half)
    return settle(jnp.where(in_first, s.slot_layer[:, 0], s.slot_layer[:, 1]))


def _count_by_time(s: TenantSchedule, core: CoreState, valid: Array, requests: Array, layer: Array) -> TenantSchedule:
    """Add requests of layers (int32[N, L] each) to the present window of their tenants."""
    tenants, windows = s.window_requests.shape[:2]
    high, low = absolute(core)
    # In one step time advances by less than 2**31 windows.
    window = (high << (RADIX_BITS - s.window_shift)) | (low >> s.window_shift)
    doublings = settle(jnp.where(window < windows, 0, 32 - lax.clz(window // windows)))

    def longer() -> Array:
        shape = (tenants, windows, *window.shape)
        to = jnp.broadcast_to(numbers(windows) >> doublings, shape)
        counts = s.window_requests
        return add(jnp.zeros_like(counts), jnp.ones(shape, bool), counts, numbers(tenants, 2), to)

    # This is rare: it happens once for every doubling of the run's length.
    counts = lax.cond(jnp.any(doublings > 0), longer, lambda: s.window_requests)
    tenant = tenant_of(s, layer)
    present = jnp.broadcast_to(window >> doublings, tenant.shape)
    return s.replace(
        window_requests=add(counts, valid, requests, tenant, present), window_shift=s.window_shift + doublings
    )
