"""Which requests are in the next iteration, with how many tokens each: admission, eviction, token budget.

Rules (first come, first served; a request's number in the trace is its place in every order):

* A request needs tokens in the cache for its prompt and all that it has made; `pending` are those not there yet. An
  iteration computes some of them, and when none is left the request has made its next token (Orca, Yu et al., OSDI
  2022). A running request with one pending token decodes; others prefill.
* Each iteration has a budget of tokens: decodes come first, then prefills in order, the last one cut to what is left
  (Sarathi-Serve, Agrawal et al., OSDI 2024). A large budget is iteration-level batching without chunks.
* When the cache is too small for the tokens of the iteration, the requests admitted last are evicted (vLLM, Kwon et
  al., SOSP 2023, recomputation): their cache is dropped, they wait before all that never ran, and compute prompt and
  made tokens again.
* A waiting request is admitted when a place in the batch, budget and cache are left for it and for all before it. The
  cache is counted with what every request needs for its next token, or, where `reserves`, for its last.
* Static batches: nothing is admitted until all of a batch have ended, and they leave together; those that ended early
  keep their cache and compute nothing. Their first tokens count from when they were made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from vsim.npu.fields import FAR, fold, pick, settle
from vsim.serving.types import Phase, ServerParams, ServerState, Slots


class Batch(NamedTuple):
    """An iteration, [S, L] each. slots: with newly admitted requests in them. tokens: computed, 0 where not in it."""

    slots: Slots
    tokens: Array
    completes: Array
    evicted: Array
    admitted: Array
    """First admissions only."""


def form_batch(params: ServerParams, state: ServerState) -> Batch:
    """The next iteration of every lane; tokens are all 0 where nothing can run."""
    slots, waits = with_candidates(params, state)
    running, ended = slots.phase == Phase.RUNNING, slots.phase == Phase.ENDED
    waits = waits | (slots.phase == Phase.PREEMPTED)
    present = running | waits
    ahead = _sum_ahead(jnp.where(present, slots.request, FAR))

    needed = slots.prompt + slots.made
    pending = needed - slots.kv
    decodes = running & (pending == 1)
    prefills = present & ~decodes
    left = params.token_budget - _total(decodes) - ahead(jnp.where(prefills, pending, 0))
    tokens = settle(jnp.where(decodes, 1, jnp.where(prefills, jnp.clip(left, 0, pending), 0)))

    room = params.kv_capacity - _total(jnp.where(ended, slots.kv, 0))
    grown = jnp.where(running, slots.kv + tokens, 0)
    stays = running & (ahead(grown) + grown <= room)

    demand = jnp.where(params.reserves > 0, slots.prompt + slots.output - 1, needed)
    demand = jnp.where(present, demand, 0)
    may_join = (params.static == 0) | (_total(running | ended) == 0)
    joins = waits & may_join & (ahead(present) < params.max_batch) & (ahead(demand) + demand <= room) & (tokens > 0)

    tokens = jnp.where(stays | joins, tokens, 0)
    phase = jnp.where(joins, Phase.RUNNING, jnp.where(running & ~stays, Phase.PREEMPTED, slots.phase))
    evicted = running & ~stays
    return Batch(
        slots._replace(
            phase=phase, kv=jnp.where(evicted, 0, slots.kv), evictions=slots.evictions + evicted.astype(jnp.int32)
        ),
        tokens,
        completes=(tokens > 0) & (tokens == pending),
        evicted=evicted,
        admitted=joins & (state.slots.phase == Phase.FREE),
    )


def with_candidates(params: ServerParams, state: ServerState) -> tuple[Slots, Array]:
    """The slots, free ones filled with the next requests of the trace, and bool[S, L]: those that have arrived."""
    slots = state.slots
    free = slots.phase == Phase.FREE
    # Free slots before each: exact in float32, for which there is a fast product.
    before = jnp.tril(jnp.ones((free.shape[0], free.shape[0]), jnp.float32), -1)
    rank = jnp.dot(before, free.astype(jnp.float32), precision="highest").astype(jnp.int32)
    request = jnp.where(free, state.admitted + rank, slots.request)
    arrived = free & (request < state.arrived)
    at = jnp.clip(request, 0, params.prompt.shape[0] - 1)
    cached = pick(params.cached, at)
    prompt = pick(params.prompt, at) + cached
    zero = jnp.zeros_like(request)
    fresh = Slots(zero, request, prompt, pick(params.output, at), cached, zero, zero, zero, zero)
    return Slots(*(jnp.where(free, new, old) for new, old in zip(fresh, slots, strict=True))), arrived


def _sum_ahead(key: Array) -> Callable[[Array], Array]:
    """A function: int32[S, L] -> int32[S, L], the sum over slots with a smaller key."""
    before = settle(key[None] < key[:, None])

    def ahead(amount: Array) -> Array:
        # [slot, the other slot, L]
        return fold(jnp.add, jnp.where(before, amount.astype(jnp.int32)[None], 0), 1)

    return ahead


def _total(amount: Array) -> Array:
    return jnp.sum(amount, axis=0, dtype=jnp.int32)
