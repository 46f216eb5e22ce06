"""What is run of a model: how many sequences, new tokens and cached tokens, on how many chips.

Tensor parallelism is Megatron-LM's (Shoeybi et al., arXiv 1909.08053, section 3): every chip holds an equal share of
the attention heads, of the inner feed-forward size (of every expert), and of the vocabulary; norms, biases behind the
sums, position tables and routers are on every chip. Two sums over the chips in each layer, one after the token table,
and the collection of the logits make the results whole again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lowering.llm.architecture import Architecture
from lowering.models import ModelError


@dataclass(frozen=True)
class Inference:
    """One pass of a model over `batch` sequences of equal length.

    new_tokens: tokens of each sequence that the pass computes; cached_tokens: those whose keys and values it finds in
    the cache. Prefill: (prompt, 0); decode: (1, context). A decoder computes the logits of the last token only.
    """

    batch: int
    new_tokens: int
    cached_tokens: int = 0

    @staticmethod
    def prefill(prompt: int, batch: int = 1) -> Inference:
        """The pass over a prompt."""
        return Inference(batch, prompt)

    @staticmethod
    def decode(context: int, batch: int = 1) -> Inference:
        """One more token behind `context` cached ones; it attends to context + 1 tokens."""
        return Inference(batch, 1, context)

    @property
    def tokens(self) -> int:
        """Tokens computed, all sequences together."""
        return self.batch * self.new_tokens

    @property
    def label(self) -> str:
        """Short name for a report."""
        phase = f"prefill {self.new_tokens}" if not self.cached_tokens else f"decode at context {self.cached_tokens}"
        return f"{phase}, batch {self.batch}"


@dataclass(frozen=True)
class TensorParallel:
    """Chips that share a model, and the ring they are connected by.

    degree: number of chips. link_bytes_per_cycle: what each sends to its neighbour, and receives from the other, in one
    core cycle; > 0, of no meaning for one chip.
    """

    degree: int = 1
    link_bytes_per_cycle: float = math.inf


def check(model: Architecture, run: Inference) -> None:
    """Raise ModelError when the model cannot make the pass."""
    if min(run.batch, run.new_tokens) < 1 or run.cached_tokens < 0:
        raise ModelError(f"{model.source}: batch, prompt and context must be at least 1")
    if not model.causal and run.cached_tokens:
        raise ModelError(f"{model.source}: {model.family} is an encoder: it takes a prompt and does not decode")
    length = run.new_tokens + run.cached_tokens
    if length > model.max_positions:
        raise ModelError(
            f"{model.source}: {length} tokens ({run.label}) are more than the {model.max_positions} positions that the "
            "model has"
        )


def share(model: Architecture, degree: int) -> Architecture:
    """What one of `degree` >= 1 chips holds and computes of a model, as an architecture with smaller sizes.

    Key and value heads are repeated when there are fewer than chips, as serving systems do. The vocabulary is cut into
    equal parts, rounded up. Raises ModelError when heads or feed-forward sizes cannot be divided evenly.
    """
    experts = model.experts
    sizes = {"attention heads": model.heads, "inner feed-forward size": model.ffn}
    if experts is not None:
        sizes["inner size of an expert"] = experts.ffn
        if experts.shared_ffn:
            sizes["inner size of the shared expert"] = experts.shared_ffn
        if len(experts.dense_layers) == 0:
            del sizes["inner feed-forward size"]
        experts = replace(experts, ffn=experts.ffn // degree, shared_ffn=experts.shared_ffn // degree)
    for what, size in sizes.items():
        if size % degree:
            raise ModelError(f"{model.source}: tensor-parallel degree {degree} does not divide the {what}, {size}")
    if model.kv_heads % degree and degree % model.kv_heads:
        raise ModelError(
            f"{model.source}: tensor-parallel degree {degree} and the key and value heads, {model.kv_heads}, must be "
            "multiples of one another"
        )
    return replace(
        model,
        heads=model.heads // degree,
        kv_heads=max(1, model.kv_heads // degree),
        ffn=max(1, model.ffn // degree),
        vocab=math.ceil(model.vocab / degree),
        experts=experts,
    )


def expert_tokens(model: Architecture, layer: int, tokens: int) -> list[int]:
    """Tokens of each expert of a layer under even routing: they differ by one at most; experts without are left out.

    Even routing is the best case for the slowest expert and, for few tokens, the worst for weight traffic: as many
    experts as possible are touched.
    """
    experts = model.experts_of(layer)
    if experts is None:
        return []
    each, more = divmod(tokens * experts.per_token, experts.count)
    return [count for index in range(experts.count) if (count := each + (index < more))]
