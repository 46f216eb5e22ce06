"""How far a quiet lane's clocks can jump, as `vsim.npu.step` has it. Functions of the same name are the same rule."""

from __future__ import annotations

from typing import Any

from vsim.npu.fields import FAR
from vsim.npu.kernel import core, dram, schedules
from vsim.npu.kernel.jit import part, rare
from vsim.npu.step import FAR_PS
from vsim.npu.types import STATUS_DEADLOCK


@rare
def next_core_event(k: Any) -> int:
    """Earliest core cycle when a quiet core changes by itself: a pass starts or ends, an operation ends."""
    now, earliest = k.now, FAR
    for c in range(k.front.size):
        if k.systolic_count[c] > 0:
            oldest = core.oldest_pass(k, c)
            if k.systolic.start[c, oldest] >= now:
                earliest = min(earliest, k.systolic.start[c, oldest])
            if k.systolic.finish[c, oldest] >= now:
                earliest = min(earliest, k.systolic.finish[c, oldest])
        if k.vector_busy[c] and k.vector_finish[c] >= now:
            earliest = min(earliest, k.vector_finish[c])
    return earliest


@rare
def next_noc_event(n: Any) -> int:
    """Earliest NoC tick at which a packet that is under way becomes deliverable."""
    now, earliest = n.now, FAR
    for source in range(n.stamp.shape[0]):
        for c in range(n.stamp.shape[1]):
            if n.stamp[source, c] >= now:
                earliest = min(earliest, n.stamp[source, c])
    for c in range(n.response_count.shape[0]):
        for of_core in range(n.response_count.shape[1]):
            if n.response_count[c, of_core] > 0 and n.response_stamp[c, of_core] >= now:
                earliest = min(earliest, n.response_stamp[c, of_core])
    return earliest


@rare
def next_dram_event(z: Any, s: Any) -> int:
    """Earliest DRAM tick, counted by the clock before it, at which quiet channels do something."""
    if not z.fixed_latency_dram:
        return min(dram.next_own_event(s.dram), s.dram.refresh_next) - 1
    earliest = FAR
    for c in range(z.channels):
        if s.noc.wrapped[c] > 0:
            earliest = min(earliest, s.noc.block[max(s.noc.out_head[c], 0)])
    return earliest


@part
def ticks_until(event: int, now: int, period_ps: int) -> int:
    """Picoseconds from the tick numbered `now` to the tick numbered `event`, FAR_PS if that is out of reach."""
    ticks = event - now
    return ticks * period_ps if ticks < FAR_PS // period_ps else FAR_PS


@part
def may_skip(p: Any, s: Any) -> bool:
    """A quiet domain would tick twice before the first domain that is at work. Less is not worth the search."""
    if p.idle_skip == 0 or s.done or s.status != 0:
        return False
    at_work = FAR
    if not s.core_quiet:
        at_work = min(at_work, s.core_time)
    if not s.noc_quiet:
        at_work = min(at_work, s.noc_time)
    if not s.dram_quiet:
        at_work = min(at_work, s.dram_time)
    return (
        (s.core_quiet and s.core_time + p.core_period_ps <= at_work)
        or (s.noc_quiet and s.noc_time + p.noc_period_ps <= at_work)
        or (s.dram_quiet and s.dram_time + p.dram_period_ps <= at_work)
    )


@rare
def waits_for_memory(s: Any) -> bool:
    waiting = dram.has_work(s.dram)
    for c in range(s.noc.wrapped.size):
        waiting = waiting or s.noc.wrapped[c] > 0
    return waiting and not dram.is_stuck(s.dram)


@rare
def is_dead(s: Any, ever: bool) -> bool:
    """Nothing will ever change again."""
    if ever or not (s.core_quiet and s.noc_quiet and s.dram_quiet):
        return False
    for c in range(s.core.finished.size):
        if s.core.finished[c] != 0:
            return False
    return not waits_for_memory(s)


@rare
def skip_idle(z: Any, p: Any, t: Any, s: Any) -> None:
    """Jump the clocks over the ticks in which nothing changes."""
    core_wait = noc_wait = dram_wait = 0
    start, starts = schedules.next_start(z, t, s)
    if s.core_quiet:
        core_wait = ticks_until(min(next_core_event(s.core), start), s.core.now, p.core_period_ps)
    if s.noc_quiet:
        noc_wait = ticks_until(next_noc_event(s.noc), s.noc.now, p.noc_period_ps)
    if s.dram_quiet:
        dram_wait = ticks_until(next_dram_event(z, s), s.dram.clock, p.dram_period_ps)
    ever = core_wait < FAR_PS or noc_wait < FAR_PS or starts
    if is_dead(s, ever):
        s.status |= STATUS_DEADLOCK
        return
    horizon = min(s.core_time + core_wait, s.noc_time + noc_wait, s.dram_time + dram_wait)
    cores = ticks_before(horizon, s.core_time, p.core_period_ps)
    nocs = ticks_before(horizon, s.noc_time, p.noc_period_ps)
    drams = ticks_before(horizon, s.dram_time, p.dram_period_ps)
    schedules.skip_ticks(s, cores)
    for c in range(z.cores):
        core.add_activity(s.core, c, cores)
    s.core.now += cores
    s.noc.now += nocs
    s.dram.clock += drams
    s.core_time += cores * p.core_period_ps
    s.noc_time += nocs * p.noc_period_ps
    s.dram_time += drams * p.dram_period_ps


@part
def ticks_before(horizon: int, time: int, period_ps: int) -> int:
    """Ticks of a domain strictly before the horizon."""
    return (max(horizon - time, 0) + period_ps - 1) // period_ps
