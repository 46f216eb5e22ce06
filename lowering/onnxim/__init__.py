"""Lowering as ONNXim does it, faults included: the front end of `--compat onnxim`.

Here are single requests on ONNXim's `simple` scheduler; `lowering.onnxim.mix` has several at once. The rules and the
names of the quirks are those of `onnxim.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.models import LoadedModel, load_model
from lowering.onnxim.faults import NONE, Repairs
from lowering.onnxim.graph import GraphReader
from lowering.onnxim.layers import LayerEmitter
from lowering.onnxim.mapping_table import MappingTable
from lowering.onnxim.tiling import Loops, read_mapping_file
from lowering.program import Program


def lower_onnxim(
    model: LoadedModel | onnx.ModelProto | Path | str,
    hw: HwConfig,
    *,
    batch: int = 1,
    tiles: Mapping[Loops, Loops] | None = None,
    dims: Mapping[str, int] | None = None,
    repaired: Repairs = NONE,
) -> Program:
    """Lower `model` for `hw` exactly as ONNXim (its `simple` scheduler) would execute it.

    model: a loaded model, an ONNX graph in memory (named by its graph), a path, or `onnx:NAME`. A mapping file
    (`tiling.read_mapping_file`) of the model's name with suffix .mapping beside it is used, unless `tiles` is given.
    batch: size of a symbolic first dimension; dims: sizes of symbolic dimensions by name. With `output_seq_len` among
    them the graph is launched again, token by token, until `total_seq_len` comes to it (`onnxim.md` section 9.3).
    repaired: faults that the program is to be without (`lowering.onnxim.faults`).
    Where the original divides by zero (`onnxim.md` Q3), a warning of the program names the node and the tile taken.
    Raises UserError for a file that is not ONNX, shapes and operators that ONNXim cannot run, an open dimension, a
    mapping file that cannot be used, or a tile that cannot fit.
    """
    given = tiles or {}
    if isinstance(model, onnx.ModelProto):
        name, proto = model.graph.name, model
    else:
        loaded = model if isinstance(model, LoadedModel) else load_model(model)
        name, proto = loaded.name, loaded.proto
        mapping_file = loaded.path.with_suffix(".mapping")
        if tiles is None and mapping_file.is_file():
            given = read_mapping_file(mapping_file)
    emitter = LayerEmitter(name, hw, MappingTable(hw, given, repaired))
    reader = GraphReader(proto, hw.precision_bytes)
    for index, sizes in enumerate(_launches({"batch_size": batch, **(dims or {})})):
        if index:
            emitter.builder.launch()
        emitter.emit_graph(reader.launch(batch, sizes))
    return emitter.builder.build(emitter.warnings)


def _launches(sizes: dict[str, int]) -> Iterator[dict[str, int]]:
    """Sizes of the symbolic dimensions of every launch: the prompt, then one token after the other."""
    yield sizes
    lengths = ("seq_len", "past_seq_len", "total_seq_len", "output_seq_len")
    if "output_seq_len" not in sizes:
        return
    missing = [name for name in lengths if name not in sizes]
    if missing:
        raise UserError(f"dimension output_seq_len needs {', '.join(missing)} too; set them with --dim")
    sequence, past, total, end = (sizes[name] for name in lengths)
    for done in range(total + 1, end):
        past = past + 1 if past else sequence
        yield sizes | {"seq_len": 1, "past_seq_len": past, "total_seq_len": done}
