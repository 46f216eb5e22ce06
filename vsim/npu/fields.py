"""Small array idioms shared by the stages. The last axis of every array is the lane.

Lanes last, because XLA's CPU kernels vectorise over the innermost axis only, and over a long one best: the same
kernels with lanes first, which is what `vmap` makes, run several times slower. `put` and `pick` work on flattened
arrays: one index per element instead of a tuple. Reads and writes go through `settle`, which says why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

FAR = 2**31 - 1
"""A time or key that never comes first."""
PAST = -(2**30)
"""A time long before the start of every run."""


NARROW = 32
"""A batch of fewer lanes is bound by the number of kernels more than by what they do: then some work is repeated."""


def _is_narrow(values: Array) -> bool:
    return values.shape[-1] < NARROW


def _is_lone(values: Array) -> bool:
    """A single lane on a CPU: its whole loop becomes one kernel (see `vsim.devices`)."""
    return values.shape[-1] == 1 and jax.default_backend() == "cpu"


def numbers(size: int, axes_after: int = 1) -> Array:
    """int32[size, 1, ...], 0 to size-1: the index along an axis that has `axes_after` axes behind it."""
    return lax.broadcasted_iota(jnp.int32, (size, *(1,) * axes_after), 0)


def settle(values: Array) -> Array:
    """The values as they are, in a buffer of their own.

    XLA fuses a cheap computation into everything that uses it. Two harms come of that: what is decided per channel is
    worked out again for every bank and queue slot; and a read from an array that is written later in the step is
    repeated after the write, so that XLA copies the array in every step. A window reduction is never fused into its
    users (`lax.optimization_barrier` does not help, it is gone too early): here over a window of two along a new axis
    of size one, the other element being padding. Let a write depend on such a read with `after`.
    """
    kind = values.dtype
    wide = values.astype(jnp.int32) if kind == jnp.bool_ else values
    lowest = -jnp.inf if jnp.issubdtype(kind, jnp.floating) else jnp.iinfo(wide.dtype).min
    identity = jnp.asarray(lowest, wide.dtype)
    ones, none = (1,) * values.ndim, ((0, 0),) * values.ndim
    made = lax.reduce_window(wide[None], identity, lax.max, (2, *ones), (1, *ones), ((0, 1), *none))[0]
    return made > 0 if kind == jnp.bool_ else made


def _flat(shape: tuple[int, ...], index: tuple[Array, ...]) -> Array:
    """Position of [*index, lane] in a flattened array of this shape."""
    row = index[0]
    for size, following in zip(shape[1:-1], index[1:], strict=True):
        row = row * size + following
    return row * shape[-1] + jnp.arange(shape[-1], dtype=jnp.int32)


def pick(values: Array, *index: Array) -> Array:
    """values[*index, lane]: one index for every axis before the lanes, in range, int32[..., L] or broadcast to it."""
    at = _flat(values.shape, index)
    at = at if _is_narrow(values) else settle(at)
    return settle(values.reshape(-1).at[at].get(mode="promise_in_bounds"))


def pick_row(values: Array, index: Array) -> Array:
    """values[i, index[i, lane], lane] for every i. values: [N, M, L]; index: int32[N, L] in [0, M)."""
    return pick(values, numbers(values.shape[0]), index)


def put(values: Array, where: Array, value: Array | int, *index: Array) -> Array:
    """Set values[*index, lane] where `where`, which has the full shape of the indices."""
    at, value = _to_write(values, where, value, index)
    if _is_lone(values):
        return _one_by_one(values, at, value, lambda old, new: new)
    return values.reshape(-1).at[at].set(value, mode="drop").reshape(values.shape)


def add(values: Array, where: Array, value: Array | int, *index: Array) -> Array:
    """Add to values[*index, lane] where `where`; additions to the same element all count."""
    at, value = _to_write(values, where, value, index)
    if _is_lone(values):
        return _one_by_one(values, at, value, jnp.add)
    return values.reshape(-1).at[at].add(value, mode="drop").reshape(values.shape)


def raise_to(values: Array, where: Array, value: Array, *index: Array) -> Array:
    """Raise values[*index, lane] to at least the value where `where`."""
    at, value = _to_write(values, where, value, index)
    if _is_lone(values):
        return _one_by_one(values, at, value, jnp.maximum)
    return values.reshape(-1).at[at].max(value, mode="drop").reshape(values.shape)


def _one_by_one(values: Array, at: Array, written: Array, combine: Callable[[Array, Array], Array]) -> Array:
    """The write of a lone lane, element after element: XLA compiles no loop with a scatter in it as one kernel."""
    written = written.astype(values.dtype)

    def write(i: Array, flat: Array) -> Array:
        place = lax.dynamic_slice(at, (i,), (1,))
        old = lax.dynamic_slice(flat, (place[0],), (1,))
        new = combine(old, lax.dynamic_slice(written, (i,), (1,)))
        return lax.dynamic_update_slice(flat, jnp.where(place < flat.size, new, old), (place[0],))

    return lax.fori_loop(0, at.size, write, values.reshape(-1)).reshape(values.shape)


def _to_write(values: Array, where: Array, value: Array | int, index: tuple[Array, ...]) -> tuple[Array, Array]:
    """Flat positions and values of a write; positions beyond the end drop out."""
    at = jnp.where(where, _flat(values.shape, index), values.size)
    written = jnp.broadcast_to(value, where.shape)
    if not _is_narrow(values):
        # A settled literal only takes XLA time to fold.
        at, written = settle(at), written if isinstance(value, int) else settle(written)
    return at.reshape(-1), written.reshape(-1)


def one_hot(index: Array, size: int) -> Array:
    """bool[N, size, L] of index int32[N, L]; all False where the index is outside [0, size)."""
    return index[:, None] == numbers(size)


FOLD = 8
"""Parts of an axis that `fold` combines at a time."""
SHORT = 16
"""An axis of no more elements is reduced by XLA's own reduction."""


def fold(combine: Callable[[Array, Array], Array], values: Array, axis: int = 1) -> Array:
    """Combine the elements along an axis by jnp.minimum, jnp.maximum, jnp.add or jnp.bitwise_or.

    In a wide batch a long axis is cut into slices, a few at a time: such kernels vectorise over the lanes, XLA's
    reductions of computed values do not. Those of a lone lane vectorise over what is left of the axis.
    """
    if (_is_narrow(values) and not _is_lone(values)) or values.shape[axis] <= SHORT:
        return _reductions[combine](values, axis)
    while (size := values.shape[axis]) > 1:
        parts = max(part for part in range(1, FOLD + 1) if size % part == 0) if size > FOLD else size
        if parts == 1:
            raise ValueError(f"an axis of {size} elements cannot be cut into at most {FOLD} equal parts")
        length = size // parts
        slices = [lax.slice_in_dim(values, i * length, (i + 1) * length, axis=axis) for i in range(parts)]
        values = settle(reduce(combine, slices))
    return jnp.squeeze(values, axis)


_reductions: dict[Any, Callable[[Array, int], Array]] = {
    jnp.minimum: lambda values, axis: jnp.min(values, axis=axis),
    jnp.maximum: lambda values, axis: jnp.max(values, axis=axis),
    jnp.add: lambda values, axis: jnp.sum(values, axis=axis, dtype=values.dtype),
    jnp.bitwise_or: lambda values, axis: lax.reduce(values, jnp.zeros((), values.dtype), lax.bitwise_or, (axis,)),
}


def any_of(flags: Array) -> Array:
    """bool[L]: any element of the lane, over all axes but the last."""
    return least(settle(jnp.where(flags, 0, 1))) == 0


def least(*values: Array) -> Array:
    """int32[L]: the smallest element of the lane over several arrays."""
    smallest = []
    for array in values:
        while array.ndim > 1:
            array = fold(jnp.minimum, array, 0)
        smallest.append(array)
    return reduce(jnp.minimum, smallest)


def append(ring: Array, tail: Array, value: Array, push: Array) -> Array:
    """Write value[i] at position tail[i] of ring i (ring: [N, power of two, L]) where push[i]; others unchanged."""
    return put(ring, push, value, numbers(ring.shape[0]), tail & (ring.shape[1] - 1))


def divide(dividend: Array, divisor: Array) -> tuple[Array, Array]:
    """Quotient and remainder of int32, 0 <= dividend < 2**24, 1 <= divisor < 2**24.

    By way of float32, because XLA does not vectorise integer division. On a GPU a float32 quotient is up to two units
    in the last place off, even one that is a whole number (openxla/xla#37181; not that of a division by 1): the
    truncated quotient is one off at most.
    """
    estimate = settle((dividend.astype(jnp.float32) / divisor.astype(jnp.float32)).astype(jnp.int32))
    return correct_quotient(estimate, dividend, divisor)


def correct_quotient(estimate: Array, dividend: Array, divisor: Array) -> tuple[Array, Array]:
    """Quotient and remainder from an estimate of the quotient that is off by one at most."""
    remainder = dividend - estimate * divisor
    over, under = remainder >= divisor, remainder < 0
    return estimate + over - under, remainder + jnp.where(over, -divisor, jnp.where(under, divisor, 0))


NEVER = -(2**31)
"""A value that nothing settled ever has."""


def after(settled: Array, where: Array) -> Array:
    """The condition of a write that must come after a settled read: `where` itself, as XLA cannot see."""
    return where & (settled != NEVER)
