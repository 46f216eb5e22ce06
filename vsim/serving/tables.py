"""Cycles of an iteration from its sizes: piecewise linear tables in float32.

Between two knots the value is on the line through them, beyond the last on the last line, below the first on the first
line but not below 0. With knots, values and slopes that are whole numbers below 2**24 the result is exact; otherwise it
is within a few units of 2**-24 of itself.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from vsim.serving.clock import LONGEST
from vsim.serving.types import CostTables


def lookup(knots: Array, values: Array, x: Array) -> Array:
    """float32[..., L] of values float32[..., K, L] over knots float32[K, L], K >= 2, at x float32[L]; 0 at x = 0."""
    count = knots.shape[0]
    segment = jnp.clip(jnp.sum(knots <= x, axis=0) - 1, 0, count - 2)
    at = jnp.arange(count)[:, None] == segment
    following = jnp.arange(count)[:, None] == segment + 1

    def chosen(table: Array, which: Array) -> Array:
        return jnp.sum(jnp.where(which, table, 0.0), axis=-2)

    x0, x1 = chosen(knots, at), chosen(knots, following)
    y0, y1 = chosen(values, at), chosen(values, following)
    return jnp.where(x > 0, jnp.maximum(y0 + (y1 - y0) * ((x - x0) / (x1 - x0)), 0.0), 0.0)


def iteration_cycles(costs: CostTables, tokens: Array, outputs: Array, context: Array, pairs: Array) -> Array:
    """float32[L], whole cycles: 0 for no tokens, else 1..LONGEST. Arguments float32[L]."""
    operators = jnp.sum(lookup(costs.tokens, costs.by_token, tokens), axis=0)
    head = lookup(costs.outputs, costs.by_output, outputs)
    attention = lookup(costs.context, costs.by_context, context) + lookup(costs.pairs, costs.by_pair, pairs)
    return jnp.where(tokens > 0, jnp.clip(jnp.round(operators + head + attention), 1.0, LONGEST), 0.0)
