"""ONNXim's list of models: what `--models_list` of the original reads, with the graphs that its entries name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import onnx
from pydantic import BaseModel, ConfigDict, Field

from hwconfigs.errors import UserError, nearest
from hwconfigs.validation import build, within
from hwconfigs.yaml_file import Document, read_document
from lowering.models import load_model
from lowering.onnxim.mix import Request
from lowering.onnxim.tiling import read_mapping_file

USUAL_DIMS = ("sequence_length", "seq_len", "past_seq_len", "total_seq_len", "output_seq_len")
"""Dimensions that lists made for ONNXim give for every model, whether its graph has them or not."""


class _Entry(BaseModel):
    """One request. Keys beyond these are sizes of symbolic dimensions."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str, Field(pattern=r"^[^/\\]+$", strict=True)]
    request_time: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    """Milliseconds."""
    partition_id: Annotated[int, within(0, 1023)] = 0
    batch_size: Annotated[int, within(1, 1 << 20)] = 1
    nr_atten: Annotated[int, within(-1, 1 << 20)] = -1
    """Attention blocks after which the graph is cut off; -1: none."""


class _List(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[tuple[_Entry, ...], Field(min_length=1)]


def read_models_list(path: Path, folder: Path) -> list[Request]:
    """Read a model list: an object whose `models` are the entries, or just the entries.

    The graph of an entry is folder/name/name.onnx; folder/name/name.mapping gives tile sizes if it exists.
    Raises UserError (file and key) for a list of another form, keys that are neither known nor dimensions of the graph,
    a graph that is missing, and graphs that are to be cut off, which vsim does not cover.
    """
    document = read_document(path)
    if isinstance(document.data, list):
        document = Document(path, {"models": document.data})
    listed = build(_List, document.data, document.where)
    models: dict[str, onnx.ModelProto] = {}
    requests = []
    for position, entry in enumerate(listed.models):
        graph = folder / entry.name / f"{entry.name}.onnx"
        if entry.name not in models:
            models[entry.name] = load_model(graph).proto
        mapping = graph.with_suffix(".mapping")
        requests.append(
            Request(
                name=entry.name,
                model=models[entry.name],
                request_time_ms=entry.request_time,
                partition=entry.partition_id,
                batch=entry.batch_size,
                dims=_dims(entry, models[entry.name], f"{document.where()}: models.{position}"),
                given=read_mapping_file(mapping) if mapping.is_file() else {},
            )
        )
    return requests


def _dims(entry: _Entry, model: onnx.ModelProto, where: str) -> dict[str, int]:
    """Sizes of dimensions by name: those that the graph has."""
    symbolic = {
        dim.dim_param
        for value in model.graph.input
        for dim in value.type.tensor_type.shape.dim
        if dim.HasField("dim_param")
    }
    if entry.nr_atten >= 0:
        raise UserError(f"{where}.nr_atten = {entry.nr_atten}: graphs are not cut off; expected -1")
    extra: dict[str, Any] = entry.model_extra or {}
    for key, size in extra.items():
        if key not in symbolic and key not in USUAL_DIMS:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, {*_Entry.model_fields, *symbolic})}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise UserError(f"{where}.{key} = {size!r}: expected a whole number, the size of a dimension")
    # The original launches a graph again, token by token, if it has a dimension of this name.
    again = {"output_seq_len"} if "total_seq_len" in symbolic else set()
    return {key: size for key, size in extra.items() if key in symbolic | again}
