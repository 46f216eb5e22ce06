"""One cycle of a weight-stationary core, as `vsim.npu.core` has it. Functions of the same name are the same rule."""

from __future__ import annotations

from typing import Any

from lowering.program import Col, Flag, Op
from vsim.npu.kernel import noc
from vsim.npu.kernel.jit import part, rare
from vsim.npu.types import STATUS_ENTRY
from vsim.npu.words import FLAT_BITS

LOAD, STORE, SYSTOLIC, VECTOR = int(Op.LOAD), int(Op.STORE), int(Op.SYSTOLIC), int(Op.VECTOR)
OP, FLAGS, COUNT0, COUNT1, COUNT2 = int(Col.OP), int(Col.FLAGS), int(Col.COUNT0), int(Col.COUNT1), int(Col.COUNT2)
DST, SRC_A, SRC_B = int(Col.DST), int(Col.SRC_A), int(Col.SRC_B)
SIZE1, SIZE1_LAST, SIZE2, SIZE2_LAST = int(Col.SIZE1), int(Col.SIZE1_LAST), int(Col.SIZE2), int(Col.SIZE2_LAST)
FIRST_BLOCK, BLOCK_STEP1, BLOCK_STEP2 = int(Col.FIRST_BLOCK), int(Col.BLOCK_STEP1), int(Col.BLOCK_STEP2)
REQUESTS, REQUESTS_LAST = int(Col.REQUESTS), int(Col.REQUESTS_LAST)
PERIOD_REQUESTS, PERIOD_PITCH = int(Col.PERIOD_REQUESTS), int(Col.PERIOD_PITCH_BLOCKS)
PATTERN_START = int(Col.PATTERN_START)
DST_ACC, SRC_A_ACC, SRC_B_ACC = int(Flag.DST_ACC), int(Flag.SRC_A_ACC), int(Flag.SRC_B_ACC)
PRELOAD, PRELOAD_FIRST = int(Flag.PRELOAD), int(Flag.PRELOAD_FIRST)
FLAT_MASK = (1 << FLAT_BITS) - 1


@part
def tick(
    z: Any, p: Any, t: Any, s: Any, c: int, may: tuple[bool, bool], tags: tuple[int, int]
) -> tuple[bool, int, int]:
    """One cycle of core c, before `now` advances. may: loads and stores of the tile in each slot may issue. tags: of
    the senders of the latched load and store (`noc.push_descriptor`).

    Returns whether anything changed, and the requests of the load and of the store that took effect, -1 where there is
    none.
    """
    k = s.core
    room = noc.descriptor_room(z, s.noc, c)
    changed = retire(k, c)
    loaded, stored = load(s, c), -1
    if loaded >= 0:
        s.status |= noc.push_descriptor(z, s.noc, c, k.load, tags[0])
    changed |= execute(p, k, c)
    if k.store_valid[c] and k.remaining[c, k.store.word[c] & FLAT_MASK] == 0:
        stored = store(k, c)
        s.status |= noc.push_descriptor(z, s.noc, c, k.store, tags[1])
    add_activity(k, c, 1)
    changed |= issue(p, t, k, c, (room and may[0], room and may[1]))
    changed |= complete_tile(k, c)
    return changed or loaded >= 0 or stored >= 0, loaded, stored


@part
def oldest_pass(k: Any, c: int) -> int:
    """Its place in the ring; meaningless while the array is empty."""
    return k.systolic_head[c] & (k.systolic.start.shape[1] - 1)


@part
def retire(k: Any, c: int) -> bool:
    changed = False
    if k.systolic_count[c] > 0:
        oldest = oldest_pass(k, c)
        if k.systolic.finish[c, oldest] <= k.now:
            release(k, c, k.systolic.retire[c, oldest])
            k.systolic_head[c] += 1
            k.systolic_count[c] -= 1
            changed = True
    if k.vector_busy[c] and k.vector_finish[c] <= k.now:
        release(k, c, k.vector_retire[c])
        k.vector_busy[c] = False
        changed = True
    return changed


@part
def release(k: Any, c: int, word: int) -> None:
    """The destination of a retire word loses a writer; a tile's last instruction is done."""
    k.remaining[c, word >> 2] -= 1
    if word & 3 != 0:
        k.last_done[c, (word & 3) - 1] = True


@part
def load(s: Any, c: int) -> int:
    """The latched load allocates its entry. Returns its requests, -1 if there is none."""
    k = s.core
    if not k.load_valid[c]:
        return -1
    flat = k.load.word[c] & FLAT_MASK
    if k.remaining[c, flat] >= 0:
        s.status |= STATUS_ENTRY
    k.remaining[c, flat] = k.load.requests[c]
    k.load_valid[c] = False
    return k.load.requests[c]


@part
def is_valid(k: Any, c: int, source: int) -> bool:
    return source < 0 or k.remaining[c, source] == 0


@part
def has_room(p: Any, k: Any, c: int, op: int) -> bool:
    if op == VECTOR:
        return not k.vector_busy[c]
    return k.systolic_count[c] < p.array_rows[c]


@part
def execute(p: Any, k: Any, c: int) -> bool:
    """The latched instruction enters the array or the vector unit once its sources are valid."""
    if not k.execute_valid[c]:
        return False
    x = k.execute
    op = x.kind[c]
    if not (is_valid(k, c, x.src_a[c]) and is_valid(k, c, x.src_b[c]) and has_room(p, k, c, op)):
        return False
    k.remaining[c, x.dst[c]] = max(k.remaining[c, x.dst[c]], 0) + 1
    k.execute_valid[c] = False
    word = (x.dst[c] << 2) | x.last[c]
    if op == SYSTOLIC:
        enter_array(p, k, c, x.size[c], x.preload[c], word)
    elif op == VECTOR:
        k.vector_busy[c] = True
        k.vector_finish[c] = k.now + x.size[c]
        k.vector_retire[c] = word
    return True


@rare
def enter_array(p: Any, k: Any, c: int, rows: int, preload: bool, word: int) -> None:
    height, now = p.array_rows[c], k.now
    corrected = p.exposed_preload > 0
    if k.systolic_count[c] == 0:
        start = now
        if preload:
            start += height if corrected else 2 * height - 1
    else:
        start = k.tail_start[c] + max(k.tail_rows[c], p.min_rows)
        if preload:
            since = max(now, k.tail_start[c]) if corrected else k.tail_start[c]
            start = max(start, since + height)
        start = max(start, now)
    tail = (k.systolic_head[c] + k.systolic_count[c]) & (k.systolic.start.shape[1] - 1)
    k.systolic.start[c, tail] = start
    k.systolic.finish[c, tail] = start + height + p.array_cols[c] - 2 + max(rows, p.min_rows)
    k.systolic.retire[c, tail] = word
    k.systolic_count[c] += 1
    k.tail_start[c] = start
    k.tail_rows[c] = rows


@part
def store(k: Any, c: int) -> int:
    """The latched store, whose entry is valid, takes effect. Returns its requests."""
    k.store_valid[c] = False
    k.unacknowledged[c] += k.store.requests[c]
    if k.store_last[c] >= 0:
        k.last_done[c, k.store_last[c]] = True
    return k.store.requests[c]


@part
def running(k: Any, c: int) -> bool:
    """The core holds a tile, work in a pipe or latch, or waits for write acknowledgements."""
    return (
        k.resident[c, 0]
        or k.resident[c, 1]
        or k.systolic_count[c] > 0
        or k.vector_busy[c]
        or k.load_valid[c]
        or k.store_valid[c]
        or k.execute_valid[c]
        or k.unacknowledged[c] > 0
    )


@part
def add_activity(k: Any, c: int, cycles: int) -> None:
    """Count so many more cycles in the present state."""
    a, busy = k.activity, k.systolic_count[c] > 0
    systolic = busy and k.systolic.start[c, oldest_pass(k, c)] <= k.now
    vector = k.vector_busy[c]
    if systolic:
        a.systolic[c] += cycles
    if vector:
        a.vector[c] += cycles
    if systolic or vector:
        a.compute[c] += cycles
    if busy:
        a.busy[c] += cycles
    if not running(k, c):
        a.idle[c] += cycles


@part
def entry_of(k: Any, t: Any, c: int, slot: int, row: int, column: int, acc_flag: int) -> int:
    """Flat entry of an operand of the slot's front instruction; -1: it has none."""
    base = t.rows[row, column]
    if base < 0:
        return -1
    loop0, loop1, loop2 = k.loop.at0, k.loop.at1, k.loop.at2
    base += loop0[c, slot] * t.rows[row, column + 1]
    base += loop1[c, slot] * t.rows[row, column + 2]
    base += loop2[c, slot] * t.rows[row, column + 3]
    entries = k.remaining.shape[1] // 4
    if t.rows[row, FLAGS] & acc_flag != 0:
        return (2 + k.acc_half[c, slot]) * entries + base
    return k.spad_half[c, slot] * entries + base


@part
def waits_in_chain(p: Any, k: Any, c: int, slot: int) -> bool:
    """The slot's tile continues the sums of the front tile, which has not issued everything yet."""
    front = k.front[c]
    chained = k.resident[c, 0] and k.resident[c, 1] and k.acc_half[c, 0] == k.acc_half[c, 1]
    return p.ordered_chains > 0 and slot != front and chained and k.row[c, front] < k.end_row[c, front]


@part
def is_ready(p: Any, t: Any, k: Any, c: int, slot: int, room: bool) -> bool:
    """The slot's front instruction can issue."""
    if not k.resident[c, slot] or k.row[c, slot] >= k.end_row[c, slot]:
        return False
    row = k.row[c, slot]
    op = t.rows[row, OP]
    if op != LOAD and waits_in_chain(p, k, c, slot):
        return False
    if op == LOAD:
        return room and not k.load_valid[c]
    if op == STORE:
        if not room or k.store_valid[c]:
            return False
        return k.remaining[c, max(entry_of(k, t, c, slot, row, DST, DST_ACC), 0)] == 0
    if k.execute_valid[c] or not has_room(p, k, c, op):
        return False
    if op == SYSTOLIC and not k.streaming[c, slot] and p.drains[c] > 0 and k.systolic_count[c] > 0:
        return False
    if not is_valid(k, c, entry_of(k, t, c, slot, row, SRC_A, SRC_A_ACC)):
        return False
    return is_valid(k, c, entry_of(k, t, c, slot, row, SRC_B, SRC_B_ACC))


@part
def issue(p: Any, t: Any, k: Any, c: int, rooms: tuple[bool, bool]) -> bool:
    """At most one instruction per core and cycle, over all classes; the round robin sticks to the tile that issued.

    rooms: for a load or store of each slot.
    """
    both = k.resident[c, 0] and k.resident[c, 1]
    position = k.issue_from[c] if both else 0
    slot = k.front[c] if position == 0 else 1 - k.front[c]
    if not is_ready(p, t, k, c, slot, rooms[slot]):
        position, slot = 1 - position, 1 - slot
        if not both or not is_ready(p, t, k, c, slot, rooms[slot]):
            return False
    k.issue_from[c] = position
    latch(t, k, c, slot)
    return True


@rare
def latch(t: Any, k: Any, c: int, slot: int) -> None:
    """Latch the slot's front instruction and step its loops; past the last trip, go to the next row."""
    row = k.row[c, slot]
    op = t.rows[row, OP]
    loop0, loop1, loop2 = k.loop.at0, k.loop.at1, k.loop.at2
    last1, last2 = loop1[c, slot] == t.rows[row, COUNT1] - 1, loop2[c, slot] == t.rows[row, COUNT2] - 1
    at_end = last1 and last2 and loop0[c, slot] == t.rows[row, COUNT0] - 1
    last = slot + 1 if at_end and row == k.end_row[c, slot] - 1 else 0
    dst = entry_of(k, t, c, slot, row, DST, DST_ACC)
    if op == LOAD:
        k.load_valid[c] = True
        describe(t, k, k.load, c, slot, row, dst)
    elif op == STORE:
        k.store_valid[c] = True
        k.store_last[c] = last - 1
        describe(t, k, k.store, c, slot, row, (1 << FLAT_BITS) | dst)
    else:
        if op == SYSTOLIC:
            k.streaming[c, slot] = True
        x, flags = k.execute, t.rows[row, FLAGS]
        first_inner = loop1[c, slot] == 0 and loop2[c, slot] == 0
        size1 = t.rows[row, SIZE1_LAST] if last1 else t.rows[row, SIZE1]
        size2 = t.rows[row, SIZE2_LAST] if last2 else t.rows[row, SIZE2]
        k.execute_valid[c] = True
        x.kind[c] = op
        x.dst[c] = dst
        x.src_a[c] = entry_of(k, t, c, slot, row, SRC_A, SRC_A_ACC)
        x.src_b[c] = entry_of(k, t, c, slot, row, SRC_B, SRC_B_ACC)
        x.size[c] = size1 * size2
        x.preload[c] = flags & PRELOAD != 0 or (flags & PRELOAD_FIRST != 0 and first_inner)
        x.last[c] = last
    advance(k, c, slot, at_end, last1, last2)


@rare
def describe(t: Any, k: Any, latched: Any, c: int, slot: int, row: int, word: int) -> None:
    """Latch a load or store; word: the request word without the core."""
    loop1, loop2 = k.loop.at1, k.loop.at2
    steps = loop1[c, slot] * t.rows[row, BLOCK_STEP1] + loop2[c, slot] * t.rows[row, BLOCK_STEP2]
    last_trip = loop2[c, slot] == t.rows[row, COUNT2] - 1
    latched.first_block[c] = t.rows[row, FIRST_BLOCK] + steps
    latched.requests[c] = t.rows[row, REQUESTS_LAST] if last_trip else t.rows[row, REQUESTS]
    latched.period_requests[c] = t.rows[row, PERIOD_REQUESTS]
    latched.period_pitch[c] = t.rows[row, PERIOD_PITCH]
    latched.pattern_start[c] = t.rows[row, PATTERN_START]
    latched.word[c] = (c << (FLAT_BITS + 1)) | word


@part
def advance(k: Any, c: int, slot: int, at_end: bool, last1: bool, last2: bool) -> None:
    loop0, loop1, loop2 = k.loop.at0, k.loop.at1, k.loop.at2
    if at_end:
        loop0[c, slot] = 0
        loop1[c, slot] = 0
        loop2[c, slot] = 0
        k.row[c, slot] += 1
    elif not last2:
        loop2[c, slot] += 1
    else:
        loop2[c, slot] = 0
        if last1:
            loop1[c, slot] = 0
            loop0[c, slot] += 1
        else:
            loop1[c, slot] += 1


@part
def complete_tile(k: Any, c: int) -> bool:
    """The first tile, in order of placement, that has issued everything and whose last instruction took effect."""
    front = k.front[c]
    for position in range(2):
        slot = front if position == 0 else 1 - front
        if k.resident[c, slot] and k.row[c, slot] >= k.end_row[c, slot] and k.last_done[c, slot]:
            k.resident[c, slot] = False
            if position == 0:
                k.front[c] = 1 - front
            k.finished[c] += 1
            return True
    return False
