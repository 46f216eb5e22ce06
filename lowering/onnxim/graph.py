"""An ONNX graph as ONNXim sees it: tensors with DRAM addresses, and layers in the order in which they start.

Addresses follow `onnxim.md` section 3: initializers in file order, then graph inputs (16 times their size), then
the outputs of every node in file order. Layers follow section 9.2: a first-in-first-out list of the layers whose
inputs exist.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx

from hwconfigs.errors import UserError
from lowering.address_space import AddressSpace

INPUT_SIZE_FACTOR = 16


@dataclass(frozen=True)
class Tensor:
    """Shape in elements, address in bytes."""

    shape: tuple[int, ...]
    address: int


@dataclass(frozen=True)
class Layer:
    """One node. inputs, outputs: tensor names without the empty ones."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axis: int = 1
    """Of Flatten: the first axis that goes into the second dimension."""


@dataclass(frozen=True)
class Graph:
    """Layers in starting order, and all tensors by name."""

    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]


GEMM_OPS = frozenset({"Gemm", "FusedGemm"})
MATMUL_OPS = frozenset({"MatMul"})
UNCOVERED_OPS = frozenset(
    {
        "Conv", "FusedConv", "MaxPool", "GlobalAveragePool", "AveragePool", "AdaptiveAveragePool",
        "Attention", "EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu", "FastGelu",
    }
)  # fmt: skip
"""Nodes that ONNXim models (not merely passes through) and this lowering does not."""


def read_graph(model: onnx.ModelProto, precision_bytes: int, batch: int, dims: Mapping[str, int]) -> Graph:
    """Place the tensors of `model` in DRAM and order its layers.

    dims: sizes of symbolic dimensions by name; a symbolic first dimension that it lacks is `batch`.
    Raises UserError for an open dimension, an operator outside the covered set or a malformed graph.
    """
    space = AddressSpace()
    tensors: dict[str, Tensor] = {}

    def place(name: str, shape: tuple[int, ...], factor: int = 1) -> None:
        tensors[name] = Tensor(shape, space.allocate(prod(shape) * precision_bytes * factor))

    for initializer in model.graph.initializer:
        place(initializer.name, tuple(initializer.dims))
    existing = set(tensors)
    for value in model.graph.input:
        if value.name not in existing:
            place(value.name, _input_shape(value, batch, dims), INPUT_SIZE_FACTOR)
    existing = set(tensors)
    layers = [_layer(index, node) for index, node in enumerate(model.graph.node)]
    for layer in layers:
        shape = _output_shape(layer, tensors)
        for output in layer.outputs:
            place(output, shape)
    return Graph(_starting_order(layers, existing), tensors)


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
    name = node.name or f"{node.op_type}_{index}"
    if node.op_type in UNCOVERED_OPS:
        raise UserError(f"node {name}: --compat onnxim does not cover operator {node.op_type}")
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    return Layer(name, node.op_type, tuple(filter(None, node.input)), tuple(filter(None, node.output)), axis)


def _output_shape(layer: Layer, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    for name in layer.inputs:
        if name not in tensors:
            raise UserError(f"node {layer.name} ({layer.op}): input {name} is not produced by an earlier node")
    if not layer.inputs:
        raise UserError(f"node {layer.name}: --compat onnxim does not cover {layer.op} without inputs")
    first = tensors[layer.inputs[0]].shape
    if layer.op == "Flatten":
        return (prod(first[: layer.axis]), prod(first[layer.axis :]))
    if layer.op not in GEMM_OPS | MATMUL_OPS:
        return first
    weight = tensors[layer.inputs[1]].shape
    if len(weight) != 2 or len(first) not in (2, 3):
        raise UserError(
            f"node {layer.name} ({layer.op}): --compat onnxim multiplies [N,K] or [B,S,K] by a matrix, "
            f"not {list(first)} by {list(weight)}"
        )
    depth = first[-1]
    if depth not in weight:
        raise UserError(f"node {layer.name} ({layer.op}): shapes {list(first)} and {list(weight)} do not match")
    columns = weight[1] if weight[0] == depth and layer.op in MATMUL_OPS else prod(weight) // depth
    return (*first[:-1], columns)


def _starting_order(layers: list[Layer], existing: set[str]) -> tuple[Layer, ...]:
    """Order in which layers become the head of the list of executable ones."""
    done = set(existing)
    queue = deque(layer for layer in layers if done.issuperset(layer.inputs))
    queued = set(queue)
    order: list[Layer] = []
    while queue:
        layer = queue.popleft()
        order.append(layer)
        done.update(layer.outputs)
        for other in layers:
            if other not in queued and done.issuperset(other.inputs) and set(layer.outputs) & set(other.inputs):
                queue.append(other)
                queued.add(other)
    return tuple(order)
