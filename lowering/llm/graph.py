"""An `Architecture` and an `Inference` as a `Graph` of standard operators, as an exporter would write it.

Tensors are (batch, tokens, features). Names: `layers.N.PART`, so that a report reads like the model's source and the
rows of one decoder layer can be told from the next's. Projections are separate products for query, key, value, gate and
up. Routing of tokens to experts is taken as decided: the lists of rows are inputs of the graph; what the router costs
(product, choice of the best, softmax) is in it.

With tensor parallelism the graph is that of one chip; `AllReduce` and `AllGather` are explicit nodes, see
`lowering.collectives`. Rows of the token table that another chip holds are read from the own share all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lowering.ir import Attribute, Graph, Node, Tensor
from lowering.llm.architecture import Architecture, Experts
from lowering.llm.inference import Inference, TensorParallel, check, expert_tokens, share

OPSET = 24
"""The operator set that defines Attention, RotaryEmbedding, RMSNormalization and Swish."""


HEAD_PREFIX = "lm_head."
"""What the names of a head's blocks begin with where it is cut, before the block's number."""


def build_graph(
    model: Architecture,
    run: Inference,
    parallel: TensorParallel | None = None,
    layers: int | None = None,
    head: HeadBlocks | None = None,
) -> Graph:
    """The graph of one chip.

    layers: how many of the model's layers, the first ones; None: all. head: how many blocks of its vocabulary the head
    is cut into and how many of them, the first ones, are in the graph; None: it is whole. Raises ModelError when the
    model cannot make the pass or cannot be divided.
    """
    check(model, run)
    parallel = parallel or TensorParallel()
    return _Builder(share(model, parallel.degree), model, run, parallel, head).build(layers or model.layers)


@dataclass(frozen=True)
class HeadBlocks:
    """A head cut into `total` equal blocks of the vocabulary, the first `simulated` of them in the graph."""

    simulated: int
    total: int


@dataclass
class _Builder:
    model: Architecture
    whole: Architecture
    run: Inference
    parallel: TensorParallel
    head: HeadBlocks | None
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def build(self, layers: int) -> Graph:
        x = self._embedding()
        rotary = self._rotary_tables() if self.model.rotary else ()
        for number in range(layers):
            x = self._layer(f"layers.{number}", number, x, rotary)
        if self.model.final_norm:
            x = self._norm("norm", x)
        self.outputs[:0] = self._head(x) if self.model.causal else [self._pooler(x)]
        return Graph(self.whole.name, OPSET, tuple(self.inputs), tuple(self.outputs), tuple(self.nodes))

    # -- pieces of a graph

    def _input(self, name: str, *shape: int) -> Tensor:
        self.inputs.append(Tensor(name, shape))
        return self.inputs[-1]

    def _node(
        self, op: str, name: str, shape: tuple[int, ...], *inputs: Tensor | None, **attributes: Attribute
    ) -> Tensor:
        output = Tensor(name, shape)
        self.nodes.append(Node(name, op, inputs, (output,), attributes))
        return output

    def _linear(self, name: str, x: Tensor, columns: int, bias: bool) -> Tensor:
        """A product with a weight, and a bias that folds into it."""
        shape = (*x.shape[:-1], columns)
        y = self._node("MatMul", name, shape, x, _weight(f"{name}.weight", x.shape[-1], columns))
        return self._bias(name, y) if bias else y

    def _bias(self, name: str, x: Tensor) -> Tensor:
        return self._node("Add", f"{name}.biased", x.shape, x, _weight(f"{name}.bias", x.shape[-1]))

    def _sum_over_chips(self, name: str, x: Tensor) -> Tensor:
        return x if self.parallel.degree == 1 else self._collective("AllReduce", name, x.shape, x)

    def _collective(self, op: str, name: str, shape: tuple[int, ...], x: Tensor) -> Tensor:
        return self._node(
            op,
            f"{name}.{op}",
            shape,
            x,
            degree=self.parallel.degree,
            link_bytes_per_cycle=self.parallel.link_bytes_per_cycle,
        )

    def _row_parallel(self, name: str, x: Tensor, residual: Tensor, bias: bool) -> Tensor:
        """A product whose reduction is divided among the chips; the bias and the residual enter behind the sum."""
        y = self._sum_over_chips(name, self._linear(name, x, self.model.hidden, bias=False))
        y = self._bias(name, y) if bias else y
        return self._node("Add", f"{name}.residual", y.shape, y, residual)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        scale = _weight(f"{name}.weight", x.shape[-1])
        if self.model.norm == "rms":
            return self._node("RMSNormalization", name, x.shape, x, scale, axis=-1)
        return self._node("LayerNormalization", name, x.shape, x, scale, _weight(f"{name}.bias", x.shape[-1]), axis=-1)

    # -- before and after the layers

    def _embedding(self) -> Tensor:
        model, run = self.model, self.run
        ids = (run.batch, run.new_tokens)
        width = model.embedding or model.hidden
        table = _weight("embed_tokens.weight", model.vocab, width)
        x = self._node("Gather", "embed_tokens", (*ids, width), table, self._input("input_ids", *ids), axis=0)
        x = self._sum_over_chips("embed_tokens", x)
        if model.projects_embedding:
            x = self._linear("project_in", x, model.hidden, bias=False)
        if model.position_rows:
            x = self._add_table("embed_positions", model.position_rows, self._input("position_ids", *ids), x)
        if model.token_types:
            x = self._add_table("embed_types", model.token_types, self._input("token_type_ids", *ids), x)
        return x if model.causal else self._norm("embed_norm", x)

    def _add_table(self, name: str, rows: int, ids: Tensor, x: Tensor) -> Tensor:
        table = _weight(f"{name}.weight", rows, self.model.hidden)
        y = self._node("Gather", name, x.shape, table, ids, axis=0)
        return self._node("Add", f"{name}.sum", x.shape, x, y)

    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines at the positions of the pass: computed before it, so inputs."""
        shape = (self.run.batch, self.run.new_tokens, self.model.head_dim // 2)
        return self._input("rotary.cos", *shape), self._input("rotary.sin", *shape)

    def _row_of_each_sequence(self, name: str, x: Tensor) -> Tensor:
        """One token's features of each sequence: (batch, hidden)."""
        shape = (x.shape[0], x.shape[2])
        if x.shape[1] == 1:
            return self._node("Squeeze", name, shape, x, Tensor(f"{name}.axes", (1,), constant=True, values=(1.0,)))
        return self._node("Gather", name, shape, x, self._input(f"{name}.index"), axis=1)

    def _head(self, x: Tensor) -> list[Tensor]:
        x = self._row_of_each_sequence("last_token", x)
        model = self.model
        if model.projects_embedding:
            x = self._linear("project_out", x, model.embedding, bias=False)
        name = "embed_tokens.weight" if model.tied_head else "lm_head.weight"
        if self.head is not None:
            columns = model.vocab // self.head.total
            return [
                self._logits(f"{HEAD_PREFIX}{number}", x, f"{name}.{number}", columns)
                for number in range(self.head.simulated)
            ]
        y = self._logits("lm_head", x, name, model.vocab)
        if self.parallel.degree == 1:
            return [y]
        return [self._collective("AllGather", "lm_head", (self.run.batch, model.vocab * self.parallel.degree), y)]

    def _logits(self, name: str, x: Tensor, weight: str, columns: int) -> Tensor:
        return self._node("Gemm", name, (self.run.batch, columns), x, _weight(weight, columns, x.shape[-1]), transB=1)

    def _pooler(self, x: Tensor) -> Tensor:
        y = self._linear("pooler", self._row_of_each_sequence("first_token", x), self.model.hidden, bias=True)
        return self._node("Tanh", "pooler.tanh", y.shape, y)

    # -- a layer

    def _layer(self, name: str, number: int, x: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        model = self.model
        inner = self._norm(f"{name}.attention.norm", x) if model.norm_first else x
        x = self._attention(f"{name}.attention", inner, x, rotary)
        if not model.norm_first:
            x = self._norm(f"{name}.attention.norm", x)
        inner = self._norm(f"{name}.mlp.norm", x) if model.norm_first else x
        experts = model.experts_of(number)
        if experts is None:
            hidden = self._gated(f"{name}.mlp", inner, model.ffn, model.mlp_bias)
            x = self._row_parallel(f"{name}.mlp.down", hidden, x, model.mlp_bias)
        else:
            x = self._mixture(f"{name}.moe", inner, x, number, experts)
        return x if model.norm_first else self._norm(f"{name}.mlp.norm", x)

    def _attention(self, name: str, x: Tensor, residual: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        model, run = self.model, self.run
        q = self._heads(f"{name}.q", x, model.heads, rotary, norm=model.qk_norm)
        k = self._heads(f"{name}.k", x, model.kv_heads, rotary, norm=model.qk_norm)
        v = self._heads(f"{name}.v", x, model.kv_heads, (), norm=False)
        past: tuple[Tensor | None, ...] = ()
        if run.cached_tokens:
            cached = (run.batch, model.kv_heads, run.cached_tokens, model.head_dim)
            past = (None, self._input(f"{name}.past_key", *cached), self._input(f"{name}.past_value", *cached))
        outputs = [Tensor(name, q.shape)]
        if model.causal:
            length = run.cached_tokens + run.new_tokens
            present = (run.batch, model.kv_heads, length, model.head_dim)
            outputs += [Tensor(f"{name}.present_key", present), Tensor(f"{name}.present_value", present)]
            self.outputs += outputs[1:]
        attributes: dict[str, Attribute] = {
            "q_num_heads": model.heads,
            "kv_num_heads": model.kv_heads,
            "is_causal": int(model.causal),
            "window": model.window or 0,
        }
        self.nodes.append(Node(name, "Attention", (q, k, v, *past), tuple(outputs), attributes))
        return self._row_parallel(f"{name}.out", outputs[0], residual, model.out_bias)

    def _heads(self, name: str, x: Tensor, heads: int, rotary: tuple[Tensor, ...], norm: bool) -> Tensor:
        """The projection of one of query, key and value, its head norm and its rotation."""
        y = self._linear(name, x, heads * self.model.head_dim, self.model.qkv_bias)
        if norm:
            flat, split = y.shape, (*y.shape[:2], heads, self.model.head_dim)
            y = self._node("Reshape", f"{name}.split", split, y, _shape(f"{name}.split", split))
            y = self._norm(f"{name}.norm", y)
            y = self._node("Reshape", f"{name}.merged", flat, y, _shape(f"{name}.merged", flat))
        if rotary:
            y = self._node("RotaryEmbedding", f"{name}.rotary", y.shape, y, *rotary, num_heads=heads)
        return y

    def _gated(self, name: str, x: Tensor, inner: int, bias: bool) -> Tensor:
        """The first half of a feed-forward part: one product and its activation, or two that meet in a product."""
        model = self.model
        up = self._linear(f"{name}.up", x, inner, bias)
        if not model.gated:
            return self._activation(f"{name}.activation", up)
        gate = self._activation(f"{name}.activation", self._linear(f"{name}.gate", x, inner, bias))
        return self._node("Mul", f"{name}.gated", gate.shape, gate, up)

    def _activation(self, name: str, x: Tensor) -> Tensor:
        activation = self.model.activation
        attributes: dict[str, Attribute] = {"approximate": activation.approximate} if activation.op == "Gelu" else {}
        return self._node(activation.op, name, x.shape, x, **attributes)

    # -- experts

    def _mixture(self, name: str, x: Tensor, residual: Tensor, number: int, experts: Experts) -> Tensor:
        tokens, wide = self.run.tokens, self.model.hidden
        x = self._node("Reshape", f"{name}.tokens", (tokens, wide), x, _shape(f"{name}.tokens", (tokens, wide)))
        weights = self._router(name, x, experts)
        results = [
            self._expert(f"{name}.expert{index}", x, count, experts.ffn)
            for index, count in enumerate(expert_tokens(self.model, number, tokens))
        ]
        y = self._combine(name, results, weights)
        if experts.shared_ffn:
            y = self._node("Add", f"{name}.with_shared", y.shape, y, self._shared_expert(name, x, experts))
        y = self._sum_over_chips(name, y)
        y = self._node("Reshape", f"{name}.sequences", residual.shape, y, _shape(f"{name}.sequences", residual.shape))
        return self._node("Add", f"{name}.residual", y.shape, y, residual)

    def _router(self, name: str, x: Tensor, experts: Experts) -> Tensor:
        """The weights of the chosen experts, (tokens, per_token, 1)."""
        scores = self._linear(f"{name}.router", x, experts.count, bias=False)
        best = (x.shape[0], experts.per_token)
        count = Tensor(f"{name}.top.k", (1,), constant=True, values=(float(experts.per_token),))
        outputs = (Tensor(f"{name}.top", best), Tensor(f"{name}.top.indices", best))
        self.nodes.append(Node(f"{name}.top", "TopK", (scores, count), outputs, {"axis": -1}))
        weights = self._node("Softmax", f"{name}.weights", best, outputs[0], axis=-1)
        axes = Tensor(f"{name}.columns.axes", (1,), constant=True, values=(2.0,))
        return self._node("Unsqueeze", f"{name}.columns", (*best, 1), weights, axes)

    def _expert(self, name: str, x: Tensor, tokens: int, inner: int) -> Tensor:
        """One expert over its tokens, which are gathered from all."""
        own = self._node(
            "Gather", f"{name}.rows", (tokens, x.shape[1]), x, self._input(f"{name}.index", tokens), axis=0
        )
        return self._linear(f"{name}.down", self._gated(name, own, inner, bias=False), self.model.hidden, bias=False)

    def _shared_expert(self, name: str, x: Tensor, experts: Experts) -> Tensor:
        hidden = self._gated(f"{name}.shared", x, experts.shared_ffn, bias=False)
        y = self._linear(f"{name}.shared.down", hidden, self.model.hidden, bias=False)
        gate = self._linear(f"{name}.shared.router", x, 1, bias=False)
        gate = self._node("Sigmoid", f"{name}.shared.sigmoid", gate.shape, gate)
        return self._node("Mul", f"{name}.shared.scaled", y.shape, y, gate)

    def _combine(self, name: str, results: list[Tensor], weights: Tensor) -> Tensor:
        """The experts' results in the order of the tokens, weighted and added up: (tokens, hidden)."""
        tokens, each, _ = weights.shape
        wide = self.model.hidden
        rows = self._node("Concat", f"{name}.results", (tokens * each, wide), *results, axis=0)
        order = self._input(f"{name}.order", tokens, each)
        sorted_rows = self._node("Gather", f"{name}.sorted", (tokens, each, wide), rows, order, axis=0)
        weighted = self._node("Mul", f"{name}.weighted", sorted_rows.shape, sorted_rows, weights)
        axes = Tensor(f"{name}.sum.axes", (1,), constant=True, values=(1.0,))
        return self._node("ReduceSum", f"{name}.sum", (tokens, wide), weighted, axes, keepdims=0)


def _weight(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, constant=True)


def _shape(name: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(f"{name}.shape", (len(shape),), constant=True, values=tuple(float(size) for size in shape))
