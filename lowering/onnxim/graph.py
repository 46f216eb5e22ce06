"""An ONNX graph as ONNXim sees it: tensors with DRAM addresses, and layers in the order in which they start.

Addresses follow `onnxim.md` section 3: initializers in file order, then graph inputs (16 times their size), then
the outputs of every node in file order. Layers follow section 9.2: a first-in-first-out list of the layers whose
inputs exist. Shapes follow section 11: of images, the last dimension is the channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import onnx

from hwconfigs.errors import UserError
from lowering.address_space import AddressSpace
from lowering.onnxim.shapes import SINGLE_RESULT_OPS, output_shape

INPUT_SIZE_FACTOR = 16
PROJECTION = "QkvProjection"
"""Operator of the matrix product that the original inserts before every Attention."""


@dataclass(frozen=True)
class Tensor:
    """Shape in elements, address in bytes."""

    shape: tuple[int, ...]
    address: int


@dataclass(frozen=True)
class Layer:
    """One node. inputs, outputs: tensor names without the empty ones; arity: number of inputs, empty ones included."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arity: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def ints(self, name: str, default: Iterable[int]) -> tuple[int, ...]:
        """A list attribute."""
        return tuple(int(value) for value in self.attributes.get(name, default))


@dataclass(frozen=True)
class Graph:
    """Layers in starting order, and all tensors by name.

    consumers: of every layer, the positions of those that read its results, in the order in which they start when
    nothing else keeps them waiting.
    """

    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]
    consumers: tuple[tuple[int, ...], ...]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def address(self, name: str) -> int:
        """Address of a tensor in bytes."""
        return self.tensors[name].address


class GraphReader:
    """Places the tensors of a model, for one launch after the other: nothing is ever freed, weights are placed once.

    space: where they are placed; None: memory of its own.
    """

    def __init__(self, model: onnx.ModelProto, precision_bytes: int, space: AddressSpace | None = None) -> None:
        self._model, self._precision_bytes = model, precision_bytes
        self._space = AddressSpace() if space is None else space
        self._weights: dict[str, Tensor] = {}
        for initializer in model.graph.initializer:
            self._place(self._weights, initializer.name, tuple(initializer.dims))

    def launch(self, batch: int, dims: Mapping[str, int]) -> Graph:
        """The graph with its inputs and results in fresh places.

        dims: sizes of symbolic dimensions by name; a symbolic first dimension that it lacks is `batch`.
        Raises UserError for an open dimension, a malformed graph, or a shape that the original does not take.
        """
        tensors = dict(self._weights)
        inputs = [value for value in self._model.graph.input if value.name not in self._weights]
        for value in inputs:
            shape = _input_shape(value, batch, dims)
            if len(self._model.graph.input) == 1 and len(shape) == 4 and shape[2] == shape[3]:
                shape = (shape[0], shape[2], shape[3], shape[1])
            self._place(tensors, value.name, shape, INPUT_SIZE_FACTOR)
        existing = set(tensors)
        layers = [_layer(index, node) for index, node in enumerate(self._model.graph.node)]
        for layer in layers:
            shapes = [tensors[name].shape for name in _known(layer, tensors)]
            shape = output_shape(layer.name, layer.op, layer.attributes, shapes)
            for output in layer.outputs:
                self._place(tensors, output, shape)
        layers = self._with_projections(layers, tensors)
        consumers = _consumers(layers)
        order = _starting_order(layers, existing, consumers)
        position = {layer: index for index, layer in enumerate(order)}
        waiting = tuple(tuple(position[other] for other in consumers[layer] if other in position) for layer in order)
        return Graph(order, tensors, waiting)

    def _place(self, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], factor: int = 1) -> None:
        tensors[name] = Tensor(shape, self._space.allocate(prod(shape) * self._precision_bytes * factor))

    def _with_projections(self, layers: list[Layer], tensors: dict[str, Tensor]) -> list[Layer]:
        """Every Attention waits for a hidden matrix product, whose node and three results come after all others."""
        waiting, projections = [], []
        for layer in layers:
            if layer.op != "Attention":
                waiting.append(layer)
                continue
            batch, tokens, _ = tensors[layer.inputs[0]].shape
            third = tensors[layer.inputs[1]].shape[1] // 3
            results = tuple(f"{layer.name}/{part}" for part in ("key", "query", "value"))
            for result in results:
                self._place(tensors, result, (batch, tokens, third))
            projections.append(Layer(f"{layer.name}/projection", PROJECTION, layer.inputs[:3], results))
            waiting.append(replace(layer, inputs=(*layer.inputs, *results)))
        return [*waiting, *projections]


def _input_shape(value: onnx.ValueInfoProto, batch: int, dims: Mapping[str, int]) -> tuple[int, ...]:
    shape: list[int] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value"):
            shape.append(dim.dim_value)
        elif dim.dim_param in dims:
            shape.append(dims[dim.dim_param])
        elif axis == 0:
            shape.append(batch)
        else:
            label = dim.dim_param or f"axis {axis}"
            raise UserError(f"input {value.name}: dimension {label} is open; set it with --dim {label}=SIZE")
    return tuple(shape)


def _layer(index: int, node: onnx.NodeProto) -> Layer:
    outputs = node.output[:1] if node.op_type in SINGLE_RESULT_OPS else node.output
    return Layer(
        name=node.name or f"{node.op_type}_{index}",
        op=node.op_type,
        inputs=tuple(filter(None, node.input)),
        outputs=tuple(filter(None, outputs)),
        arity=len(node.input),
        attributes={item.name: onnx.helper.get_attribute_value(item) for item in node.attribute},
    )


def _known(layer: Layer, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    for name in layer.inputs:
        if name not in tensors:
            raise UserError(f"node {layer.name} ({layer.op}): input {name} is not produced by an earlier node")
    if not layer.inputs:
        raise UserError(
            f"node {layer.name}: --compat onnxim does not cover {layer.op} without inputs; fold constants first, as "
            "ONNX Runtime's optimiser does"
        )
    return layer.inputs


def _consumers(layers: list[Layer]) -> dict[Layer, list[Layer]]:
    """Readers of each layer's results, by result, then in the order of the file."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    of_layer = ((layer, (reader for name in layer.outputs for reader in readers.get(name, ()))) for layer in layers)
    return {layer: list(dict.fromkeys(waiting)) for layer, waiting in of_layer}


def _starting_order(
    layers: list[Layer], existing: set[str], consumers: Mapping[Layer, list[Layer]]
) -> tuple[Layer, ...]:
    """Order in which layers become the head of the list of executable ones, when they run one after the other."""
    done = set(existing)
    queue = deque(layer for layer in layers if done.issuperset(layer.inputs))
    queued = set(queue)
    order: list[Layer] = []
    while queue:
        layer = queue.popleft()
        order.append(layer)
        done.update(layer.outputs)
        for other in consumers[layer]:
            if other not in queued and done.issuperset(other.inputs):
                queue.append(other)
                queued.add(other)
    return tuple(order)
