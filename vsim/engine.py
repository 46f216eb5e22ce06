"""The batch engine: many lanes of one machine model as one JAX program, advanced in chunks. Knows no model by name.

A machine gives a step of a whole batch, a test of life and a rebase. The engine keeps `width` lanes on the devices; a
chunk is one `while_loop` over that step (never a vmapped loop: that would copy the whole carry every iteration).
Between chunks the host harvests the lanes that ended and refills their places, longest estimate first.

The lane is the last axis of every array (see `vsim.npu.fields` for why). On the devices every array has one more axis
in front: the device, each of which runs its own loop over its own lanes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from vsim import traced
from vsim.devices import compiler_options

CHUNK_ITERATIONS = 4096
REFILL_SHARE = 16
"""While lanes wait, a chunk ends early once one in so many of a device's lanes has ended,"""
REFILL_ITERATIONS = 512
"""or after so many iterations, because the devices do not wait for each other within a chunk. A lone lane of a device
ends the device's chunk itself, and its iterations are short."""


class Machine(Hashable, Protocol):
    """A machine model with its static shape. Equal machines share compiled code. Every method is for a whole batch."""

    def init(self, shared: Any, params: Any, lanes: Any) -> Any:
        """State of the lanes before their first step; `lanes` is the lanes' own input (a small pytree)."""
        ...

    def step(self, shared: Any, params: Any, state: Any) -> Any:
        """Advance every lane; a lane that has ended must not change."""
        ...

    def alive(self, state: Any) -> Array:
        """bool[L]: the lane has not ended."""
        ...

    def rebase(self, state: Any) -> Any:
        """Between chunks: bring clocks back near zero without changing behaviour."""
        ...

    def outcome(self, state: Any) -> Any:
        """What is kept of a lane that has ended: a small pytree."""
        ...

    def elapsed(self, state: Any) -> Array:
        """float32[L]: simulated cycles so far, for progress only."""
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
    lane_iterations: int = 0
    """Loop iterations in which a lane was at work, summed over lanes, and those in which it could have been: places of
    the batch times iterations. Their ratio is the occupancy."""
    place_iterations: int = 0


class Chunk(NamedTuple):
    """What `advance` reports besides the state. alive bool[D, L], elapsed float32[D, L]; iterations and
    lane_iterations (iterations summed over live lanes) int32[D].
    """

    alive: Array
    elapsed: Array
    iterations: Array
    lane_iterations: Array


@dataclass(frozen=True)
class Compiled:
    """Compiled functions of one machine on one mesh of devices. Arrays: [devices, ..., lanes per device]."""

    sharding: Sharding
    """Where the lanes' inputs go. A state made of inputs that are not bound to a device compiles `advance` again."""
    fill: Callable[[Any, Any, Any], Any]
    """(shared, params, lanes) -> state"""
    advance: Callable[..., tuple[Any, Chunk]]
    """(shared, params, state, counted, iterations, stop_at) -> state, Chunk.

    counted bool[D, L]: lanes that keep the loop going; it ends once no more than stop_at of a device's are alive.
    """
    replace: Callable[[Any, Any, Any], Any]
    """(which bool[D, L], old, new) -> lanes of new where which, of old elsewhere"""
    outcome: Callable[[Any], Any]
    """state -> outcome of every lane"""


@lru_cache(maxsize=64)
def compile_machine(machine: Machine, devices: int) -> Compiled:
    """The machine's functions on the first `devices` local devices."""
    mesh = Mesh(np.asarray(jax.local_devices()[:devices]), ("devices",))
    split, everywhere = PartitionSpec("devices"), PartitionSpec()

    def on_devices(function: Callable[..., Any], inputs: tuple[PartitionSpec, ...], **options: Any) -> Any:
        def of_one_device(*arguments: Any) -> Any:
            local = [
                jax.tree.map(lambda leaf: leaf[0], argument) if spec == split else argument
                for argument, spec in zip(arguments, inputs, strict=True)
            ]
            return jax.tree.map(lambda leaf: leaf[None], function(*local))

        options["compiler_options"] = compiler_options()
        if devices == 1:
            return jax.jit(of_one_device, **options)
        mapped = jax.shard_map(of_one_device, mesh=mesh, in_specs=inputs, out_specs=split, check_vma=False)
        return jax.jit(mapped, **options)

    def advance(
        shared: Any, params: Any, state: Any, counted: Array, iterations: Array, stop_at: Array
    ) -> tuple[Any, Chunk]:
        def live_lanes(state: Any) -> Array:
            return jnp.sum(machine.alive(state) & counted, dtype=jnp.int32)

        def body(carry: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
            count, live, busy, state = carry
            state = machine.step(shared, params, state)
            return count + 1, live_lanes(state), busy + live, state

        def going(carry: tuple[Array, Array, Array, Any]) -> Array:
            count, live, _, _ = carry
            return (count < iterations) & (live > stop_at)

        start = jnp.int32(0), live_lanes(state), jnp.int32(0), state
        count, _, busy, state = lax.while_loop(going, body, start)
        state = machine.rebase(state)
        return state, Chunk(machine.alive(state), machine.elapsed(state), count, busy)

    def known_advance(*arguments: Any) -> tuple[Any, Chunk]:
        """`advance`, traced by an earlier process if there was one: a single point should answer at once."""
        leaves, structure = jax.tree.flatten(arguments)
        state_structure = jax.tree.structure(arguments[2])

        def on_leaves(*leaves: Array) -> list[Array]:
            return jax.tree.leaves(advance(*jax.tree.unflatten(structure, leaves)))

        results = traced.call(on_leaves, repr(machine), leaves)
        count = state_structure.num_leaves
        return jax.tree.unflatten(state_structure, results[:count]), Chunk(*results[count:])

    def replace(which: Array, old: Any, new: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(which, b, a), old, new)

    return Compiled(
        sharding=NamedSharding(mesh, split) if devices > 1 else SingleDeviceSharding(mesh.devices.flat[0]),
        fill=on_devices(machine.init, (everywhere, split, split)),
        advance=on_devices(
            known_advance if devices == 1 else advance,
            (everywhere, split, split, split, everywhere, everywhere),
            donate_argnums=(2,),
        ),
        replace=on_devices(replace, (split, split, split), donate_argnums=(1,)),
        outcome=on_devices(machine.outcome, (split,)),
    )


def bytes_per_lane(machine: Machine, shared: Any, params: Any, lanes: Any) -> int:
    """Bytes of state of one lane."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], 1), leaf.dtype), (params, lanes))
    state = jax.eval_shape(machine.init, shared, *one)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def places(total: int, width: int) -> tuple[int, int]:
    """Devices to use for `total` lanes, about `width` at a time, and lanes on each."""
    width = min(width, total)
    devices = min(len(jax.local_devices()), width)
    return devices, -(-width // devices)


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

    shared: pytree common to all lanes. params, lanes: pytrees of len(estimates) lanes (last axis).
    estimates: expected lengths, in any unit; longer lanes start first. width: lanes on the devices at a time.
    on_lane(index, outcome) gets every lane's outcome (NumPy leaves without lane axis) as soon as it has ended.
    """
    batch = _Batch(machine, shared, params, lanes, np.asarray(estimates, float), width)
    started = time.perf_counter()
    while not batch.harvested.all():
        batch.advance(chunk_iterations)
        batch.harvest(on_lane)
        batch.refill()
        if on_progress is not None:
            on_progress(batch.progress(time.perf_counter() - started))


class _Batch:
    """Lanes on the devices and lanes that wait. `slots[d, i]` is the lane in place i of device d."""

    def __init__(
        self, machine: Machine, shared: Any, params: Any, lanes: Any, estimates: np.ndarray, width: int
    ) -> None:
        total = len(estimates)
        devices, each = places(total, width)
        self.compiled = compile_machine(machine, devices)
        self.shared, self.inputs, self.estimates = shared, (params, lanes), estimates
        order = np.argsort(-estimates, kind="stable")
        count = devices * each
        # Places beyond the number of lanes repeat the last one, which nobody reads. Lanes are dealt out to the devices
        # in turn, so that each has its share of the long ones.
        self.slots = np.pad(order[:count], (0, max(count - total, 0)), mode="edge").reshape(each, devices).T
        self.counted = (np.arange(count) < total).reshape(each, devices).T
        self.waiting = list(order[count:])
        self.harvested = np.zeros(total, bool)
        self.finished_cycles = 0.0
        self.lane_iterations = self.place_iterations = 0
        self.current, lane_inputs = self._take(self.slots)
        self.state = self.compiled.fill(self.shared, self.current, lane_inputs)

    def _take(self, slots: np.ndarray) -> tuple[Any, Any]:
        """Inputs of the lanes in these places: [devices, ..., lanes per device]."""
        taken = jax.tree.map(lambda leaf: np.moveaxis(np.asarray(leaf)[..., slots], -2, 0), self.inputs)
        return jax.device_put(taken, self.compiled.sharding)

    def advance(self, iterations: int) -> None:
        each = self.slots.shape[1]
        stop_at = 0
        if self.waiting:
            stop_at = each - max(each // REFILL_SHARE, 1)
            iterations = min(iterations, REFILL_ITERATIONS) if each > 1 else iterations
        self.state, chunk = self.compiled.advance(
            self.shared, self.current, self.state, self.counted, np.int32(iterations), np.int32(stop_at)
        )
        self.alive, self.elapsed = np.asarray(chunk.alive), np.asarray(chunk.elapsed)
        self.lane_iterations += int(np.asarray(chunk.lane_iterations).sum(dtype=np.int64))
        # A device that is done waits for the slowest.
        self.place_iterations += int(np.max(np.asarray(chunk.iterations))) * self.slots.size

    def harvest(self, on_lane: Callable[[int, Any], None]) -> None:
        self.ended = [(int(d), int(i)) for d, i in np.argwhere(self.counted & ~self.alive)]
        outcomes = jax.device_get(self.compiled.outcome(self.state)) if self.ended else None
        for device, index in self.ended:
            place = device, index
            lane = int(self.slots[place])
            on_lane(lane, jax.tree.map(lambda leaf, d=device, i=index: leaf[d, ..., i], outcomes))
            self.harvested[lane] = True
            self.finished_cycles += float(self.elapsed[place])
            self.counted[place] = False

    def refill(self) -> None:
        refilled = self.ended[: len(self.waiting)]
        if not refilled:
            return
        which = np.zeros(self.slots.shape, bool)
        for place in refilled:
            self.slots[place] = self.waiting.pop(0)
            which[place] = self.counted[place] = True
        self.current, lane_inputs = self._take(self.slots)
        self.state = self.compiled.replace(
            which, self.state, self.compiled.fill(self.shared, self.current, lane_inputs)
        )
        self.alive = self.alive | which
        self.elapsed = np.where(which, 0.0, self.elapsed)

    def progress(self, seconds: float) -> Progress:
        running = self.counted & self.alive
        cycles = int(self.finished_cycles + float(self.elapsed[running].sum()))
        of_all = expected(self.estimates, self.harvested, self.finished_cycles)
        return Progress(
            lanes_done=int(self.harvested.sum()),
            lanes_total=len(self.estimates),
            lane_cycles=cycles,
            seconds=seconds,
            expected_lane_cycles=max(of_all, cycles) if of_all else 0,
            lane_iterations=self.lane_iterations,
            place_iterations=self.place_iterations,
        )


def expected(estimates: np.ndarray, harvested: np.ndarray, finished_cycles: float) -> int:
    """Cycles of all lanes together, from the estimates and what harvested lanes really took; 0 if none has ended."""
    known = estimates[harvested].sum()
    return int(finished_cycles / known * estimates.sum()) if known else 0
