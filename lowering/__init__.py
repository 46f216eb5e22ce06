"""Workload -> program: reading ONNX, fusing, mapping, tiling, and writing fixed-shape instruction tables."""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from pathlib import Path

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.chip import Chip
from lowering.llm.configs import is_config
from lowering.llm.lower import lower_config
from lowering.mapping import Mapping, MappingError, parse_mapping
from lowering.mapping_table import MappingTable
from lowering.models import LoadedModel, ModelError, light_models, load_model, resolve
from lowering.network import UnsupportedError, lower_graph
from lowering.onnx_reader import read_graph
from lowering.parts import Forced, MappingChooser
from lowering.program import LayerInfo, Program
from lowering.training.lower import lower_training
from lowering.training.options import TrainingOptions

__all__ = [
    "LayerInfo",
    "LoadedModel",
    "Mapping",
    "MappingError",
    "MappingTable",
    "ModelError",
    "Program",
    "TrainingOptions",
    "UnsupportedError",
    "light_models",
    "load_model",
    "lower",
    "parse_mapping",
    "read_graph",
]


def lower(
    model: LoadedModel | Path | str,
    hw: HwConfig,
    *,
    batch: int = 1,
    dims: MappingOf[str, int] | None = None,
    compat: str | None = None,
    skip_unknown: bool = False,
    mapping: Mapping | MappingChooser | str | None = None,
    training: TrainingOptions | None = None,
) -> Program:
    """Turn a model into the program of one chip.

    model: a loaded model, a path, or `onnx:NAME`. batch, dims: sizes of open dimensions (see `read_graph`).
    A path ending in .json is a description of a language model; for its dims see `lowering.llm.lower`.
    compat: "onnxim" lowers as ONNXim does, faults included; None is the corrected default.
    skip_unknown: leave operators that are not modelled out, with a warning in the program.
    mapping: inner tile sizes for every matrix layer, an ONNXim mapping line, or a `MappingTable`; the last alone with
    `compat`, where it stands for the mapping file beside the model.
    training: lower one training iteration of an ONNX model (default mode); None: inference.
    Raises UserError subclasses: ModelError, UnsupportedError, MappingError.
    """
    forced = parse_mapping(mapping) if isinstance(mapping, str) else mapping
    chooser = Forced(forced) if isinstance(forced, Mapping) else forced
    if compat is None and isinstance(model, str | Path) and is_config(model):
        options = {"skip_unknown": skip_unknown, "mapping": chooser}
        return lower_config(resolve(model), hw, batch=batch, dims=dims or {}, options=options)
    if compat is not None and isinstance(model, str | Path) and is_config(model):
        raise UserError(
            f"model {model}: --compat {compat} runs language models by a trace of requests: "
            "vsim run --language MODEL.json --trace TRACE.csv"
        )
    if compat is not None and training is not None:
        raise UserError(f"--compat {compat} does not train: leave out --train, or --compat")
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    if compat == "onnxim":
        from lowering.onnxim import lower_onnxim
        from lowering.onnxim.tiling import tile_table

        if mapping is not None and not isinstance(mapping, MappingTable):
            raise UserError("--compat onnxim takes the lines of a mapping file, as ONNXim does, not one tile for all")
        tiles = None if mapping is None else tile_table(mapping.entries)
        try:
            return lower_onnxim(loaded.path, hw, batch=batch, dims=dims or {}, tiles=tiles)
        except UserError as error:
            raise type(error)(f"model {loaded.path}: {error}") from error
    if compat is not None:
        raise UserError(f"--compat {compat}: unknown mode; valid: onnxim")
    graph = read_graph(loaded, batch, dims)
    try:
        if training is not None:
            return lower_training(graph, Chip.of(hw), training, mapping=chooser)
        return lower_graph(graph, Chip.of(hw), skip_unknown=skip_unknown, mapping=chooser)
    except UserError as error:
        raise type(error)(f"model {loaded.path}: {error}") from error
