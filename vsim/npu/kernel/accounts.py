"""Accounts of the tenants of a mix, as `vsim.npu.accounts` has it. Functions of the same name are the same rule."""

from __future__ import annotations

from typing import Any

from vsim.npu.dispatch import RADIX_BITS
from vsim.npu.dram import ACT, PRE
from vsim.npu.kernel.core import FLAT_MASK
from vsim.npu.kernel.dispatch import absolute
from vsim.npu.kernel.jit import part, rare
from vsim.npu.words import FLAT_BITS


@part
def tenant_of_word(z: Any, word: int) -> int:
    """Tenant whose request it is."""
    return word >> (FLAT_BITS + 1 + z.core_bits)


@part
def tag_of(z: Any, tenant: int) -> int:
    """What a tenant adds to the words of its requests."""
    return tenant << (FLAT_BITS + 1 + z.core_bits)


@part
def tenant_of(h: Any, layer: int) -> int:
    """The tenant that a layer is of, by the layer's number in the schedule."""
    return layer // (h.producers_left.size // h.layers_left.size)


@part
def layer_of(h: Any, k: Any, c: int, word: int) -> int:
    """Layer of the tile whose half of the memory a load fills, or a store empties."""
    flat, entries = word & FLAT_MASK, k.remaining.shape[1] // 4
    memory, half = flat // (2 * entries), flat // entries & 1
    # Two tiles with the same half are of one layer.
    of_first = k.acc_half[c, 0] if memory == 1 else k.spad_half[c, 0]
    return h.slot_layer[c, 0] if k.resident[c, 0] and of_first == half else h.slot_layer[c, 1]


@part
def window_of(h: Any, k: Any) -> int:
    """The present window of time."""
    high, low = absolute(k)
    return (high << (RADIX_BITS - h.window_shift)) | (low >> h.window_shift)


@part
def count_by_time(h: Any, k: Any, tenant: int, requests: int) -> None:
    h.window_requests[tenant, window_of(h, k)] += requests


@part
def lengthen_windows(h: Any, k: Any) -> None:
    """Windows double until the present is in one of them."""
    windows = h.window_requests.shape[1]
    while window_of(h, k) >= windows:
        double_windows(h, windows)


@rare
def double_windows(h: Any, windows: int) -> None:
    h.window_shift += 1
    for tenant in range(h.window_requests.shape[0]):
        for window in range(1, windows):
            count = h.window_requests[tenant, window]
            h.window_requests[tenant, window] = 0
            h.window_requests[tenant, window >> 1] += count


@rare
def count_row(z: Any, s: Any, c: int, command: int, word: int, bank: int) -> None:
    """Count a hit, miss or conflict to the tenant whose request had it. bank: of the command, in channel c.

    A conflict is foreign where the row in the way was opened for a request of another workload.
    """
    h = s.schedule
    tenant, state = tenant_of_word(z, word), 0
    if command == ACT:
        state = 1
    elif command == PRE:
        opener = tenant_of_word(z, s.dram.active_meta[c, bank])
        state = 2 if h.mix.bucket[tenant] == h.mix.bucket[opener] else 3
    h.row_states[tenant, state] += 1
