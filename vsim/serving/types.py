"""Shape, parameters and state of the serving machine. The last axis of every array is the lane, L.

Letters in the shapes: S slots, N requests of a trace, O operators, K points of a table, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from flax import struct
from jax import Array

STATUS_KV_CAPACITY = 1
STATUS_QUEUE = 2
STATUS_HORIZON = 4
STATUS_DEADLOCK = 8

STATUS_NAMES = {
    STATUS_KV_CAPACITY: "kv_capacity",
    STATUS_QUEUE: "overflow_queue",
    STATUS_HORIZON: "horizon",
    STATUS_DEADLOCK: "deadlock",
}
"""kv_capacity: a request needs more tokens in the cache than the whole of it holds. overflow_queue: more requests in
the system than there are places. horizon: the time limit came first. deadlock: requests wait, and nothing can run."""


class Phase(IntEnum):
    """What a slot of the server holds."""

    FREE = 0
    RUNNING = 1
    PREEMPTED = 2
    """Evicted: its cache was dropped, it keeps its slot and its place in the queue, before all that never ran."""
    ENDED = 3
    """Static batching only: it has made its last token and waits for the end of the batch; its cache is still held."""


@dataclass(frozen=True)
class ServerShape:
    """What arrays are sized by.

    slots: requests that can be at work at a time, a power of two. requests: longest trace. windows: of the record over
    time.
    """

    slots: int
    requests: int
    windows: int


class CostTables(NamedTuple):
    """Piecewise linear cycles (float32) of the whole model, all its layers. Knots rise along K; see `tables.lookup`.

    tokens, by_token: [K, L], [O, K, L]: operators against the tokens of an iteration. outputs, by_output: [K, L]: the
    head against the sequences whose next token it makes. context, by_context: [K, L]: attention of sequences with one
    new token, against the sum of their contexts (that token included). pairs, by_pair: [K, L]: attention of the others,
    against the sum of the (query, key) pairs.
    """

    tokens: Array
    by_token: Array
    outputs: Array
    by_output: Array
    context: Array
    by_context: Array
    pairs: Array
    by_pair: Array


class ServerParams(struct.PyTreeNode):
    """One server and the requests that it gets.

    arrival_high, arrival_low: int32[N], rising (see `clock`). prompt, output >= 1, cached >= 0: int32[N], tokens.
    count: requests of the trace. max_batch: sequences in an iteration, <= S. token_budget: tokens in an iteration,
    >= max_batch. kv_capacity: tokens in the cache. queue_capacity: requests in the system, running ones included.
    static: 1 for static batches. reserves: 1 where a request is admitted only if its whole output will fit.
    horizon: int32[2]. window: float32, cycles.
    """

    arrival_high: Array
    arrival_low: Array
    prompt: Array
    output: Array
    cached: Array
    count: Array
    max_batch: Array
    token_budget: Array
    kv_capacity: Array
    queue_capacity: Array
    static: Array
    reserves: Array
    horizon: Array
    window: Array
    costs: CostTables


class Slots(NamedTuple):
    """Requests at work, int32[S, L] each.

    request: its number in the trace. prompt: tokens before its first own (cached ones included). kv: tokens in the
    cache. made: tokens generated. first_high, first_low: when the first was, once made > 0. evictions: how often.
    """

    phase: Array
    request: Array
    prompt: Array
    output: Array
    kv: Array
    made: Array
    first_high: Array
    first_low: Array
    evictions: Array


class Served(NamedTuple):
    """Written when a request leaves, int32[N, L] each. times: how often it left (once, or the machine is wrong)."""

    times: Array
    made: Array
    first_high: Array
    first_low: Array
    finish_high: Array
    finish_low: Array
    evictions: Array


class Sums(NamedTuple):
    """Compensated sums over time, float32[2, L] each: the sum and what rounding has kept from it (Kahan 1965).

    in_system, running, kv: requests in the system, sequences in the batch, tokens in the cache, times cycles. busy:
    cycles of iterations.
    """

    in_system: Array
    running: Array
    kv: Array
    busy: Array


class Windows(NamedTuple):
    """The last W stretches of time, in a ring; one is over at the first end of an iteration after `window` cycles.

    cycles, kv, running, in_system: float32[W, L], as in `Sums`; tokens: int32[W, L], generated. number: int32[L], how
    many are over.
    """

    cycles: Array
    kv: Array
    running: Array
    in_system: Array
    tokens: Array
    number: Array


class ServerState(struct.PyTreeNode):
    """State between two iterations.

    now: int32[2, L]. arrived, admitted, done: int32[L], requests of the trace so far. kv_peak: most tokens in the
    cache. iterations, evictions: so far. status: int32[L], bits of `STATUS_NAMES`.
    """

    now: Array
    arrived: Array
    admitted: Array
    done: Array
    iterations: Array
    evictions: Array
    kv_peak: Array
    status: Array
    slots: Slots
    served: Served
    sums: Sums
    windows: Windows
