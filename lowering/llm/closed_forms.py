"""Parameters, multiply-accumulates and compulsory DRAM traffic of a pass in closed form.

Nothing here looks at a graph or a program: the tests compare the two ways. Functions take an `Architecture`: of a whole
model, or what `share` leaves of it for one chip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lowering.llm.architecture import Architecture
from lowering.llm.inference import Inference, expert_tokens


def parameters(model: Architecture) -> dict[str, int]:
    """Parameters by part, in elements; their sum is the size that model cards give."""
    wide, table = model.hidden, model.embedding or model.hidden
    norm = wide * (1 if model.norm == "rms" else 2)
    layers = range(model.layers)
    embedding_norm = norm if not model.causal else 0
    return {
        "token table": model.vocab * table,
        "positions": (model.position_rows + model.token_types) * wide,
        "projections": 2 * wide * table if model.projects_embedding else 0,
        "attention": model.layers * sum(attention_weights(model).values()),
        "feed-forward": sum(_feed_forward_parameters(model, layer) for layer in layers),
        "norms": (2 * model.layers + model.final_norm) * norm + embedding_norm,
        "head": 0 if model.tied_head or not model.causal else model.vocab * table,
        "pooler": 0 if model.causal else wide * wide + wide,
    }


def attention_weights(model: Architecture) -> dict[str, int]:
    """Parameters of one layer's attention, in elements."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return {
        "qkv": model.hidden * (queries + 2 * keys),
        "out": queries * model.hidden,
        "qkv bias": (queries + 2 * keys) * model.qkv_bias,
        "out bias": model.hidden * model.out_bias,
        "head norms": 2 * model.head_dim * model.qk_norm,
    }


def feed_forward_matrix(model: Architecture, inner: int) -> int:
    """Weights of one feed-forward part (or expert) of `inner` size, without biases, in elements."""
    return (3 if model.gated else 2) * model.hidden * inner


def _feed_forward_parameters(model: Architecture, layer: int) -> int:
    experts = model.experts_of(layer)
    if experts is None:
        biases = model.mlp_bias * (model.ffn * (2 if model.gated else 1) + model.hidden)
        return feed_forward_matrix(model, model.ffn) + biases
    shared = feed_forward_matrix(model, experts.shared_ffn) + model.hidden if experts.shared_ffn else 0
    return experts.count * (feed_forward_matrix(model, experts.ffn) + model.hidden) + shared


def macs(model: Architecture, run: Inference) -> dict[str, int]:
    """Useful multiply-accumulates by part; "scores" are Q K^T and P V for the keys that a query may see."""
    attention = attention_weights(model)
    outputs = model.vocab * run.batch * (model.embedding or model.hidden)
    projected = run.tokens if model.projects_embedding else 0
    last = run.batch if model.projects_embedding else 0
    return {
        "attention projections": model.layers * run.tokens * (attention["qkv"] + attention["out"]),
        "scores": model.layers * run.batch * visible_keys(model, run) * model.heads * model.head_dim * 2,
        "feed-forward": sum(_feed_forward_macs(model, layer, run.tokens) for layer in range(model.layers)),
        "embedding projections": (projected + last) * model.hidden * model.embedding,
        "head": outputs if model.causal else run.batch * model.hidden**2,
    }


def visible_keys(model: Architecture, run: Inference) -> int:
    """Keys that the new queries of one sequence see, added up: causal, within the window, cached ones included."""
    new, cached = run.new_tokens, run.cached_tokens
    if not model.causal:
        return new * new
    if model.window is None:
        return new * cached + new * (new + 1) // 2
    return sum(min(cached + query + 1, model.window) for query in range(new))


def _feed_forward_macs(model: Architecture, layer: int, tokens: int) -> int:
    experts = model.experts_of(layer)
    if experts is None:
        return tokens * feed_forward_matrix(model, model.ffn)
    shared = feed_forward_matrix(model, experts.shared_ffn) + model.hidden if experts.shared_ffn else 0
    routed = tokens * experts.per_token * feed_forward_matrix(model, experts.ffn)
    return routed + tokens * (experts.count * model.hidden + shared)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a pass must move between DRAM and chip at least once, whatever the tiling.

    weights: every parameter that the pass touches: rows of the token and position tables for the tokens at hand, and
    experts with tokens only. kv_read: cached keys and values within the window; kv_write: those of the new tokens.
    Activations between layers are not compulsory and not counted.
    """

    weights: int
    kv_read: int
    kv_write: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_read + self.kv_write


def compulsory_traffic(model: Architecture, run: Inference, element_bytes: int) -> Traffic:
    """The least DRAM traffic of a pass; `element_bytes` >= 1: size of weights, keys and values."""
    row = kv_bytes_per_token(model, element_bytes) * run.batch
    cached = run.cached_tokens if model.window is None else min(run.cached_tokens, model.window - 1)
    return Traffic(
        weights=sum(touched_parameters(model, run).values()) * element_bytes,
        kv_read=row * cached,
        kv_write=row * run.new_tokens if model.causal else 0,
    )


def kv_bytes_per_token(model: Architecture, element_bytes: int) -> int:
    """Bytes of the keys and values of one token of one sequence, in all layers."""
    return model.layers * 2 * model.kv_heads * model.head_dim * element_bytes


def touched_parameters(model: Architecture, run: Inference) -> Mapping[str, int]:
    """Parameters by part that a pass reads. A tied head reads the whole token table, which covers its rows."""
    parts = parameters(model)
    table = model.embedding or model.hidden
    rows = min(run.tokens, model.vocab)
    parts["token table"] = parts["token table"] if model.tied_head and model.causal else rows * table
    learned = run.new_tokens if model.position_rows else 0
    parts["positions"] = (learned + min(model.token_types, 1)) * model.hidden
    for layer in range(model.layers):
        experts = model.experts_of(layer)
        if experts is not None:
            idle = experts.count - len(expert_tokens(model, layer, run.tokens))
            parts["feed-forward"] -= idle * feed_forward_matrix(model, experts.ffn)
    return parts
