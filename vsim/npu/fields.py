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


NEVER = -(2**31)
"""A value that nothing settled ever has."""


def settle(read: Array) -> Array:
    """A value read from a large array that is written later in the step, made final here. read: int32[N].

    XLA duplicates a cheap read into every later use of it, finds such a use after the write and then copies the whole
    array in every step. A scatter is never fused into its users: they all share this one result. Let the write depend
    on it with `after`; `lax.optimization_barrier` does not help, it is gone before copies are placed.
    """
    return jnp.zeros_like(read).at[jnp.arange(read.size)].set(read, unique_indices=True)


def after(settled: Array, index: Array, nowhere: int) -> Array:
    """The index of a write that must come after a settled read: `index` itself, in a form XLA cannot see through."""
    return jnp.where(settled == NEVER, nowhere, index)
