"""The array idioms of the step against NumPy, in a narrow and a wide batch, which are compiled to different code."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

from vsim.npu import fields
from vsim.npu.dram import _free_slot

LANES = [1, fields.NARROW - 1, 2 * fields.NARROW]
FOLDS: list[tuple[Callable[[Array, Array], Array], np.ufunc]] = [
    (jnp.minimum, np.minimum),
    (jnp.maximum, np.maximum),
    (jnp.add, np.add),
    (jnp.bitwise_or, np.bitwise_or),
]


def random(*shape: int, seed: int = 0, high: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.int32)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("size", [1, 5, fields.SHORT, 32, 64, 288])
def test_fold(lanes: int, size: int) -> None:
    """Every combination, along either axis, on axes of the sizes that occur (288: ONNXim's queues, padded)."""
    for axis, shape in enumerate([(size, 3, lanes), (3, size, lanes)]):
        values = random(*shape) - 500
        for combine, ufunc in FOLDS:
            folded = jax.jit(lambda x, combine=combine, axis=axis: fields.fold(combine, x, axis))(values)
            np.testing.assert_array_equal(folded, ufunc.reduce(values, axis=axis))


def test_divide_is_exact() -> None:
    """Around multiples of every divisor; on a GPU, whose float32 quotients are not, this fails without a correction."""
    divisor = np.concatenate([np.arange(1, 3000), [2**20 + 1, 2**24 - 1]]).astype(np.int32)[:, None]
    multiple = np.geomspace(1, 2**24, 200).astype(np.int32)
    dividend = np.clip((multiple // divisor) * divisor + np.arange(-1, 2)[:, None, None], 0, 2**24 - 1)
    quotient, remainder = jax.jit(fields.divide)(dividend, np.broadcast_to(divisor, dividend.shape))
    np.testing.assert_array_equal(quotient, dividend // divisor)
    np.testing.assert_array_equal(remainder, dividend % divisor)


@pytest.mark.parametrize("error", [-1, 0, 1])
def test_a_quotient_that_is_one_off_is_corrected(error: int) -> None:
    """What a GPU may say of a whole quotient."""
    dividend, divisor = random(50, 1, high=2**24), random(40, seed=1, high=3000) + 1
    quotient, remainder = fields.correct_quotient(jnp.asarray(dividend // divisor + error), dividend, divisor)
    np.testing.assert_array_equal(quotient, dividend // divisor)
    np.testing.assert_array_equal(remainder, dividend % divisor)


@pytest.mark.parametrize("lanes", LANES)
def test_reads_and_writes(lanes: int) -> None:
    """One element per row and lane; a write whose condition is false changes nothing."""
    values, row, index = random(4, 6, lanes), np.arange(4)[:, None], random(4, lanes, seed=1, high=6)
    where, new, lane = random(4, lanes, seed=2, high=2) > 0, random(4, lanes, seed=3), np.arange(lanes)
    np.testing.assert_array_equal(jax.jit(fields.pick_row)(values, index), values[row, index, lane])
    at = (fields.numbers(4), jnp.asarray(index))
    for write, ufunc in (
        (fields.put, lambda old, value: value),
        (fields.add, np.add),
        (fields.raise_to, np.maximum),
    ):
        expected = values.copy()
        for r, i, n in np.argwhere(np.broadcast_to(where[:, None], (4, 1, lanes))):
            del i
            expected[r, index[r, n], n] = ufunc(values[r, index[r, n], n], new[r, n])
        written = jax.jit(lambda v, w, x, write=write: write(v, w, x, *at))(values, where, new)
        np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("lanes", LANES)
def test_settle_changes_nothing(lanes: int) -> None:
    for values in (random(3, 5, lanes) - 500, random(2, lanes).astype(np.uint32), random(4, lanes, high=2) > 0):
        np.testing.assert_array_equal(jax.jit(fields.settle)(values), values)


@pytest.mark.parametrize("lanes", LANES)
def test_any_and_least(lanes: int) -> None:
    flags, times = random(3, 7, lanes, high=20) == 0, random(3, 70 // 7 * 4, lanes)
    np.testing.assert_array_equal(fields.any_of(jnp.asarray(flags)), flags.any(axis=(0, 1)))
    np.testing.assert_array_equal(fields.least(jnp.asarray(times), jnp.asarray(times[0])), times.min(axis=(0, 1)))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9))
def test_free_slot(words: list[int]) -> None:
    """The lowest number missing in a set of 32-bit words."""
    used = jnp.asarray(np.array(words, np.uint32)[None, :, None])
    taken = {32 * i + bit for i, word in enumerate(words) for bit in range(32) if word >> bit & 1}
    free = min(set(range(32 * len(words) + 1)) - taken)
    assert int(_free_slot(used)[0, 0]) == free
