"""DMA queues, the simple NoC and the channels' input and return buffers (spec onnxim.md sections 1, 2.7 and 8.1).

A request lives in one *node* of its core's ring from the moment it leaves the DMA until its DRAM controller takes it.
Queues are linked lists over the nodes: one per (core port, channel), where it waits for its turn, and one per channel,
whose first `wrapped` nodes are in the channel's input buffer. So a lane can hold hundreds of thousands of requests in
flight (ONNXim's queues are unbounded) at three words each, and a tick touches only the nodes that move.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from vsim.npu import words
from vsim.npu.fields import FAR, after, append, one_hot, pick, settle
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

END = -1
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


def channel_of(block: Array, channels: int) -> Array:
    """Memory channel of a block number; fewer than 16 channels use the 16-channel hash modulo their number."""
    bits = _HASH_BITS[max(channels, 16)][: channels.bit_length() - 1]
    channel = jnp.zeros_like(block)
    for position, sources in enumerate(bits):
        mask = jnp.int32(sum(1 << source for source in sources))
        channel |= (lax.population_count(block & mask) & 1) << position
    return channel


def init(shape: NpuShape) -> NocState:
    """Empty queues."""
    c, m, p = shape.cores, shape.channels, shape.ports

    def zeros(*dims: int) -> Array:
        return jnp.zeros(dims, jnp.int32)

    def minus(*dims: int) -> Array:
        return jnp.full(dims, -1, jnp.int32)

    return NocState(
        now=zeros(), descriptor=zeros(c, shape.descriptors, words.DESCRIPTOR_WORDS), descriptor_head=zeros(c),
        descriptor_count=zeros(c), cursor=zeros(c), sequence=zeros(c),
        link=jnp.full(c * shape.inflight, FREE, jnp.int32), block=zeros(c * shape.inflight),
        meta=zeros(c * shape.inflight), head=minus(c * p, m), tail=minus(c * p, m), stamp=zeros(c * p, m),
        turn=zeros(m), out_head=minus(m), out_tail=minus(m), out_count=zeros(m), wrapped=zeros(m), out_fresh=minus(m),
        returned=zeros(m, shape.returns), returned_head=zeros(m), returned_count=zeros(m),
        response=zeros(m, c, shape.responses), response_head=zeros(m, c), response_count=zeros(m, c),
        response_stamp=zeros(m, c), response_turn=zeros(c, min(p, m)), arrived=minus(c, min(p, m)),
        latest_ready=zeros(), requests=zeros(c), reads=zeros(m), writes=zeros(m),
    )  # fmt: skip


def descriptor_room(shape: NpuShape, s: NocState) -> Array:
    """bool[C]: one more load or store may issue. Up to two in the latches are still to come."""
    if not shape.back_pressure:
        return jnp.ones(shape.cores, bool)
    return s.descriptor_count < shape.descriptors - 3


def push_descriptors(
    shape: NpuShape, s: NocState, load: Array, load_valid: Array, store: Array, store_valid: Array
) -> tuple[NocState, Array]:
    """Append the loads, then the stores, that took effect in this core tick. Second result: status bits."""
    tail = s.descriptor_head + s.descriptor_count
    ring = append(s.descriptor, tail, load, load_valid)
    ring = append(ring, tail + load_valid, store, store_valid)
    count = s.descriptor_count + load_valid + store_valid
    status = jnp.where(jnp.any(count > shape.descriptors), STATUS_DESCRIPTORS, 0)
    return s.replace(descriptor=ring, descriptor_count=count), status


class NocTick(NamedTuple):
    """Responses that reached the cores, int32[C, R] request words or -1; whether anything changed; status bits."""

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
    changed = injected | jnp.any(delivered >= 0) | handed | returned | moved | answered
    return s, NocTick(delivered, changed, inject_status | response_status)


class _Burst(NamedTuple):
    """The requests a core offers this tick, one per port: int32[C, P] each; valid bool[C, P]."""

    valid: Array
    block: Array
    word: Array


def _next_requests(shape: NpuShape, program: ProgramTables, which: Array, s: NocState) -> tuple[_Burst, Array]:
    """The next P requests of every core's DMA queue, drawn from its first `window` descriptors.

    Second result: int32[C, window], requests of the descriptors up to and including each (the first one's rest).
    """
    g, w = shape.descriptors, shape.window
    position = jnp.arange(w, dtype=jnp.int32)
    at = (s.descriptor_head[:, None] + position) & (g - 1)
    first = jnp.take_along_axis(s.descriptor, at[:, :, None], axis=1)
    present = position < s.descriptor_count[:, None]
    rest = jnp.where(present, first[:, :, words.REQUESTS] - jnp.where(position == 0, s.cursor[:, None], 0), 0)
    upto = jnp.cumsum(rest, axis=1)

    port = jnp.arange(shape.ports, dtype=jnp.int32)
    source = jnp.sum(upto[:, None, :] <= port[:, None], axis=2, dtype=jnp.int32)
    valid = source < w
    source = jnp.minimum(source, w - 1)
    mine = jnp.take_along_axis(first, source[:, :, None], axis=1)
    before = jnp.take_along_axis(upto - rest, source, axis=1)
    index = port - before + jnp.where(source == 0, s.cursor[:, None], 0)
    period = jnp.maximum(mine[..., words.PERIOD_REQUESTS], 1)
    quotient = index // period
    offset = index - quotient * period
    start = mine[..., words.PATTERN_START]
    pattern = program.pattern[which, jnp.maximum(start + offset, 0)]
    block = (
        mine[..., words.FIRST_BLOCK] + quotient * mine[..., words.PERIOD_PITCH] + jnp.where(start >= 0, pattern, offset)
    )
    return _Burst(valid, block, mine[..., words.WORD]), upto


def _inject(
    shape: NpuShape, params: NpuParams, program: ProgramTables, which: Array, s: NocState, on: Array
) -> tuple[NocState, Array, Array]:
    """Port k of a core takes the k-th request of its DMA queue. One without a free node stalls those behind it."""
    c, p, m, k = shape.cores, shape.ports, shape.channels, shape.inflight
    burst, upto = _next_requests(shape, program, which, s)
    core = jnp.arange(c, dtype=jnp.int32)[:, None]
    port = jnp.arange(p, dtype=jnp.int32)
    node = core * k + ((s.sequence[:, None] + port) & (k - 1))
    free = settle(s.link[node.reshape(-1)]).reshape(node.shape) == FREE
    wanted = on & burst.valid
    goes = wanted & (jnp.cumsum(~free, axis=1) == 0)
    status = jnp.int32(0) if shape.back_pressure else jnp.where(jnp.any(wanted & ~goes), STATUS_INFLIGHT, 0)

    count = jnp.sum(goes, axis=1, dtype=jnp.int32)
    used = jnp.sum(upto <= count[:, None], axis=1, dtype=jnp.int32)
    used = jnp.minimum(used, s.descriptor_count)
    before = jnp.where(used > 0, pick(upto, jnp.maximum(used - 1, 0)), 0)
    cursor = jnp.where(used > 0, count - before, s.cursor + count)

    flat_node, flat_goes = node.reshape(-1), goes.reshape(-1)
    into = one_hot(settle(jnp.where(flat_goes, channel_of(burst.block.reshape(-1), m), -1)), m)
    was_empty = s.head < 0
    behind = jnp.max(jnp.where(into, s.tail, -1), axis=1)
    nowhere = c * k
    at = jnp.where(flat_goes, flat_node, nowhere)
    link = s.link.at[at].set(END, mode="drop")
    link = link.at[jnp.where(behind >= 0, behind, nowhere)].set(flat_node, mode="drop")
    s = s.replace(
        link=link,
        block=s.block.at[at].set((burst.block >> (m.bit_length() - 1)).reshape(-1), mode="drop"),
        meta=s.meta.at[at].set(burst.word.reshape(-1), mode="drop"),
        head=jnp.where(into & was_empty, flat_node[:, None], s.head),
        tail=jnp.where(into, flat_node[:, None], s.tail),
        stamp=jnp.where(into & was_empty, s.now + params.noc_latency, s.stamp),
        sequence=(s.sequence + count) & (k - 1),
        descriptor_head=(s.descriptor_head + used) & (shape.descriptors - 1),
        descriptor_count=s.descriptor_count - used,
        cursor=cursor,
        requests=s.requests + count,
    )
    return s, jnp.any(goes), status


def _hand_over(shape: NpuShape, params: NpuParams, s: NocState, dram_clock: Array, on: Array) -> tuple[NocState, Array]:
    """Every channel takes one delivered request into its input buffer while that has room.

    The fixed-latency DRAM has no controller: a request's ready tick, never before that of an earlier request of any
    channel (spec section 7.1), is written into its node here.
    """
    takes = on & (s.out_count > s.wrapped) & (s.wrapped < params.wrapper_capacity)
    s = s.replace(wrapped=s.wrapped + takes)
    if shape.fixed_latency_dram:
        ready = jnp.maximum(dram_clock + params.dram_latency, s.latest_ready)
        node = jnp.maximum(s.out_fresh, 0)
        s = s.replace(
            block=s.block.at[jnp.where(takes, node, s.block.shape[0])].set(ready, mode="drop"),
            out_fresh=jnp.where(takes, s.link[node], s.out_fresh),
            latest_ready=jnp.where(jnp.any(takes), ready, s.latest_ready),
        )
    return s, jnp.any(takes)


def offered(s: NocState) -> tuple[Array, Array, Array]:
    """Head of every channel's input buffer: valid bool[M], in-channel block int32[M], request word int32[M]."""
    node = jnp.maximum(s.out_head, 0)
    return s.wrapped > 0, s.block[node], s.meta[node]


def take(s: NocState, taken: Array) -> NocState:
    """Remove the heads that the controllers took (bool[M]) and free their nodes."""
    node = jnp.maximum(s.out_head, 0)
    nowhere = s.link.shape[0]
    following = settle(s.link[node])
    word = settle(s.meta[node])
    freed = after(following, jnp.where(taken, node, nowhere), nowhere)
    empties = taken & (s.out_count == 1)
    write = words.is_write(word)
    return s.replace(
        reads=s.reads + (taken & ~write),
        writes=s.writes + (taken & write),
        link=s.link.at[freed].set(FREE, mode="drop"),
        out_head=jnp.where(taken, jnp.where(empties, -1, following), s.out_head),
        out_tail=jnp.where(empties, -1, s.out_tail),
        out_count=s.out_count - taken,
        wrapped=s.wrapped - taken,
    )


def return_room(shape: NpuShape, s: NocState) -> Array:
    """bool[M]: the channel's return buffer takes a read and a write more."""
    return s.returned_count < shape.returns - 2


def give_back(shape: NpuShape, s: NocState, word: Array, done: Array) -> tuple[NocState, Array]:
    """Append completed accesses (request words int32[M], bool[M]) to the channels' return buffers."""
    full = s.returned_count >= shape.returns
    s = s.replace(
        returned=append(s.returned, s.returned_head + s.returned_count, word, done),
        returned_count=s.returned_count + done,
    )
    return s, jnp.where(jnp.any(done & full), STATUS_RETURN, 0)


def _return(shape: NpuShape, params: NpuParams, s: NocState, on: Array) -> tuple[NocState, Array, Array]:
    """Every channel sends its oldest completed access towards the core that asked."""
    word = pick(s.returned, s.returned_head & (shape.returns - 1))
    core = words.core_of(word)
    towards = one_hot(core, shape.cores)
    count = jnp.sum(jnp.where(towards, s.response_count, 0), axis=1)
    full = count >= shape.responses
    wants = on & (s.returned_count > 0)
    sends = wants & ~full
    status = jnp.int32(0) if shape.back_pressure else jnp.where(jnp.any(wants & full), STATUS_RESPONSE, 0)

    into = towards & sends[:, None]
    tail = jnp.sum(jnp.where(towards, s.response_head + s.response_count, 0), axis=1) & (shape.responses - 1)
    at = (jnp.arange(shape.channels), jnp.where(sends, core, shape.cores), tail)
    s = s.replace(
        returned_head=(s.returned_head + sends) & (shape.returns - 1),
        returned_count=s.returned_count - sends,
        response=s.response.at[at].set(word, mode="drop"),
        response_stamp=jnp.where(into & (s.response_count == 0), s.now + params.noc_latency, s.response_stamp),
        response_count=s.response_count + into,
    )
    return s, jnp.any(sends), status


def _move_requests(shape: NpuShape, s: NocState, on: Array) -> tuple[NocState, Array]:
    """Each channel's round robin over all sources delivers one request whose time has come."""
    sources = s.head.shape[0]
    nodes = sources + shape.channels
    source = jnp.arange(sources, dtype=jnp.int32)[:, None]
    distance = source - s.turn
    distance = jnp.where(distance < 0, distance + nodes, distance)
    can = on & (s.head >= 0) & (s.stamp <= s.now)
    nearest = jnp.min(jnp.where(can, distance, FAR), axis=0)
    moves = nearest != FAR
    chosen = can & (distance == nearest)
    node = jnp.max(jnp.where(chosen, s.head, -1), axis=0)
    is_last = jnp.any(chosen & (s.head == s.tail), axis=0)
    nowhere = s.link.shape[0]
    linked = settle(s.link[jnp.maximum(node, 0)])
    following = jnp.where(is_last, -1, linked)

    behind = jnp.where(moves & (s.out_tail >= 0), s.out_tail, nowhere)
    link = s.link.at[after(linked, behind, nowhere)].set(node, mode="drop")
    link = link.at[jnp.where(moves, node, nowhere)].set(END, mode="drop")
    turn = s.turn + nearest + 1
    if shape.fixed_latency_dram:
        s = s.replace(out_fresh=jnp.where(moves & (s.out_fresh < 0), node, s.out_fresh))
    s = s.replace(
        link=link,
        head=jnp.where(chosen, following, s.head),
        tail=jnp.where(chosen & is_last, -1, s.tail),
        stamp=s.stamp + chosen,
        turn=jnp.where(moves, jnp.where(turn >= nodes, turn - nodes, turn), s.turn),
        out_head=jnp.where(moves & (s.out_head < 0), node, s.out_head),
        out_tail=jnp.where(moves, node, s.out_tail),
        out_count=s.out_count + moves,
    )
    return s, jnp.any(moves)


def _by_port(values: Array, receivers: int, fill: int) -> Array:
    """[M, C] -> [groups, receivers, C]: channel = group * receivers + port. Pads the last group with `fill`."""
    channels, cores = values.shape
    groups = -(-channels // receivers)
    padded = jnp.pad(values, ((0, groups * receivers - channels), (0, 0)), constant_values=fill)
    return padded.reshape(groups, receivers, cores)


def _move_responses(shape: NpuShape, s: NocState, on: Array) -> tuple[NocState, Array]:
    """Channel c answers to port c mod P of a core; a port's round robin delivers one response per tick."""
    m, receivers = shape.channels, s.arrived.shape[1]
    nodes = shape.cores * shape.ports + m
    channel = jnp.arange(m, dtype=jnp.int32)[:, None]
    can = on & (s.response_count > 0) & (s.response_stamp <= s.now)
    turn = s.response_turn.T[channel[:, 0] % receivers]
    distance = shape.cores * shape.ports + channel - turn
    distance = jnp.where(distance < 0, distance + nodes, distance)
    key = jnp.where(can, distance, FAR)
    nearest = jnp.min(_by_port(key, receivers, FAR), axis=0)
    moves = nearest != FAR
    chosen = can & (distance == nearest[channel[:, 0] % receivers])
    word = jnp.take_along_axis(s.response, (s.response_head & (shape.responses - 1))[:, :, None], axis=2)[:, :, 0]
    delivered = jnp.max(_by_port(jnp.where(chosen, word, -1), receivers, -1), axis=0)
    following = s.response_turn.T + nearest + 1
    following = jnp.where(following >= nodes, following - nodes, following)
    s = s.replace(
        response_head=(s.response_head + chosen) & (shape.responses - 1),
        response_count=s.response_count - chosen,
        response_stamp=s.response_stamp + chosen,
        response_turn=jnp.where(moves, following, s.response_turn.T).T,
        arrived=jnp.where(moves, delivered, s.arrived.T).T,
    )
    return s, jnp.any(moves)
