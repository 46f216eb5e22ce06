"""One iteration of every server: form the batch, let its time pass, let requests make tokens, leave and arrive."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vsim.npu.fields import add, pick, put
from vsim.serving import clock
from vsim.serving.batching import Batch, form_batch
from vsim.serving.tables import iteration_cycles
from vsim.serving.types import (
    STATUS_DEADLOCK,
    STATUS_HORIZON,
    STATUS_KV_CAPACITY,
    STATUS_QUEUE,
    Phase,
    Served,
    ServerParams,
    ServerShape,
    ServerState,
    Slots,
    Sums,
    Windows,
)


def init(shape: ServerShape, params: ServerParams) -> ServerState:
    """Empty servers at time 0, at which requests may have arrived."""
    lanes = params.count.size
    zero = jnp.zeros(lanes, jnp.int32)
    now = jnp.zeros((2, lanes), jnp.int32)
    of_slots, of_requests = jnp.zeros((shape.slots, lanes), jnp.int32), jnp.zeros((shape.requests, lanes), jnp.int32)
    in_windows = jnp.zeros((shape.windows, lanes), jnp.float32)
    return ServerState(
        now=now,
        arrived=count_arrived(params, now),
        admitted=zero, done=zero, iterations=zero, evictions=zero, kv_peak=zero, status=zero,
        slots=Slots(*[of_slots] * len(Slots._fields)),
        served=Served(*[of_requests] * len(Served._fields)),
        sums=Sums(*[jnp.zeros((2, lanes), jnp.float32)] * len(Sums._fields)),
        windows=Windows(in_windows, in_windows, in_windows, in_windows, in_windows.astype(jnp.int32), zero),
    )  # fmt: skip


def is_alive(params_count: Array, state: ServerState) -> Array:
    """bool[L]: requests are left, and no status has ended the lane."""
    return (state.done < params_count) & (state.status == 0)


def step(params: ServerParams, state: ServerState) -> ServerState:
    """The next iteration of the lanes that are alive, or the wait for the next arrival."""
    on = is_alive(params.count, state)
    batch = form_batch(params, state)
    with jax.named_scope("time"):
        cycles = _cycles(params, batch)
        end = clock.after(state.now, cycles)
        arrived = count_arrived(params, end)
    slots, leaves = _advance(params, batch, end)
    kv = jnp.sum(batch.slots.kv + batch.tokens, axis=0, where=_holds(batch), dtype=jnp.int32)
    left = _total(leaves)
    moves = (cycles > 0) | (left > 0) | jnp.any(batch.evicted, axis=0)

    next_arrival = _arrival(params, jnp.minimum(arrived, params.prompt.shape[0] - 1))
    waits = ~moves & (arrived < params.count)
    now = jnp.where(waits, next_arrival, end)
    idle = jnp.where(waits, clock.as_float(next_arrival - end), 0.0)

    in_system = (state.arrived + arrived - 2 * state.done).astype(jnp.float32) * 0.5
    status = _status(params, state, batch, now, arrived, stuck=~moves & (arrived >= params.count))
    after = ServerState(
        now=now,
        arrived=jnp.where(waits, count_arrived(params, now), arrived),
        admitted=state.admitted + _total(batch.admitted),
        done=state.done + left,
        iterations=state.iterations + (cycles > 0),
        evictions=state.evictions + _total(batch.evicted),
        kv_peak=jnp.maximum(state.kv_peak, kv),
        status=status,
        slots=slots,
        served=_record(state.served, slots, leaves & on, end),
        sums=_integrate(state.sums, cycles, in_system, _total(batch.tokens > 0), kv),
        windows=_observe(params, state.windows, on, cycles, idle, in_system, batch, kv),
    )
    return _where_alive(on, after, state)


def count_arrived(params: ServerParams, time: Array) -> Array:
    """int32[L]: requests whose arrival is not after the time, int32[2, L]. A binary search, unrolled."""
    size = params.prompt.shape[0]
    found = jnp.zeros_like(params.count)
    for bit in reversed(range(size.bit_length())):
        probe = found + (1 << bit)
        arrival = _arrival(params, jnp.minimum(probe, size) - 1)
        found = jnp.where((probe <= params.count) & clock.not_later(arrival, time), probe, found)
    return found


def _arrival(params: ServerParams, request: Array) -> Array:
    """int32[2, L]: when the requests int32[L] arrive."""
    return jnp.stack([pick(params.arrival_high, request), pick(params.arrival_low, request)])


def _cycles(params: ServerParams, batch: Batch) -> Array:
    """float32[L]: how long the iteration takes."""
    tokens, kv = batch.tokens.astype(jnp.float32), batch.slots.kv.astype(jnp.float32)
    single = batch.tokens == 1
    context = jnp.sum(jnp.where(single, kv + 1.0, 0.0), axis=0)
    pairs = jnp.sum(jnp.where(single, 0.0, tokens * (kv + 0.5 * (tokens + 1.0))), axis=0)
    outputs = _total(batch.completes).astype(jnp.float32)
    return iteration_cycles(params.costs, jnp.sum(tokens, axis=0), outputs, context, pairs)


def _holds(batch: Batch) -> Array:
    """bool[S, L]: slots whose request has tokens in the cache."""
    return (batch.slots.phase == Phase.RUNNING) | (batch.slots.phase == Phase.ENDED)


def _advance(params: ServerParams, batch: Batch, end: Array) -> tuple[Slots, Array]:
    """The slots after the iteration, and bool[S, L]: those whose request leaves."""
    slots = batch.slots
    made = slots.made + batch.completes
    first = batch.completes & (slots.made == 0)
    ends = batch.completes & (made >= slots.output)
    phase = jnp.where(ends, Phase.ENDED, slots.phase)
    batch_goes_on = (params.static > 0) & jnp.any(phase == Phase.RUNNING, axis=0)
    leaves = (phase == Phase.ENDED) & ~batch_goes_on
    after = slots._replace(
        phase=jnp.where(leaves, Phase.FREE, phase),
        kv=slots.kv + batch.tokens,
        made=made,
        first_high=jnp.where(first, end[0], slots.first_high),
        first_low=jnp.where(first, end[1], slots.first_low),
    )
    return after, leaves


def _record(served: Served, slots: Slots, leaves: Array, end: Array) -> Served:
    """Write what is to be known of the requests that leave."""

    def written(field: Array, value: Array) -> Array:
        return put(field, leaves, value, slots.request)

    high, low = (jnp.broadcast_to(word, slots.request.shape) for word in end)
    return Served(
        times=add(served.times, leaves, jnp.ones_like(slots.request), slots.request),
        made=written(served.made, slots.made),
        first_high=written(served.first_high, slots.first_high),
        first_low=written(served.first_low, slots.first_low),
        finish_high=written(served.finish_high, high),
        finish_low=written(served.finish_low, low),
        evictions=written(served.evictions, slots.evictions),
    )


def _status(
    params: ServerParams, state: ServerState, batch: Batch, now: Array, arrived: Array, *, stuck: Array
) -> Array:
    """Status bits after the iteration."""
    head = jnp.minimum(state.admitted, params.prompt.shape[0] - 1)
    largest = pick(params.prompt, head) + pick(params.cached, head) + pick(params.output, head)
    # Seen when it is the first to wait, or is admitted with those before it because its prompt fits.
    too_large = (state.admitted < state.arrived) & (largest - 1 > params.kv_capacity)
    joined = batch.slots.prompt + batch.slots.output - 1 > params.kv_capacity
    too_large |= jnp.any(batch.admitted & joined, axis=0)
    return (
        jnp.where(too_large, STATUS_KV_CAPACITY, 0)
        | jnp.where(arrived - state.done > params.queue_capacity, STATUS_QUEUE, 0)
        | jnp.where(clock.not_later(params.horizon, now), STATUS_HORIZON, 0)
        | jnp.where(stuck & ~too_large, STATUS_DEADLOCK, 0)
    )


def _integrate(sums: Sums, cycles: Array, in_system: Array, running: Array, kv: Array) -> Sums:
    ones = jnp.ones_like(cycles)
    levels = Sums(in_system, running.astype(jnp.float32), kv.astype(jnp.float32), ones)
    return Sums(*(_compensated(old, cycles * level) for old, level in zip(sums, levels, strict=True)))


def _compensated(total: Array, more: Array) -> Array:
    """float32[2, L]: the sum and its lost part, with float32[L] more."""
    wanted = more - total[1]
    reached = total[0] + wanted
    return jnp.stack([reached, (reached - total[0]) - wanted])


def _observe(
    params: ServerParams,
    windows: Windows,
    on: Array,
    cycles: Array,
    idle: Array,
    in_system: Array,
    batch: Batch,
    kv: Array,
) -> Windows:
    """Add the iteration, or the wait, to the window at hand; go on to the next one if that is over."""
    size = windows.cycles.shape[0]
    places = jnp.arange(size, dtype=jnp.int32)[:, None]
    here = (places == windows.number % size) & on
    time = jnp.where(here, windows.cycles + cycles + idle, windows.cycles)
    over = jnp.any(here & (time >= params.window), axis=0)
    number = windows.number + over
    begins = (places == number % size) & over

    def plus(field: Array, amount: Array) -> Array:
        return jnp.where(begins, 0, jnp.where(here, field + amount.astype(field.dtype), field))

    return Windows(
        cycles=plus(windows.cycles, cycles + idle),
        kv=plus(windows.kv, cycles * kv),
        running=plus(windows.running, cycles * _total(batch.tokens > 0)),
        in_system=plus(windows.in_system, cycles * in_system),
        tokens=plus(windows.tokens, _total(batch.completes)),
        number=number,
    )


def _where_alive(on: Array, after: ServerState, before: ServerState) -> ServerState:
    """The new state where lanes are alive; large arrays were written there only."""

    def choose(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(on, a, b), new, old)

    return after.replace(
        **{
            name: choose(getattr(after, name), getattr(before, name))
            for name in (
                "now", "arrived", "admitted", "done", "iterations", "evictions", "kv_peak", "status", "slots", "sums",
            )
        },
    )  # fmt: skip


def _total(amount: Array) -> Array:
    return jnp.sum(amount, axis=0, dtype=jnp.int32)
