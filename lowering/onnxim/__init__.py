"""Lowering as ONNXim does it, faults included: the front end of `--compat onnxim`.

It covers single requests on ONNXim's `simple` scheduler. The rules and the names of the quirks are those of
`onnxim.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from hwconfigs.schema import HwConfig
from lowering.models import LoadedModel, load_model
from lowering.onnxim.graph import GraphReader
from lowering.onnxim.layers import LayerEmitter
from lowering.onnxim.mapping_table import MappingTable
from lowering.onnxim.tiling import read_mapping_file
from lowering.program import Program


def lower_onnxim(
    model: LoadedModel | onnx.ModelProto | Path | str,
    hw: HwConfig,
    *,
    batch: int = 1,
    dims: Mapping[str, int] | None = None,
) -> Program:
    """Lower `model` for `hw` exactly as ONNXim (its `simple` scheduler) would execute it.

    model: a loaded model, an ONNX graph in memory (named by its graph), a path, or `onnx:NAME`. A mapping file
    (`tiling.read_mapping_file`) of the model's name with suffix .mapping beside it is used.
    batch: size of a symbolic first dimension; dims: sizes of symbolic dimensions by name.
    Raises UserError for a file that is not ONNX, shapes and operators that ONNXim cannot run, an open dimension, a
    mapping file that cannot be used, or a tile that cannot fit.
    """
    given = {}
    if isinstance(model, onnx.ModelProto):
        name, proto = model.graph.name, model
    else:
        loaded = model if isinstance(model, LoadedModel) else load_model(model)
        name, proto = loaded.name, loaded.proto
        mapping_file = loaded.path.with_suffix(".mapping")
        given = read_mapping_file(mapping_file) if mapping_file.is_file() else {}
    emitter = LayerEmitter(name, hw, MappingTable(hw, given))
    emitter.emit_graph(GraphReader(proto, hw.precision_bytes).launch(batch, dims or {}))
    return emitter.builder.build()
