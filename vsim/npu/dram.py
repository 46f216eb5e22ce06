"""One DRAM controller per channel: FR-FCFS over a read and a write queue, one command per channel and tick.

The controller is Ramulator2's generic controller as ONNXim uses it (`../shared/specs/dram.md` section 2); the timing
rules are a table (level x preceding command x following command), so that a standard is data. What differs between the
two modes of fidelity is parameter values: queue capacities, watermarks, whether a row hit goes first, and refresh.

The first axis of every array is the channel, the last the lane. Times are DRAM clock ticks. Sets of banks are bit
masks: bank b is bit b % 32 of word b // 32 (axis W), so that a question about all banks costs one operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from vsim.npu.fields import (
    FAR,
    PAST,
    after,
    any_of,
    append,
    fold,
    least,
    numbers,
    one_hot,
    pick,
    pick_row,
    put,
    raise_to,
    settle,
)

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
LATER = 1 << 30
"""Added to the key of a request that lets row hits pass."""
MAX_BANKS = 1 << BANK_BITS
MAX_GROUPS = 32
"""The set of bank groups is one word."""

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
    """Traced parameters, int32[L] unless said otherwise.

    timing: [N_LEVELS, N_COMMANDS, N_COMMANDS, L], least distance in ticks, 0 where there is no rule.
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
    """C channels, L lanes, Q queue slots, queue 0 reads and queue 1 writes, W words of bank masks.

    A request lives in a queue slot until its row is activated for it, then with its bank: at most one per bank.
    """

    clock: Array
    """int32[L]"""
    key: Array
    """int32[C, 2, Q, L], see SLOT_BITS; FAR in a free slot."""
    used: Array
    """uint32[C, 2, Q / 32, L], set of the slots in use."""
    block: Array
    """int32[C, Q, L], in-channel block numbers of the write queue; -1 in a free slot."""
    place: Array
    """int32[C, 2, Q, L], row << BANK_BITS | bank; meaningless in a free slot."""
    hits: Array
    """uint32[C, 2, Q / 32, L], set of the slots whose request's row is open."""
    meta: Array
    """int32[C, 2, Q, L], the caller's word << 1 | row statistics already counted."""
    count: Array
    """int32[C, 2, L]"""
    order: Array
    """int32[C, L], number of the next request in order of arrival."""
    active: Array
    """uint32[C, W, L], banks with a request whose row was activated for it."""
    active_write: Array
    """uint32[C, W, L], the active banks whose request is a write; meaningless elsewhere. Likewise the next two."""
    active_key: Array
    """int32[C, banks, L], (order << BANK_BITS) | bank"""
    active_meta: Array
    """int32[C, banks, L], the caller's word."""
    opened: Array
    """uint32[C, W, L], banks with an open row."""
    row: Array
    """int32[C, banks, L], the open row; meaningless in a closed bank."""
    ready_bank: Array
    """int32[C, 4, banks, L], earliest tick of ACT, PRE, RD and WR by the rules of the bank."""
    ready_group: Array
    """int32[C, 4, groups, L], likewise by the rules of channel, rank and bank group together."""
    ready_rank: Array
    """int32[C, 2, ranks, L], earliest tick of PREA and REF, which no rule of a bank or bank group holds back."""
    activations: Array
    """int32[C, ranks, 4, L], ticks of the last four ACTs, newest first."""
    pending_depart: Array
    """int32[C, pending, L], ring"""
    pending_meta: Array
    pending_head: Array
    """int32[C, L]"""
    pending_count: Array
    write_mode: Array
    """bool[C, L]"""
    refresh_due: Array
    """int32[C, L], refreshes asked for and not yet issued."""
    refresh_counted: Array
    """bool[C, L], the first command of the refresh at the head has been counted as a row miss."""
    refresh_next: Array
    """int32[L], tick of the next refresh request."""
    status: Array
    """int32[L], STATUS_* bits"""
    row_hits: Array
    """int32[C, L]"""
    row_misses: Array
    row_conflicts: Array


class Offer(NamedTuple):
    """At most one request per channel and tick: valid, write bool[C, L]; block, meta int32[C, L], meta < 2**30."""

    valid: Array
    write: Array
    block: Array
    meta: Array


class Room(NamedTuple):
    """What a channel has room for, bool[C, L] each; all True where queues are unbounded.

    returned: results of a tick (a completed read and a write); without it nothing completes and no WR issues.
    under_way: reads whose data are on the way; without it no RD issues and no read is forwarded.
    """

    returned: Array
    under_way: Array


class Outcome(NamedTuple):
    """What a tick did, [C, L]. A command's meta is the caller's word of the request it served, -1 for refresh.

    counted: it is that request's first command, by which its access is a row hit, a conflict, or a miss. opener_meta:
    where it is a conflict, the caller's word of the request for which the row in the way was opened; None unless asked
    for.
    """

    read_done: Array
    read_meta: Array
    write_done: Array
    write_meta: Array
    issued: Array
    command: Array
    bank: Array
    command_meta: Array
    counted: Array
    hit: Array
    conflict: Array
    opener_meta: Array | None


def init(shape: DramShape, params: DramParams) -> DramState:
    """Empty queues, all banks closed, clock 0. params: of every lane."""
    c, b, lanes = shape.channels, shape.banks, params.read_latency.size
    words, queue_words = -(-b // 32), -(-shape.queue // 32)
    q = queue_words * 32

    def zeros(*dims: int, dtype: type = jnp.int32) -> Array:
        return jnp.zeros((*dims, lanes), dtype)

    def past(*dims: int) -> Array:
        return jnp.full((*dims, lanes), PAST, jnp.int32)

    def no_set(*dims: int) -> Array:
        return zeros(*dims, dtype=jnp.uint32)

    return DramState(
        clock=zeros(), key=jnp.full((c, 2, q, lanes), FAR, jnp.int32), used=no_set(c, 2, queue_words),
        block=zeros(c, q) - 1, place=zeros(c, 2, q), hits=no_set(c, 2, queue_words), meta=zeros(c, 2, q),
        count=zeros(c, 2), order=zeros(c), active=no_set(c, words), active_write=no_set(c, words),
        active_key=zeros(c, b), active_meta=zeros(c, b), opened=no_set(c, words), row=zeros(c, b),
        ready_bank=past(c, 4, b), ready_group=past(c, 4, shape.groups), ready_rank=past(c, 2, shape.ranks),
        activations=past(c, shape.ranks, 4),
        pending_depart=zeros(c, shape.pending), pending_meta=zeros(c, shape.pending), pending_head=zeros(c),
        pending_count=zeros(c), write_mode=zeros(c, dtype=jnp.bool_), refresh_due=zeros(c),
        refresh_counted=zeros(c, dtype=jnp.bool_), refresh_next=jnp.array(params.refresh_interval, jnp.int32),
        status=zeros(), row_hits=zeros(c), row_misses=zeros(c), row_conflicts=zeros(c),
    )  # fmt: skip


def accept(params: DramParams, s: DramState, offer: Offer, room: Room) -> tuple[DramState, Array]:
    """Take the offered request if it fits: before the tick, at the current clock. Returns the state, accepted[C, L].

    A read of a block that waits in the write queue is answered from there: it departs one tick later, behind the
    older reads, and needs no queue slot.
    """
    waits = jnp.where(s.block == offer.block[:, None], 1, 0)
    same_block = fold(jnp.maximum, waits) > 0
    forwarded = offer.valid & ~offer.write & same_block
    capacity = jnp.where(offer.write, params.write_capacity, params.read_capacity)
    has_room = jnp.where(offer.write, s.count[:, 1], s.count[:, 0]) < capacity
    enqueued = settle(offer.valid & ~forwarded & has_room)
    forwarded = settle(forwarded & room.under_way)

    kind = offer.write.astype(jnp.int32)
    slot = settle(_free_slot(jnp.where(offer.write[:, None], s.used[:, 1], s.used[:, 0])))
    channel = numbers(s.key.shape[0])
    place, hit = _place_of(params, s, offer.block)
    took = settle(one_hot(jnp.where(enqueued, kind, 2), 2))
    taken = settle(_mask_of(slot, enqueued, s.used.shape[2]))[:, None]
    taken = jnp.where(took[:, :, None], taken, jnp.uint32(0))
    s = s.replace(
        key=put(s.key, enqueued, (s.order << SLOT_BITS) | slot, channel, kind, slot),
        used=s.used | taken,
        block=put(s.block, enqueued & offer.write, offer.block, channel, slot),
        place=put(s.place, enqueued, place, channel, kind, slot),
        hits=s.hits | jnp.where(settle(hit)[:, None, None], taken, jnp.uint32(0)),
        meta=put(s.meta, enqueued, offer.meta << 1, channel, kind, slot),
        count=s.count + took,
        order=s.order + enqueued,
        status=s.status | jnp.where(any_of(enqueued & (s.order >= MAX_ORDER - 1)), STATUS_ORDER, 0),
    )
    return _push_pending(s, forwarded, s.clock + 1, offer.meta), enqueued | forwarded


def _free_slot(used: Array) -> Array:
    """int32[C, L]: the lowest number missing in the sets uint32[C, words, L]; beyond them when none is."""
    slot = jnp.full_like(used[:, 0], used.shape[1] * 32, jnp.int32)
    for word in reversed(range(used.shape[1])):
        free = ~used[:, word]
        lowest = lax.population_count((free & (~free + 1)) - 1).astype(jnp.int32) + word * 32
        slot = jnp.where(free != 0, lowest, slot)
    return slot


def _slots_at(s: DramState, place: Array, mask: Array) -> Array:
    """uint32[C, 2, Q / 32, L]: slots, free ones too, whose place agrees with int32[C, L] in the bits of the mask."""
    c, kinds, q, lanes = s.place.shape
    agrees = (s.place ^ place[:, None, None]) & mask[:, None, None] == 0
    of_words = agrees.reshape(c, kinds * q // 32, 32, lanes)
    bits = jnp.where(of_words, _bit(numbers(32)), jnp.uint32(0))
    return fold(jnp.bitwise_or, bits, 2).reshape(c, kinds, q // 32, lanes)


def next_event(s: DramState) -> Array:
    """int32[L]: the earliest clock value at which a controller whose last tick did nothing may do something.

    Nothing but time changes then: a timing rule expires, read data arrive, or a refresh falls due.
    """
    return jnp.minimum(_next_own_event(s), s.refresh_next)


def _next_own_event(s: DramState) -> Array:
    has_queue = any_of(s.count > 0) | any_of(s.active != 0) | any_of(s.refresh_due > 0)
    later = least(*[_if_later(s.clock, ready) for ready in (_earliest(s), s.ready_rank)])
    timing = jnp.where(has_queue, later, FAR)
    head = s.pending_head & (s.pending_depart.shape[1] - 1)
    # Data that have arrived and did not leave in a quiet tick wait for room, not for time.
    data = least(_if_later(s.clock, jnp.where(s.pending_count > 0, pick_row(s.pending_depart, head), PAST)))
    return jnp.minimum(timing, data)


def is_stuck(s: DramState) -> Array:
    """bool[L]: a quiet controller with work that no passing of time will free, not even a refresh."""
    refresh_waits = any_of(s.refresh_due > 1) | (s.refresh_next == FAR)
    return has_work(s) & (_next_own_event(s) == FAR) & refresh_waits


def is_active(s: DramState) -> Array:
    """bool[C, banks, L]: the bank has a request whose row was activated for it."""
    return _has_bank(s.active, numbers(s.row.shape[1]))


def _if_later(clock: Array, times: Array) -> Array:
    return jnp.where(times > clock, times, FAR)


def has_work(s: DramState) -> Array:
    """bool[L]: requests are queued, activated or waiting for their data."""
    return any_of(s.count > 0) | any_of(s.active != 0) | any_of(s.pending_count > 0)


def tick(
    params: DramParams, s: DramState, room: Room, on: Array, *, with_openers: bool = False
) -> tuple[DramState, Outcome]:
    """One DRAM clock tick. on: bool[L], False leaves the lane unchanged. with_openers: see `Outcome.opener_meta`."""
    s = s.replace(clock=s.clock + on)
    s, read_done, read_meta = _complete_read(s, on & room.returned)
    s = _request_refresh(params, s, on)
    s, choice = _choose(params, s, _ready_banks(s, room), on)
    opener = None
    if with_openers:
        # A bank keeps the word of the request that its row was opened for.
        opener = pick_row(s.active_meta, choice.bank)
        choice = choice._replace(meta=jnp.where(after(opener, choice.issued), choice.meta, -2))
    s, write_done = _issue(params, s, choice, read_meta)
    return s, Outcome(
        read_done=read_done, read_meta=read_meta, write_done=write_done, write_meta=choice.meta >> 1,
        issued=choice.issued, command=choice.command, bank=choice.bank,
        command_meta=jnp.where(choice.command >= PREA, -1, choice.meta >> 1),
        counted=_is_first(choice), hit=_is_access(choice), conflict=choice.command == PRE, opener_meta=opener,
    )  # fmt: skip


class _Choice(NamedTuple):
    """The command of this tick, [C, L], -1 none; `meta` and `order` are the served request's."""

    issued: Array
    command: Array
    bank: Array
    row: Array
    meta: Array
    order: Array
    is_write: Array
    from_queue: Array
    slot: Array


def _push_pending(s: DramState, push: Array, depart: Array, meta: Array) -> DramState:
    full = s.pending_count >= s.pending_depart.shape[1]
    tail = s.pending_head + s.pending_count
    return s.replace(
        pending_depart=append(s.pending_depart, tail, depart, push),
        pending_meta=append(s.pending_meta, tail, meta, push),
        pending_count=s.pending_count + push,
        status=s.status | jnp.where(any_of(push & full), STATUS_PENDING, 0),
    )


def _complete_read(s: DramState, on: Array) -> tuple[DramState, Array, Array]:
    """At most one read completes per tick, strictly in the order of issue."""
    head = s.pending_head & (s.pending_depart.shape[1] - 1)
    done = settle(on & (s.pending_count > 0) & (pick_row(s.pending_depart, head) <= s.clock))
    meta = pick_row(s.pending_meta, head)
    return s.replace(pending_head=s.pending_head + done, pending_count=s.pending_count - done), done, meta


def _request_refresh(params: DramParams, s: DramState, on: Array) -> DramState:
    due = on & (s.clock >= s.refresh_next)
    return s.replace(
        refresh_due=s.refresh_due + due,
        refresh_next=jnp.where(due, s.refresh_next + params.refresh_interval, s.refresh_next),
    )


def _earliest(s: DramState) -> Array:
    """int32[C, 4, banks / groups, groups, L]: earliest tick of ACT, PRE, RD and WR at each bank, over all levels."""
    c, _, groups, lanes = s.ready_group.shape
    return jnp.maximum(s.ready_bank.reshape(c, 4, -1, groups, lanes), s.ready_group[:, :, None])


def _ready_banks(s: DramState, room: Room) -> Array:
    """uint32[C, 4, W, L]: banks at which ACT, PRE, RD and WR are ready, by their own rules and those of their group."""
    banks, groups = s.ready_bank.shape[2], s.ready_group.shape[2]
    of_groups = _set_of(s.ready_group <= s.clock)
    # A group's bit stands for every bank of the group: flat bank numbers repeat the group every `groups`.
    repeated = sum(1 << shift for shift in range(0, min(banks, 32), groups)) or 1
    ready = _set_of(s.ready_bank <= s.clock) & (of_groups * jnp.uint32(repeated))
    may = jnp.stack([jnp.ones_like(room.returned)] * 2 + [room.under_way, room.returned], axis=1)
    return settle(jnp.where(may[:, :, None], ready, jnp.uint32(0)))


def _set_of(flags: Array) -> Array:
    """uint32[C, N, W, L]: the numbers along axis 2 of bool[C, N, banks, L] whose flag is set."""
    words = []
    for first in range(0, flags.shape[2], 32):
        of_word = flags[:, :, first : first + 32]
        bit = jnp.uint32(1) << numbers(of_word.shape[2]).astype(jnp.uint32)
        words.append(fold(jnp.bitwise_or, jnp.where(of_word, bit, jnp.uint32(0)), 2))
    return jnp.stack(words, axis=2)


def _choose(params: DramParams, s: DramState, ready: Array, on: Array) -> tuple[DramState, _Choice]:
    """First the requests whose row was activated for them, then refresh, then the queue of the current mode.

    A waiting refresh blocks the queues even when its own command is not ready. A PRE (or PREA) that would close a
    row under an activated request is dropped and the tick with it (spec dram.md section 2, step 3).
    """
    active, active_choice = _oldest_active(s, ready, on)

    refresh_waits = s.refresh_due > 0
    any_open, any_active = jnp.any(s.opened != 0, axis=1), jnp.any(s.active != 0, axis=1)
    refresh_command = jnp.where(any_open, PREA, REF)
    may_refresh = fold(jnp.maximum, s.ready_rank, 2) <= s.clock
    refresh_ready = jnp.where(any_open, may_refresh[:, 0], may_refresh[:, 1])
    refresh = on & ~active & refresh_waits & refresh_ready & ~(any_open & any_active)

    consult = settle(on & ~active & ~refresh_waits)
    s = _update_write_mode(params, s, consult)
    queue, choice = _best_of_queue(params, s, ready, consult)

    def select(of_active: Array, of_refresh: Array | int, of_queue: Array) -> Array:
        return jnp.where(active, of_active, jnp.where(refresh, of_refresh, of_queue))

    issued = active | refresh | queue
    return s, _Choice(
        issued=issued,
        command=settle(jnp.where(issued, select(active_choice.command, refresh_command, choice.command), -1)),
        bank=settle(select(active_choice.bank, 0, choice.bank)),
        row=choice.row,
        meta=settle(select(active_choice.meta, -2, choice.meta)),
        order=choice.order,
        is_write=select(active_choice.is_write, False, choice.is_write),
        from_queue=queue & ~active & ~refresh,
        slot=choice.slot,
    )


def _oldest_active(s: DramState, ready: Array, on: Array) -> tuple[Array, _Choice]:
    can = s.active & ((s.active_write & ready[:, WR]) | (~s.active_write & ready[:, RD]))
    banks = s.active_key.shape[1]
    of_word = min(banks, 32)
    members = (settle(can)[:, :, None] & _bit(numbers(of_word))) != 0
    key = s.active_key.reshape(s.active_key.shape[0], -1, of_word, s.active_key.shape[2])
    oldest = _over_words(jnp.minimum, jnp.where(members, key, FAR))
    found = settle(on & (oldest != FAR))
    bank = oldest & (banks - 1)
    meta = pick_row(s.active_meta, bank) << 1
    write = _has_bank(s.active_write, bank[:, None])[:, 0]
    nothing = jnp.zeros_like(bank)
    return found, _Choice(found, jnp.where(write, WR, RD), bank, nothing, meta, nothing, write, found, nothing)


def _update_write_mode(params: DramParams, s: DramState, consult: Array) -> DramState:
    reads, writes = s.count[:, 0], s.count[:, 1]
    enter = (writes >= params.write_high) | (reads == 0)
    leave = (writes <= params.write_low) & (reads != 0)
    return s.replace(write_mode=jnp.where(consult, jnp.where(s.write_mode, ~leave, enter), s.write_mode))


def _place_of(params: DramParams, s: DramState, block: Array) -> tuple[Array, Array]:
    """Place words (see `DramState.place`) of in-channel block numbers int32[C, L], and bool[C, L]: the row is open."""
    ranks, groups, banks = s.ready_rank.shape[2], s.ready_group.shape[2], s.ready_bank.shape[2]
    rank = (block >> params.rank_shift) & (ranks - 1)
    group = (block >> params.group_shift) & (groups // ranks - 1)
    bank = (block >> params.bank_shift) & (banks // groups - 1)
    row = (block >> params.row_shift) & params.row_mask
    bank ^= jnp.where(params.bank_hash > 0, row & (banks // groups - 1), 0)
    flat = rank + group * ranks + bank * groups
    hit = _has_bank(s.opened, flat[:, None])[:, 0] & (pick_row(s.row, flat) == row)
    return (row << BANK_BITS) | flat, hit


def _bit(bank: Array) -> Array:
    return jnp.uint32(1) << (bank & 31).astype(jnp.uint32)


def _mask_of(bank: Array, where: Array, words: int) -> Array:
    """uint32[C, W, L]: the set of one bank (int32[C, L]) where `where`, else the empty set."""
    mine = where[:, None] & (bank[:, None] >> 5 == numbers(words))
    return jnp.where(mine, _bit(bank)[:, None], jnp.uint32(0))


def _banks_of(bank: Array, chosen: Array, words: int) -> Array:
    """uint32[C, W, L]: the set of the chosen banks (int32 and bool[C, Q / 32, 32, L])."""
    mine = [jnp.where(chosen & (bank >> 5 == word), _bit(bank), jnp.uint32(0)) for word in range(words)]
    return jnp.stack([_over_words(jnp.bitwise_or, bits) for bits in mine], axis=1)


def _over_words(combine: Callable[[Array, Array], Array], values: Array) -> Array:
    """[C, L] from [C, words, 32, L], see `fold`."""
    return fold(combine, fold(combine, values, 2))


def _word_of(masks: Array, bank: Array) -> Array:
    """uint32[C, ..., N, L]: the word of the sets uint32[C, ..., W, L] with the bit of the banks int32[C, ..., N, L]."""
    word = masks[..., :1, :]
    for index in range(1, masks.shape[-2]):
        word = jnp.where(bank >> 5 == index, masks[..., index : index + 1, :], word)
    return word


def _has_bank(masks: Array, bank: Array) -> Array:
    """bool[C, N, L]: whether the sets uint32[C, W, L] contain the banks int32[C, N, L] (or broadcast to it)."""
    return (_word_of(masks, bank) >> (bank & 31).astype(jnp.uint32)) & 1 != 0


def _best_of_queue(params: DramParams, s: DramState, ready: Array, consult: Array) -> tuple[Array, _Choice]:
    """The oldest entry of the current queue whose next command is ready (with hit_first: the oldest ready hit).

    Readiness is a property of the bank: one set of banks for row hits, one for all others (ACT where the bank is
    closed, PRE where it is open). With hit_first no PRE closes a row that the queue still has hits for.
    """
    write = settle(s.write_mode)
    hit_banks = settle(jnp.where(write[:, None], ready[:, WR], ready[:, RD]))
    other_banks = (s.opened & ready[:, PRE]) | (~s.opened & ready[:, ACT])
    hits = settle(jnp.where(write[:, None], s.hits[:, 1], s.hits[:, 0]))
    # The slots in words of 32, as the set has them: [C, Q / 32, 32, L].
    by_word = (*hits.shape[:2], 32, hits.shape[2])
    key = jnp.where(write[:, None], s.key[:, 1], s.key[:, 0]).reshape(by_word)
    bank = jnp.where(write[:, None], s.place[:, 1], s.place[:, 0]).reshape(by_word) & BANK_MASK
    row_hit = (hits[:, :, None] & _bit(numbers(32))) != 0
    wanted_rows = _banks_of(bank, row_hit, hit_banks.shape[1])
    other_banks = settle(other_banks & ~jnp.where(params.hit_first > 0, wanted_rows, jnp.uint32(0)))
    word = jnp.where(row_hit, _word_of(hit_banks[:, None], bank), _word_of(other_banks[:, None], bank))
    can = (word >> (bank & 31).astype(jnp.uint32)) & 1 != 0
    later = settle(jnp.where(params.hit_first > 0, LATER, 0))
    best = _over_words(jnp.minimum, jnp.where(can, jnp.where(row_hit, key, key | later), FAR))

    found = consult & (best != FAR)
    slot = jnp.where(found, best & (MAX_QUEUE - 1), 0)
    order = (best & ~LATER) >> SLOT_BITS
    at = numbers(key.shape[0]), write.astype(jnp.int32), slot
    its_place, meta = pick(s.place, *at), pick(s.meta, *at)
    its_bank = its_place & BANK_MASK
    hit = _has_bank(hits, slot[:, None])[:, 0]
    closed = ~_has_bank(s.opened, its_bank[:, None])[:, 0]
    command = jnp.where(hit, jnp.where(write, WR, RD), jnp.where(closed, ACT, PRE))
    under_active = _has_bank(s.active, its_bank[:, None])[:, 0]
    found = settle(found & ~((command == PRE) & under_active))
    row = its_place >> BANK_BITS
    return found, _Choice(found, command, its_bank, row, meta, order, write, found, slot)


def _issue(params: DramParams, s: DramState, choice: _Choice, read_meta: Array) -> tuple[DramState, Array]:
    """Apply the chosen command: row statistics, bank state, queues, timing. Returns the state and write_done[C, L].

    read_meta: what was read from the pending ring in this tick, before this writes to it.
    """
    command = choice.command
    s = _count_row(s, choice)
    s = _update_timing(params, s, choice)
    s = _move_request(s, choice)
    s = _push_pending(s, after(read_meta, command == RD), s.clock + params.read_latency, choice.meta >> 1)
    return s, command == WR


def _count_row(s: DramState, choice: _Choice) -> DramState:
    """A request counts once, by its first command: access = hit, ACT = miss, PRE = conflict; a refresh is a miss."""
    command, first = choice.command, _is_first(choice)
    refresh_first = (command >= PREA) & ~s.refresh_counted
    return s.replace(
        row_hits=s.row_hits + (first & _is_access(choice)),
        row_misses=s.row_misses + ((first & (command == ACT)) | refresh_first),
        row_conflicts=s.row_conflicts + (first & (command == PRE)),
        refresh_counted=jnp.where(command == PREA, True, jnp.where(command == REF, False, s.refresh_counted)),
        refresh_due=s.refresh_due - (command == REF),
    )


def _is_first(choice: _Choice) -> Array:
    """bool[C, L]: the first command for the request, which has not been counted."""
    return choice.from_queue & ((choice.meta & 1) == 0)


def _is_access(choice: _Choice) -> Array:
    return (choice.command == RD) | (choice.command == WR)


def _move_request(s: DramState, choice: _Choice) -> DramState:
    """ACT moves the request to the activated ones; an access removes it; PRE leaves it, marked as counted."""
    command = choice.command
    access = _is_access(choice)
    opens = settle(after(choice.meta, command == ACT))
    leaves = settle(choice.from_queue & (access | opens))
    kind = choice.is_write.astype(jnp.int32)
    channel, words = numbers(s.key.shape[0]), s.opened.shape[1]
    at = channel, kind, choice.slot
    opened = settle(_mask_of(choice.bank, opens, words))
    closed = _mask_of(choice.bank, command == PRE, words) | jnp.where((command == PREA)[:, None], ~jnp.uint32(0), 0)
    served = _mask_of(choice.bank, access & ~choice.from_queue, words)
    written = _mask_of(choice.bank, opens & choice.is_write, words)
    left = settle(one_hot(jnp.where(leaves, kind, 2), 2))
    freed = settle(_mask_of(choice.slot, leaves, s.used.shape[2]))[:, None]
    freed = jnp.where(left[:, :, None], freed, jnp.uint32(0))
    used = s.used & ~freed
    # ACT makes hits of the queued requests for its row, PRE and PREA make misses of all for their banks.
    place = settle((choice.row << BANK_BITS) | choice.bank)
    concerned = _slots_at(s, place, settle(jnp.where(opens, -1, BANK_MASK)))
    won, lost, none = (which[:, None, None] for which in (opens, command == PRE, command == PREA))
    hits = jnp.where(won, s.hits | concerned, jnp.where(lost, s.hits & ~concerned, s.hits))
    return s.replace(
        key=put(s.key, leaves, FAR, *at),
        used=used,
        hits=jnp.where(none, jnp.uint32(0), hits & used),
        block=put(s.block, leaves & choice.is_write, -1, channel, choice.slot),
        meta=put(s.meta, after(choice.meta, choice.from_queue & (command == PRE)), choice.meta | 1, *at),
        count=s.count - left,
        opened=(s.opened | opened) & ~closed,
        row=put(s.row, opens, choice.row, channel, choice.bank),
        active=(s.active | opened) & ~served,
        active_write=(s.active_write & ~opened) | written,
        active_key=put(s.active_key, opens, (choice.order << BANK_BITS) | choice.bank, channel, choice.bank),
        active_meta=put(s.active_meta, opens, choice.meta >> 1, channel, choice.bank),
    )


def _rules_of(params: DramParams, command: Array) -> Array:
    """int32[C, N_LEVELS, N_COMMANDS, L]: least distance of every command from this one at each level, 0 where none."""
    rule = jnp.zeros((command.shape[0], N_LEVELS, N_COMMANDS, command.shape[1]), jnp.int32)
    for number in range(N_COMMANDS):
        rule = jnp.where(command[:, None, None] == number, params.timing[:, number], rule)
    return settle(rule)


def _update_timing(params: DramParams, s: DramState, choice: _Choice) -> DramState:
    """Raise the earliest ticks at the nodes on the command's path. PREA and REF reach channel and rank only.

    Where there is no rule the distance is 0: a tick raised to the present is as ready as before.
    """
    ranks, groups = s.ready_rank.shape[2], s.ready_group.shape[2]
    command = choice.command
    rule = _rules_of(params, command)
    whole = (command >= PREA)[:, None]
    bank, rank = settle(jnp.where(command >= 0, choice.bank, -1))[:, None], choice.bank & (ranks - 1)

    def at(count: int) -> Array:
        return (numbers(count) == bank & (count - 1)) & (bank >= 0)

    at_rank = at(ranks) | whole
    on_rank = (numbers(groups) & (ranks - 1) == rank[:, None]) & (bank >= 0) | whole
    channel_rule, rank_rule = rule[:, CHANNEL, :, None], rule[:, RANK, :, None]
    of_group = jnp.where((at(groups) & ~whole)[:, None], rule[:, BANK_GROUP, :4, None], 0)
    of_rank = jnp.where(on_rank[:, None], rank_rule[:, :4], 0)
    distance = jnp.maximum(jnp.maximum(of_group, of_rank), channel_rule[:, :4])
    is_act = (command == ACT)[:, None]
    third = pick(s.activations, numbers(command.shape[0]), rank, jnp.full_like(rank, 2))
    window = settle(jnp.where(command == ACT, third + params.four_activate_window, PAST))[:, None, None]
    of_window = jnp.where(on_rank[:, None] & (numbers(4, 2) == ACT), window, PAST)
    to_rank = jnp.maximum(jnp.where(at_rank[:, None], rank_rule[:, PREA:], 0), channel_rule[:, PREA:])
    newest = jnp.concatenate(
        [jnp.broadcast_to(s.clock, s.activations[:, :, :1].shape), s.activations[:, :, :3]], axis=2
    )
    return s.replace(
        ready_rank=jnp.maximum(s.ready_rank, s.clock + to_rank),
        ready_group=jnp.maximum(jnp.maximum(s.ready_group, s.clock + distance), of_window),
        ready_bank=raise_to(
            s.ready_bank,
            (bank >= 0) & ~whole & (rule[:, BANK, :4] > 0),
            s.clock + rule[:, BANK, :4],
            numbers(command.shape[0], 2),
            numbers(4),
            jnp.maximum(bank, 0),
        ),
        activations=jnp.where((at_rank & is_act)[:, :, None], newest, s.activations),
    )
