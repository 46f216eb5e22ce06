"""ONNXim's language mode (`onnxim.md` section 10): its model files and traces, which requests form which iteration, and
iterations as programs.

Which requests join an iteration depends on when the iterations before it end, that is on a simulation. So it is done
in turn: `plan` with the ends known so far, `lower_language`, simulate, and plan again until nothing changes
(`vsim.onnxim_language.simulate_language`).
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.address_space import AddressSpace
from lowering.onnxim.faults import NONE, Fault, Repairs
from lowering.onnxim.free_layers import FreeLayer
from lowering.onnxim.gemm import Gemm
from lowering.onnxim.language_attention import RequestAttention, emit_request_attention
from lowering.onnxim.layers import LayerEmitter
from lowering.onnxim.mapping_table import MappingTable
from lowering.onnxim.token_rows import Tokens, emit_bias_activation, emit_skip_layer_norm
from lowering.program import Program

ACTIVATIONS = {"gelu": "gelu", "swish": "gelu", "relu": "comp"}
"""Vector operation of an activation function; swish takes as long as gelu."""
SCHEDULERS = ("simple", "iter")


@dataclass(frozen=True)
class LanguageModel:
    """A decoder, as simulated: heads, key heads and widths are those of one of the tensor-parallel devices.

    layers: of the pipeline stage; simulated_layers: how many of them are executed. gated: the first feed-forward
    product is twice as wide and one half gates the other (Llama).
    """

    name: str
    activation: str
    heads: int
    kv_heads: int
    hidden: int
    intermediate: int
    vocabulary: int
    max_tokens: int
    layers: int
    simulated_layers: int
    gated: bool
    tensor_parallel: int

    @property
    def cache_features(self) -> int:
        """Features of a cached key or value, of all devices together."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def qkv_features(self) -> int:
        """Results of the query, key and value projection."""
        return (2 * self.cache_features + self.hidden) // self.tensor_parallel

    @property
    def attention_features(self) -> int:
        """Features of queries and of attention results."""
        return self.hidden // self.tensor_parallel

    @property
    def feed_forward_features(self) -> int:
        """Results of the first feed-forward product."""
        return self.intermediate // self.tensor_parallel * (2 if self.gated else 1)


@dataclass(frozen=True)
class Request:
    """A line of a trace. arrival: core cycle. Lengths in tokens; cached: already in the key and value cache."""

    arrival_cycle: int
    prompt: int
    target: int
    cached: int


@dataclass(frozen=True)
class Part:
    """What an iteration computes for one request: `new` tokens behind `context` cached ones."""

    request: int
    new: int
    context: int


@dataclass(frozen=True)
class Iteration:
    """One pass of the model. launch_cycle: core cycle in which it starts at the earliest.

    admitted: requests whose caches are placed before it.
    """

    launch_cycle: int
    admitted: tuple[int, ...]
    parts: tuple[Part, ...]


_NUMBERS = {
    "num_attention_heads", "num_kv_heads", "vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size",
    "max_seq_length",
}  # fmt: skip


def read_language_model(path: Path) -> LanguageModel:
    """Read ONNXim's JSON description of a language model.

    Raises UserError for a file that cannot be read, a key that is missing or no positive number, an unknown
    activation, or heads and sizes that do not divide.
    """
    try:
        data: Any = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"language model {path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise UserError(f"language model {path}: expected an object")
    numbers = {key: _number(data.get(key), f"language model {path}: {key}") for key in sorted(_NUMBERS)}
    tensor, pipeline = (
        _number(data.get(key, 1), f"language model {path}: {key}")
        for key in ("tensor_parallel_size", "pipeline_parallel_size")
    )
    activation = data.get("activation_function")
    if activation not in ACTIVATIONS:
        raise UserError(f"language model {path}: activation_function = {activation!r}; valid: {', '.join(ACTIVATIONS)}")
    layers = numbers["num_hidden_layers"] // pipeline
    model = LanguageModel(
        name=path.stem,
        activation=activation,
        heads=numbers["num_attention_heads"],
        kv_heads=numbers["num_kv_heads"],
        hidden=numbers["hidden_size"],
        intermediate=numbers["intermediate_size"],
        vocabulary=numbers["vocab_size"],
        max_tokens=numbers["max_seq_length"],
        layers=layers,
        simulated_layers=1 if data.get("run_single_layer", False) else layers,
        gated=data.get("ffn_type") == "llama",
        tensor_parallel=tensor,
    )
    _check_divisions(model, path)
    return model


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where} = {value!r}; expected a whole number above 0")
    return value


def _check_divisions(model: LanguageModel, path: Path) -> None:
    pairs = (
        ("hidden_size", model.hidden, "num_attention_heads", model.heads),
        ("num_attention_heads", model.heads, "num_kv_heads", model.kv_heads),
        ("num_kv_heads", model.kv_heads, "tensor_parallel_size", model.tensor_parallel),
        ("intermediate_size", model.intermediate, "tensor_parallel_size", model.tensor_parallel),
    )
    for name, whole, divisor_name, divisor in pairs:
        if whole % divisor:
            raise UserError(f"language model {path}: {name} = {whole} is no multiple of {divisor_name} = {divisor}")
    if model.layers < 1:
        raise UserError(f"language model {path}: more pipeline stages than layers")


def read_trace(path: Path) -> tuple[Request, ...]:
    """Read a trace: a header, then `time, prompt_length, target_length, cached_length`, time since the line before.

    Raises UserError for a file that cannot be read, an empty trace, or a line of another form.
    """
    try:
        lines = list(csv.reader(path.read_text().splitlines()))[1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"trace {path}: cannot be read ({error})") from error
    requests: list[Request] = []
    arrival = 0
    for number, fields in enumerate(lines, start=2):
        if not fields:
            continue
        values = [field.strip() for field in fields]
        if len(values) != 4 or not all(value.isascii() and value.isdigit() for value in values):
            raise UserError(
                f"{path}:{number}: expected time, prompt_length, target_length, cached_length, not {fields}"
            )
        delta, prompt, target, cached = map(int, values)
        if not prompt or not target:
            raise UserError(f"{path}:{number}: prompt_length and target_length must be above 0")
        arrival += delta
        requests.append(Request(arrival, prompt, target, cached))
    if not requests:
        raise UserError(f"trace {path}: no request")
    return tuple(requests)


# --------------------------------------------------------------------------------------------------------------
# Iterations
# --------------------------------------------------------------------------------------------------------------


@dataclass
class _Active:
    """A request at work. tokens: in its cache; generates: its prompt is done."""

    request: Request
    tokens: int
    generates: bool = False

    def part(self, index: int) -> Part:
        """Its share of the next iteration."""
        return Part(index, 1 if self.generates else self.request.prompt, self.tokens)


def plan(
    requests: Sequence[Request], scheduler: str, max_batch: int, finish_cycles: Sequence[int]
) -> tuple[Iteration, ...]:
    """The iterations that serve `requests`, in order.

    scheduler: "simple" admits requests only when none is at work, "iter" before every iteration. max_batch: requests
    in an iteration, 0 for no limit. finish_cycles: core cycle in which each iteration ends, as far as known; later
    iterations are planned as if everything had arrived.
    Raises UserError for an unknown scheduler.
    """
    if scheduler not in SCHEDULERS:
        raise UserError(f"language scheduler {scheduler!r} is unknown; valid: {', '.join(SCHEDULERS)}")
    waiting = deque(enumerate(requests))
    active: dict[int, _Active] = {}
    iterations: list[Iteration] = []
    cycle, last_arrival = 0, max(request.arrival_cycle for request in requests)
    while waiting or active:
        # The scheduler counts a cycle before it looks.
        launch_cycle = 0 if active else max(waiting[0][1].arrival_cycle - 1, 0)
        cycle = max(cycle, launch_cycle)
        may_admit = not active if scheduler == "simple" else not max_batch or len(active) <= max_batch
        admitted = _admit(waiting, active, cycle, max_batch) if may_admit else ()
        members = sorted(active)[: max_batch or None]
        iterations.append(Iteration(launch_cycle, admitted, tuple(active[index].part(index) for index in members)))
        _advance(active, members)
        known = len(iterations) <= len(finish_cycles)
        cycle = finish_cycles[len(iterations) - 1] + 1 if known else max(cycle, last_arrival)
    return tuple(iterations)


def _admit(
    waiting: deque[tuple[int, Request]], active: dict[int, _Active], cycle: int, max_batch: int
) -> tuple[int, ...]:
    """Move requests that have arrived by `cycle` to `active`, until it holds `max_batch` (0: no limit)."""
    admitted: list[int] = []
    while waiting and waiting[0][1].arrival_cycle <= cycle + 1:
        index, request = waiting.popleft()
        active[index] = _Active(request, request.cached)
        admitted.append(index)
        if len(active) == max_batch:
            break
    return tuple(admitted)


def _advance(active: dict[int, _Active], members: Sequence[int]) -> None:
    """The prompt counts one token too many (Q15); a request leaves when its cache holds all of its tokens."""
    for index in members:
        state = active[index]
        state.tokens += 1 if state.generates else state.request.prompt + 1
        state.generates = True
        request = state.request
        if state.tokens >= request.cached + request.prompt + request.target:
            del active[index]


# --------------------------------------------------------------------------------------------------------------
# Programs
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weights:
    """Addresses in bytes of one layer's weights; those of the norms (scale, shift) are never read (Q5)."""

    attention_norm: tuple[int, int]
    feed_forward_norm: tuple[int, int]
    qkv: int
    qkv_bias: int
    projection: int
    projection_bias: int
    expand: int
    expand_bias: int
    reduce: int
    reduce_bias: int


def lower_language(
    model: LanguageModel, iterations: Sequence[Iteration], hw: HwConfig, repaired: Repairs = NONE
) -> Program:
    """Lower iterations one after the other. Embeddings, the first norm and the language head are not simulated.

    repaired: faults that the program is to be without. The tokens that Q15 counts too many are those of `iterations`.
    Raises UserError where ONNXim stops: tiles that do not fit, or memory of hw.dram.size_gib (0: no limit) exceeded.
    """
    return _LanguageEmitter(model, hw, repaired).emit(iterations)


class _LanguageEmitter:
    def __init__(self, model: LanguageModel, hw: HwConfig, repaired: Repairs) -> None:
        self._model, self._hw, self._repaired = model, hw, repaired
        # Gated models are those with RMS norms and without biases.
        self._biases = not (model.gated and Fault.Q15 in repaired)
        self._layers = LayerEmitter(model.name, hw, MappingTable(hw, repaired=repaired))
        self._space = AddressSpace()
        self._weight_elements = 0
        self._weights = [self._place_weights() for _ in range(model.simulated_layers)]
        self._head_elements = model.hidden * model.vocabulary
        self._place(self._head_elements)
        self._caches: dict[int, list[tuple[int, int]]] = {}
        self._projected = 0

    def emit(self, iterations: Sequence[Iteration]) -> Program:
        """All iterations as one program."""
        for index, iteration in enumerate(iterations):
            self._admit(iteration)
            self._check_memory(iteration)
            if index or iteration.launch_cycle:
                self._layers.builder.launch(iteration.launch_cycle)
            self._iterate(iteration)
        return self._layers.builder.build(self._layers.warnings)

    def _place(self, *shape: int) -> int:
        elements = self._hw.precision_bytes
        for size in shape:
            elements *= size
        return self._space.allocate(elements)

    def _place_weights(self) -> _Weights:
        model = self._model
        hidden, expanded = model.hidden, model.feed_forward_features
        reduced = model.intermediate // model.tensor_parallel
        norm = [(hidden,), (hidden,)]
        shapes = [
            *norm, (hidden, model.qkv_features), (model.qkv_features,), (model.attention_features, hidden), (hidden,),
            *norm, (hidden, expanded), (expanded,), (reduced, hidden), (hidden,),
        ]  # fmt: skip
        self._weight_elements = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)
        places = [self._place(*shape) for shape in shapes]
        return _Weights((places[0], places[1]), (places[6], places[7]), *places[2:6], *places[8:12])

    def _admit(self, iteration: Iteration) -> None:
        size = self._model.max_tokens, self._model.cache_features
        for request in iteration.admitted:
            self._caches[request] = [
                (self._place(*size), self._place(*size)) for _ in range(self._model.simulated_layers)
            ]

    def _check_memory(self, iteration: Iteration) -> None:
        model, limit = self._model, self._hw.dram.size_gib
        cached = sum(part.context for part in iteration.parts) * 2 * model.cache_features * model.layers
        widest = max(model.qkv_features, model.feed_forward_features)
        activations = widest * sum(part.new for part in iteration.parts)
        elements = self._weight_elements * model.layers + self._head_elements + cached + activations
        needed = elements * self._hw.precision_bytes / 2**30
        if limit and needed > limit:
            raise UserError(
                f"language model {model.name}: {needed:.1f} GiB of weights, caches and activations exceed "
                f"dram.size_gib = {limit}"
            )

    def _iterate(self, iteration: Iteration) -> None:
        tokens = sum(part.new for part in iteration.parts)
        x = self._place(tokens, self._model.hidden)
        for layer, weights in enumerate(self._weights):
            attended = self._attention_block(iteration, layer, weights, x, tokens)
            x = self._feed_forward_block(layer, weights, attended, tokens)

    def _attention_block(self, iteration: Iteration, layer: int, weights: _Weights, x: int, tokens: int) -> int:
        """Returns the address of the normalised result, [tokens, hidden]."""
        model, prefix = self._model, f"layer{layer}.attn"
        hidden, attended = model.hidden, model.attention_features
        sizes = tokens, hidden, model.qkv_features
        self._projected = self._gemm(f"{prefix}.QKVgen", sizes, x, weights.qkv, weights.qkv_bias)
        queries = [self._place(part.new, hidden) for part in iteration.parts]
        # Appending to the caches is free (Q12), but takes a tile for every half scratchpad of projections.
        half = self._hw.core(0).spad_kib * 1024 // 2
        projected_bytes = tokens * model.qkv_features * self._hw.precision_bytes
        if Fault.Q12 in self._repaired:
            self._append(f"{prefix}.KVccat", iteration, layer, projected_bytes)
        else:
            self._layers.free(f"{prefix}.KVccat", "KVCacheConcat", -(-projected_bytes // half))
        results = [
            self._attention(f"{prefix}.Attention.{position}", part, query, layer)
            for position, (part, query) in enumerate(zip(iteration.parts, queries, strict=True))
        ]
        joined = self._place(tokens, attended)
        if Fault.Q12 in self._repaired:
            n_bytes = tokens * attended * self._hw.precision_bytes
            self._layers.priced(FreeLayer(f"{prefix}.Atccat", "Concat", ((results[0], n_bytes),), (joined, n_bytes)))
        else:
            self._layers.free(f"{prefix}.Atccat", "Concat", 1)
        y = self._gemm(
            f"{prefix}.proj", (tokens, attended, hidden), joined, weights.projection, weights.projection_bias
        )
        return self._norm(f"{prefix}.ln", tokens, x, y, weights.attention_norm)

    def _append(self, name: str, iteration: Iteration, layer: int, projected_bytes: int) -> None:
        """Queries, keys and values leave the projection for their places; one store stands for all of them."""
        cache = self._caches[iteration.parts[0].request][layer][0]
        ends = cache, projected_bytes
        self._layers.priced(FreeLayer(name, "KVCacheConcat", ((self._projected, projected_bytes),), ends))

    def _feed_forward_block(self, layer: int, weights: _Weights, x: int, tokens: int) -> int:
        """Returns the address of the normalised result, [tokens, hidden]."""
        model, prefix = self._model, f"layer{layer}.ffn"
        hidden, expanded = model.hidden, model.feed_forward_features
        reduced = expanded // 2 if model.gated else expanded
        inner = self._gemm(f"{prefix}.fc1", (tokens, hidden, expanded), x, weights.expand, None)
        activated = self._place(tokens, reduced)
        emit_bias_activation(
            self._layers.builder,
            self._hw,
            Tokens(
                f"{prefix}.act", 1, tokens, expanded, inner, weights.expand_bias if self._biases else None, activated
            ),
            ACTIVATIONS[model.activation],
            "BiasAct",
            self._layers.start(),
            balanced=True,
            gated=model.gated,
            repaired=self._repaired,
        )
        y = self._gemm(f"{prefix}.fc2", (tokens, reduced, hidden), activated, weights.reduce, weights.reduce_bias)
        return self._norm(f"{prefix}.ln", tokens, x, y, weights.feed_forward_norm)

    def _gemm(self, name: str, sizes: tuple[int, int, int], x: int, w: int, bias: int | None) -> int:
        """sizes: rows, depth, columns. Returns the address of the result."""
        n, k, m = sizes
        gemm = Gemm(n=n, m=m, k=k, x=x, w=w, y=self._place(n, m), bias=bias if self._biases else None)
        self._layers.gemm(name, "Gemm", gemm)
        return gemm.y

    def _norm(self, name: str, tokens: int, x: int, other: int, weights: tuple[int, int]) -> int:
        constants = weights if self._biases else weights[:1]
        y = self._place(tokens, self._model.hidden)
        rows = Tokens(name, 1, tokens, self._model.hidden, x, other, y, constants)
        place = self._layers.start()
        emit_skip_layer_norm(self._layers.builder, self._hw, rows, "SkipLayerNormalization", place, self._repaired)
        return rows.y

    def _attention(self, name: str, part: Part, query: int, layer: int) -> int:
        """Returns the address of the result."""
        model = self._model
        keys, values = self._caches[part.request][layer]
        attention = RequestAttention(
            name=name,
            queries=part.new,
            keys=part.context + part.new,
            heads=model.heads // model.tensor_parallel,
            kv_heads=model.kv_heads // model.tensor_parallel,
            width=model.hidden // model.heads,
            q=query,
            k=keys,
            v=values,
            y=self._place(part.new, model.attention_features),
        )
        self._layers.start()
        emit_request_attention(
            self._layers.builder, self._hw, attention, "Attention", self._layers.rotated, self._repaired
        )
        return attention.y
