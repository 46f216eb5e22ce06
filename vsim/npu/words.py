"""Layout of the packed integer words that travel between the stages.

*Flat entry*: (memory * 2 + half) * E + entry, the index into a core's validity counters.
*Request word*: core << 15 | is_write << 14 | flat entry: what a request must say when it comes back. In a mix, above
the bits of the core, the tenant.
*Retire word*: flat entry << 2 | (slot + 1 of the tile whose last instruction this is, else 0).
"""

from __future__ import annotations

from typing import NamedTuple

from jax import Array

FLAT_BITS = 14
MAX_ENTRIES = (1 << FLAT_BITS) // 4
OWNER_BITS = 15
"""For core and tenant together."""
MAX_REQUESTS = 1 << 24
"""Bound on the requests of one load or store: below it, `fields.divide` is exact."""


class Descriptor(NamedTuple):
    """A load or store in effect: the period of `lowering.program`, and the word its requests carry. int32 arrays."""

    first_block: Array
    requests: Array
    period_requests: Array
    period_pitch: Array
    pattern_start: Array
    word: Array


class Execute(NamedTuple):
    """An instruction in the execute latch; sources and destination are flat entries. int32 arrays, preload bool."""

    kind: Array
    dst: Array
    src_a: Array
    src_b: Array
    size: Array
    preload: Array
    last: Array
    """Slot + 1 of the tile whose last instruction this is, else 0."""


def request_word(core: Array, is_write: Array, flat_entry: Array) -> Array:
    """Pack a request word; all arguments int32 or bool of one shape."""
    return (core << (FLAT_BITS + 1)) | (is_write.astype(flat_entry.dtype) << FLAT_BITS) | flat_entry


def with_tenant(word: Array, tenant: Array, core_bits: int) -> Array:
    """The request word of a tenant; core_bits: as many as the number of any core of the chip has."""
    return word | (tenant << (FLAT_BITS + 1 + core_bits))


def tenant_of(word: Array, core_bits: int) -> Array:
    """Tenant whose request it is; 0 outside mixes."""
    return word >> (FLAT_BITS + 1 + core_bits)


def core_of(word: Array, core_bits: int) -> Array:
    """Core that sent the request."""
    return (word >> (FLAT_BITS + 1)) & ((1 << core_bits) - 1)


def is_write(word: Array) -> Array:
    """True for a store's request."""
    return ((word >> FLAT_BITS) & 1) == 1


def flat_entry_of(word: Array) -> Array:
    """Flat entry a load's request fills."""
    return word & ((1 << FLAT_BITS) - 1)
