"""The weight-stationary core: one cycle of retire, load, execute, store, issue and tile completion.

Model: `../shared/specs/onnxim.md` sections 2.1 to 2.6. The first axis of every array is the core, the last the lane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lowering.program import Col, Flag, Op
from vsim.npu import words
from vsim.npu.fields import add, any_of, append, numbers, one_hot, pick, pick_row, put, settle
from vsim.npu.types import STATUS_ENTRY, Activity, CoreState, NpuParams, NpuShape, Pass, ProgramTables


class CoreTick(NamedTuple):
    """What a core cycle hands to the DMA, per core; whether anything changed (bool[L]); status bits."""

    load: words.Descriptor
    load_valid: Array
    store: words.Descriptor
    store_valid: Array
    changed: Array
    status: Array


def tick(
    shape: NpuShape, params: NpuParams, program: ProgramTables, which: Array, room: Array, s: CoreState, on: Array
) -> tuple[CoreState, CoreTick]:
    """One core cycle of every core. room: bool[C, 2, L] or [C, 1, L], loads and stores of the slot may issue."""
    s, retired = _retire(s, on)
    s, load_valid, conflict = _load(s, on)
    load, store = s.load, s.store
    s, executed = _execute(params, s, on)
    s, store_valid = _store(s, on)
    s = _count_activity(s, on)
    s = s.replace(now=s.now + on)
    s, issued = _issue(params, program, which, room, s, on)
    s, completed = _complete_tiles(s, on)
    changed = any_of(retired | load_valid | executed | store_valid | issued | completed)
    return s, CoreTick(load, load_valid, store, store_valid, changed, jnp.where(conflict, STATUS_ENTRY, 0))


def _add(remaining: Array, flat: Array, amount: int, valid: Array) -> Array:
    """remaining[c, flat[c]] += amount where valid."""
    return add(remaining, valid, amount, numbers(remaining.shape[0]), flat)


def _put(remaining: Array, flat: Array, value: Array, valid: Array) -> Array:
    return put(remaining, valid, value, numbers(remaining.shape[0]), flat)


def _look(remaining: Array, flat: Array) -> Array:
    """Remaining of flat entries; flat: int32[C, L] or [C, n, L]."""
    return pick(remaining, numbers(remaining.shape[0], flat.ndim - 1), flat)


def oldest_pass(s: CoreState) -> Pass:
    """int32[C, L] each; meaningless while the array is empty."""
    at = s.systolic_head & (s.systolic.start.shape[1] - 1)
    return Pass(*(pick_row(ring, at) for ring in s.systolic))


def _retire(s: CoreState, on: Array) -> tuple[CoreState, Array]:
    """At most one instruction leaves the array and one the vector unit; their destinations lose a writer."""
    oldest = oldest_pass(s)
    systolic = settle(on & (s.systolic_count > 0) & (oldest.finish <= s.now))
    vector = settle(on & s.vector_busy & (s.vector_finish <= s.now))
    remaining = _add(s.remaining, oldest.retire >> 2, -1, systolic)
    remaining = _add(remaining, s.vector_retire >> 2, -1, vector)
    done = one_hot(jnp.where(systolic, (oldest.retire & 3) - 1, -1), 2)
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
    flat = words.flat_entry_of(s.load.word)
    conflict = any_of(valid & (_look(s.remaining, flat) >= 0))
    remaining = _put(s.remaining, flat, s.load.requests, valid)
    return s.replace(remaining=remaining, load_valid=s.load_valid & ~valid), valid, conflict


def _is_valid(s: CoreState, source: Array) -> Array:
    """bool: the source (flat entry, or -1 for none) holds all its data."""
    return (source < 0) | (_look(s.remaining, jnp.maximum(source, 0)) == 0)


def _has_room(params: NpuParams, s: CoreState, is_vector: Array) -> Array:
    """bool[C, L]: the unit takes an instruction."""
    return jnp.where(is_vector, ~s.vector_busy, s.systolic_count < params.array_rows)


def _execute(params: NpuParams, s: CoreState, on: Array) -> tuple[CoreState, Array]:
    """The latched instruction enters the array or the vector unit once its sources are valid."""
    x = s.execute
    able = _is_valid(s, x.src_a) & _is_valid(s, x.src_b) & _has_room(params, s, x.kind == Op.VECTOR)
    go = settle(on & s.execute_valid & able)
    # A destination that is allocated gains a writer, a fresh one starts with this writer.
    writers = jnp.maximum(_look(s.remaining, x.dst), 0) + 1
    s = s.replace(remaining=_put(s.remaining, x.dst, writers, go), execute_valid=s.execute_valid & ~go)
    retire = (x.dst << 2) | x.last
    systolic = go & (x.kind == Op.SYSTOLIC)
    vector = go & (x.kind == Op.VECTOR)
    s = _enter_array(params, s, x.size, x.preload, retire, systolic)
    s = s.replace(
        vector_busy=s.vector_busy | vector,
        vector_finish=jnp.where(vector, s.now + x.size, s.vector_finish),
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
    start = settle(jnp.where(s.systolic_count > 0, after, into_empty))
    finish = start + height + params.array_cols - 2 + jnp.maximum(rows, params.min_rows)
    tail = s.systolic_head + s.systolic_count
    entry = zip(s.systolic, (start, finish, retire), strict=True)
    return s.replace(
        systolic=Pass(*(append(ring, tail, value, go) for ring, value in entry)),
        systolic_count=s.systolic_count + go,
        tail_start=jnp.where(go, start, s.tail_start),
        tail_rows=jnp.where(go, rows, s.tail_rows),
    )


def _store(s: CoreState, on: Array) -> tuple[CoreState, Array]:
    """The latched store's requests join the DMA queue once its entry is valid."""
    flat = words.flat_entry_of(s.store.word)
    valid = settle(on & s.store_valid & (_look(s.remaining, flat) == 0))
    s = s.replace(
        store_valid=s.store_valid & ~valid,
        unacknowledged=s.unacknowledged + jnp.where(valid, s.store.requests, 0),
        last_done=s.last_done | one_hot(jnp.where(valid, s.store_last, -1), 2),
    )
    return s, valid


def running(s: CoreState) -> Array:
    """bool[C, L]: the core holds a tile, work in a pipe or latch, or waits for write acknowledgements."""
    return (
        jnp.any(s.resident, axis=1)
        | (s.systolic_count > 0)
        | s.vector_busy
        | s.load_valid
        | s.store_valid
        | s.execute_valid
        | (s.unacknowledged > 0)
    )


def activity(s: CoreState) -> Activity:
    """bool[C, L] each, in this cycle."""
    busy = s.systolic_count > 0
    systolic = busy & (oldest_pass(s).start <= s.now)
    return Activity(systolic, s.vector_busy, systolic | s.vector_busy, ~running(s), busy)


def add_activity(s: CoreState, cycles: Array) -> CoreState:
    """Count `cycles` (int32[L]) more cycles in the present state."""
    pairs = zip(s.activity, activity(s), strict=True)
    return s.replace(activity=Activity(*(count + jnp.where(holds, cycles, 0) for count, holds in pairs)))


def _count_activity(s: CoreState, on: Array) -> CoreState:
    return add_activity(s, on.astype(jnp.int32))


class _Front(NamedTuple):
    """The front instruction of both slots, expanded at its loop indices; every field int32[C, 2, L]."""

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
    """Read and expand the front instructions. Returns the raw rows (int32[ROW_COLUMNS, C, 2, L]) too."""
    programs, table_rows, columns = program.rows.shape
    place = (which * table_rows + s.row) * columns + numbers(columns, 3)
    rows = settle(program.rows.reshape(programs * table_rows * columns).at[place].get(mode="clip"))
    loops = s.loop
    at_last = [loop == rows[Col.COUNT0 + axis] - 1 for axis, loop in enumerate(loops)]
    exists = s.resident & (s.row < s.end_row)
    at_end = settle(at_last[0] & at_last[1] & at_last[2])
    flags = rows[Col.FLAGS]
    entries = s.remaining.shape[1] // 4

    def entry(column: Col, acc_flag: Flag) -> Array:
        base = rows[column] + sum(loop * rows[column + 1 + axis] for axis, loop in enumerate(loops))
        in_acc = (flags & acc_flag) != 0
        half = jnp.where(in_acc, s.acc_half, s.spad_half)
        return settle(jnp.where(rows[column] < 0, -1, (jnp.where(in_acc, 2, 0) + half) * entries + base))

    size1 = jnp.where(at_last[1], rows[Col.SIZE1_LAST], rows[Col.SIZE1])
    size2 = jnp.where(at_last[2], rows[Col.SIZE2_LAST], rows[Col.SIZE2])
    first_inner = (loops[1] == 0) & (loops[2] == 0)
    preload = ((flags & Flag.PRELOAD) != 0) | (((flags & Flag.PRELOAD_FIRST) != 0) & first_inner)
    front = _Front(
        row=s.row, op=rows[Col.OP], dst=entry(Col.DST, Flag.DST_ACC), src_a=entry(Col.SRC_A, Flag.SRC_A_ACC),
        src_b=entry(Col.SRC_B, Flag.SRC_B_ACC), size=size1 * size2, preload=preload, at_end=at_end,
        last=at_end & (s.row == s.end_row - 1), exists=exists,
    )  # fmt: skip
    return rows, front


def _of_slot(values: Array, slot: Array) -> Array:
    """The chosen slot's value: values[..., C, 2, L], slot int32[C, L] (0 or 1) -> [..., C, L]."""
    return jnp.where(slot == 0, values[..., 0, :], values[..., 1, :])


def _waits_in_chain(params: NpuParams, s: CoreState) -> Array:
    """bool[C, 2, L]: the slot's tile continues the sums of the front tile, which has not issued everything yet.

    Two resident tiles share an accumulator half only in a chain of partial sums. Without this rule the last tile could
    store sums to which an earlier one has yet to add.
    """
    front_busy = _of_slot(s.row < s.end_row, s.front)
    chained = jnp.all(s.resident, axis=1) & (s.acc_half[:, 0] == s.acc_half[:, 1])
    waits = (params.ordered_chains > 0) & chained & front_busy
    return one_hot(jnp.where(waits, 1 - s.front, -1), 2)


def _issue(
    params: NpuParams, program: ProgramTables, which: Array, room: Array, s: CoreState, on: Array
) -> tuple[CoreState, Array]:
    """At most one instruction per core and cycle, over all classes; the round robin sticks to the tile that issued."""
    rows, front = _fetch(program, which, s)
    memory = (front.op == Op.LOAD) | (front.op == Op.STORE)
    is_store = front.op == Op.STORE
    stored_valid = _look(s.remaining, jnp.maximum(front.dst, 0)) == 0
    no_latch = jnp.where(is_store, s.store_valid[:, None], s.load_valid[:, None])
    memory_ready = room & ~no_latch & (~is_store | stored_valid)
    sources = [_is_valid(s, jnp.where(memory, -1, source)) for source in (front.src_a, front.src_b)]
    vector_room, array_room = (_has_room(params, s, jnp.full_like(s.vector_busy, unit))[:, None] for unit in (1, 0))
    unit_room = jnp.where(front.op == Op.VECTOR, vector_room, array_room)
    execute_ready = ~s.execute_valid[:, None] & sources[0] & sources[1] & unit_room
    opens_tile = (front.op == Op.SYSTOLIC) & ~s.streaming & (params.drains > 0)[:, None]
    execute_ready &= ~opens_tile | (s.systolic_count == 0)[:, None]
    ready = on & front.exists & jnp.where(memory, memory_ready, execute_ready)
    ready = settle(ready & ~(_waits_in_chain(params, s) & (front.op != Op.LOAD)))

    both = s.resident[:, 0] & s.resident[:, 1]
    begin = jnp.where(both, s.issue_from, 0)
    first_slot = jnp.where(begin == 0, s.front, 1 - s.front)
    first_ready, second_ready = _of_slot(ready, first_slot), _of_slot(ready, 1 - first_slot) & both
    slot = settle(jnp.where(first_ready, first_slot, 1 - first_slot))
    go = settle(first_ready | second_ready)
    position = jnp.where(first_ready, begin, 1 - begin)
    streams = one_hot(jnp.where(go, slot, -1), 2) & (front.op == Op.SYSTOLIC)
    s = s.replace(issue_from=jnp.where(go, position, s.issue_from), streaming=s.streaming | streams)
    row, loops = _of_slot(rows, slot), tuple(_of_slot(loop, slot) for loop in s.loop)
    s = _latch(s, row, loops, front, slot, go)
    return _advance(s, row, loops, front, slot, go), go


def _latch(s: CoreState, row: Array, loops: tuple[Array, ...], front: _Front, slot: Array, go: Array) -> CoreState:
    op, dst = _of_slot(front.op, slot), _of_slot(front.dst, slot)
    last_trip = loops[2] == row[Col.COUNT2] - 1
    descriptor = words.Descriptor(
        first_block=row[Col.FIRST_BLOCK] + loops[1] * row[Col.BLOCK_STEP1] + loops[2] * row[Col.BLOCK_STEP2],
        requests=jnp.where(last_trip, row[Col.REQUESTS_LAST], row[Col.REQUESTS]),
        period_requests=row[Col.PERIOD_REQUESTS],
        period_pitch=row[Col.PERIOD_PITCH_BLOCKS],
        pattern_start=row[Col.PATTERN_START],
        word=words.request_word(numbers(slot.shape[0]), op == Op.STORE, dst),
    )
    last_slot = jnp.where(_of_slot(front.last, slot), slot + 1, 0)
    execute = words.Execute(
        kind=op, dst=dst, src_a=_of_slot(front.src_a, slot), src_b=_of_slot(front.src_b, slot),
        size=_of_slot(front.size, slot), preload=_of_slot(front.preload, slot), last=last_slot,
    )  # fmt: skip
    load, store = go & (op == Op.LOAD), go & (op == Op.STORE)
    run = go & ~load & ~store

    def latched(when: Array, new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(when, a, b), new, old)

    return s.replace(
        load=latched(load, descriptor, s.load),
        load_valid=s.load_valid | load,
        store=latched(store, descriptor, s.store),
        store_valid=s.store_valid | store,
        store_last=jnp.where(store, last_slot - 1, s.store_last),
        execute=latched(run, execute, s.execute),
        execute_valid=s.execute_valid | run,
    )


def _advance(s: CoreState, row: Array, loops: tuple[Array, ...], front: _Front, slot: Array, go: Array) -> CoreState:
    """Step the loops of the issued slot; past the last trip, go to the next row."""
    wrap2 = loops[2] == row[Col.COUNT2] - 1
    wrap1 = wrap2 & (loops[1] == row[Col.COUNT1] - 1)
    end = _of_slot(front.at_end, slot)
    stepped = (
        jnp.where(wrap1, loops[0] + 1, loops[0]),
        jnp.where(wrap1, 0, jnp.where(wrap2, loops[1] + 1, loops[1])),
        jnp.where(wrap2, 0, loops[2] + 1),
    )
    here = one_hot(jnp.where(go, slot, -1), 2)
    pairs = zip(stepped, s.loop, strict=True)
    loop = tuple(jnp.where(here, jnp.where(end, 0, new)[:, None], old) for new, old in pairs)
    return s.replace(loop=loop, row=s.row + (here & end[:, None]))


def _complete_tiles(s: CoreState, on: Array) -> tuple[CoreState, Array]:
    """The first tile, in order of placement, that has issued everything and whose last instruction took effect."""
    complete = settle(on & s.resident & (s.row >= s.end_row) & s.last_done)
    front_done = _of_slot(complete, s.front)
    slot = jnp.where(front_done, s.front, 1 - s.front)
    gone = front_done | _of_slot(complete, 1 - s.front)
    here = one_hot(jnp.where(gone, slot, -1), 2)
    s = s.replace(
        resident=s.resident & ~here,
        front=jnp.where(front_done, 1 - s.front, s.front),
        finished=s.finished + gone,
    )
    return s, gone
