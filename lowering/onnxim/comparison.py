"""One workload as ONNXim lowers it and as the default mode does, and which of their layers belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import onnx

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.canonical import canonical
from lowering.chip import Chip
from lowering.fusion import fuse
from lowering.llm.lower import LAYER_PREFIX, lower_config
from lowering.models import LoadedModel
from lowering.network import lower_graph
from lowering.onnx_reader import read_graph
from lowering.onnxim import lower_onnxim
from lowering.onnxim.faults import Fault, Repairs
from lowering.onnxim.language import Iteration, Part, lower_language, read_language_model
from lowering.program import Program
from lowering.simplify import simplify


@dataclass(frozen=True)
class Row:
    """A line of a comparison. original, default: indices of the layers that it stands for, possibly none."""

    name: str
    original: tuple[int, ...]
    default: tuple[int, ...]


class Comparison(Protocol):
    """A workload that both modes can lower."""

    def original(self, hw: HwConfig, repaired: Repairs) -> Program:
        """As ONNXim does, without some of its faults. Raises UserError for what it cannot run."""
        ...

    def default(self, hw: HwConfig) -> Program:
        """As the default mode does. Raises UserError."""
        ...

    def rows(self, original: Program, default: Program) -> list[Row]:
        """Every layer of both programs in exactly one row, in the order of the original."""
        ...


class OnnxComparison:
    """An ONNX graph, launched once."""

    def __init__(self, model: LoadedModel, batch: int = 1, dims: Mapping[str, int] | None = None) -> None:
        """dims: as ONNXim takes them: sizes of symbolic dimensions, 0 for the length of an empty cache.

        Raises UserError for a model that generates (output_seq_len).
        """
        self._model, self._batch, self._dims = model, batch, dict(dims or {})
        if "output_seq_len" in self._dims:
            raise UserError("--dim output_seq_len: a comparison is of one launch of the graph; leave it out")
        self._carriers: dict[str, str] = {}

    def original(self, hw: HwConfig, repaired: Repairs) -> Program:
        """See `Comparison`."""
        return lower_onnxim(self._model, hw, batch=self._batch, dims=self._dims, repaired=repaired)

    def default(self, hw: HwConfig) -> Program:
        """See `Comparison`."""
        model = _without_empty_inputs(self._model, self._dims)
        names = {dim.dim_param for item in model.proto.graph.input for dim in item.type.tensor_type.shape.dim}
        dims = {"batch_size": self._batch, **self._dims}
        graph = read_graph(model, self._batch, {name: size for name, size in dims.items() if name in names})
        for group in fuse(simplify(canonical(graph))):
            self._carriers |= {_node(step.node.name): _node(group.head.name) for step in group.steps}
        return lower_graph(graph, Chip.of(hw))

    def rows(self, original: Program, default: Program) -> list[Row]:
        """By node; nodes that the default mode fuses are in the row of the node that carries them."""
        own = {layer.name for layer in original.layers}

        def key(name: str) -> str:
            projection = f"{_node(name)}/projection"
            return projection if projection in own and name != _node(name) else _node(name)

        carried = [self._carriers.get(layer.name, layer.name) for layer in original.layers]
        return _rows(carried, [key(layer.name) for layer in default.layers])


class LanguageComparison:
    """A pass of a language model that ONNXim's JSON describes: `batch` equal requests, one iteration.

    prompt: new tokens of each; context: tokens in the cache before them. Embeddings, last norm and head are not run.
    """

    def __init__(self, path: Path, batch: int = 1, *, prompt: int = 1, context: int = 0) -> None:
        """Raises UserError for a file that is not ONNXim's."""
        self._path, self._batch, self._prompt, self._context = path, batch, prompt, context
        self._model = read_language_model(path)

    def original(self, hw: HwConfig, repaired: Repairs) -> Program:
        """See `Comparison`."""
        # After a prompt the original counts a token too many.
        counted = self._context + (1 if self._context and Fault.Q15 not in repaired else 0)
        parts = tuple(Part(index, self._prompt, counted) for index in range(self._batch))
        return lower_language(self._model, [Iteration(0, tuple(range(self._batch)), parts)], hw, repaired)

    def default(self, hw: HwConfig) -> Program:
        """See `Comparison`."""
        layers = self._model.simulated_layers
        dims = {"prompt": self._prompt, "context": self._context, "steady_layers": layers}
        program = lower_config(self._path, hw, batch=self._batch, dims=dims)
        end = max(i for i, layer in enumerate(program.layers) if layer.name.startswith(LAYER_PREFIX)) + 1
        releases = program.releases[:end]
        return replace(
            program, schedule=program.schedule[:end], layers=program.layers[:end], releases=releases, repeats=()
        )

    def rows(self, original: Program, default: Program) -> list[Row]:
        """By role; what the original does not have (embeddings) stands by itself."""
        return _rows([_original_role(i.name) for i in original.layers], [_default_role(i.name) for i in default.layers])


def _rows(original: list[str], default: list[str]) -> list[Row]:
    """Layers of a key the original does not have belong to the next one that it has, for which they prepare.

    At the end, and before the first one of a language model, they stand by themselves.
    """
    names = list(dict.fromkeys(original))
    members: dict[str, list[int]] = {name: [] for name in names}
    waiting: list[int] = []
    for index, key in enumerate(default):
        if key in members:
            members[key] += [*waiting, index]
            waiting = []
        elif key.startswith(ALONE):
            members.setdefault(key, []).append(index)
        else:
            waiting.append(index)
    if waiting:
        members[names[-1]] += waiting
    return [
        Row(name.removeprefix(ALONE), tuple(i for i, key in enumerate(original) if key == name), tuple(indices))
        for name, indices in members.items()
    ]


ALONE = "not in ONNXim: "
"""What the key of a layer starts with that the original does not have, and that prepares for none of its layers."""


def _node(name: str) -> str:
    """The node that a layer of the default mode was made for: "node (part)"."""
    return name.partition(" (")[0]


_ROLES = {
    "QKVgen": "attn.QKVgen",
    "KVccat": "attn.Attention",
    "Atccat": "attn.Attention",
    "q": "attn.QKVgen",
    "k": "attn.QKVgen",
    "v": "attn.QKVgen",
    "": "attn.Attention",
    "out": "attn.proj",
    "attention.norm": "attn.ln",
    "mlp.norm": "ffn.ln",
    "act": "ffn.fc1",
    "gate": "ffn.fc1",
    "up": "ffn.fc1",
    "activation": "ffn.fc1",
    "down": "ffn.fc2",
}


def _original_role(name: str) -> str:
    layer, block, part, *_ = name.split(".")
    if part == "Attention":
        return f"{layer}.attn.Attention"
    return f"{layer}.{_ROLES.get(part, f'{block}.{part}')}"


def _default_role(name: str) -> str:
    if not name.startswith(LAYER_PREFIX):
        return ALONE + name
    number, block, *parts = name.removeprefix(LAYER_PREFIX).split(".")
    part = parts[0] if parts else ""
    role = _ROLES.get(f"{block}.norm" if part == "norm" else part)
    return f"layer{number}.{role}" if role is not None else ALONE + name


def _without_empty_inputs(model: LoadedModel, dims: Mapping[str, int]) -> LoadedModel:
    """The model without inputs of length 0, such as the cache of a prompt."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    empty = {
        item.name
        for item in proto.graph.input
        if any(dims.get(dim.dim_param) == 0 for dim in item.type.tensor_type.shape.dim)
    }
    kept = [item for item in proto.graph.input if item.name not in empty]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in empty:
                node.input[index] = ""
    return replace(model, proto=proto)
