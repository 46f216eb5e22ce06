"""The weight-stationary core: one cycle of retire, load, execute, store, issue and tile completion.

Model: `../shared/specs/onnxim.md` sections 2.1 to 2.6. All functions are vectorised over the cores of a lane.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lowering.program import Col, Flag, Op
from vsim.npu import words
from vsim.npu.fields import append, one_hot, pick
from vsim.npu.types import STATUS_ENTRY, CoreState, NpuParams, NpuShape, ProgramTables


class CoreTick(NamedTuple):
    """What a core cycle hands to the DMA, per core, and whether anything changed (bool[])."""

    load: Array
    load_valid: Array
    store: Array
    store_valid: Array
    changed: Array
    status: Array


def tick(
    shape: NpuShape, params: NpuParams, program: ProgramTables, which: Array, room: Array, s: CoreState, on: Array
) -> tuple[CoreState, CoreTick]:
    """One core cycle of every core. room: bool[C], the DMA's descriptor ring takes further loads and stores."""
    s, retired = _retire(s, on)
    s, load_valid, conflict = _load(s, on)
    load, store = s.load, s.store
    s, executed = _execute(params, s, on)
    s, store_valid = _store(s, on)
    s = _count_activity(s, on)
    s = s.replace(now=s.now + on)
    s, issued = _issue(shape, params, program, which, room, s, on)
    s, completed = _complete_tiles(s, on)
    changed = jnp.any(retired | load_valid | executed | store_valid | issued | completed)
    return s, CoreTick(load, load_valid, store, store_valid, changed, jnp.where(conflict, STATUS_ENTRY, 0))


def _add(remaining: Array, flat: Array, amount: Array, valid: Array) -> Array:
    """remaining[c].flat[flat[c]] += amount[c] where valid."""
    c, kinds, entries = remaining.shape
    at = jnp.where(valid, flat, kinds * entries)
    return remaining.reshape(c, -1).at[jnp.arange(c), at].add(amount, mode="drop").reshape(remaining.shape)


def _put(remaining: Array, flat: Array, value: Array, valid: Array) -> Array:
    c, kinds, entries = remaining.shape
    at = jnp.where(valid, flat, kinds * entries)
    return remaining.reshape(c, -1).at[jnp.arange(c), at].set(value, mode="drop").reshape(remaining.shape)


def _look(remaining: Array, flat: Array) -> Array:
    """Remaining of flat entries; flat: int32[C] or [C, n]."""
    c = remaining.shape[0]
    index = flat.reshape(c, -1)
    return jnp.take_along_axis(remaining.reshape(c, -1), index, axis=1).reshape(flat.shape)


def _retire(s: CoreState, on: Array) -> tuple[CoreState, Array]:
    """At most one instruction leaves the array and one the vector unit; their destinations lose a writer."""
    at = s.systolic_head & (s.systolic.shape[1] - 1)
    head = pick(s.systolic, at)
    systolic = on & (s.systolic_count > 0) & (head[:, 1] <= s.now)
    vector = on & s.vector_busy & (s.vector_finish <= s.now)
    remaining = _add(s.remaining, head[:, 2] >> 2, jnp.full_like(at, -1), systolic)
    remaining = _add(remaining, s.vector_retire >> 2, jnp.full_like(at, -1), vector)
    done = one_hot(jnp.where(systolic, (head[:, 2] & 3) - 1, -1), 2)
    done |= one_hot(jnp.where(vector, (s.vector_retire & 3) - 1, -1), 2)
    s = s.replace(
        remaining=remaining,
        systolic_head=s.systolic_head + systolic,
        systolic_count=s.systolic_count - systolic,
        vector_busy=s.vector_busy & ~vector,
        last_done=s.last_done | done,
    )
    return s, systolic | vector


def _load(s: CoreState, on: Array) -> tuple[CoreState, Array, Array]:
    """The latched load allocates its entry and its requests join the DMA queue. Third result: an entry was in use."""
    valid = on & s.load_valid
    flat = words.flat_entry_of(s.load[:, words.WORD])
    conflict = jnp.any(valid & (_look(s.remaining, flat) >= 0))
    remaining = _put(s.remaining, flat, s.load[:, words.REQUESTS], valid)
    return s.replace(remaining=remaining, load_valid=s.load_valid & ~valid), valid, conflict


def _can_execute(params: NpuParams, s: CoreState, kind: Array, src_a: Array, src_b: Array) -> Array:
    """Sources valid and room in the unit. kind, src_a, src_b: int32[C, n], sources flat entries or -1."""
    sources = jnp.stack([src_a, src_b], axis=-1)
    c, n, _ = sources.shape
    left = _look(s.remaining, jnp.maximum(sources, 0).reshape(c, n * 2)).reshape(c, n, 2)
    valid = jnp.all((sources < 0) | (left == 0), axis=-1)
    room = jnp.where(kind == Op.VECTOR, ~s.vector_busy[:, None], (s.systolic_count < params.array_rows)[:, None])
    return valid & room


def _execute(params: NpuParams, s: CoreState, on: Array) -> tuple[CoreState, Array]:
    """The latched instruction enters the array or the vector unit once its sources are valid."""
    x = s.execute
    kind = x[:, words.KIND]
    able = _can_execute(params, s, kind[:, None], x[:, words.SRC_A, None], x[:, words.SRC_B, None])[:, 0]
    go = on & s.execute_valid & able
    dst = x[:, words.DST]
    # A destination that is allocated gains a writer, a fresh one starts with this writer.
    writers = jnp.maximum(_look(s.remaining, dst), 0) + 1
    s = s.replace(remaining=_put(s.remaining, dst, writers, go), execute_valid=s.execute_valid & ~go)
    retire = (dst << 2) | x[:, words.LAST]
    systolic = go & (kind == Op.SYSTOLIC)
    vector = go & (kind == Op.VECTOR)
    s = _enter_array(params, s, x[:, words.SIZE], x[:, words.PRELOAD] > 0, retire, systolic)
    s = s.replace(
        vector_busy=s.vector_busy | vector,
        vector_finish=jnp.where(vector, s.now + x[:, words.SIZE], s.vector_finish),
        vector_retire=jnp.where(vector, retire, s.vector_retire),
    )
    return s, go


def _enter_array(params: NpuParams, s: CoreState, rows: Array, preload: Array, retire: Array, go: Array) -> CoreState:
    """When a pass starts: it follows the one before it by that pass's rows, at least `min_rows`.

    ONNXim (section 2.5): new weights stretch that to the array's height, and cost 2 * height - 1 cycles in an empty
    array. Corrected (`lowering.systolic_rules`): new weights take `height` cycles, hidden only behind the pass before.
    """
    height = params.array_rows
    behind = s.tail_start + jnp.maximum(s.tail_rows, params.min_rows)
    onnxim = jnp.where(preload, jnp.maximum(behind, s.tail_start + height), behind)
    exposed = jnp.maximum(behind, jnp.where(preload, jnp.maximum(s.now, s.tail_start) + height, 0))
    corrected = params.exposed_preload > 0
    after = jnp.maximum(jnp.where(corrected, exposed, onnxim), s.now)
    into_empty = s.now + jnp.where(preload, jnp.where(corrected, height, 2 * height - 1), 0)
    start = jnp.where(s.systolic_count > 0, after, into_empty)
    finish = start + height + params.array_cols - 2 + jnp.maximum(rows, params.min_rows)
    entry = jnp.stack([start, finish, retire], axis=1)
    return s.replace(
        systolic=append(s.systolic, s.systolic_head + s.systolic_count, entry, go),
        systolic_count=s.systolic_count + go,
        tail_start=jnp.where(go, start, s.tail_start),
        tail_rows=jnp.where(go, rows, s.tail_rows),
    )


def _store(s: CoreState, on: Array) -> tuple[CoreState, Array]:
    """The latched store's requests join the DMA queue once its entry is valid."""
    flat = words.flat_entry_of(s.store[:, words.WORD])
    valid = on & s.store_valid & (_look(s.remaining, flat) == 0)
    s = s.replace(
        store_valid=s.store_valid & ~valid,
        unacknowledged=s.unacknowledged + jnp.where(valid, s.store[:, words.REQUESTS], 0),
        last_done=s.last_done | one_hot(jnp.where(valid, s.store_last, -1), 2),
    )
    return s, valid


def running(s: CoreState) -> Array:
    """bool[C]: the core holds a tile, work in a pipe or latch, or waits for write acknowledgements."""
    return (
        jnp.any(s.resident, axis=1)
        | (s.systolic_count > 0)
        | s.vector_busy
        | s.load_valid
        | s.store_valid
        | s.execute_valid
        | (s.unacknowledged > 0)
    )


def activity(s: CoreState) -> Array:
    """bool[5, C]: the oldest pass streams, vector unit active, either, core idle, array holds a pass; this cycle."""
    head = pick(s.systolic, s.systolic_head & (s.systolic.shape[1] - 1))
    systolic = (s.systolic_count > 0) & (head[:, 0] <= s.now)
    vector = s.vector_busy
    return jnp.stack([systolic, vector, systolic | vector, ~running(s), s.systolic_count > 0])


def add_activity(s: CoreState, cycles: Array) -> CoreState:
    """Count `cycles` (int32[]) more cycles in the present state."""
    systolic, vector, compute, idle, busy = activity(s).astype(jnp.int32) * cycles
    return s.replace(
        systolic_active=s.systolic_active.at[:, 0].add(systolic),
        vector_active=s.vector_active.at[:, 0].add(vector),
        compute_active=s.compute_active.at[:, 0].add(compute),
        idle=s.idle.at[:, 0].add(idle),
        systolic_busy=s.systolic_busy.at[:, 0].add(busy),
    )


def _count_activity(s: CoreState, on: Array) -> CoreState:
    return add_activity(s, on.astype(jnp.int32))


class _Front(NamedTuple):
    """The front instruction of both slots, expanded at its loop indices; every field int32[C, 2]."""

    row: Array
    op: Array
    dst: Array
    src_a: Array
    src_b: Array
    size: Array
    preload: Array
    at_end: Array
    """bool: it is the last trip of its row."""
    last: Array
    """bool: and the row is the tile's last."""
    exists: Array


def _fetch(program: ProgramTables, which: Array, s: CoreState) -> tuple[Array, _Front]:
    """Read and expand the front instructions. Returns the raw rows (int32[C, 2, ROW_COLUMNS]) too."""
    rows = program.rows[which, s.row]
    count = rows[..., Col.COUNT0 : Col.COUNT2 + 1]
    at_last = s.loop == count - 1
    exists = s.resident & (s.row < s.end_row)
    at_end = jnp.all(at_last, axis=-1)
    flags = rows[..., Col.FLAGS]
    entries = s.remaining.shape[2]

    def entry(column: Col, acc_flag: Flag) -> Array:
        base = rows[..., column] + jnp.sum(s.loop * rows[..., column + 1 : column + 4], axis=-1)
        in_acc = (flags & acc_flag) != 0
        half = jnp.where(in_acc, s.acc_half, s.spad_half)
        return jnp.where(rows[..., column] < 0, -1, (jnp.where(in_acc, 2, 0) + half) * entries + base)

    size1 = jnp.where(at_last[..., 1], rows[..., Col.SIZE1_LAST], rows[..., Col.SIZE1])
    size2 = jnp.where(at_last[..., 2], rows[..., Col.SIZE2_LAST], rows[..., Col.SIZE2])
    first_inner = (s.loop[..., 1] == 0) & (s.loop[..., 2] == 0)
    preload = ((flags & Flag.PRELOAD) != 0) | (((flags & Flag.PRELOAD_FIRST) != 0) & first_inner)
    front = _Front(
        row=s.row, op=rows[..., Col.OP], dst=entry(Col.DST, Flag.DST_ACC), src_a=entry(Col.SRC_A, Flag.SRC_A_ACC),
        src_b=entry(Col.SRC_B, Flag.SRC_B_ACC), size=size1 * size2, preload=preload, at_end=at_end,
        last=at_end & (s.row == s.end_row - 1), exists=exists,
    )  # fmt: skip
    return rows, front


def _waits_in_chain(params: NpuParams, s: CoreState) -> Array:
    """bool[C, 2]: the slot's tile continues the sums of the front tile, which has not issued everything yet.

    Two resident tiles share an accumulator half only in a chain of partial sums. Without this rule the last tile could
    store sums to which an earlier one has yet to add.
    """
    front_busy = pick(s.row < s.end_row, s.front)
    chained = jnp.all(s.resident, axis=1) & (s.acc_half[:, 0] == s.acc_half[:, 1])
    waits = (params.ordered_chains > 0) & chained & front_busy
    return one_hot(jnp.where(waits, 1 - s.front, -1), 2)


def _issue(
    shape: NpuShape, params: NpuParams, program: ProgramTables, which: Array, room: Array, s: CoreState, on: Array
) -> tuple[CoreState, Array]:
    """At most one instruction per core and cycle, over all classes; the round robin sticks to the tile that issued."""
    rows, front = _fetch(program, which, s)
    memory = (front.op == Op.LOAD) | (front.op == Op.STORE)
    is_store = front.op == Op.STORE
    stored_valid = _look(s.remaining, front.dst) == 0
    no_latch = jnp.where(is_store, s.store_valid[:, None], s.load_valid[:, None])
    memory_ready = room[:, None] & ~no_latch & (~is_store | stored_valid)
    no_source = jnp.full_like(front.src_a, -1)
    execute_ready = ~s.execute_valid[:, None] & _can_execute(
        params, s, front.op, jnp.where(memory, no_source, front.src_a), jnp.where(memory, no_source, front.src_b)
    )
    opens_tile = (front.op == Op.SYSTOLIC) & ~s.streaming & (params.drains > 0)[:, None]
    execute_ready &= ~opens_tile | (s.systolic_count == 0)[:, None]
    ready = on & front.exists & jnp.where(memory, memory_ready, execute_ready)
    ready &= ~(_waits_in_chain(params, s) & (front.op != Op.LOAD))

    both = s.resident[:, 0] & s.resident[:, 1]
    begin = jnp.where(both, s.issue_from, 0)
    first_slot = jnp.where(begin == 0, s.front, 1 - s.front)
    first_ready, second_ready = pick(ready, first_slot), pick(ready, 1 - first_slot) & both
    slot = jnp.where(first_ready, first_slot, 1 - first_slot)
    go = first_ready | second_ready
    position = jnp.where(first_ready, begin, 1 - begin)
    streams = one_hot(jnp.where(go, slot, -1), 2) & (front.op == Op.SYSTOLIC)
    s = s.replace(issue_from=jnp.where(go, position, s.issue_from), streaming=s.streaming | streams)
    s = _latch(s, rows, front, slot, go)
    return _advance(s, rows, front, slot, go), go


def _latch(s: CoreState, rows: Array, front: _Front, slot: Array, go: Array) -> CoreState:
    row = pick(rows, slot)
    op, dst = pick(front.op, slot), pick(front.dst, slot)
    core = jnp.arange(slot.size, dtype=jnp.int32)
    loop = pick(s.loop, slot)
    last_trip = loop[:, 2] == row[:, Col.COUNT2] - 1
    first_block = row[:, Col.FIRST_BLOCK] + loop[:, 1] * row[:, Col.BLOCK_STEP1] + loop[:, 2] * row[:, Col.BLOCK_STEP2]
    descriptor = jnp.stack(
        [
            first_block,
            jnp.where(last_trip, row[:, Col.REQUESTS_LAST], row[:, Col.REQUESTS]),
            row[:, Col.PERIOD_REQUESTS],
            row[:, Col.PERIOD_PITCH_BLOCKS],
            row[:, Col.PATTERN_START],
            words.request_word(core, op == Op.STORE, dst),
        ],
        axis=1,
    )
    last = pick(front.last, slot)
    last_slot = jnp.where(last, slot + 1, 0)
    execute = jnp.stack(
        [op, dst, pick(front.src_a, slot), pick(front.src_b, slot), pick(front.size, slot),
         pick(front.preload, slot).astype(jnp.int32), last_slot],
        axis=1,
    )  # fmt: skip
    load, store = go & (op == Op.LOAD), go & (op == Op.STORE)
    run = go & ~load & ~store
    return s.replace(
        load=jnp.where(load[:, None], descriptor, s.load),
        load_valid=s.load_valid | load,
        store=jnp.where(store[:, None], descriptor, s.store),
        store_valid=s.store_valid | store,
        store_last=jnp.where(store, last_slot - 1, s.store_last),
        execute=jnp.where(run[:, None], execute, s.execute),
        execute_valid=s.execute_valid | run,
    )


def _advance(s: CoreState, rows: Array, front: _Front, slot: Array, go: Array) -> CoreState:
    """Step the loops of the issued slot; past the last trip, go to the next row."""
    loop = pick(s.loop, slot)
    count = pick(rows, slot)[:, Col.COUNT0 : Col.COUNT2 + 1]
    wrap2 = loop[:, 2] == count[:, 2] - 1
    wrap1 = wrap2 & (loop[:, 1] == count[:, 1] - 1)
    end = pick(front.at_end, slot)
    step = jnp.stack(
        [
            jnp.where(wrap1, loop[:, 0] + 1, loop[:, 0]),
            jnp.where(wrap1, 0, jnp.where(wrap2, loop[:, 1] + 1, loop[:, 1])),
            jnp.where(wrap2, 0, loop[:, 2] + 1),
        ],
        axis=1,
    )
    step = jnp.where(end[:, None], 0, step)
    here = one_hot(jnp.where(go, slot, -1), 2)
    return s.replace(loop=jnp.where(here[:, :, None], step[:, None, :], s.loop), row=s.row + (here & end[:, None]))


def _complete_tiles(s: CoreState, on: Array) -> tuple[CoreState, Array]:
    """The first tile, in order of placement, that has issued everything and whose last instruction took effect."""
    complete = on & s.resident & (s.row >= s.end_row) & s.last_done
    front_done = pick(complete, s.front)
    slot = jnp.where(front_done, s.front, 1 - s.front)
    gone = front_done | pick(complete, 1 - s.front)
    here = one_hot(jnp.where(gone, slot, -1), 2)
    resident = s.resident & ~here
    s = s.replace(
        resident=resident,
        front=jnp.where(front_done, 1 - s.front, s.front),
        finished=s.finished + gone,
    )
    return s, gone
