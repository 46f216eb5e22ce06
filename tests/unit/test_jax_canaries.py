"""Known miscompilations of JAX and XLA on CPU, as canaries for the installed version.

The first two are the reasons why versions are refused (`vsim.jax_pins`). The third is wrong in every version tried so
far and is the reason why vsim keeps its queues as ring buffers and never shifts them.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax


@pytest.fixture(autouse=True)
def on_cpu() -> None:
    """Asked when a test runs: the question starts JAX, which then keeps the devices it has."""
    if jax.default_backend() != "cpu":
        pytest.skip("the canaries concern the CPU back end")


def test_vmapped_product_and_reduction_equal_eager():
    """jax-ml/jax#39103 (0.10.2): the last rows come out wrong once the batch is large enough to be split."""
    n = 32_769
    numbers = jnp.arange(n, dtype=jnp.float32)
    rows = jnp.stack((numbers, jnp.zeros_like(numbers), jnp.zeros_like(numbers)), axis=1)
    matrix = jnp.eye(3, dtype=jnp.float32)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    np.testing.assert_allclose(np.asarray(squares), np.arange(n, dtype=np.float64) ** 2, rtol=1e-5)


def test_small_write_in_a_loop_does_not_copy_the_buffer():
    """jax-ml/jax#40101 (0.11.1): every iteration rewrites the array, so this takes 3 s and more instead of 1 ms."""
    n = 100_000

    @jax.jit
    def fill(buffer: jax.Array) -> jax.Array:
        return lax.fori_loop(0, n - 1, lambda t, b: b.at[t + 1].set(b[t] * 0.5 + 1.0), buffer)

    buffer = jnp.zeros(n, jnp.float32)
    fill(buffer).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        fill(buffer).block_until_ready()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def _shifted(queue: np.ndarray) -> np.ndarray:
    expected = queue.copy()
    expected[1:] = queue[:-1]
    return expected


@pytest.mark.xfail(reason="openxla/xla#49176: in-place shift followed by a reshape reads what it has overwritten")
def test_shifted_queue_then_reshape():
    """Passes once XLA is mended; until then no code of ours may shift a queue in place."""

    @jax.jit
    def shift(x: jax.Array) -> jax.Array:
        queue = x + 1
        return queue.at[1:].set(queue[:-1]).reshape((1, *queue.shape))

    x = np.arange(8 * 16, dtype=np.int32).reshape(8, 16)
    np.testing.assert_array_equal(np.asarray(shift(x))[0], _shifted(x + 1))


def test_ring_buffer_then_reshape():
    """What vsim does instead: entries stay where they are and the head moves; right in every version."""
    depth = 8

    @jax.jit
    def push(x: jax.Array, head: jax.Array) -> jax.Array:
        queue = x + 1
        new_head = (head - 1) % depth
        queue = queue.at[new_head].set(queue[head])
        return queue[(new_head + jnp.arange(depth)) % depth].reshape((1, *queue.shape))

    x = np.arange(depth * 16, dtype=np.int32).reshape(depth, 16)
    np.testing.assert_array_equal(np.asarray(push(x, np.int32(0)))[0], _shifted(x + 1))
