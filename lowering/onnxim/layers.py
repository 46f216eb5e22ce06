"""From the layers of a graph to instructions: which rule lowers which operator, and which core gets which tile."""

from __future__ import annotations

from math import prod

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.emit import ProgramBuilder
from lowering.onnxim.attention import Attention, emit_attention
from lowering.onnxim.conv import Conv, emit_conv
from lowering.onnxim.faults import Fault
from lowering.onnxim.free_layers import VIEWS, FreeLayer, emit_free_layer
from lowering.onnxim.gemm import Gemm, emit_gemm
from lowering.onnxim.graph import PROJECTION, Graph, Layer
from lowering.onnxim.mapping_table import MappingTable
from lowering.onnxim.shapes import CONV_OPS, GEMM_OPS, MATMUL_OPS, ROW_OPS
from lowering.onnxim.tiling import Loops
from lowering.onnxim.token_rows import PlaceTile, Tokens, emit_bias_activation, emit_skip_layer_norm
from lowering.program import LayerInfo

FREE_TILES = {"MaxPool": 2}
"""Tiles without work of a layer that costs nothing; 1 where not listed (section 4.6)."""
PROJECTION_REPEATS = 2
"""The projection of an Attention is tiled twice, and executed twice (Q6)."""
_REDUCE_ROWS = frozenset({"EmbedLayerNormalization", "LayerNormalization", "Softmax"})
_LOOK_UP = frozenset({"EmbedLayerNormalization", "Gather"})


class LayerEmitter:
    """Appends the layers of one model after the other to a program. hw.noc, hw.dram: not looked at.

    What is repaired is said by the table of mappings. lists: lists of tiles a layer; None: one for every core.
    """

    def __init__(self, name: str, hw: HwConfig, mappings: MappingTable, lists: int | None = None) -> None:
        self.hw, self.mappings, self.repaired = hw, mappings, mappings.repaired
        self.builder = ProgramBuilder(name, lists or hw.cores.count, hw.dram.request_bytes)
        self.warnings: list[str] = []
        self._started, self._unbound = 0, 0

    def emit_graph(self, graph: Graph) -> None:
        """Append all layers in their starting order. Raises UserError for what the original cannot run."""
        for layer in graph.layers:
            self._emit(graph, layer)

    def _emit(self, graph: Graph, layer: Layer) -> None:
        if layer.op in GEMM_OPS | MATMUL_OPS | {PROJECTION}:
            twice = layer.op == PROJECTION and Fault.Q6 not in self.repaired
            repeats = PROJECTION_REPEATS if twice else 1
            self.gemm(layer.name, layer.op, _gemm(graph, layer), repeats=repeats)
        elif layer.op in CONV_OPS:
            self._conv(graph, layer)
        elif layer.op == "Attention":
            attention = _attention(graph, layer, whole_past=Fault.Q6 in self.repaired)
            emit_attention(self.builder, self.hw, attention, layer.op, self.start(), self.repaired)
        elif layer.op == "SkipLayerNormalization":
            rows = _tokens(graph, layer)
            emit_skip_layer_norm(self.builder, self.hw, rows, layer.op, self.start(), self.repaired)
        elif layer.op in ROW_OPS:
            emit_bias_activation(self.builder, self.hw, _tokens(graph, layer), "gelu", layer.op, self.start())
        elif Fault.Q12 in self.repaired and layer.op not in VIEWS:
            self.priced(_free_layer(graph, layer, self.hw.precision_bytes))
        else:
            self.free(layer.name, layer.op, FREE_TILES.get(layer.op, 1))

    def start(self) -> PlaceTile:
        """Count a layer. Returns what places its tiles if they are not bound to a core: in turn, over all layers."""
        self._started += 1
        return self._place

    def _place(self) -> int:
        self._unbound += 1
        return (self._unbound - 1) % self.hw.cores.count

    def rotated(self, index: int) -> int:
        """The core of the `index`-th output tile: tiles rotate by one core a layer and never move (section 9.2)."""
        return (index + self._started) % self.hw.cores.count

    def free(self, name: str, op: str, tiles: int) -> None:
        """Append a layer of tiles without work."""
        place = self.start()
        self.builder.begin_layer(LayerInfo(name, op, notes=("free, as in the original",)))
        for _ in range(tiles):
            self.builder.skip_tile(place())
        self.builder.end_layer()

    def priced(self, layer: FreeLayer) -> None:
        """Append a layer that costs nothing in the original, at its cost (Q12 repaired)."""
        emit_free_layer(self.builder, self.hw, layer, self.start())

    def gemm(self, name: str, op: str, gemm: Gemm, *, repeats: int = 1) -> None:
        """Append a matrix product; repeats: see `emit_gemm`."""
        self.start()
        mapping = self.mappings.gemm(gemm.n, gemm.m, gemm.k)
        self._warn(name, op, gemm.n, gemm.m, gemm.k)
        emit_gemm(self.builder, self.hw, gemm, mapping, name, op, self.rotated, repeats=repeats, repaired=self.repaired)

    def _conv(self, graph: Graph, layer: Layer) -> None:
        self.start()
        if self.hw.onnxim is not None and self.hw.onnxim.layout != "NHWC":
            raise UserError(f"node {layer.name}: --compat onnxim covers convolutions in layout NHWC only")
        image, weight, result = (graph.shape(name) for name in (*layer.inputs[:2], layer.outputs[0]))
        extents = Loops(n=image[0], c=weight[1], m=weight[0], s=weight[2], r=weight[3], q=result[1], p=result[2])
        stride, dilation = layer.ints("strides", (1, 1)), layer.ints("dilations", (1, 1))
        pads = layer.ints("pads", (0, 0, 0, 0))
        # Empty inputs are gone, so that only the shape tells a bias from a residual.
        others = {len(graph.shape(name)): graph.address(name) for name in layer.inputs[2:]}
        conv = Conv(
            name=layer.name,
            extents=extents,
            image=(image[1], image[2], image[3]),
            stride=(stride[0], stride[1]),
            dilation=(dilation[0], dilation[1]),
            x=graph.address(layer.inputs[0]),
            w=graph.address(layer.inputs[1]),
            y=graph.address(layer.outputs[0]),
            pad=(pads[0], pads[1]),
            bias=others.get(1),
            residual=others.get(4),
            activated="activation" in layer.attributes,
        )
        inner = self.mappings.conv(extents, stride[0], pads[0])
        if extents.s == extents.r == extents.q == extents.p == 1:
            self._warn(layer.name, layer.op, extents.n, extents.m, extents.c)
        emit_conv(self.builder, self.hw, conv, inner, layer.op, self.rotated, self.repaired)

    def _warn(self, name: str, op: str, n: int, m: int, k: int) -> None:
        """Say, once for a node, that the original does not come past a matrix product of these sizes (Q3)."""
        tile = self.mappings.gemm(n, m, k)
        warning = (
            f"node {name} ({op}): ONNXim divides by zero while it cuts N:{n} C:{k} M:{m} into tiles and stops "
            f"(onnxim.md Q3); simulated with tiles of at least one block, N:{tile.n} C:{tile.k} M:{tile.m}"
        )
        if tile.forced and warning not in self.warnings:
            self.warnings.append(warning)


def _gemm(graph: Graph, layer: Layer) -> Gemm:
    operands = [graph.address(name) for name in layer.inputs]
    result = graph.shape(layer.outputs[0])
    return Gemm(
        n=prod(result[:-1]),
        # A projection has three results, and computes them as one.
        m=graph.shape(layer.inputs[1])[1] if layer.op == PROJECTION else result[-1],
        k=graph.shape(layer.inputs[0])[-1],
        x=operands[0],
        w=operands[1],
        y=graph.address(layer.outputs[0]),
        # A Gemm without bias loads one all the same, from address 0 (section 11).
        bias=None if layer.op in MATMUL_OPS else operands[2] if len(operands) > 2 else 0,
    )


def _attention(graph: Graph, layer: Layer, *, whole_past: bool) -> Attention:
    """whole_past: the keys are all of the cache and all new ones, not one new one."""
    batch, queries, _ = graph.shape(layer.inputs[0])
    features = graph.shape(layer.inputs[1])[0]
    heads = layer.attributes["num_heads"]
    cache = graph.shape(layer.inputs[4]) if layer.arity == 5 else (0, 0, 0, 0, 0)
    if len(cache) != 5:
        raise UserError(f"node {layer.name}: ONNXim finds no cache behind a mask that is left out; give it a mask")
    past = cache[3]
    q, k, v = (graph.address(name) for name in layer.inputs[:3])
    return Attention(
        name=layer.name,
        batch=batch,
        heads=heads,
        width=features // heads,
        queries=queries,
        keys=past + (queries if whole_past else 1) if past else queries,
        q=q,
        k=k,
        v=v,
        y=graph.address(layer.outputs[0]),
        # The last three inputs are the results of the projection, which are one matrix.
        projections=graph.address(layer.inputs[-3]),
        past=graph.address(layer.inputs[4]) if past else None,
    )


def _tokens(graph: Graph, layer: Layer) -> Tokens:
    batch, tokens, features = graph.shape(layer.inputs[0])
    x, other, y = (graph.address(name) for name in (*layer.inputs[:2], layer.outputs[0]))
    return Tokens(layer.name, batch, tokens, features, x, other, y, tuple(map(graph.address, layer.inputs[2:])))


def _free_layer(graph: Graph, layer: Layer, element_bytes: int) -> FreeLayer:
    """Operands and result as the original sizes them: an unknown operator's result is as large as its first input."""
    shape = graph.shape(layer.outputs[0])
    size = prod(shape) * element_bytes
    sources = [(graph.address(name), prod(graph.shape(name)) * element_bytes) for name in layer.inputs]
    sources = [source for source in sources if source[1]]
    if layer.op == "Concat":
        size = sum(n_bytes for _, n_bytes in sources)
        sources = [(sources[0][0], size)]
    if layer.op in _LOOK_UP:
        sources = [(base, min(n_bytes, size)) for base, n_bytes in sources]
    image = graph.shape(layer.inputs[0])
    window = {
        "GlobalAveragePool": prod(image[1:3]),
        **dict.fromkeys(("MaxPool", "AveragePool", "AdaptiveAveragePool"), prod(layer.ints("kernel_shape", (1,)))),
    }.get(layer.op, 1)
    row_bytes = shape[-1] * element_bytes if layer.op in _REDUCE_ROWS else 0
    target = graph.address(layer.outputs[0]), size
    return FreeLayer(layer.name, layer.op, tuple(sources), target, window, row_bytes)
