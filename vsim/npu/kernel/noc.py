"""One tick of DMA queues and NoC, as `vsim.npu.noc` has it. Functions of the same name are the same rule."""

from __future__ import annotations

from typing import Any

from vsim.npu.fields import FAR
from vsim.npu.kernel.jit import ones, part, rare, trailing_zeros
from vsim.npu.kernel.sets import clear, exclude, include
from vsim.npu.noc import END, FREE
from vsim.npu.types import STATUS_DESCRIPTORS, STATUS_INFLIGHT, STATUS_RESPONSE, STATUS_RETURN
from vsim.npu.words import FLAT_BITS


@part
def core_of(z: Any, word: int) -> int:
    return (word >> (FLAT_BITS + 1)) & ((1 << z.core_bits) - 1)


@part
def is_write(word: int) -> bool:
    return (word >> FLAT_BITS) & 1 == 1


@part
def channel_of(hash_masks: Any, block: int) -> int:
    channel = 0
    for position in range(hash_masks.size):
        channel |= (ones(block & hash_masks[position]) & 1) << position
    return channel


@rare
def prepare(w: Any, n: Any) -> None:
    """Work out the sets of the scratch (`lane.Scratch`)."""
    clear(w.waiting.flat)
    clear(w.answering)
    clear(w.arrived)
    for c in range(n.head.shape[1]):
        for source in range(n.head.shape[0]):
            if n.head[source, c] >= 0:
                include(w.waiting[c], source)
        for core in range(n.response_count.shape[1]):
            if n.response_count[c, core] > 0:
                w.answering[core] |= 1 << c
    for port in range(n.arrived.shape[0]):
        for core in range(n.arrived.shape[1]):
            if n.arrived[port, core] >= 0:
                w.arrived[core] |= 1 << port


@part
def descriptor_room(z: Any, n: Any, core: int) -> bool:
    return not z.back_pressure or n.descriptor_count[core] < z.descriptors - 3


@rare
def push_descriptor(z: Any, n: Any, core: int, new: Any, tag: int) -> int:
    """Append a load or store that took effect. tag: what its word says of the sender. Returns status bits."""
    tail = (n.descriptor_head[core] + n.descriptor_count[core]) & (z.descriptors - 1)
    ring = n.descriptor
    ring.first_block[core, tail] = new.first_block[core]
    ring.requests[core, tail] = new.requests[core]
    ring.period_requests[core, tail] = new.period_requests[core]
    ring.period_pitch[core, tail] = new.period_pitch[core]
    ring.pattern_start[core, tail] = new.pattern_start[core]
    ring.word[core, tail] = new.word[core] | tag
    n.descriptor_count[core] += 1
    return STATUS_DESCRIPTORS if n.descriptor_count[core] > z.descriptors else 0


@part
def tick(z: Any, p: Any, t: Any, w: Any, s: Any) -> bool:
    """One NoC tick. Returns whether anything changed; status bits go into the state."""
    n = s.noc
    changed = False
    for core in range(z.cores):
        changed |= inject(z, p, t, s, w.waiting, core)
        changed |= receive(w, s, core)
    changed |= hand_over(z, p, s)
    for c in range(z.channels):
        changed |= return_access(z, p, w, s, c)
    for c in range(z.channels):
        changed |= move_request(z, n, w.waiting, c)
    for core in range(z.cores):
        changed |= move_responses(z, w, n, core)
    n.now += 1
    return changed


@part
def block_of(t: Any, ring: Any, core: int, at: int, index: int) -> int:
    """Block number of the request numbered `index` of a descriptor."""
    period = max(ring.period_requests[core, at], 1)
    quotient = index // period if index >= period else 0
    offset = index - quotient * period
    if ring.pattern_start[core, at] >= 0:
        offset = t.pattern[ring.pattern_start[core, at] + offset]
    return ring.first_block[core, at] + quotient * ring.period_pitch[core, at] + offset


@part
def inject(z: Any, p: Any, t: Any, s: Any, waiting: Any, core: int) -> bool:
    """Port k of a core takes the k-th request of its DMA queue. One without a free node stalls those behind it."""
    n = s.noc
    present = min(z.window, n.descriptor_count[core])
    used, index, count, stalled = 0, n.cursor[core], 0, False
    while used < present:
        at = (n.descriptor_head[core] + used) & (z.descriptors - 1)
        requests = n.descriptor.requests[core, at]
        while index < requests and count < z.ports and not stalled:
            node = core * z.inflight + ((n.sequence[core] + count) & (z.inflight - 1))
            if n.link[node] != FREE:
                stalled = True
            else:
                block = block_of(t, n.descriptor, core, at, index)
                channel = channel_of(z.hash_masks, block)
                source = core * z.ports + count
                n.block[node] = block >> z.hash_masks.size
                n.meta[node] = n.descriptor.word[core, at]
                join_queue(n, waiting, p.noc_latency, source, channel, node)
                index += 1
                count += 1
        if index < requests:
            break
        used += 1
        index = 0
    if stalled and not z.back_pressure:
        s.status |= STATUS_INFLIGHT
    n.cursor[core] = index
    n.sequence[core] = (n.sequence[core] + count) & (z.inflight - 1)
    n.descriptor_head[core] = (n.descriptor_head[core] + used) & (z.descriptors - 1)
    n.descriptor_count[core] -= used
    n.requests[core] += count
    return count > 0


@part
def join_queue(n: Any, waiting: Any, latency: int, source: int, channel: int, node: int) -> None:
    behind = n.tail[source, channel]
    n.link[node] = END
    if behind >= 0:
        n.link[behind] = node
    else:
        n.head[source, channel] = node
        n.stamp[source, channel] = n.now + latency
        include(waiting[channel], source)
    n.tail[source, channel] = node


@part
def receive(w: Any, s: Any, core: int) -> bool:
    """Responses that wait at the core's ports: read data complete their entry, write acknowledgements count."""
    left = w.arrived[core]
    received = left != 0
    while left != 0:
        port = trailing_zeros(left)
        left &= left - 1
        word = s.noc.arrived[port, core]
        s.noc.arrived[port, core] = -1
        if is_write(word):
            s.core.unacknowledged[core] -= 1
        else:
            s.core.remaining[core, word & ((1 << FLAT_BITS) - 1)] -= 1
    w.arrived[core] = 0
    return received


@part
def hand_over(z: Any, p: Any, s: Any) -> bool:
    """Every channel takes one delivered request into its input buffer while that has room."""
    n = s.noc
    ready = max(s.dram.clock + p.dram_latency, n.latest_ready)
    handed = False
    for c in range(z.channels):
        if n.out_count[c] > n.wrapped[c] and n.wrapped[c] < p.wrapper_capacity:
            handed = True
            n.wrapped[c] += 1
            if z.fixed_latency_dram:
                node = max(n.out_fresh[c], 0)
                n.block[node] = ready
                n.out_fresh[c] = n.link[node]
    if handed and z.fixed_latency_dram:
        n.latest_ready = ready
    return handed


@part
def take(n: Any, c: int) -> None:
    """Remove the head of the channel's input buffer, which the controller took."""
    node = max(n.out_head[c], 0)
    if is_write(n.meta[node]):
        n.writes[c] += 1
    else:
        n.reads[c] += 1
    empties = n.out_count[c] == 1
    n.out_head[c] = -1 if empties else n.link[node]
    if empties:
        n.out_tail[c] = -1
    n.link[node] = FREE
    n.out_count[c] -= 1
    n.wrapped[c] -= 1


@part
def give_back(z: Any, s: Any, c: int, word: int) -> None:
    """Append a completed access to the channel's return buffer."""
    n = s.noc
    if n.returned_count[c] >= z.returns:
        s.status |= STATUS_RETURN
    n.returned[c, (n.returned_head[c] + n.returned_count[c]) & (z.returns - 1)] = word
    n.returned_count[c] += 1


@part
def return_access(z: Any, p: Any, w: Any, s: Any, c: int) -> bool:
    """The channel sends its oldest completed access towards the core that asked."""
    n = s.noc
    if n.returned_count[c] == 0:
        return False
    word = n.returned[c, n.returned_head[c] & (z.returns - 1)]
    core = core_of(z, word)
    count = n.response_count[c, core]
    if count >= min(p.noc_responses, z.responses):
        if not z.back_pressure:
            s.status |= STATUS_RESPONSE
        return False
    n.response[c, core, (n.response_head[c, core] + count) & (z.responses - 1)] = word
    if count == 0:
        n.response_stamp[c, core] = n.now + p.noc_latency
    n.response_count[c, core] = count + 1
    w.answering[core] |= 1 << c
    n.returned_head[c] = (n.returned_head[c] + 1) & (z.returns - 1)
    n.returned_count[c] -= 1
    return True


@part
def next_source(n: Any, waiting: Any, c: int, first: int, end: int) -> int:
    """The first source in [first, end) with a request for the channel whose time has come; -1 if there is none."""
    for word in range(first >> 5, (end + 31) >> 5):
        left = waiting[c, word] & (-1 << max(first - word * 32, 0))
        while left != 0:
            source = word * 32 + trailing_zeros(left)
            left &= left - 1
            if source >= end:
                return -1
            if n.stamp[source, c] <= n.now:
                return source
    return -1


@part
def move_request(z: Any, n: Any, waiting: Any, c: int) -> bool:
    """The channel's round robin over all sources delivers one request whose time has come."""
    sources, turn = n.head.shape[0], n.turn[c]
    source = next_source(n, waiting, c, turn, sources)
    if source < 0:
        source = next_source(n, waiting, c, 0, min(turn, sources))
    if source < 0:
        return False
    node = n.head[source, c]
    following = n.link[node]
    if n.out_tail[c] >= 0:
        n.link[n.out_tail[c]] = node
    n.link[node] = END
    n.head[source, c] = following
    if following < 0:
        n.tail[source, c] = -1
        n.stamp[source, c] = FAR
        exclude(waiting[c], source)
    else:
        n.stamp[source, c] += 1
    n.turn[c] = source + 1
    if z.fixed_latency_dram and n.out_fresh[c] < 0:
        n.out_fresh[c] = node
    if n.out_head[c] < 0:
        n.out_head[c] = node
    n.out_tail[c] = node
    n.out_count[c] += 1
    return True


@part
def move_responses(z: Any, w: Any, n: Any, core: int) -> bool:
    """Channel c answers to port c mod P of a core; a port's round robin delivers one response per tick."""
    left, moved, ports = w.answering[core], False, n.arrived.shape[0]
    while left != 0:
        first = trailing_zeros(left)
        port = first if first < ports else first % ports
        chosen, nearest = -1, FAR
        for c in range(first, z.channels, ports):
            if (left >> c) & 1 != 0 and n.response_stamp[c, core] <= n.now:
                distance = z.cores * z.ports + c - n.response_turn[port, core]
                if distance < 0:
                    distance += z.cores * z.ports + z.channels
                if distance < nearest:
                    chosen, nearest = c, distance
            left &= ~(1 << c)
        if chosen >= 0:
            deliver(z, w, n, core, port, chosen, nearest)
            moved = True
    return moved


@part
def deliver(z: Any, w: Any, n: Any, core: int, port: int, c: int, distance: int) -> None:
    """The oldest response of a channel reaches the port; `distance`: how far the port's round robin turned to it."""
    nodes = z.cores * z.ports + z.channels
    head = n.response_head[c, core]
    n.arrived[port, core] = n.response[c, core, head & (z.responses - 1)]
    w.arrived[core] |= 1 << port
    n.response_head[c, core] = (head + 1) & (z.responses - 1)
    n.response_count[c, core] -= 1
    if n.response_count[c, core] == 0:
        w.answering[core] &= ~(1 << c)
    n.response_stamp[c, core] += 1
    following = n.response_turn[port, core] + distance + 1
    n.response_turn[port, core] = following - nodes if following >= nodes else following
