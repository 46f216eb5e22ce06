"""Layout of the packed integer words that travel between the stages.

*Flat entry*: (memory * 2 + half) * E + entry, the index into a core's validity counters.
*Request word*: core << 13 | is_write << 12 | flat entry: what a request must say when it comes back.
*Retire word*: flat entry << 2 | (slot + 1 of the tile whose last instruction this is, else 0).
"""

from __future__ import annotations

from jax import Array

FLAT_BITS = 12
MAX_ENTRIES = (1 << FLAT_BITS) // 4
MAX_CORES = 1 << 16

# A load or store in effect: the period of program.py, and the word its requests carry.
FIRST_BLOCK, REQUESTS, PERIOD_REQUESTS, PERIOD_PITCH, PATTERN_START, WORD = range(6)
DESCRIPTOR_WORDS = 6

# An instruction in the execute latch.
KIND, DST, SRC_A, SRC_B, SIZE, PRELOAD, LAST = range(7)
EXECUTE_WORDS = 7


def request_word(core: Array, is_write: Array, flat_entry: Array) -> Array:
    """Pack a request word; all arguments int32 or bool of one shape."""
    return (core << (FLAT_BITS + 1)) | (is_write.astype(flat_entry.dtype) << FLAT_BITS) | flat_entry


def core_of(word: Array) -> Array:
    """Core that sent the request."""
    return word >> (FLAT_BITS + 1)


def is_write(word: Array) -> Array:
    """True for a store's request."""
    return ((word >> FLAT_BITS) & 1) == 1


def flat_entry_of(word: Array) -> Array:
    """Flat entry a load's request fills."""
    return word & ((1 << FLAT_BITS) - 1)
