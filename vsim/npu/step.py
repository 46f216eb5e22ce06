"""One iteration of a lane: at most one tick of each clock domain, in exact time order.

The original processes one instant after the other and, within an instant, core before DRAM before NoC (spec onnxim.md
section 1). Most instants have a single domain ticking; here up to three successive ticks share an iteration: a stage
runs if its domain's next tick is the earliest of all, which each stage decides anew. So any ratio of clocks is exact.

A step is one function of the whole batch, the lane the last axis of every array: rare work for any lane is under one
`cond`, and the kernels vectorise over lanes (see `vsim.npu.fields`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from vsim.npu import accounts, core, dispatch, dram, noc, shares, tenants, words
from vsim.npu.fields import FAR, add, any_of, fold, least, numbers, settle
from vsim.npu.types import (
    STATUS_CYCLE_LIMIT,
    STATUS_DEADLOCK,
    MixTables,
    NpuParams,
    NpuShape,
    NpuState,
    ProgramTables,
    TenantSchedule,
)

CORE, DRAM, NOC = range(3)
FAR_PS = 2**30
"""No event, or none within the horizon that fits int32 picoseconds (about one millisecond)."""


def step(shape: NpuShape, params: NpuParams, program: ProgramTables, s: NpuState) -> NpuState:
    """Advance every lane (last axis of params and s). A lane that is done, or has a status, does not change."""
    alive = ~s.done & (s.status == 0)
    s = s.replace(iterations=s.iterations + alive)
    with jax.named_scope("core"):
        stage = _core_stage_of_mix if isinstance(program, MixTables) else _core_stage
        s = stage(shape, params, program, s, settle(alive & _is_next(s, CORE)))
    s = _finish(params, program, s)
    with jax.named_scope("noc"):
        s = _noc_stage(shape, params, program, s, settle(alive & ~s.done & _is_next(s, NOC)))
    s = _finish(params, program, s)
    with jax.named_scope("dram"):
        s = _dram_stage(shape, params, s, settle(alive & ~s.done & _is_next(s, DRAM)))
    with jax.named_scope("clocks"):
        # To know how far a lane can skip costs as much as a DRAM tick.
        may_skip = _may_skip(params, s)
        zeros = jnp.zeros_like(s.status)
        skips = lax.cond(
            jnp.any(may_skip),
            lambda: _find_skip(shape, params, program, s, may_skip),
            lambda: _Skip(zeros, zeros, zeros, jnp.zeros_like(may_skip)),
        )
        return _skip_idle(params, s, skips)


def _is_next(s: NpuState, domain: int) -> Array:
    """bool[L]: the domain's next tick comes before those of the others; ties go core, DRAM, NoC."""
    times = s.core_time, s.dram_time, s.noc_time
    mine = times[domain]
    before = [mine < other if rank < domain else mine <= other for rank, other in enumerate(times) if rank != domain]
    return before[0] & before[1]


def _core_stage(shape: NpuShape, params: NpuParams, program: ProgramTables, s: NpuState, on: Array) -> NpuState:
    schedule, cores, dispatched = dispatch.dispatch(params, program, s.program, s.schedule, s.core, on)
    room = noc.descriptor_room(shape, s.noc)[:, None]
    cores, did = core.tick(shape, params, program, s.program, room, cores, on)
    network, status = noc.push_descriptors(shape, s.noc, did.load, did.load_valid, did.store, did.store_valid)
    sent = any_of(did.load_valid | did.store_valid)
    loads = fold(jnp.add, jnp.where(did.load_valid, did.load.requests, 0), 0)
    stores = fold(jnp.add, jnp.where(did.store_valid, did.store.requests, 0), 0)
    changed = dispatched | did.changed
    return s.replace(
        core=cores,
        schedule=dispatch.count_traffic(schedule, loads, stores),
        noc=network,
        core_time=s.core_time + jnp.where(on, params.core_period_ps, 0),
        core_quiet=jnp.where(on, ~changed, s.core_quiet),
        noc_quiet=s.noc_quiet & ~sent,
        status=s.status | did.status | status,
    )


def _core_stage_of_mix(shape: NpuShape, params: NpuParams, program: ProgramTables, s: NpuState, on: Array) -> NpuState:
    """Lanes whose scheduler still has something to do in this tick wait for the next iteration with the rest of it."""
    assert isinstance(program, MixTables)
    schedule, cores, ready, dispatched, status = tenants.dispatch(shape, params, program, s.schedule, s.core, on)
    before, ticks = cores, settle(ready)
    room = noc.descriptor_room(shape, s.noc)[:, None] & shares.may_move(shape, schedule, cores)
    cores, did = core.tick(shape, params, program, s.program, room, cores, ticks)
    sent = accounts.sent(shape, schedule, before, did)
    schedule = shares.charge(shape, accounts.count_sent(schedule, before, sent), before, sent)
    load, store = did.load._replace(word=sent.word[: shape.cores]), did.store._replace(word=sent.word[shape.cores :])
    network, overflow = noc.push_descriptors(shape, s.noc, load, did.load_valid, store, did.store_valid)
    schedule, late = tenants.after_tick(schedule, before, cores)
    changed = dispatched | did.changed
    return s.replace(
        core=cores,
        schedule=schedule,
        noc=network,
        core_time=s.core_time + jnp.where(ticks, params.core_period_ps, 0),
        core_quiet=jnp.where(on, ~changed, s.core_quiet),
        noc_quiet=s.noc_quiet & ~any_of(sent.valid),
        status=s.status | did.status | status | overflow | late,
    )


def _noc_stage(shape: NpuShape, params: NpuParams, program: ProgramTables, s: NpuState, on: Array) -> NpuState:
    network, did = noc.tick(shape, params, program, s.program, s.dram.clock, s.noc, on)
    return s.replace(
        noc=network,
        core=_receive(s, did.delivered),
        noc_time=s.noc_time + jnp.where(on, params.noc_period_ps, 0),
        noc_quiet=jnp.where(on, ~did.changed, s.noc_quiet),
        core_quiet=s.core_quiet & ~(on & did.changed),
        dram_quiet=s.dram_quiet & ~(on & did.changed),
        status=s.status | did.status,
    )


def _receive(s: NpuState, word: Array) -> core.CoreState:
    """Responses (int32[R, C, L]) reach the cores: read data complete their entry, write acknowledgements count."""
    arrived = word >= 0
    acknowledges = arrived & words.is_write(word)
    fills = arrived & ~words.is_write(word)
    return s.core.replace(
        remaining=add(s.core.remaining, fills, -1, numbers(word.shape[1]), words.flat_entry_of(word)),
        unacknowledged=s.core.unacknowledged - fold(jnp.add, acknowledges.astype(jnp.int32), 0),
    )


def _dram_stage(shape: NpuShape, params: NpuParams, s: NpuState, on: Array) -> NpuState:
    valid, block, word = noc.offered(s.noc)
    schedule = s.schedule
    if shape.fixed_latency_dram:
        taken = on & valid & (block <= s.dram.clock)
        network, status = noc.give_back(shape, noc.take(s.noc, word, taken), word, taken)
        memory = s.dram.replace(clock=s.dram.clock + on)
        changed = freed = any_of(taken)
    else:
        offer = dram.Offer(on & valid, words.is_write(word), block, word)
        room = _dram_room(shape, s)
        memory, taken = dram.accept(params.dram, s.dram, offer, room)
        network = noc.take(s.noc, word, taken)
        of_mix = isinstance(schedule, TenantSchedule)
        memory, did = dram.tick(params.dram, memory, room, on, with_openers=of_mix)
        network, status_read = noc.give_back(shape, network, did.read_meta, did.read_done)
        network, status_write = noc.give_back(shape, network, did.write_meta, did.write_done)
        status = status_read | status_write
        freed = any_of(taken | did.read_done | did.write_done)
        changed = freed | any_of(did.issued)
        if of_mix:
            schedule = accounts.count_rows(shape, schedule, did)
    return s.replace(
        dram=memory,
        schedule=schedule,
        noc=network,
        dram_time=s.dram_time + jnp.where(on, params.dram_period_ps, 0),
        dram_quiet=jnp.where(on, ~changed, s.dram_quiet),
        noc_quiet=s.noc_quiet & ~freed,
        status=s.status | status | memory.status,
    )


def _dram_room(shape: NpuShape, s: NpuState) -> dram.Room:
    """Room for the results of a tick, and for the two reads (one forwarded, one issued) that it can put under way."""
    if not shape.back_pressure:
        always = jnp.ones_like(s.dram.pending_count, bool)
        return dram.Room(always, always)
    return dram.Room(noc.return_room(shape, s.noc), s.dram.pending_count <= shape.dram.pending - 2)


def _finish(params: NpuParams, program: ProgramTables, s: NpuState) -> NpuState:
    """A lane is done when every layer is and no core runs; DRAM and NoC alone keep nothing alive."""
    if isinstance(s.schedule, TenantSchedule):
        all_layers = tenants.is_done(s.schedule)
    else:
        all_layers = s.schedule.layer >= program.layer_count.at[s.program].get(mode="clip")
    done = settle(all_layers & ~any_of(core.running(s.core) | (s.core.finished > 0)))
    high, low = dispatch.absolute(s.core)
    beyond = (high > params.max_cycles_high) | ((high == params.max_cycles_high) & (low >= params.max_cycles_low))
    late = beyond & ~done
    return s.replace(done=s.done | done, status=s.status | jnp.where(late, STATUS_CYCLE_LIMIT, 0))


def _next_core_event(s: core.CoreState) -> Array:
    """int32[L]: earliest core cycle when a quiet core changes by itself: a pass starts or ends, an operation ends."""
    oldest, busy = core.oldest_pass(s), s.systolic_count > 0
    times = jnp.where(busy, oldest.start, FAR), jnp.where(busy, oldest.finish, FAR)
    times += (jnp.where(s.vector_busy, s.vector_finish, FAR),)
    return least(*[jnp.where(time >= s.now, time, FAR) for time in times])


def _next_noc_event(s: NpuState) -> Array:
    """int32[L]: earliest NoC tick at which a packet that is under way becomes deliverable."""
    requests = jnp.where(s.noc.stamp >= s.noc.now, s.noc.stamp, FAR)
    waiting = (s.noc.response_count > 0) & (s.noc.response_stamp >= s.noc.now)
    return least(requests, jnp.where(waiting, s.noc.response_stamp, FAR))


def _next_dram_event(shape: NpuShape, s: NpuState) -> Array:
    """int32[L]: earliest DRAM tick, counted by the clock before it, at which quiet channels do something."""
    if shape.fixed_latency_dram:
        valid, ready, _ = noc.offered(s.noc)
        return least(jnp.where(valid, ready, FAR))
    # The controller's clock advances first: the tick that sees time t starts at t - 1.
    return dram.next_event(s.dram) - 1


def _ticks_until(event: Array, now: Array, period_ps: Array) -> Array:
    """Picoseconds from the tick numbered `now` to the tick numbered `event`, FAR_PS if that is out of reach."""
    ticks = event - now
    return jnp.where(ticks < FAR_PS // period_ps, ticks * period_ps, FAR_PS)


class _Skip(NamedTuple):
    """Ticks of each domain to jump over, int32[L]; dead bool[L]: nothing will ever change again."""

    core: Array
    noc: Array
    dram: Array
    dead: Array


def _may_skip(params: NpuParams, s: NpuState) -> Array:
    """bool[L]: a quiet domain would tick twice before the first domain that is at work. Less is not worth the search.

    A single tick of a quiet domain shares the iteration of the next tick at work.
    """
    domains = (
        (s.core_quiet, s.core_time, params.core_period_ps),
        (s.noc_quiet, s.noc_time, params.noc_period_ps),
        (s.dram_quiet, s.dram_time, params.dram_period_ps),
    )
    at_work = least(jnp.stack([jnp.where(quiet, FAR, time) for quiet, time, _ in domains]))
    twice = domains[0][0] & (domains[0][1] + domains[0][2] <= at_work)
    for quiet, time, period in domains[1:]:
        twice |= quiet & (time + period <= at_work)
    return settle(~s.done & (s.status == 0) & twice & (params.idle_skip > 0))


def _find_skip(shape: NpuShape, params: NpuParams, program: ProgramTables, s: NpuState, may_skip: Array) -> _Skip:
    """How many ticks of each domain change nothing.

    A quiet domain changes at its own next event at the earliest; a domain that is not quiet at its next tick. Before
    the earliest of those, `horizon`, every tick of every domain is a repetition.
    """

    def wait(quiet: Array, event: Array, now: Array, period_ps: Array) -> Array:
        return jnp.where(quiet, _ticks_until(event, now, period_ps), 0)

    if isinstance(s.schedule, TenantSchedule):
        credit = shares.next_credit(shape, s.schedule, s.core)
        launch = jnp.minimum(tenants.next_arrival(s.schedule, s.core), credit)
        expects = tenants.is_expecting(s.schedule) | (credit != FAR)
    else:
        launch, expects = dispatch.next_launch(program, s.program, s.schedule, s.core), s.schedule.waiting
    next_core_event = jnp.minimum(_next_core_event(s.core), launch)
    core_wait = wait(s.core_quiet, next_core_event, s.core.now, params.core_period_ps)
    noc_wait = wait(s.noc_quiet, _next_noc_event(s), s.noc.now, params.noc_period_ps)
    dram_wait = wait(s.dram_quiet, _next_dram_event(shape, s), s.dram.clock, params.dram_period_ps)
    waits = [(s.core_time, core_wait), (s.noc_time, noc_wait), (s.dram_time, dram_wait)]
    horizon = least(jnp.stack([time + wait for time, wait in waits]))
    waits_for_memory = (dram.has_work(s.dram) | any_of(s.noc.wrapped > 0)) & ~dram.is_stuck(s.dram)
    ever = (core_wait < FAR_PS) | (noc_wait < FAR_PS) | waits_for_memory | expects
    all_quiet = s.core_quiet & s.noc_quiet & s.dram_quiet
    dead = may_skip & all_quiet & ~ever & ~any_of(s.core.finished != 0)
    skip = may_skip & ~dead
    return _Skip(
        core=_ticks_before(horizon, s.core_time, params.core_period_ps, skip),
        noc=_ticks_before(horizon, s.noc_time, params.noc_period_ps, skip),
        dram=_ticks_before(horizon, s.dram_time, params.dram_period_ps, skip),
        dead=dead,
    )


def _skip_idle(params: NpuParams, s: NpuState, skip: _Skip) -> NpuState:
    """Jump the clocks, then make the earliest clock the origin of time."""
    if isinstance(s.schedule, TenantSchedule):
        s = s.replace(schedule=tenants.skip(s.schedule, s.core, skip.core))
    cores = core.add_activity(s.core, skip.core)
    core_time = s.core_time + skip.core * params.core_period_ps
    noc_time = s.noc_time + skip.noc * params.noc_period_ps
    dram_time = s.dram_time + skip.dram * params.dram_period_ps
    origin = jnp.minimum(jnp.minimum(core_time, noc_time), dram_time)
    return s.replace(
        core=cores.replace(now=cores.now + skip.core),
        noc=s.noc.replace(now=s.noc.now + skip.noc),
        dram=s.dram.replace(clock=s.dram.clock + skip.dram),
        core_time=core_time - origin,
        noc_time=noc_time - origin,
        dram_time=dram_time - origin,
        status=s.status | jnp.where(skip.dead, STATUS_DEADLOCK, 0),
    )


def _ticks_before(horizon: Array, time: Array, period_ps: Array, skip: Array) -> Array:
    """Ticks of a domain strictly before the horizon."""
    span = jnp.maximum(horizon - time, 0)
    return jnp.where(skip, (span + period_ps - 1) // period_ps, 0)
