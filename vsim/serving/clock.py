"""Times in two int32 words: high * 2**30 + low, 0 <= low < 2**30.

A lane ends with status `horizon` at LARGEST at the latest. No iteration takes longer than `LONGEST`, so that the words
of the time in which it ends still hold.

Arrays are int32[2, ...]: high words first. Functions with a `jnp` in them are for the step, the others for the host.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

RADIX_BITS = 30
RADIX = 1 << RADIX_BITS
LARGEST = (1 << 60) - 1
"""The last time that a lane may reach, in cycles: 36 years at 1 GHz."""
LONGEST = float(1 << 60)
"""Limit of an iteration; with one of that length the lane has reached its horizon."""


def words_of(times: np.ndarray) -> np.ndarray:
    """int32[2, ...] of times int64[...] within 0..LARGEST."""
    return np.stack([times >> RADIX_BITS, times & (RADIX - 1)]).astype(np.int32)


def times_of(words: np.ndarray) -> np.ndarray:
    """int64[...] of int32[2, ...]."""
    return (words[0].astype(np.int64) << RADIX_BITS) + words[1]


def after(time: Array, duration: Array) -> Array:
    """int32[2, L]: the time, later by a duration of whole cycles, float32[L] in 0..LONGEST."""
    high = jnp.floor(duration * (1.0 / RADIX))
    # Both words are exact: a float32 is divided by, and split at, a power of two.
    low = time[1] + (duration - high * RADIX).astype(jnp.int32)
    carry = low >> RADIX_BITS
    return jnp.stack([time[0] + high.astype(jnp.int32) + carry, low & (RADIX - 1)])


def not_later(time: Array, other: Array) -> Array:
    """bool[...]: time <= other, int32[2, ...] each."""
    return (time[0] < other[0]) | ((time[0] == other[0]) & (time[1] <= other[1]))


def as_float(time: Array) -> Array:
    """float32[...]: the time, rounded."""
    return time[0].astype(jnp.float32) * float(RADIX) + time[1].astype(jnp.float32)
