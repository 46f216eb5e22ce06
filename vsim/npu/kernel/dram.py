"""One tick of a DRAM channel, as `vsim.npu.dram` has it. Functions of the same name are the same rule.

Times that have passed may differ: `dram.tick` raises some of them to the present.

The queues are not searched slot by slot: `plan` (`lane.Plan`) knows of every bank the slots with requests for it, the
oldest hit and the oldest miss among them, and of every channel a tick before which it has nothing to do.
"""

from __future__ import annotations

from typing import Any

from vsim.npu.dram import (
    ACT,
    BANK,
    BANK_BITS,
    BANK_GROUP,
    BANK_MASK,
    CHANNEL,
    MAX_ORDER,
    MAX_QUEUE,
    PRE,
    PREA,
    RANK,
    RD,
    REF,
    SLOT_BITS,
    STATUS_ORDER,
    STATUS_PENDING,
    WR,
)
from vsim.npu.fields import FAR
from vsim.npu.kernel.jit import part, rare, trailing_zeros
from vsim.npu.kernel.sets import clear, exclude, has, include, include_if, is_empty

NO_COMMAND = -1


@rare
def prepare(plan: Any, d: Any) -> None:
    """Work the plan out from the state."""
    clear(plan.slots.flat)
    clear(plan.hit_banks.flat)
    clear(plan.miss_banks.flat)
    clear(plan.wake)
    clear(plan.miss_wake)
    for c in range(d.count.shape[0]):
        for kind in range(2):
            for slot in range(d.key.shape[2]):
                if has(d.used[c, kind], slot):
                    bank = d.place[c, kind, slot] & BANK_MASK
                    include(plan.slots[c, kind, bank], slot)
            for bank in range(d.row.shape[1]):
                find_oldest(plan, d, c, kind, bank)


@rare
def find_oldest(plan: Any, d: Any, c: int, kind: int, bank: int) -> None:
    """Find the oldest hit and the oldest miss of a bank anew."""
    hit = miss = FAR
    for word in range(d.used.shape[2]):
        left = plan.slots[c, kind, bank, word]
        of_hits = d.hits[c, kind, word]
        while left != 0:
            bit = trailing_zeros(left)
            left &= left - 1
            key = d.key[c, kind, word * 32 + bit]
            is_hit = (of_hits >> bit) & 1 != 0
            hit = min(hit, key if is_hit else FAR)
            miss = min(miss, FAR if is_hit else key)
    plan.oldest_hit[c, kind, bank] = hit
    plan.oldest_miss[c, kind, bank] = miss
    include_if(plan.hit_banks[c, kind], bank, hit != FAR)
    include_if(plan.miss_banks[c, kind], bank, miss != FAR)


@part
def find_oldest_hit(plan: Any, d: Any, c: int, kind: int, bank: int) -> None:
    """Find the oldest hit of a bank anew, one of whose hits has left."""
    hit = FAR
    for word in range(d.used.shape[2]):
        left = plan.slots[c, kind, bank, word] & d.hits[c, kind, word]
        while left != 0:
            hit = min(hit, d.key[c, kind, word * 32 + trailing_zeros(left)])
            left &= left - 1
    plan.oldest_hit[c, kind, bank] = hit
    include_if(plan.hit_banks[c, kind], bank, hit != FAR)
    if hit == FAR:
        # The misses of the bank have nothing to let pass any more.
        plan.miss_wake[c] = 0


@part
def ready_at(d: Any, c: int, command: int, bank: int) -> int:
    """The earliest tick of a command at a bank, by its own rules and those of its group."""
    group = bank & (d.ready_group.shape[2] - 1)
    return max(d.ready_bank[c, command, bank], d.ready_group[c, command, group])


@part
def place_of(p: Any, d: Any, block: int) -> int:
    ranks, groups, banks = d.ready_rank.shape[2], d.ready_group.shape[2], d.ready_bank.shape[2]
    rank = (block >> p.rank_shift) & (ranks - 1)
    group = (block >> p.group_shift) & (groups // ranks - 1)
    bank = (block >> p.bank_shift) & (banks // groups - 1)
    row = (block >> p.row_shift) & p.row_mask
    if p.bank_hash > 0:
        bank ^= row & (banks // groups - 1)
    return (row << BANK_BITS) | (rank + group * ranks + bank * groups)


@part
def waits_for_write(plan: Any, d: Any, c: int, block: int, bank: int) -> bool:
    """The write queue has a request for the block, which lies in the bank."""
    for word in range(d.used.shape[2]):
        left = plan.slots[c, 1, bank, word]
        while left != 0:
            slot = word * 32 + trailing_zeros(left)
            left &= left - 1
            if d.block[c, slot] == block:
                return True
    return False


@part
def free_slot(d: Any, c: int, kind: int) -> int:
    for word in range(d.used.shape[2]):
        free = ~d.used[c, kind, word] & 0xFFFFFFFF
        if free != 0:
            return word * 32 + trailing_zeros(free)
    return d.used.shape[2] * 32


@part
def accept(p: Any, plan: Any, d: Any, c: int, write: bool, block: int, meta: int, may_start: bool) -> bool:
    """Take the offered request if it fits: before the tick whose time the clock shows already."""
    kind = 1 if write else 0
    place = place_of(p, d, block)
    bank = place & BANK_MASK
    if not write and d.count[c, 1] > 0 and waits_for_write(plan, d, c, block, bank):
        if may_start:
            push_pending(d, c, d.clock, meta)
        return may_start
    if d.count[c, kind] >= (p.write_capacity if write else p.read_capacity):
        return False
    slot, order = free_slot(d, c, kind), d.order[c]
    d.key[c, kind, slot] = (order << SLOT_BITS) | slot
    include(d.used[c, kind], slot)
    if write:
        d.block[c, slot] = block
    d.place[c, kind, slot] = place
    d.meta[c, kind, slot] = meta << 1
    d.count[c, kind] += 1
    d.order[c] = order + 1
    plan_for(plan, d, c, kind, slot, bank)
    if order >= MAX_ORDER - 1:
        d.status |= STATUS_ORDER
    return True


@part
def plan_for(plan: Any, d: Any, c: int, kind: int, slot: int, bank: int) -> None:
    """Plan for a new request, the youngest: whether it is a hit, and when its first command may be ready."""
    include(plan.slots[c, kind, bank], slot)
    key, opened = d.key[c, kind, slot], has(d.opened[c], bank)
    if opened and d.row[c, bank] == d.place[c, kind, slot] >> BANK_BITS:
        include(d.hits[c, kind], slot)
        if plan.oldest_hit[c, kind, bank] == FAR:
            plan.oldest_hit[c, kind, bank] = key
            include(plan.hit_banks[c, kind], bank)
            plan.wake[c] = min(plan.wake[c], ready_at(d, c, WR if kind == 1 else RD, bank))
    elif plan.oldest_miss[c, kind, bank] == FAR:
        plan.oldest_miss[c, kind, bank] = key
        include(plan.miss_banks[c, kind], bank)
        ready = ready_at(d, c, PRE if opened else ACT, bank)
        plan.wake[c] = min(plan.wake[c], ready)
        plan.miss_wake[c] = min(plan.miss_wake[c], ready)


@part
def push_pending(d: Any, c: int, depart: int, meta: int) -> None:
    size = d.pending_depart.shape[1]
    if d.pending_count[c] >= size:
        d.status |= STATUS_PENDING
    tail = (d.pending_head[c] + d.pending_count[c]) & (size - 1)
    d.pending_depart[c, tail] = depart
    d.pending_meta[c, tail] = meta
    d.pending_count[c] += 1


@part
def complete_read(d: Any, c: int) -> int:
    """The caller's word of the read that completes in this tick; -1: none does."""
    head = d.pending_head[c] & (d.pending_depart.shape[1] - 1)
    if d.pending_count[c] == 0 or d.pending_depart[c, head] > d.clock:
        return -1
    d.pending_head[c] += 1
    d.pending_count[c] -= 1
    return d.pending_meta[c, head]


@part
def oldest_active(plan: Any, d: Any, c: int, may_start: bool, may_return: bool) -> int:
    """The bank of the oldest request whose row was activated for it and that is ready; -1: none is."""
    oldest = FAR
    for word in range(d.active.shape[1]):
        left = d.active[c, word]
        while left != 0:
            bank = word * 32 + trailing_zeros(left)
            left &= left - 1
            write = has(d.active_write[c], bank)
            ready = ready_at(d, c, WR if write else RD, bank)
            if ready > d.clock or not (may_return if write else may_start):
                plan.wake[c] = min(plan.wake[c], ready)
            elif d.active_key[c, bank] < oldest:
                oldest = d.active_key[c, bank]
    return -1 if oldest == FAR else oldest & (d.active_key.shape[1] - 1)


@rare
def refresh_command(plan: Any, d: Any, c: int) -> int:
    """The refresh command that is ready; NO_COMMAND while none is, or while it would close an activated row."""
    any_open = not is_empty(d.opened[c])
    if any_open and not is_empty(d.active[c]):
        return NO_COMMAND
    ready = 0
    for rank in range(d.ready_rank.shape[2]):
        ready = max(ready, d.ready_rank[c, 0 if any_open else 1, rank])
    plan.wake[c] = min(plan.wake[c], ready)
    if ready > d.clock:
        return NO_COMMAND
    return PREA if any_open else REF


@part
def mode_changes(p: Any, d: Any, c: int) -> bool:
    """Whether this tick changes between reads and writes, if it comes to the queues."""
    reads, writes = d.count[c, 0], d.count[c, 1]
    if d.write_mode[c]:
        return writes <= p.write_low and reads != 0
    return writes >= p.write_high or reads == 0


@part
def update_write_mode(p: Any, plan: Any, d: Any, c: int) -> None:
    if mode_changes(p, d, c):
        d.write_mode[c] = not d.write_mode[c]
        plan.miss_wake[c] = 0


@part
def best_hit(plan: Any, d: Any, c: int, kind: int, may: bool) -> int:
    """Key of the oldest row hit that is ready; FAR: none is. Without a branch that no processor could foresee."""
    best = wake = FAR
    access, now, groups = WR if kind == 1 else RD, d.clock, d.ready_group.shape[2]
    banks, groups_ready = d.ready_bank[c, access], d.ready_group[c, access]
    for word in range(plan.hit_banks.shape[2]):
        left = plan.hit_banks[c, kind, word]
        while left != 0:
            bank = word * 32 + trailing_zeros(left)
            left &= left - 1
            ready = max(banks[bank], groups_ready[bank & (groups - 1)])
            best = min(best, plan.oldest_hit[c, kind, bank] if ready <= now else FAR)
            wake = min(wake, ready)
    # Hits that are ready and do not go wake the channel in the next tick again.
    plan.wake[c] = min(plan.wake[c], wake)
    return best if may else FAR


@part
def best_miss(p: Any, plan: Any, d: Any, c: int, kind: int) -> int:
    """Key of the oldest row miss whose next command is ready; FAR: none is. With hits first no PRE closes a row with
    hits in the queue.
    """
    best = wake = FAR
    now, groups = d.clock, d.ready_group.shape[2]
    for word in range(plan.miss_banks.shape[2]):
        left, opened = plan.miss_banks[c, kind, word], d.opened[c, word]
        if p.hit_first > 0:
            left &= ~plan.hit_banks[c, kind, word]
        while left != 0:
            bit = trailing_zeros(left)
            left &= left - 1
            bank = word * 32 + bit
            command = ACT + ((opened >> bit) & 1) * (PRE - ACT)
            ready = max(d.ready_bank[c, command, bank], d.ready_group[c, command, bank & (groups - 1)])
            best = min(best, plan.oldest_miss[c, kind, bank] if ready <= now else FAR)
            wake = min(wake, ready)
    plan.miss_wake[c] = wake
    return best


@part
def best_of_queue(p: Any, plan: Any, d: Any, c: int, may_start: bool, may_return: bool) -> int:
    """Slot of the entry of the current queue to serve (with hit_first: a ready hit, if there is one); -1: none."""
    kind = 1 if d.write_mode[c] else 0
    best = best_hit(plan, d, c, kind, may_return if kind == 1 else may_start)
    if best == FAR or p.hit_first == 0:
        if d.clock >= plan.miss_wake[c]:
            best = min(best, best_miss(p, plan, d, c, kind))
        plan.wake[c] = min(plan.wake[c], plan.miss_wake[c])
    return -1 if best == FAR else best & (MAX_QUEUE - 1)


@part
def tick(p: Any, plan: Any, d: Any, c: int, may_start: bool, may_return: bool) -> tuple[int, int, int]:
    """Choose and issue a command, after `complete_read`. Returns it (or NO_COMMAND), the word of the request that it
    serves, and the bank if it is that request's first command, else -1.
    """
    if d.clock < plan.wake[c] and (d.refresh_due[c] > 0 or not mode_changes(p, d, c)):
        return NO_COMMAND, -1, -1
    # Whatever is found not to be ready lowers this to the tick from which it may be.
    plan.wake[c] = FAR
    command, meta, counted = choose(p, plan, d, c, may_start, may_return)
    if command != NO_COMMAND:
        plan.wake[c] = 0
    return command, meta, counted


@part
def choose(p: Any, plan: Any, d: Any, c: int, may_start: bool, may_return: bool) -> tuple[int, int, int]:
    if not is_empty(d.active[c]):
        bank = oldest_active(plan, d, c, may_start, may_return)
        if bank >= 0:
            command, meta = serve_active(p, d, c, bank)
            return command, meta, -1
    if d.refresh_due[c] > 0:
        command = refresh_command(plan, d, c)
        if command != NO_COMMAND:
            issue_refresh(p, plan, d, c, command)
        return command, -1, -1
    update_write_mode(p, plan, d, c)
    slot = best_of_queue(p, plan, d, c, may_start, may_return)
    if slot < 0:
        return NO_COMMAND, -1, -1
    return serve_queued(p, plan, d, c, slot)


@part
def serve_active(p: Any, d: Any, c: int, bank: int) -> tuple[int, int]:
    command = WR if has(d.active_write[c], bank) else RD
    meta = d.active_meta[c, bank]
    exclude(d.active[c], bank)
    update_timing(p, d, c, command, bank)
    if command == RD:
        push_pending(d, c, d.clock + p.read_latency, meta)
    return command, meta


@rare
def issue_refresh(p: Any, plan: Any, d: Any, c: int, command: int) -> None:
    if not d.refresh_counted[c]:
        d.row_misses[c] += 1
    update_timing(p, d, c, command, 0)
    plan.miss_wake[c] = 0
    if command == PREA:
        d.refresh_counted[c] = True
        clear(d.opened[c])
        clear(d.hits[c].flat)
        for kind in range(2):
            for bank in range(d.row.shape[1]):
                find_oldest(plan, d, c, kind, bank)
    else:
        d.refresh_counted[c] = False
        d.refresh_due[c] -= 1


@part
def serve_queued(p: Any, plan: Any, d: Any, c: int, slot: int) -> tuple[int, int, int]:
    """The next command of a queued request. A PRE under an activated request is dropped and the tick with it."""
    kind = 1 if d.write_mode[c] else 0
    meta, place = d.meta[c, kind, slot], d.place[c, kind, slot]
    bank = place & BANK_MASK
    first = meta & 1 == 0
    if has(d.hits[c, kind], slot):
        command = WR if kind == 1 else RD
        d.row_hits[c] += first
    elif has(d.opened[c], bank):
        if has(d.active[c], bank):
            plan.wake[c] = 0
            return NO_COMMAND, -1, -1
        command = PRE
        d.row_conflicts[c] += first
    else:
        command = ACT
        d.row_misses[c] += first
    update_timing(p, d, c, command, bank)
    counted = bank if first else -1
    if command != RD and command != WR:
        plan.miss_wake[c] = 0
    if command == PRE:
        d.meta[c, kind, slot] = meta | 1
        exclude(d.opened[c], bank)
        drop_hits(plan, d, c, bank)
        return command, meta >> 1, counted
    key = d.key[c, kind, slot]
    leave_queue(d, c, kind, slot)
    exclude(plan.slots[c, kind, bank], slot)
    if command == ACT:
        activate(plan, d, c, kind, place, key, meta >> 1)
    else:
        find_oldest_hit(plan, d, c, kind, bank)
    if command == RD:
        push_pending(d, c, d.clock + p.read_latency, meta >> 1)
    return command, meta >> 1, counted


@part
def leave_queue(d: Any, c: int, kind: int, slot: int) -> None:
    d.key[c, kind, slot] = FAR
    exclude(d.used[c, kind], slot)
    exclude(d.hits[c, kind], slot)
    d.count[c, kind] -= 1
    if kind == 1:
        d.block[c, slot] = -1


@rare
def activate(plan: Any, d: Any, c: int, kind: int, place: int, key: int, meta: int) -> None:
    """Open the row of a request that left its queue; the queued requests for the row are hits now."""
    bank = place & BANK_MASK
    include(d.opened[c], bank)
    include(d.active[c], bank)
    if kind == 1:
        include(d.active_write[c], bank)
    else:
        exclude(d.active_write[c], bank)
    d.row[c, bank] = place >> BANK_BITS
    d.active_key[c, bank] = ((key >> SLOT_BITS) << BANK_BITS) | bank
    d.active_meta[c, bank] = meta
    for queue in range(2):
        for word in range(d.used.shape[2]):
            left = plan.slots[c, queue, bank, word]
            while left != 0:
                slot = trailing_zeros(left)
                left &= left - 1
                if d.place[c, queue, word * 32 + slot] == place:
                    d.hits[c, queue, word] |= 1 << slot
        find_oldest(plan, d, c, queue, bank)


@rare
def drop_hits(plan: Any, d: Any, c: int, bank: int) -> None:
    """The bank closes: no queued request for it is a hit."""
    for queue in range(2):
        for word in range(d.used.shape[2]):
            d.hits[c, queue, word] &= ~plan.slots[c, queue, bank, word]
        find_oldest(plan, d, c, queue, bank)


@part
def update_timing(p: Any, d: Any, c: int, command: int, bank: int) -> None:
    """Raise the earliest ticks at the nodes on the command's path. PREA and REF reach channel and rank only."""
    now = d.clock
    ranks, groups = d.ready_rank.shape[2], d.ready_group.shape[2]
    whole = command >= PREA
    rank, group = bank & (ranks - 1), bank & (groups - 1)
    for kind in range(2):
        of_channel, of_rank = p.timing[CHANNEL, command, PREA + kind], p.timing[RANK, command, PREA + kind]
        for other in range(ranks):
            distance = max(of_channel, of_rank) if whole or other == rank else of_channel
            d.ready_rank[c, kind, other] = max(d.ready_rank[c, kind, other], now + distance)
    for following in range(4):
        of_channel, of_rank = p.timing[CHANNEL, command, following], p.timing[RANK, command, following]
        if of_channel > 0 or of_rank > 0:
            for other in range(groups):
                distance = max(of_channel, of_rank) if whole or other & (ranks - 1) == rank else of_channel
                d.ready_group[c, following, other] = max(d.ready_group[c, following, other], now + distance)
        if not whole:
            of_group, of_bank = p.timing[BANK_GROUP, command, following], p.timing[BANK, command, following]
            if of_group > 0:
                d.ready_group[c, following, group] = max(d.ready_group[c, following, group], now + of_group)
            if of_bank > 0:
                d.ready_bank[c, following, bank] = max(d.ready_bank[c, following, bank], now + of_bank)
    if command == ACT:
        count_activation(p, d, c, rank)


@rare
def count_activation(p: Any, d: Any, c: int, rank: int) -> None:
    """The window of four activations of a rank."""
    ranks, groups = d.ready_rank.shape[2], d.ready_group.shape[2]
    window = d.activations[c, rank, 2] + p.four_activate_window
    for other in range(rank, groups, ranks):
        d.ready_group[c, ACT, other] = max(d.ready_group[c, ACT, other], window)
    for age in range(3, 0, -1):
        d.activations[c, rank, age] = d.activations[c, rank, age - 1]
    d.activations[c, rank, 0] = d.clock


@rare
def has_work(d: Any) -> bool:
    for c in range(d.count.shape[0]):
        if d.count[c, 0] > 0 or d.count[c, 1] > 0 or d.pending_count[c] > 0 or not is_empty(d.active[c]):
            return True
    return False


@rare
def next_own_event(d: Any) -> int:
    now = d.clock
    has_queue = False
    for c in range(d.count.shape[0]):
        if d.count[c, 0] > 0 or d.count[c, 1] > 0 or d.refresh_due[c] > 0 or not is_empty(d.active[c]):
            has_queue = True
    earliest = FAR
    if has_queue:
        for c in range(d.count.shape[0]):
            earliest = min(earliest, next_ready(d, c))
    for c in range(d.count.shape[0]):
        if d.pending_count[c] > 0:
            depart = d.pending_depart[c, d.pending_head[c] & (d.pending_depart.shape[1] - 1)]
            if depart > now:
                earliest = min(earliest, depart)
    return earliest


@rare
def next_ready(d: Any, c: int) -> int:
    """The earliest tick behind the clock at which some command becomes ready somewhere in the channel."""
    now, groups = d.clock, d.ready_group.shape[2]
    earliest = FAR
    for command in range(4):
        # Bank numbers repeat the group every `groups`; so written, the loop has vector instructions.
        for first in range(0, d.ready_bank.shape[2], groups):
            for group in range(groups):
                ready = max(d.ready_bank[c, command, first + group], d.ready_group[c, command, group])
                earliest = min(earliest, ready if ready > now else FAR)
    for kind in range(2):
        for rank in range(d.ready_rank.shape[2]):
            if d.ready_rank[c, kind, rank] > now:
                earliest = min(earliest, d.ready_rank[c, kind, rank])
    return earliest


@rare
def is_stuck(d: Any) -> bool:
    refresh_waits = d.refresh_next == FAR
    for c in range(d.count.shape[0]):
        refresh_waits = refresh_waits or d.refresh_due[c] > 1
    return refresh_waits and has_work(d) and next_own_event(d) == FAR
