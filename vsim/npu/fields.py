"""Small array idioms shared by the stages: picks, one-hot masks and rings over a leading axis."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

FAR = 2**31 - 1
"""A time or key that never comes first."""
PAST = -(2**30)
"""A time long before the start of every run."""


def pick(values: Array, index: Array) -> Array:
    """values[i, index[i]] for every i. values: [N, M, ...]; index: int32[N] in [0, M)."""
    return values[jnp.arange(values.shape[0]), index]


def one_hot(index: Array, size: int) -> Array:
    """bool[N, size]: True at index[i]; a row whose index is outside [0, size) is all False."""
    return index[:, None] == jnp.arange(size, dtype=index.dtype)


def append(ring: Array, tail: Array, value: Array, push: Array) -> Array:
    """Write value[i] at position tail[i] of ring i (ring: [N, power of two]) where push[i]; others unchanged."""
    size = ring.shape[1]
    position = jnp.where(push, tail & (size - 1), size)
    return ring.at[jnp.arange(ring.shape[0]), position].set(value, mode="drop")
