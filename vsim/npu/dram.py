"""One DRAM controller per channel: FR-FCFS over a read and a write queue, one command per channel and tick.

The controller is Ramulator2's generic controller as ONNXim uses it (`../shared/specs/dram.md` section 2); the timing
rules are a table (level x preceding command x following command), so that a standard is data. What differs between the
two modes of fidelity is parameter values: queue capacities, watermarks, whether a row hit goes first, and refresh.

Everything here is per lane; the leading axis of every array is the channel. Times are DRAM clock ticks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from vsim.npu.fields import FAR, PAST, after, append, one_hot, pick, settle

ACT, PRE, RD, WR, PREA, REF = range(6)
N_COMMANDS = 6
CHANNEL, RANK, BANK_GROUP, BANK = range(4)
N_LEVELS = 4

SLOT_BITS = 9
"""A queue entry's sort key is (order << SLOT_BITS) | slot: unique, ascending in arrival, and it names the slot."""
MAX_QUEUE = 1 << SLOT_BITS
MAX_ORDER = 1 << (31 - SLOT_BITS - 1)
"""Bit 30 stays free for the row-hit class; `rebase` brings the order back below this bound between chunks."""

BANK_BITS = 10
BANK_MASK = (1 << BANK_BITS) - 1
ROW_HIT = 1 << 30

STATUS_PENDING = 1
STATUS_ORDER = 2


@dataclass(frozen=True)
class DramShape:
    """Static sizes. `groups` counts bank groups over all ranks, `banks` banks over all bank groups; powers of two.

    A flat bank number has the rank (or pseudo channel) in its lowest bits, then the bank group, then the bank.
    """

    channels: int
    ranks: int
    groups: int
    banks: int
    queue: int
    """Slots of each of the two queues, at most MAX_QUEUE."""
    pending: int
    """Ring of reads whose command was issued and whose data are on the way; a power of two."""


class DramParams(struct.PyTreeNode):
    """Traced parameters, int32 scalars unless said otherwise.

    timing: [N_LEVELS, N_COMMANDS, N_COMMANDS], least distance in ticks, 0 where there is no rule.
    four_activate_window, read_latency (RD to data), refresh_interval (FAR: never).
    write_high, write_low: write mode starts at >= high queued writes and ends at <= low.
    read_capacity, write_capacity: entries accepted per queue, <= shape.queue.
    rank_shift, group_shift, bank_shift, row_shift, row_mask: fields of the in-channel block number.
    bank_hash: 1 exchanges banks by the low row bits (permutation-based page interleaving, Zhang et al., MICRO 2000),
        so that streams a power of two apart do not meet in the same bank.
    hit_first: 1 lets a ready row hit pass older commands and protects a row with queued hits from PRE.
    """

    timing: Array
    four_activate_window: Array
    read_latency: Array
    refresh_interval: Array
    write_high: Array
    write_low: Array
    read_capacity: Array
    write_capacity: Array
    rank_shift: Array
    group_shift: Array
    bank_shift: Array
    row_shift: Array
    row_mask: Array
    bank_hash: Array
    hit_first: Array


class DramState(struct.PyTreeNode):
    """Per lane. C channels, Q queue slots, queue 0 reads and queue 1 writes, slots [0, count) in use."""

    clock: Array
    """int32[]"""
    key: Array
    """int32[C, 2, Q], see SLOT_BITS; FAR in a free slot."""
    block: Array
    """int32[C, 2, Q], in-channel block number."""
    place: Array
    """int32[C, 2, Q], row_hit << 30 | row << BANK_BITS | bank; row_hit says that the bank has this row open."""
    meta: Array
    """int32[C, 2, Q], the caller's word << 1 | row statistics already counted."""
    arrival: Array
    """int32[C, 2, Q], tick of acceptance."""
    count: Array
    """int32[C, 2]"""
    order: Array
    """int32[C, 2], next order number."""
    active_arrival: Array
    """int32[C, banks], requests whose row was activated for them; FAR where none."""
    active_meta: Array
    """int32[C, banks], the caller's word << 1 | is a write."""
    open_row: Array
    """int32[C, banks], -1 when closed."""
    ready_channel: Array
    """int32[C, N_COMMANDS], earliest tick for each command; likewise below."""
    ready_rank: Array
    """int32[C, ranks, N_COMMANDS]"""
    ready_group: Array
    """int32[C, groups, 4]"""
    ready_bank: Array
    """int32[C, banks, 4]"""
    activations: Array
    """int32[C, ranks, 4], ticks of the last four ACTs, newest first."""
    pending_depart: Array
    """int32[C, pending], ring"""
    pending_meta: Array
    pending_head: Array
    """int32[C]"""
    pending_count: Array
    write_mode: Array
    """bool[C]"""
    refresh_due: Array
    """int32[C], refreshes asked for and not yet issued."""
    refresh_counted: Array
    """bool[C], the first command of the refresh at the head has been counted as a row miss."""
    refresh_next: Array
    """int32[], tick of the next refresh request."""
    status: Array
    """int32[], STATUS_* bits"""
    row_hits: Array
    """int32[C]"""
    row_misses: Array
    row_conflicts: Array


class Offer(NamedTuple):
    """At most one request per channel and tick: valid bool[C], write bool[C], block int32[C], meta int32[C] < 2**30."""

    valid: Array
    write: Array
    block: Array
    meta: Array


class Room(NamedTuple):
    """What a channel has room for, bool[C] each; all True where queues are unbounded.

    returned: results of a tick (a completed read and a write); without it nothing completes and no WR issues.
    under_way: reads whose data are on the way; without it no RD issues and no read is forwarded.
    """

    returned: Array
    under_way: Array


class Outcome(NamedTuple):
    """What a tick did, per channel. A command's meta is the caller's word of the request it served, -1 for refresh."""

    read_done: Array
    read_meta: Array
    write_done: Array
    write_meta: Array
    issued: Array
    command: Array
    bank: Array
    command_meta: Array


def init(shape: DramShape, params: DramParams) -> DramState:
    """Empty queues, all banks closed, clock 0."""
    c, q, b = shape.channels, shape.queue, shape.banks

    def zeros(*dims: int) -> Array:
        return jnp.zeros(dims, jnp.int32)

    def past(*dims: int) -> Array:
        return jnp.full(dims, PAST, jnp.int32)

    return DramState(
        clock=zeros(), key=jnp.full((c, 2, q), FAR, jnp.int32), block=zeros(c, 2, q), place=zeros(c, 2, q),
        meta=zeros(c, 2, q), arrival=zeros(c, 2, q), count=zeros(c, 2), order=zeros(c, 2),
        active_arrival=jnp.full((c, b), FAR, jnp.int32), active_meta=zeros(c, b),
        open_row=jnp.full((c, b), -1, jnp.int32),
        ready_channel=past(c, N_COMMANDS), ready_rank=past(c, shape.ranks, N_COMMANDS),
        ready_group=past(c, shape.groups, 4), ready_bank=past(c, b, 4), activations=past(c, shape.ranks, 4),
        pending_depart=zeros(c, shape.pending), pending_meta=zeros(c, shape.pending), pending_head=zeros(c),
        pending_count=zeros(c), write_mode=jnp.zeros(c, bool), refresh_due=zeros(c),
        refresh_counted=jnp.zeros(c, bool), refresh_next=jnp.asarray(params.refresh_interval, jnp.int32),
        status=zeros(), row_hits=zeros(c), row_misses=zeros(c), row_conflicts=zeros(c),
    )  # fmt: skip


def accept(params: DramParams, s: DramState, offer: Offer, room: Room) -> tuple[DramState, Array]:
    """Take the offered request if it fits: before the tick, at the current clock. Returns the state and accepted[C].

    A read of a block that waits in the write queue is answered from there: it departs one tick later, behind the
    older reads, and needs no queue slot.
    """
    c, _, q = s.key.shape
    slots = jnp.arange(q, dtype=jnp.int32)
    queued_write = slots < s.count[:, 1, None]
    same_block = settle(jnp.any(queued_write & (s.block[:, 1] == offer.block[:, None]), axis=1).astype(jnp.int32)) > 0
    forwarded = offer.valid & ~offer.write & same_block
    capacity = jnp.stack([params.read_capacity, params.write_capacity])
    has_room = pick(s.count < capacity, offer.write.astype(jnp.int32))
    enqueued = offer.valid & ~forwarded & has_room
    forwarded &= room.under_way

    which = jnp.where(enqueued, offer.write.astype(jnp.int32), 2)
    channel = jnp.arange(c)
    kind = offer.write.astype(jnp.int32)
    slot = pick(s.count, kind)
    order = pick(s.order, kind)
    at = (channel, which, slot)
    took = one_hot(which, 2)
    s = s.replace(
        key=s.key.at[at].set((order << SLOT_BITS) | slot, mode="drop"),
        block=s.block.at[at].set(offer.block, mode="drop"),
        place=s.place.at[at].set(_place_of(params, s, offer.block), mode="drop"),
        meta=s.meta.at[at].set(offer.meta << 1, mode="drop"),
        arrival=s.arrival.at[at].set(s.clock, mode="drop"),
        count=s.count + took,
        order=s.order + took,
        status=s.status | jnp.where(jnp.any(enqueued & (order >= MAX_ORDER - 1)), STATUS_ORDER, 0),
    )
    return _push_pending(s, forwarded, s.clock + 1, offer.meta), enqueued | forwarded


def next_event(s: DramState) -> Array:
    """int32[]: the earliest clock value at which a controller whose last tick did nothing may do something.

    Nothing but time changes then: a timing rule expires, read data arrive, or a refresh falls due.
    """
    return jnp.minimum(_next_own_event(s), s.refresh_next)


def _next_own_event(s: DramState) -> Array:
    later = jnp.stack([_first_after(s.clock, ready) for ready in (_earliest(s), s.ready_channel, s.ready_rank)])
    has_queue = jnp.any(s.count > 0) | jnp.any(s.active_arrival != FAR) | jnp.any(s.refresh_due > 0)
    timing = jnp.where(has_queue, jnp.min(later), FAR)
    head = s.pending_head & (s.pending_depart.shape[1] - 1)
    # Data that have arrived and did not leave in a quiet tick wait for room, not for time.
    data = _first_after(s.clock, jnp.where(s.pending_count > 0, pick(s.pending_depart, head), PAST))
    return jnp.minimum(timing, data)


def is_stuck(s: DramState) -> Array:
    """bool[]: a quiet controller with work that no passing of time will free, not even a refresh."""
    refresh_waits = jnp.any(s.refresh_due > 1) | (s.refresh_next == FAR)
    return has_work(s) & (_next_own_event(s) == FAR) & refresh_waits


def _first_after(clock: Array, times: Array) -> Array:
    return jnp.min(jnp.where(times > clock, times, FAR))


def has_work(s: DramState) -> Array:
    """bool[]: requests are queued, activated or waiting for their data."""
    return jnp.any(s.count > 0) | jnp.any(s.active_arrival != FAR) | jnp.any(s.pending_count > 0)


def tick(params: DramParams, s: DramState, room: Room, on: Array) -> tuple[DramState, Outcome]:
    """One DRAM clock tick. on: bool[], False leaves the state unchanged."""
    s = s.replace(clock=s.clock + on)
    s, read_done, read_meta = _complete_read(s, on & room.returned)
    s = _request_refresh(params, s, on)
    may_access = jnp.stack([room.under_way, room.returned], axis=1)[:, None]
    earliest = _earliest(s)
    earliest = earliest.at[:, :, RD:].set(jnp.where(may_access, earliest[:, :, RD:], FAR))
    s, choice = _choose(params, s, earliest, on)
    s, write_done = _issue(params, s, choice)
    return s, Outcome(
        read_done=read_done, read_meta=read_meta,
        write_done=write_done, write_meta=choice.meta >> 1, issued=choice.issued, command=choice.command,
        bank=choice.bank, command_meta=jnp.where(choice.command >= PREA, -1, choice.meta >> 1),
    )  # fmt: skip


class _Choice(NamedTuple):
    """The command of this tick, per channel; `meta` and `arrival` are the served request's."""

    issued: Array
    command: Array
    bank: Array
    row: Array
    meta: Array
    arrival: Array
    is_write: Array
    from_queue: Array
    slot: Array


def _push_pending(s: DramState, push: Array, depart: Array, meta: Array) -> DramState:
    pending = s.pending_depart.shape[1]
    full = s.pending_count >= pending
    tail = s.pending_head + s.pending_count
    return s.replace(
        pending_depart=append(s.pending_depart, tail, depart, push),
        pending_meta=append(s.pending_meta, tail, meta, push),
        pending_count=s.pending_count + push,
        status=s.status | jnp.where(jnp.any(push & full), STATUS_PENDING, 0),
    )


def _complete_read(s: DramState, on: Array) -> tuple[DramState, Array, Array]:
    """At most one read completes per tick, strictly in the order of issue."""
    head = s.pending_head & (s.pending_depart.shape[1] - 1)
    done = on & (s.pending_count > 0) & (settle(pick(s.pending_depart, head)) <= s.clock)
    meta = settle(pick(s.pending_meta, head))
    return s.replace(pending_head=s.pending_head + done, pending_count=s.pending_count - done), done, meta


def _request_refresh(params: DramParams, s: DramState, on: Array) -> DramState:
    due = on & (s.clock >= s.refresh_next)
    return s.replace(
        refresh_due=s.refresh_due + due,
        refresh_next=jnp.where(due, s.refresh_next + params.refresh_interval, s.refresh_next),
    )


def _earliest(s: DramState) -> Array:
    """int32[C, banks, 4]: earliest tick of ACT, PRE, RD and WR at each bank, over all levels."""
    c, banks, _ = s.ready_bank.shape
    ranks, groups = s.ready_rank.shape[1], s.ready_group.shape[1]
    at_rank = jnp.maximum(s.ready_rank[:, :, :4], s.ready_channel[:, None, :4])
    at_group = jnp.maximum(s.ready_group.reshape(c, groups // ranks, ranks, 4), at_rank[:, None])
    at_bank = jnp.maximum(s.ready_bank.reshape(c, banks // groups, groups, 4), at_group.reshape(c, 1, groups, 4))
    return at_bank.reshape(c, banks, 4)


def _choose(params: DramParams, s: DramState, earliest: Array, on: Array) -> tuple[DramState, _Choice]:
    """First the requests whose row was activated for them, then refresh, then the queue of the current mode.

    A waiting refresh blocks the queues even when its own command is not ready. A PRE (or PREA) that would close a
    row under an activated request is dropped and the tick with it (spec dram.md section 2, step 3).
    """
    ready = earliest <= s.clock
    active, active_bank, active_choice = _oldest_active(s, ready, on)

    refresh_waits = s.refresh_due > 0
    any_open = jnp.any(s.open_row >= 0, axis=1)
    refresh_command = jnp.where(any_open, PREA, REF)
    refresh_ready = pick(_refresh_ready(s), any_open.astype(jnp.int32))
    any_active = jnp.any(s.active_arrival != FAR, axis=1)
    refresh = on & ~active & refresh_waits & refresh_ready & ~(any_open & any_active)

    consult = on & ~active & ~refresh_waits
    s = _update_write_mode(params, s, consult)
    queue, choice = _best_of_queue(params, s, ready, consult)

    def select(of_active: Array, of_refresh: Array | int, of_queue: Array) -> Array:
        return jnp.where(active, of_active, jnp.where(refresh, of_refresh, of_queue))

    return s, _Choice(
        issued=active | refresh | queue,
        command=select(active_choice.command, refresh_command, choice.command),
        bank=select(active_bank, 0, choice.bank),
        row=choice.row,
        meta=select(active_choice.meta, -2, choice.meta),
        arrival=choice.arrival,
        is_write=select(active_choice.is_write, False, choice.is_write),
        from_queue=queue & ~active & ~refresh,
        slot=choice.slot,
    )


def _refresh_ready(s: DramState) -> Array:
    """bool[C, 2]: REF ready, PREA ready; both look at channel and rank only."""
    at = jnp.maximum(jnp.max(s.ready_rank, axis=1), s.ready_channel)
    return jnp.stack([at[:, REF] <= s.clock, at[:, PREA] <= s.clock], axis=1)


def _oldest_active(s: DramState, ready: Array, on: Array) -> tuple[Array, Array, _Choice]:
    is_write = (s.active_meta & 1) == 1
    can = (s.active_arrival != FAR) & jnp.where(is_write, ready[:, :, WR], ready[:, :, RD])
    oldest = jnp.min(jnp.where(can, s.active_arrival, FAR), axis=1)
    found = on & (oldest != FAR)
    banks = jnp.arange(can.shape[1], dtype=jnp.int32)
    bank = jnp.min(jnp.where(can & (s.active_arrival == oldest[:, None]), banks, banks.size - 1), axis=1)
    meta = pick(s.active_meta, bank)
    write = (meta & 1) == 1
    nothing = jnp.zeros_like(bank)
    return found, bank, _Choice(found, jnp.where(write, WR, RD), bank, nothing, meta, nothing, write, found, nothing)


def _update_write_mode(params: DramParams, s: DramState, consult: Array) -> DramState:
    reads, writes = s.count[:, 0], s.count[:, 1]
    enter = (writes >= params.write_high) | (reads == 0)
    leave = (writes <= params.write_low) & (reads != 0)
    return s.replace(write_mode=jnp.where(consult, jnp.where(s.write_mode, ~leave, enter), s.write_mode))


def _place_of(params: DramParams, s: DramState, block: Array) -> Array:
    """Place words (see `DramState.place`) of in-channel block numbers, one per channel."""
    ranks, groups, banks = s.ready_rank.shape[1], s.ready_group.shape[1], s.ready_bank.shape[1]
    rank = (block >> params.rank_shift) & (ranks - 1)
    group = (block >> params.group_shift) & (groups // ranks - 1)
    bank = (block >> params.bank_shift) & (banks // groups - 1)
    row = (block >> params.row_shift) & params.row_mask
    bank ^= jnp.where(params.bank_hash > 0, row & (banks // groups - 1), 0)
    flat = rank + group * ranks + bank * groups
    hit = pick(s.open_row, flat) == row
    return jnp.where(hit, ROW_HIT, 0) | (row << BANK_BITS) | flat


def _bit_per_bank(flags: Array) -> Array:
    """bool[C, banks] -> uint32[C, words]: bank b is bit b % 32 of word b // 32."""
    c, banks = flags.shape
    width = min(banks, 32)
    bits = flags.reshape(c, banks // width, width).astype(jnp.uint32) << jnp.arange(width, dtype=jnp.uint32)
    return jnp.sum(bits, axis=2, dtype=jnp.uint32)


def _banks_of(place: Array, chosen: Array, words: int) -> Array:
    """uint32[C, words]: the banks of the chosen entries (bool[C, Q]), bit by bit as in `_bit_per_bank`."""
    bank = place & BANK_MASK
    bit = jnp.uint32(1) << (bank & 31).astype(jnp.uint32)
    mine = [jnp.where(chosen & (bank >> 5 == word), bit, jnp.uint32(0)) for word in range(words)]
    return jnp.stack([lax.reduce(bits, jnp.uint32(0), lax.bitwise_or, (1,)) for bits in mine], axis=1)


def _bit_of(masks: Array, bank: Array) -> Array:
    """bool[C, Q]: the bits of banks int32[C, Q] in uint32[C, words]."""
    word = masks[:, :1]
    for index in range(1, masks.shape[1]):
        word = jnp.where(bank >> 5 == index, masks[:, index : index + 1], word)
    return (word >> (bank & 31).astype(jnp.uint32)) & 1 != 0


def _best_of_queue(params: DramParams, s: DramState, ready: Array, consult: Array) -> tuple[Array, _Choice]:
    """The oldest entry of the current queue whose next command is ready (with hit_first: the oldest ready hit).

    Readiness is a property of the bank: one bit per bank for row hits, one for all others (ACT where the bank is
    closed, PRE where it is open). With hit_first no PRE closes a row that the queue still has hits for.
    """
    write = s.write_mode
    key = jnp.where(write[:, None], s.key[:, 1], s.key[:, 0])
    place = jnp.where(write[:, None], s.place[:, 1], s.place[:, 0])
    access_ready = jnp.where(write[:, None], ready[:, :, WR], ready[:, :, RD])
    other_ready = jnp.where(s.open_row >= 0, ready[:, :, PRE], ready[:, :, ACT])
    bank = place & BANK_MASK
    row_hit = (place & ROW_HIT) != 0
    hit_banks, other_banks = _bit_per_bank(access_ready), _bit_per_bank(other_ready)
    wanted_rows = _banks_of(place, row_hit & (key != FAR), hit_banks.shape[1])
    other_banks &= ~jnp.where(params.hit_first > 0, wanted_rows, jnp.uint32(0))
    can = jnp.where(row_hit, _bit_of(hit_banks, bank), _bit_of(other_banks, bank))
    later = jnp.where(row_hit, 0, params.hit_first << 30)
    best = jnp.min(jnp.where(can, key | later, FAR), axis=1)

    found = consult & (best != FAR)
    slot = jnp.where(found, best & (MAX_QUEUE - 1), 0)
    kind = write.astype(jnp.int32)
    at = (jnp.arange(key.shape[0]), kind, slot)
    its_place, meta, arrival = settle(s.place[at]), settle(s.meta[at]), settle(s.arrival[at])
    its_bank = its_place & BANK_MASK
    hit = (its_place & ROW_HIT) != 0
    closed = pick(s.open_row, its_bank) < 0
    command = jnp.where(hit, jnp.where(write, WR, RD), jnp.where(closed, ACT, PRE))
    under_active = pick(s.active_arrival, its_bank) != FAR
    found = found & ~((command == PRE) & under_active)
    row = (its_place & ~ROW_HIT) >> BANK_BITS
    return found, _Choice(found, command, its_bank, row, meta, arrival, write, found, slot)


def _issue(params: DramParams, s: DramState, choice: _Choice) -> tuple[DramState, Array]:
    """Apply the chosen command: row statistics, bank state, queues, timing. Returns the state and write_done[C]."""
    command = jnp.where(choice.issued, choice.command, -1)
    s = _count_row(s, choice, command)
    s = _update_timing(params, s, choice, command)
    s = _move_requests(s, choice, command)
    s = _push_pending(s, command == RD, s.clock + params.read_latency, choice.meta >> 1)
    return s, command == WR


def _count_row(s: DramState, choice: _Choice, command: Array) -> DramState:
    """A request counts once, by its first command: access = hit, ACT = miss, PRE = conflict; a refresh is a miss."""
    first = choice.from_queue & ((choice.meta & 1) == 0)
    refresh_first = (command >= PREA) & ~s.refresh_counted
    return s.replace(
        row_hits=s.row_hits + (first & ((command == RD) | (command == WR))),
        row_misses=s.row_misses + ((first & (command == ACT)) | refresh_first),
        row_conflicts=s.row_conflicts + (first & (command == PRE)),
        refresh_counted=jnp.where(command == PREA, True, jnp.where(command == REF, False, s.refresh_counted)),
        refresh_due=s.refresh_due - (command == REF),
    )


def _move_requests(s: DramState, choice: _Choice, command: Array) -> DramState:
    """ACT moves the request to the activated ones; an access removes it; PRE leaves it, marked as counted."""
    channel = jnp.arange(s.key.shape[0])
    access = (command == RD) | (command == WR)
    opens = command == ACT
    leaves = choice.from_queue & (access | opens)
    kind = choice.is_write.astype(jnp.int32)
    last = pick(s.count, kind) - 1
    last_at = (channel, kind, jnp.maximum(last, 0))
    moved_key = (settle(s.key[last_at]) & ~(MAX_QUEUE - 1)) | choice.slot
    moved_meta, moved_arrival = settle(s.meta[last_at]), settle(s.arrival[last_at])
    moved_block, moved_place = settle(s.block[last_at]), settle(s.place[last_at])
    # The last entry fills the hole; when the hole is the last slot both writes meet and FAR, written second, stands.
    gone = jnp.where(leaves, kind, 2)
    for read in (choice.row, choice.meta, choice.arrival, moved_place):
        gone = after(read, gone, 2)
    hole, end = (channel, gone, choice.slot), (channel, gone, last)
    marked = (channel, jnp.where(choice.from_queue & (command == PRE), kind, 2), choice.slot)

    at_bank = one_hot(jnp.where(choice.issued, choice.bank, -1), s.open_row.shape[1])
    closes = (at_bank & (command == PRE)[:, None]) | (command == PREA)[:, None]
    place = s.place.at[hole].set(moved_place, mode="drop")
    return s.replace(
        key=s.key.at[hole].set(moved_key, mode="drop").at[end].set(FAR, mode="drop"),
        meta=s.meta.at[hole].set(moved_meta, mode="drop").at[marked].set(choice.meta | 1, mode="drop"),
        block=s.block.at[hole].set(moved_block, mode="drop"),
        place=_update_hits(place, choice, command),
        arrival=s.arrival.at[hole].set(moved_arrival, mode="drop"),
        count=s.count - one_hot(jnp.where(leaves, kind, 2), 2),
        open_row=jnp.where(closes, -1, jnp.where(at_bank & opens[:, None], choice.row[:, None], s.open_row)),
        active_arrival=jnp.where(
            at_bank & opens[:, None],
            choice.arrival[:, None],
            jnp.where(at_bank & (access & ~choice.from_queue)[:, None], FAR, s.active_arrival),
        ),
        active_meta=jnp.where(
            at_bank & opens[:, None], ((choice.meta >> 1 << 1) | choice.is_write)[:, None], s.active_meta
        ),
    )


def _update_hits(place: Array, choice: _Choice, command: Array) -> Array:
    """After a row command, the queued requests to that bank (PREA: to all banks) hit or no longer hit."""

    def wide(values: Array) -> Array:
        return values[:, None, None]

    touched = (place & BANK_MASK) == wide(jnp.where((command == ACT) | (command == PRE), choice.bank, -1))
    touched |= wide(command == PREA)
    opened = wide(jnp.where(command == ACT, (choice.row << BANK_BITS) | choice.bank, -1))
    without = place & ~ROW_HIT
    return jnp.where(touched, jnp.where(without == opened, without | ROW_HIT, without), place)


def _update_timing(params: DramParams, s: DramState, choice: _Choice, command: Array) -> DramState:
    """Raise the earliest ticks of the nodes on the command's path. PREA and REF reach channel and rank only."""
    ranks, groups, banks = s.ready_rank.shape[1], s.ready_group.shape[1], s.ready_bank.shape[1]
    issued = choice.issued
    distance = params.timing[:, jnp.maximum(command, 0)]
    whole_channel = (command >= PREA)[:, None]
    bank = choice.bank

    def node(count: int) -> Array:
        return one_hot(jnp.where(issued, bank & (count - 1), -1), count)

    def raised(ready: Array, level: int, nodes: Array) -> Array:
        rule = distance[level][:, None, : ready.shape[-1]]
        earliest = jnp.where(nodes[:, :, None] & (rule > 0), s.clock + rule, PAST)
        return jnp.maximum(ready, earliest)

    at_rank = node(ranks) | (whole_channel & issued[:, None])
    is_act = at_rank & (command == ACT)[:, None]
    window_rule = jnp.where(is_act, s.activations[:, :, 2] + params.four_activate_window, PAST)
    ready_rank = raised(s.ready_rank, RANK, at_rank)
    ready_rank = ready_rank.at[:, :, ACT].max(window_rule)
    newest = jnp.concatenate([jnp.full_like(s.activations[:, :, :1], s.clock), s.activations[:, :, :3]], axis=2)
    return s.replace(
        ready_channel=raised(s.ready_channel[:, None], CHANNEL, issued[:, None])[:, 0],
        ready_rank=ready_rank,
        ready_group=raised(s.ready_group, BANK_GROUP, node(groups) & ~whole_channel),
        ready_bank=raised(s.ready_bank, BANK, node(banks) & ~whole_channel),
        activations=jnp.where(is_act[:, :, None], newest, s.activations),
    )
