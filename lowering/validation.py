"""What a graph must be to be read: complete, ordered, with sizes that fit together. One clear error otherwise."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import defs

from lowering.ir import Node
from lowering.models import LoadedModel, ModelError


def check_structure(model: LoadedModel, proto: onnx.ModelProto) -> None:
    """Names, order, and operators as their definitions want them. Raises ModelError naming file and node.

    `proto` has no large initializers: they are inputs.
    """
    newest = defs.onnx_opset_version()
    if model.opset > newest:
        raise ModelError(
            f"model {model.path}: operator set {model.opset}, the installed onnx package knows up to {newest}; "
            "upgrade onnx or export the model for an older one"
        )
    _check_names(model, proto.graph)
    # The checker wants every output to have a shape; which one does not matter.
    bare = [item for item in proto.graph.output if not item.type.tensor_type.HasField("shape")]
    for item in bare:
        item.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # ValidationError, and what the bindings make of malformed protos
        message = " ".join(str(error).split())
        raise ModelError(f"model {model.path}: {message}") from error
    for item in bare:
        item.type.tensor_type.ClearField("shape")


def _check_names(model: LoadedModel, graph: onnx.GraphProto) -> None:
    """Every value is computed once, before it is used."""
    known = {item.name for item in (*graph.input, *graph.initializer)}
    later = {output: node for node in graph.node for output in node.output}
    names: set[str] = set()
    for node in graph.node:
        name = node.name or (node.output[0] if node.output else "")
        where = f"model {model.path}: node {name or 'without a name'} ({node.op_type})"
        if not any(node.output):
            raise ModelError(f"{where} has no result")
        if node.name and node.name in names:
            raise ModelError(f"{where}: there is another node of this name; names must be distinct")
        names.add(node.name)
        for item in node.input:
            if item and item not in known:
                if item in later:
                    raise ModelError(
                        f"{where} reads {item}, which is computed later: the graph has a cycle or is unsorted"
                    )
                raise ModelError(f"{where} reads {item}, which nothing computes")
        for item in filter(None, node.output):
            if item in known:
                raise ModelError(f"{where} computes {item}, which is there already")
            known.add(item)
    for item in graph.output:
        if item.name not in known:
            raise ModelError(f"model {model.path}: nothing computes the graph's output {item.name}")


def check_sizes(model: LoadedModel, nodes: Iterable[Node]) -> None:
    """Sizes that ONNX's shape inference does not look at. Raises ModelError naming file and node."""
    for node in nodes:
        where = f"model {model.path}: node {node.name} ({node.op})"
        tensors = [tensor for tensor in (*node.inputs, *node.outputs) if tensor is not None and tensor.name]
        for tensor in tensors:
            if 0 in tensor.shape and not (tensor.constant and tensor in node.inputs):
                raise ModelError(f"{where}: {tensor.name} has shape {tensor.shape}, with a dimension of size zero")
        problem = _problem(node)
        if problem:
            raise ModelError(f"{where}: {problem}")


def _problem(node: Node) -> str:
    """What does not fit together; empty when all does."""
    if node.op in ("Conv", "ConvTranspose", "ConvInteger", "FusedConv", "com.microsoft.FusedConv"):
        x, w, groups = node.input(0).shape, node.input(1).shape, node.int("group", 1)
        if len(x) != len(w) or groups < 1:
            return f"input {x} and weights {w} in {groups} groups do not fit"
        wanted = w[0] if node.op == "ConvTranspose" else w[1] * groups
        if x[1] != wanted or w[0] % groups:
            return f"input {x} has {x[1]} channels, weights {w} in {groups} groups take {wanted}"
        strides, dilations = node.ints("strides", (1,)), node.ints("dilations", (1,))
        if min(strides, default=1) < 1 or min(dilations, default=1) < 1:
            return f"strides {strides} and dilations {dilations} must be positive"
        return ""
    if node.op in ("LSTM", "GRU", "RNN"):
        x, w, r = (node.input(index).shape for index in range(3))
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op]
        fits = len(x) == len(w) == len(r) == 3 and x[2] == w[2] and w[0] == r[0] and w[1] == r[1] == gates * r[2]
        return "" if fits else f"input {x}, weights {w} and recurrent weights {r} do not fit"
    return ""
