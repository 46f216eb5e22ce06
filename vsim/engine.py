"""The batch engine: many lanes of one machine model as one JAX program, advanced in chunks. Knows no model by name.

A machine gives a step, a test of life and a rebase. The engine keeps `width` lanes on the device; a chunk is one
`while_loop` over the step of all lanes (never a vmapped loop: that would copy the whole carry every iteration).
Between chunks the host harvests the lanes that ended and refills their places, longest estimate first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

CHUNK_ITERATIONS = 4096


class Machine(Hashable, Protocol):
    """A machine model with its static shape. Equal machines share compiled code.

    Every method is for one lane, except `step`, so that a step can do rare work for the whole batch under one `cond`.
    """

    def init(self, shared: Any, params: Any, lane: Any) -> Any:
        """State of one lane before its first step; `lane` is the lane's own input (a small pytree)."""
        ...

    def step(self, shared: Any, params: Any, state: Any) -> Any:
        """Advance every lane of a batch (leading axis); a lane that has ended must not change."""
        ...

    def alive(self, state: Any) -> Array:
        """bool[]: the lane has not ended."""
        ...

    def rebase(self, state: Any) -> Any:
        """Between chunks: bring clocks back near zero without changing behaviour."""
        ...

    def elapsed(self, state: Any) -> Array:
        """float32[]: simulated cycles so far, for progress only."""
        ...


@dataclass(frozen=True)
class Progress:
    """How far a batch is. lane_cycles: cycles summed over lanes; seconds: wall time, compilation included."""

    lanes_done: int
    lanes_total: int
    lane_cycles: int
    seconds: float
    expected_lane_cycles: int = 0
    """Estimate of `lane_cycles` at the end; 0 while no lane has ended."""


@dataclass(frozen=True)
class Compiled:
    """Compiled functions of one machine on one mesh of devices; lanes are split evenly over the devices."""

    fill: Callable[..., Any]
    advance: Callable[..., Any]
    replace: Callable[..., Any]


@lru_cache(maxsize=64)
def compile_machine(machine: Machine, devices: int) -> Compiled:
    """The machine's functions on the first `devices` local devices; the number of lanes must be a multiple of it."""
    mesh = Mesh(np.asarray(jax.local_devices()[:devices]), ("lanes",))
    split, everywhere = PartitionSpec("lanes"), PartitionSpec()

    def on_devices(function: Callable[..., Any], inputs: tuple[PartitionSpec, ...], **options: Any) -> Any:
        # Every device runs its own loop over its own lanes; nothing is exchanged.
        mapped = jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=split, check_vma=False)
        return jax.jit(mapped, **options)

    def fill(shared: Any, params: Any, lanes: Any) -> Any:
        return jax.vmap(partial(machine.init, shared))(params, lanes)

    def advance(shared: Any, params: Any, state: Any, iterations: Array) -> tuple[Any, Array, Array]:
        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            count, state = carry
            return count + 1, machine.step(shared, params, state)

        def going(carry: tuple[Array, Any]) -> Array:
            count, state = carry
            return (count < iterations) & jnp.any(jax.vmap(machine.alive)(state))

        _, state = lax.while_loop(going, body, (jnp.int32(0), state))
        state = jax.vmap(machine.rebase)(state)
        return state, jax.vmap(machine.alive)(state), jax.vmap(machine.elapsed)(state)

    def replace(which: Array, old: Any, new: Any) -> Any:
        """Lanes of `new` where which (bool[lanes]), of `old` elsewhere."""

        def choose(a: Array, b: Array) -> Array:
            return jnp.where(which.reshape(which.shape + (1,) * (a.ndim - 1)), b, a)

        return jax.tree.map(choose, old, new)

    return Compiled(
        fill=on_devices(fill, (everywhere, split, split)),
        advance=on_devices(advance, (everywhere, split, split, everywhere), donate_argnums=(2,)),
        replace=on_devices(replace, (split, split, split), donate_argnums=(1,)),
    )


def run(
    machine: Machine,
    shared: Any,
    params: Any,
    lanes: Any,
    estimates: Sequence[float],
    *,
    width: int,
    on_lane: Callable[[int, Any], None],
    on_progress: Callable[[Progress], None] | None = None,
    chunk_iterations: int = CHUNK_ITERATIONS,
) -> None:
    """Run every lane to its end.

    shared: pytree common to all lanes. params, lanes: pytrees with a leading axis of len(estimates) lanes.
    estimates: expected lengths, in any unit; longer lanes start first. width: lanes on the device at a time.
    on_lane(index, state) gets every lane's final state (NumPy leaves without lane axis) as soon as it has ended.
    """
    total = len(estimates)
    order = np.argsort(-np.asarray(estimates, float), kind="stable")
    devices = min(len(jax.local_devices()), width, total)
    # A width that the devices do not divide is filled up with repetitions of the last lane, which nobody reads.
    width = -(-min(width, total) // devices) * devices
    compiled = compile_machine(machine, devices)
    started = time.perf_counter()

    def inputs(indices: np.ndarray) -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: leaf[indices], (params, lanes))

    slots = np.pad(order[:width], (0, max(width - total, 0)), mode="edge")
    waiting = list(order[width:])
    current, lane_inputs = inputs(slots)
    state = compiled.fill(shared, current, lane_inputs)
    harvested = np.zeros(total, bool)
    finished_cycles = 0.0
    while not harvested.all():
        state, alive, elapsed = compiled.advance(shared, current, state, jnp.int32(chunk_iterations))
        alive, elapsed = np.asarray(alive), np.asarray(elapsed)
        ended = [slot for slot in range(min(width, total)) if not alive[slot] and not harvested[slots[slot]]]
        for slot in ended:
            on_lane(int(slots[slot]), jax.tree.map(lambda leaf, slot=slot: np.asarray(leaf[slot]), state))
            harvested[slots[slot]] = True
            finished_cycles += float(elapsed[slot])
        if ended and waiting:
            refilled = ended[: len(waiting)]
            for slot in refilled:
                slots[slot] = waiting.pop(0)
            current, lane_inputs = inputs(slots)
            fresh = compiled.fill(shared, current, lane_inputs)
            mask = np.zeros(width, bool)
            mask[refilled] = True
            state = compiled.replace(jnp.asarray(mask), state, fresh)
        if on_progress is not None:
            cycles = int(finished_cycles + float(elapsed[alive].sum()))
            expected = _expected(np.asarray(estimates, float), harvested, finished_cycles)
            seconds = time.perf_counter() - started
            expected = max(expected, cycles) if expected else 0
            on_progress(Progress(int(harvested.sum()), total, cycles, seconds, expected))


def _expected(estimates: np.ndarray, harvested: np.ndarray, finished_cycles: float) -> int:
    """Cycles of all lanes together, from the estimates and what harvested lanes really took; 0 if none has ended."""
    known = estimates[harvested].sum()
    return int(finished_cycles / known * estimates.sum()) if known else 0
