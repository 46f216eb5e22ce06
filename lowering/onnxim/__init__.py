"""Lowering as ONNXim does it, faults included: the front end of `--compat onnxim`.

It covers single requests of graphs made of MatMul, Gemm and the operators that ONNXim passes through at no cost.
The rules and the names of the quirks are those of `onnxim.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx

from hwconfigs.schema import HwConfig
from lowering.emit import ProgramBuilder
from lowering.models import LoadedModel, load_model
from lowering.onnxim.gemm import Gemm, emit_gemm
from lowering.onnxim.graph import GEMM_OPS, MATMUL_OPS, Graph, Layer, read_graph
from lowering.program import LayerInfo, Program


def lower_onnxim(
    model: LoadedModel | onnx.ModelProto | Path | str,
    hw: HwConfig,
    *,
    batch: int = 1,
    dims: Mapping[str, int] | None = None,
) -> Program:
    """Lower `model` for `hw` exactly as ONNXim (its `simple` scheduler) would execute it.

    model: a loaded model, an ONNX graph in memory (named by its graph), a path, or `onnx:NAME`.
    batch: size of a symbolic first dimension; dims: sizes of symbolic dimensions by name.
    Raises UserError for a file that is not ONNX, an operator outside the covered set, an open dimension, or a tile
    that cannot fit.
    """
    if isinstance(model, onnx.ModelProto):
        name, proto = model.graph.name, model
    else:
        loaded = model if isinstance(model, LoadedModel) else load_model(model)
        name, proto = loaded.name, loaded.proto
    graph = read_graph(proto, hw.precision_bytes, batch, dims or {})
    builder = ProgramBuilder(name, hw.cores.count, hw.dram.request_bytes)
    unplaced_tiles = 0
    for started, layer in enumerate(graph.layers, start=1):
        if layer.op in GEMM_OPS | MATMUL_OPS:
            # Tiles rotate by one core a layer; nothing balances or steals afterwards (section 9.2).
            gemm = _gemm(graph, layer)
            emit_gemm(builder, hw, gemm, layer.name, layer.op, lambda i, s=started: (i + s) % hw.cores.count)
        else:
            builder.begin_layer(LayerInfo(layer.name, layer.op, notes=("free, as in the original",)))
            builder.skip_tile(unplaced_tiles % hw.cores.count)
            builder.end_layer()
            unplaced_tiles += 1
    return builder.build()


def _gemm(graph: Graph, layer: Layer) -> Gemm:
    operands = [graph.tensors[name] for name in layer.inputs]
    output = graph.tensors[layer.outputs[0]]
    bias = None
    if layer.op in GEMM_OPS:
        # A Gemm without bias loads one all the same, from address 0 (section 11).
        bias = operands[2].address if len(operands) > 2 else 0
    return Gemm(
        n=prod(output.shape[:-1]),
        m=output.shape[-1],
        k=operands[0].shape[-1],
        x=operands[0].address,
        w=operands[1].address,
        y=output.address,
        bias=bias,
    )
