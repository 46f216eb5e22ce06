"""DMA queues, the simple NoC and the channels' input and return buffers (spec onnxim.md sections 1, 2.7 and 8.1).

A request lives in one *node* of its core's ring from the moment it leaves the DMA until its DRAM controller takes it.
Queues are linked lists over the nodes: one per (core port, channel), where it waits for its turn, and one per channel,
whose first `wrapped` nodes are in the channel's input buffer. So a lane can hold hundreds of thousands of requests in
flight (ONNXim's queues are unbounded) at three words each, and a tick touches only the nodes that move.

The last axis of every array is the lane.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from vsim.npu import words
from vsim.npu.fields import FAR, after, any_of, append, divide, fold, numbers, one_hot, pick, pick_row, put, settle
from vsim.npu.types import (
    STATUS_DESCRIPTORS,
    STATUS_INFLIGHT,
    STATUS_RESPONSE,
    STATUS_RETURN,
    NocState,
    NpuParams,
    NpuShape,
    ProgramTables,
)
from vsim.npu.words import Descriptor

END = -1
"""The node is the last of its list; likewise, as the head of a list: the list is empty."""
FREE = -2

# Channel of a block number: bit i is the parity of the block number under mask i (IPOLY hashes; spec section 6).
_HASH_BITS = {
    16: ((0, 3, 4, 6, 8, 9, 10, 11), (0, 1, 3, 5, 6, 7, 8, 12), (1, 2, 4, 6, 7, 8, 9), (2, 3, 5, 7, 8, 9, 10)),
    32: (
        (0, 3, 5, 6, 9, 10, 11, 12, 13),
        (1, 4, 6, 7, 10, 11, 12, 13, 14),
        (0, 2, 3, 6, 7, 8, 9, 10, 14),
        (1, 3, 4, 7, 8, 9, 10, 11),
        (2, 4, 5, 8, 9, 10, 11, 12),
    ),
    64: (
        (0, 5, 6, 10, 12, 15, 16, 17, 18),
        (0, 1, 5, 7, 10, 11, 12, 13, 15),
        (1, 2, 6, 8, 11, 12, 13, 14, 16),
        (2, 3, 7, 9, 12, 13, 14, 15, 17),
        (3, 4, 8, 10, 13, 14, 15, 16, 18),
        (4, 5, 9, 11, 14, 15, 16, 17),
    ),
}


def hash_masks(channels: int) -> list[int]:
    """The bits of a block number whose parity is each bit of its channel, from the lowest.

    Fewer than 16 channels use the 16-channel hash modulo their number.
    """
    bits = _HASH_BITS[max(channels, 16)][: channels.bit_length() - 1]
    return [sum(1 << source for source in sources) for sources in bits]


def channel_of(block: Array, channels: int) -> Array:
    """Memory channel of a block number."""
    channel = jnp.zeros_like(block)
    for position, mask in enumerate(hash_masks(channels)):
        channel |= (lax.population_count(block & jnp.int32(mask)) & 1) << position
    return channel


def init(shape: NpuShape, lanes: int) -> NocState:
    """Empty queues."""
    c, m, p = shape.cores, shape.channels, shape.ports

    def zeros(*dims: int) -> Array:
        return jnp.zeros((*dims, lanes), jnp.int32)

    def minus(*dims: int) -> Array:
        return jnp.full((*dims, lanes), -1, jnp.int32)

    nothing = jnp.full((c * p, m, lanes), FAR, jnp.int32)
    return NocState(
        now=zeros(), descriptor=Descriptor(*(zeros(c, shape.descriptors) for _ in Descriptor._fields)),
        descriptor_head=zeros(c), descriptor_count=zeros(c), cursor=zeros(c), sequence=zeros(c),
        link=jnp.full((c * shape.inflight, lanes), FREE, jnp.int32), block=zeros(c * shape.inflight),
        meta=zeros(c * shape.inflight), head=minus(c * p, m), tail=minus(c * p, m), stamp=nothing,
        turn=zeros(m), out_head=minus(m), out_tail=minus(m), out_count=zeros(m), wrapped=zeros(m), out_fresh=minus(m),
        returned=zeros(m, shape.returns), returned_head=zeros(m), returned_count=zeros(m),
        response=zeros(m, c, shape.responses), response_head=zeros(m, c), response_count=zeros(m, c),
        response_stamp=zeros(m, c), response_turn=zeros(min(p, m), c), arrived=minus(min(p, m), c),
        latest_ready=zeros(), requests=zeros(c), reads=zeros(m), writes=zeros(m),
    )  # fmt: skip


def descriptor_room(shape: NpuShape, s: NocState) -> Array:
    """bool[C, L]: one more load or store may issue. Up to two in the latches are still to come."""
    if not shape.back_pressure:
        return jnp.ones_like(s.descriptor_count, bool)
    return s.descriptor_count < shape.descriptors - 3


def push_descriptors(
    shape: NpuShape, s: NocState, load: Descriptor, load_valid: Array, store: Descriptor, store_valid: Array
) -> tuple[NocState, Array]:
    """Append the loads, then the stores, that took effect in this core tick. Second result: status bits."""
    tail = s.descriptor_head + s.descriptor_count

    def pushed(ring: Array, of_load: Array, of_store: Array) -> Array:
        return append(append(ring, tail, of_load, load_valid), tail + load_valid, of_store, store_valid)

    count = s.descriptor_count + load_valid + store_valid
    status = jnp.where(any_of(count > shape.descriptors), STATUS_DESCRIPTORS, 0)
    ring = Descriptor(*(pushed(*fields) for fields in zip(s.descriptor, load, store, strict=True)))
    return s.replace(descriptor=ring, descriptor_count=count), status


class NocTick(NamedTuple):
    """Responses that reached the cores, int32[R, C, L] request words or -1; bool[L] anything changed; status bits."""

    delivered: Array
    changed: Array
    status: Array


def tick(
    shape: NpuShape, params: NpuParams, program: ProgramTables, which: Array, dram_clock: Array, s: NocState, on: Array
) -> tuple[NocState, NocTick]:
    """One NoC tick: cores inject and receive, channels take requests and return responses, then the network moves."""
    s, injected, inject_status = _inject(shape, params, program, which, s, on)
    delivered = jnp.where(on, s.arrived, -1)
    s = s.replace(arrived=jnp.where(on, -1, s.arrived))
    s, handed = _hand_over(shape, params, s, dram_clock, on)
    s, returned, response_status = _return(shape, params, s, on)
    s, moved = _move_requests(shape, s, on)
    s, answered = _move_responses(shape, s, on)
    s = s.replace(now=s.now + on)
    changed = injected | any_of(delivered >= 0) | handed | returned | moved | answered
    return s, NocTick(delivered, changed, inject_status | response_status)


class _Burst(NamedTuple):
    """The requests a core offers this tick, one per port: int32[C, P, L] each; valid bool[C, P, L]."""

    valid: Array
    block: Array
    word: Array


def _next_requests(shape: NpuShape, program: ProgramTables, which: Array, s: NocState) -> tuple[_Burst, Array]:
    """The next P requests of every core's DMA queue, drawn from its first `window` descriptors.

    Second result: int32[C, window, L], requests of the descriptors up to and including each (the first one's rest).
    """
    g, w = shape.descriptors, shape.window
    position = numbers(w)
    slots = (s.descriptor_head[:, None] + position) & (g - 1)
    first = Descriptor(*(pick(ring, numbers(shape.cores, 2), slots) for ring in s.descriptor))
    present = position < s.descriptor_count[:, None]
    rest = settle(jnp.where(present, first.requests - jnp.where(position == 0, s.cursor[:, None], 0), 0))
    sums = [rest[:, 0]]
    for index in range(1, w):
        sums.append(sums[-1] + rest[:, index])
    upto = jnp.stack(sums, axis=1)

    # The descriptor of each port, chosen by comparing its number with the sums: window selections, no gather.
    port = numbers(shape.ports)
    mine = Descriptor(*(field[:, :1] for field in first))
    index = port + s.cursor[:, None]
    for i in range(1, w):
        beyond = port >= sums[i - 1][:, None]
        mine = Descriptor(*(jnp.where(beyond, field[:, i, None], old) for field, old in zip(first, mine, strict=True)))
        index = jnp.where(beyond, port - sums[i - 1][:, None], index)
    # No instruction makes MAX_REQUESTS requests, so the indices are small enough.
    quotient, offset = divide(index, jnp.maximum(mine.period_requests, 1))
    pattern = _pattern(program, which, jnp.maximum(mine.pattern_start + offset, 0))
    within = jnp.where(mine.pattern_start >= 0, pattern, offset)
    block = mine.first_block + quotient * mine.period_pitch + within
    valid = port < sums[-1][:, None]
    return _Burst(valid, block, jnp.broadcast_to(mine.word, block.shape)), upto


def _pattern(program: ProgramTables, which: Array, index: Array) -> Array:
    """Entries of the lanes' pattern tables."""
    at = settle(which * program.pattern.shape[1] + index)
    return settle(program.pattern.reshape(-1).at[at].get(mode="clip"))


def _inject(
    shape: NpuShape, params: NpuParams, program: ProgramTables, which: Array, s: NocState, on: Array
) -> tuple[NocState, Array, Array]:
    """Port k of a core takes the k-th request of its DMA queue. One without a free node stalls those behind it."""
    c, p, m, k = shape.cores, shape.ports, shape.channels, shape.inflight
    burst, upto = _next_requests(shape, program, which, s)
    core, port = numbers(c, 2), numbers(p)
    node = core * k + ((s.sequence[:, None] + port) & (k - 1))
    taken = pick(s.link, node) != FREE
    wanted = on & burst.valid
    first_taken = fold(jnp.minimum, jnp.where(taken, port, p))
    goes = settle(wanted & (port < first_taken[:, None]))
    status = jnp.zeros_like(s.now) if shape.back_pressure else jnp.where(any_of(wanted & ~goes), STATUS_INFLIGHT, 0)

    count = fold(jnp.add, goes.astype(jnp.int32))
    used = jnp.minimum(fold(jnp.add, (upto <= count[:, None]).astype(jnp.int32)), s.descriptor_count)
    before = fold(jnp.maximum, jnp.where(numbers(upto.shape[1]) < used[:, None], upto, 0))
    used, cursor = settle(used), jnp.where(used > 0, count - before, s.cursor + count)

    def by_source(values: Array) -> Array:
        return values.reshape(c * p, -1)

    node, goes, block = by_source(node), by_source(goes), by_source(burst.block)
    source, channel = numbers(c * p), settle(channel_of(block, m))
    behind = pick(s.tail, source, channel)
    opens = settle(goes & (behind < 0))
    link = put(s.link, goes, END, node)
    s = s.replace(
        link=put(link, goes & (behind >= 0), node, behind),
        block=put(s.block, goes, block >> (m.bit_length() - 1), node),
        meta=put(s.meta, goes, by_source(burst.word), node),
        head=put(s.head, opens, node, source, channel),
        tail=put(s.tail, after(behind, goes), node, source, channel),
        stamp=put(s.stamp, opens, jnp.broadcast_to(s.now + params.noc_latency, opens.shape), source, channel),
        sequence=(s.sequence + count) & (k - 1),
        descriptor_head=(s.descriptor_head + used) & (shape.descriptors - 1),
        descriptor_count=s.descriptor_count - used,
        cursor=cursor,
        requests=s.requests + count,
    )
    return s, any_of(goes), status


def _hand_over(shape: NpuShape, params: NpuParams, s: NocState, dram_clock: Array, on: Array) -> tuple[NocState, Array]:
    """Every channel takes one delivered request into its input buffer while that has room.

    The fixed-latency DRAM has no controller: a request's ready tick, never before that of an earlier request of any
    channel (spec section 7.1), is written into its node here.
    """
    takes = settle(on & (s.out_count > s.wrapped) & (s.wrapped < params.wrapper_capacity))
    s = s.replace(wrapped=s.wrapped + takes)
    if shape.fixed_latency_dram:
        ready = jnp.maximum(dram_clock + params.dram_latency, s.latest_ready)
        node = jnp.maximum(s.out_fresh, 0)
        s = s.replace(
            block=put(s.block, takes, ready, node),
            out_fresh=jnp.where(takes, pick(s.link, node), s.out_fresh),
            latest_ready=jnp.where(any_of(takes), ready, s.latest_ready),
        )
    return s, any_of(takes)


def offered(s: NocState) -> tuple[Array, Array, Array]:
    """Head of every channel's input buffer: valid bool[M, L], in-channel block and request word int32[M, L]."""
    node = jnp.maximum(s.out_head, 0)
    return s.wrapped > 0, pick(s.block, node), pick(s.meta, node)


def take(s: NocState, word: Array, taken: Array) -> NocState:
    """Remove the heads (their request words int32[M, L]) that the controllers took (bool[M, L]); free their nodes."""
    node = jnp.maximum(s.out_head, 0)
    following = pick(s.link, node)
    empties = taken & (s.out_count == 1)
    write = words.is_write(word)
    return s.replace(
        reads=s.reads + (taken & ~write),
        writes=s.writes + (taken & write),
        link=put(s.link, after(following, taken), FREE, node),
        out_head=jnp.where(taken, jnp.where(empties, -1, following), s.out_head),
        out_tail=jnp.where(empties, -1, s.out_tail),
        out_count=s.out_count - taken,
        wrapped=s.wrapped - taken,
    )


def return_room(shape: NpuShape, s: NocState) -> Array:
    """bool[M, L]: the channel's return buffer takes a read and a write more."""
    return s.returned_count < shape.returns - 2


def give_back(shape: NpuShape, s: NocState, word: Array, done: Array) -> tuple[NocState, Array]:
    """Append completed accesses (request words int32[M, L], bool[M, L]) to the channels' return buffers."""
    full = s.returned_count >= shape.returns
    s = s.replace(
        returned=append(s.returned, s.returned_head + s.returned_count, word, done),
        returned_count=s.returned_count + done,
    )
    return s, jnp.where(any_of(done & full), STATUS_RETURN, 0)


def _return(shape: NpuShape, params: NpuParams, s: NocState, on: Array) -> tuple[NocState, Array, Array]:
    """Every channel sends its oldest completed access towards the core that asked."""
    word = pick_row(s.returned, s.returned_head & (shape.returns - 1))
    core = words.core_of(word, shape.core_bits)
    towards = one_hot(core, shape.cores)
    count = fold(jnp.add, jnp.where(towards, s.response_count, 0))
    full = count >= jnp.minimum(params.noc_responses, shape.responses)
    wants = on & (s.returned_count > 0)
    sends = settle(wants & ~full)
    status = jnp.zeros_like(s.now) if shape.back_pressure else jnp.where(any_of(wants & full), STATUS_RESPONSE, 0)

    into = towards & sends[:, None]
    tail = fold(jnp.add, jnp.where(towards, s.response_head + s.response_count, 0)) & (shape.responses - 1)
    s = s.replace(
        returned_head=(s.returned_head + sends) & (shape.returns - 1),
        returned_count=s.returned_count - sends,
        response=put(s.response, sends, word, numbers(shape.channels), core, tail),
        response_stamp=jnp.where(into & (s.response_count == 0), s.now + params.noc_latency, s.response_stamp),
        response_count=s.response_count + into,
    )
    return s, any_of(sends), status


def _move_requests(shape: NpuShape, s: NocState, on: Array) -> tuple[NocState, Array]:
    """Each channel's round robin over all sources delivers one request whose time has come."""
    sources = s.head.shape[0]
    nodes = sources + shape.channels
    distance = numbers(sources, 2) - s.turn
    distance = jnp.where(distance < 0, distance + nodes, distance)
    nearest = fold(jnp.minimum, jnp.where(s.stamp <= s.now, distance, FAR), 0)
    moves = settle(on & (nearest != FAR))
    source = s.turn + jnp.where(moves, nearest, 0)
    source = settle(jnp.where(moves, jnp.where(source >= nodes, source - nodes, source), 0))
    at = source, numbers(shape.channels)
    node, tail, stamp = (pick(values, *at) for values in (s.head, s.tail, s.stamp))
    following = pick(s.link, jnp.maximum(node, 0))

    behind = jnp.maximum(s.out_tail, 0)
    link = put(s.link, after(following, moves & (s.out_tail >= 0)), node, behind)
    if shape.fixed_latency_dram:
        s = s.replace(out_fresh=jnp.where(moves & (s.out_fresh < 0), node, s.out_fresh))
    s = s.replace(
        link=put(link, moves, END, node),
        head=put(s.head, moves, following, *at),
        tail=put(s.tail, after(tail, moves & (node == tail)), -1, *at),
        stamp=put(s.stamp, moves, jnp.where(node == tail, FAR, stamp + 1), *at),
        turn=jnp.where(moves, source + 1, s.turn),
        out_head=jnp.where(moves & (s.out_head < 0), node, s.out_head),
        out_tail=jnp.where(moves, node, s.out_tail),
        out_count=s.out_count + moves,
    )
    return s, any_of(moves)


def _by_port(values: Array, receivers: int, fill: int) -> Array:
    """[M, C, L] -> [groups, receivers, C, L]: channel = group * receivers + port. Fills the last group up."""
    channels, cores, lanes = values.shape
    groups = -(-channels // receivers)
    padded = jnp.pad(values, ((0, groups * receivers - channels), (0, 0), (0, 0)), constant_values=fill)
    return padded.reshape(groups, receivers, cores, lanes)


def _move_responses(shape: NpuShape, s: NocState, on: Array) -> tuple[NocState, Array]:
    """Channel c answers to port c mod P of a core; a port's round robin delivers one response per tick."""
    m, receivers = shape.channels, s.arrived.shape[0]
    nodes = shape.cores * shape.ports + m

    def by_channel(values: Array) -> Array:
        """[receivers, C, L] -> [M, C, L]: what the channel's port has."""
        return jnp.concatenate([values] * -(-m // receivers), axis=0)[:m]

    can = on & (s.response_count > 0) & (s.response_stamp <= s.now)
    distance = shape.cores * shape.ports + numbers(m, 2) - by_channel(s.response_turn)
    distance = jnp.where(distance < 0, distance + nodes, distance)
    nearest = fold(jnp.minimum, _by_port(jnp.where(can, distance, FAR), receivers, FAR), 0)
    moves = nearest != FAR
    chosen = settle(can & (distance == by_channel(nearest)))
    at = numbers(m, 2), numbers(shape.cores), s.response_head & (shape.responses - 1)
    word = pick(s.response, *at)
    delivered = fold(jnp.maximum, _by_port(jnp.where(chosen, word, -1), receivers, -1), 0)
    following = s.response_turn + nearest + 1
    following = jnp.where(following >= nodes, following - nodes, following)
    s = s.replace(
        response_head=(s.response_head + chosen) & (shape.responses - 1),
        response_count=s.response_count - chosen,
        response_stamp=s.response_stamp + chosen,
        response_turn=jnp.where(moves, following, s.response_turn),
        arrived=jnp.where(moves, delivered, s.arrived),
    )
    return s, any_of(moves)
