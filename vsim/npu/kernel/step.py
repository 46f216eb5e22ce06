"""One iteration of a lane, as `vsim.npu.step` has it, and the kernel: many of them.

Functions of the same name are the same rule.
"""

from __future__ import annotations

from typing import Any

from vsim.npu.kernel import core, dispatch, dram, noc, schedules, skip
from vsim.npu.kernel.jit import part, whole
from vsim.npu.types import STATUS_CYCLE_LIMIT

MAX_TICKS = 1 << 29
"""A clock that has come so far since the last rebase ends the chunk."""


@whole
def advance(z: Any, p: Any, t: Any, w: Any, s: Any, iterations: int) -> int:
    """Advance one lane by at most so many iterations, in place. Returns how many it took.

    z, p, t, w, s: sizes, parameters, tables, scratch and state as `lane.Lane` makes them.
    """
    prepare(w, s)
    for count in range(iterations):
        far = max(s.core.now, s.noc.now, s.dram.clock) >= MAX_TICKS
        if s.done or s.status != 0 or far:
            return count
        step(z, p, t, w, s)
    return iterations


@part
def prepare(w: Any, s: Any) -> None:
    """Work the scratch out from the state."""
    noc.prepare(w, s.noc)
    dram.prepare(w.plan, s.dram)


@part
def step(z: Any, p: Any, t: Any, w: Any, s: Any) -> None:
    """Up to one tick of each clock domain, in exact time order: core before DRAM before NoC within an instant."""
    s.iterations += 1
    core_turn(z, p, t, w, s)
    noc_turn(z, p, t, w, s)
    dram_turn(z, p, w, s)
    clocks_turn(z, p, t, s)


@part
def core_turn(z: Any, p: Any, t: Any, w: Any, s: Any) -> None:
    schedules.lengthen_windows(s)
    if s.core_time <= s.dram_time and s.core_time <= s.noc_time:
        schedules.core_stage(z, p, t, w, s)
    finish(p, t, s)


@part
def noc_turn(z: Any, p: Any, t: Any, w: Any, s: Any) -> None:
    if not s.done and s.noc_time < s.core_time and s.noc_time < s.dram_time:
        noc_stage(z, p, t, w, s)
    finish(p, t, s)


@part
def dram_turn(z: Any, p: Any, w: Any, s: Any) -> None:
    if not s.done and s.dram_time < s.core_time and s.dram_time <= s.noc_time:
        dram_stage(z, p, w, s)


@part
def clocks_turn(z: Any, p: Any, t: Any, s: Any) -> None:
    if skip.may_skip(p, s):
        skip.skip_idle(z, p, t, s)
    origin = min(s.core_time, s.noc_time, s.dram_time)
    s.core_time -= origin
    s.noc_time -= origin
    s.dram_time -= origin


@part
def noc_stage(z: Any, p: Any, t: Any, w: Any, s: Any) -> None:
    changed = noc.tick(z, p, t, w, s)
    s.noc_time += p.noc_period_ps
    s.noc_quiet = not changed
    if changed:
        s.core_quiet = False
        s.dram_quiet = False


@part
def dram_stage(z: Any, p: Any, w: Any, s: Any) -> None:
    d = s.dram
    changed = freed = False
    d.clock += 1
    refresh = not z.fixed_latency_dram and d.clock >= d.refresh_next
    for c in range(z.channels):
        if z.fixed_latency_dram:
            channel_freed = answer_after_latency(z, s, c)
            channel_changed = channel_freed
        else:
            channel_changed, channel_freed = channel_tick(z, p, w, s, c, refresh)
        changed |= channel_changed
        freed |= channel_freed
    if refresh:
        d.refresh_next += p.dram.refresh_interval
    s.status |= d.status
    s.dram_time += p.dram_period_ps
    s.dram_quiet = not changed
    if freed:
        s.noc_quiet = False


@part
def answer_after_latency(z: Any, s: Any, c: int) -> bool:
    """ONNXim's "simple" DRAM: a request is answered once its time has come. Returns whether one was."""
    n = s.noc
    if n.wrapped[c] == 0:
        return False
    node = max(n.out_head[c], 0)
    if n.block[node] >= s.dram.clock:
        return False
    word = n.meta[node]
    noc.take(n, c)
    noc.give_back(z, s, c, word)
    return True


@part
def channel_tick(z: Any, p: Any, w: Any, s: Any, c: int, refresh: bool) -> tuple[bool, bool]:
    """A tick of a channel: it takes a request, a read completes, a command issues. Returns whether anything changed,
    and whether it is something that the NoC may have waited for.
    """
    n, d = s.noc, s.dram
    may_return = not z.back_pressure or n.returned_count[c] < z.returns - 2
    may_start = not z.back_pressure or d.pending_count[c] <= d.pending_depart.shape[1] - 2
    freed = False
    if n.wrapped[c] > 0:
        node = max(n.out_head[c], 0)
        word = n.meta[node]
        if dram.accept(p.dram, w.plan, d, c, noc.is_write(word), n.block[node], word, may_start):
            noc.take(n, c)
            freed = True
    read = dram.complete_read(d, c) if may_return else -1
    if refresh:
        d.refresh_due[c] += 1
        w.plan.wake[c] = 0
    command, meta, counted = dram.tick(p.dram, w.plan, d, c, may_start, may_return)
    if counted >= 0:
        schedules.count_row(z, s, c, command, meta, counted)
    if read >= 0:
        noc.give_back(z, s, c, read)
    if command == dram.WR:
        noc.give_back(z, s, c, meta)
    freed = freed or read >= 0 or command == dram.WR
    return freed or command != dram.NO_COMMAND, freed


@part
def finish(p: Any, t: Any, s: Any) -> None:
    """A lane is done when every layer is and no core runs; DRAM and NoC alone keep nothing alive."""
    done = schedules.all_layers_done(t, s)
    if done:
        for c in range(s.core.finished.size):
            if s.core.finished[c] > 0 or core.running(s.core, c):
                done = False
    if done:
        s.done = True
        return
    high, low = dispatch.absolute(s.core)
    if high > p.max_cycles_high or (high == p.max_cycles_high and low >= p.max_cycles_low):
        s.status |= STATUS_CYCLE_LIMIT
