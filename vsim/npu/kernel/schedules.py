"""What a step does in one way for a program, layer by layer, and in another for a mix of tenants.

As `vsim.npu.step` and its `_core_stage_of_mix` have it. s: the state, whose schedule says which of the two it is.
"""

from __future__ import annotations

from typing import Any

from vsim.npu.fields import FAR
from vsim.npu.kernel import accounts, core, dispatch, shares, tenants
from vsim.npu.kernel.jit import either, part, rare


@part
def _stage_of_program(z: Any, p: Any, t: Any, w: Any, s: Any) -> None:
    changed, sent = dispatch.dispatch(z, p, t, s), False
    loads = stores = 0
    for c in range(z.cores):
        core_changed, loaded, stored = core.tick(z, p, t, s, c, (True, True), (0, 0))
        changed |= core_changed
        sent |= loaded >= 0 or stored >= 0
        loads += max(loaded, 0)
        stores += max(stored, 0)
    if loads > 0:
        s.schedule.load_requests[s.schedule.layer] += loads
    if stores > 0:
        s.schedule.store_requests[s.schedule.layer] += stores
    _end_tick(p, s, sent)
    s.core_quiet = not changed


@part
def _stage_of_mix(z: Any, p: Any, t: Any, w: Any, s: Any) -> None:
    """While the scheduler has something to do in this tick, the rest of it is left to the next iteration."""
    complete, changed = tenants.dispatch(p, t, w.asks, s)
    if complete:
        sent = False
        for c in range(z.cores):
            core_changed, core_sent = _tick_of_tenants(z, p, t, w, s, c)
            changed |= core_changed
            sent |= core_sent
        if sent and z.shares:
            shares.charge(s.schedule, s.core, w.asks.requests)
        _end_tick(p, s, sent)
    s.core_quiet = not changed


@part
def _end_tick(p: Any, s: Any, sent: bool) -> None:
    s.core.now += 1
    s.core_time += p.core_period_ps
    if sent:
        s.noc_quiet = False


@part
def _tick_of_tenants(z: Any, p: Any, t: Any, w: Any, s: Any, c: int) -> tuple[bool, bool]:
    """A tick of core c. Returns whether anything changed, and whether a load or store took effect."""
    h, k = s.schedule, s.core
    may = shares.may_move(z, h, k, c, 0), shares.may_move(z, h, k, c, 1)
    load_layer, loads = _sender(h, k, c, k.load_valid[c], k.load.word[c])
    store_layer, stores = _sender(h, k, c, k.store_valid[c], k.store.word[c])
    first, second, waiting = k.resident[c, 0], k.resident[c, 1], k.finished[c]
    tags = accounts.tag_of(z, loads), accounts.tag_of(z, stores)
    changed, loaded, stored = core.tick(z, p, t, s, c, may, tags)
    if loaded >= 0:
        h.load_requests[load_layer] += loaded
        _count_sent(z, w, h, k, loads, loaded)
    if stored >= 0:
        h.store_requests[store_layer] += stored
        _count_sent(z, w, h, k, stores, stored)
    if first and not k.resident[c, 0]:
        tenants.await_report(s, c, waiting, h.slot_layer[c, 0])
    if second and not k.resident[c, 1]:
        tenants.await_report(s, c, waiting, h.slot_layer[c, 1])
    return changed, loaded >= 0 or stored >= 0


@part
def _sender(h: Any, k: Any, c: int, valid: bool, word: int) -> tuple[int, int]:
    """Layer and tenant of a latched load or store, of which nobody asks if there is none."""
    if not valid:
        return 0, 0
    layer = accounts.layer_of(h, k, c, word)
    return layer, accounts.tenant_of(h, layer)


@rare
def _count_sent(z: Any, w: Any, h: Any, k: Any, tenant: int, requests: int) -> None:
    accounts.count_by_time(h, k, tenant, requests)
    if z.shares:
        w.asks.requests[h.mix.bucket[tenant]] += requests


@part
def _layers_of_program_done(t: Any, s: Any) -> bool:
    return s.schedule.layer >= t.layer_count


@part
def _layers_of_mix_done(t: Any, s: Any) -> bool:
    return tenants.is_done(s.schedule)


@part
def _start_of_program(z: Any, t: Any, s: Any) -> tuple[int, bool]:
    return dispatch.next_launch(t, s.schedule, s.core), s.schedule.waiting


@part
def _start_of_mix(z: Any, t: Any, s: Any) -> tuple[int, bool]:
    h, k = s.schedule, s.core
    credit = shares.next_credit(z, h, k)
    return min(tenants.next_arrival(h, k), credit), tenants.is_expecting(h) or credit != FAR


@part
def _nothing_to_skip(s: Any, ticks: int) -> None:
    pass


@part
def _skip_turns(s: Any, ticks: int) -> None:
    tenants.skip(s.schedule, s.core, ticks)


@part
def _no_windows(s: Any) -> None:
    pass


@part
def _lengthen_windows(s: Any) -> None:
    accounts.lengthen_windows(s.schedule, s.core)


@part
def _no_account(z: Any, s: Any, c: int, command: int, word: int, bank: int) -> None:
    pass


core_stage: Any = either(_stage_of_program, _stage_of_mix)
"""(z, p, t, w, s): a tick of the cores."""
all_layers_done: Any = either(_layers_of_program_done, _layers_of_mix_done)
"""(t, s) -> bool"""
next_start: Any = either(_start_of_program, _start_of_mix)
"""(z, t, s) -> core tick at which a launch, an arrival or a share's next credit is due, FAR: none; whether something
will start without a signal from NoC or DRAM.
"""
skip_ticks: Any = either(_nothing_to_skip, _skip_turns)
"""(s, ticks): quiet ticks go by."""
lengthen_windows: Any = either(_no_windows, _lengthen_windows)
"""(s): before a step."""
count_row: Any = either(_no_account, accounts.count_row)
"""(z, s, c, command, word, bank): the first command for a request, in channel c."""
