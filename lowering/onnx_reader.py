"""ONNX file -> `Graph` with static shapes.

The maintained libraries do the work: onnxscript folds constants and shape arithmetic, onnx infers shapes. Weights
take no part in it: every initializer that is large, or whose data lie in a file that may be missing, becomes a
typed input before folding, so nothing of the size of a weight is ever read, created or multiplied.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants_ir

from hwconfigs.errors import nearest
from lowering import contrib_schemas
from lowering.control_flow import unroll
from lowering.ir import Attribute, Graph, Node, Tensor
from lowering.models import LoadedModel, ModelError
from lowering.nchwc import plain_layout
from lowering.patterns import recognise
from lowering.validation import check_sizes, check_structure

_FOLD_ELEMENTS = 1024
"""Constants up to this many elements take part in folding: shapes, axes, scalars. Larger ones are weights."""

_INTEGERS = frozenset(
    {
        *(TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.UINT64, TensorProto.UINT32),
        *(TensorProto.UINT16, TensorProto.BOOL),
    }
)
"""Element types of indices, shapes and masks. 8-bit integers are quantised activations."""

_GENERATORS = frozenset({"ConstantOfShape", "RandomNormal", "RandomUniform", "EyeLike"})
"""Constant nodes whose result is a tensor of its own: graphs without weights write their weights so."""

_FOLD_ROUNDS = 2
"""The second round folds what the first one's shape inference made constant."""


def read_graph(
    model: LoadedModel, batch: int = 1, dims: Mapping[str, int] | None = None, *, patterns: bool = True
) -> Graph:
    """The model's graph with every dimension fixed.

    batch: size of the first dimension of every input where the model leaves it open, or was exported with 1.
    dims: sizes of open dimensions by their name in the file; an unnamed one is called `input.axis`.
    patterns: whether decomposed attention, normalisations and activations are recognised (`lowering.patterns`).
    Raises ModelError: an open dimension, an unknown name in `dims`, a graph whose shapes contradict each other.
    """
    if batch < 1:
        raise ModelError(f"--batch {batch}: must be at least 1")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    contrib_schemas.register()
    plain_layout(proto)
    weights = {item.name for item in proto.graph.initializer}
    inputs = [item for item in proto.graph.input if item.name not in weights]
    _fix_dimensions(model, inputs, batch, dims or {})
    if batch > 1:
        _rebatch_reshapes(proto, batch)
    _hide_weights(proto)
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    check_structure(model, proto)
    folded = _fold(model, proto)
    if unroll(folded, model.path):
        folded = _fold(model, folded)
    proto = _infer(model, folded)
    if patterns:
        proto = _recognise(model, proto)
    return _build(model, proto, weights, {item.name for item in inputs})


# -- dimensions


def _fix_dimensions(model: LoadedModel, inputs: list[ValueInfoProto], batch: int, dims: Mapping[str, int]) -> None:
    """Write `batch` and `dims` into the shapes of the graph's inputs, in place."""
    names: set[str] = set()
    open_dims: list[str] = []
    batched = False
    for item in inputs:
        if not item.type.tensor_type.HasField("shape"):
            raise ModelError(f"model {model.path}: input {item.name} has no shape; vsim needs its rank")
        for axis, dim in enumerate(item.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                if axis == 0 and dim.dim_value == 1:
                    dim.dim_value, batched = batch, True
                continue
            name = dim.dim_param if dim.dim_param.strip("?") else f"{item.name}.{axis}"
            names.add(name)
            batched = batched or (axis == 0 and name not in dims)
            size = dims.get(name, batch if axis == 0 else 0)
            if size < 0 or (name in dims and size == 0):
                raise ModelError(f"--dim {name}={size}: must be at least 1")
            if size == 0:
                open_dims.append(f"dimension {axis} of input {item.name} is open; set it with --dim {name}=SIZE")
            dim.ClearField("dim_param")
            dim.dim_value = size
    for name in dims:
        if name not in names:
            known = nearest(name, sorted(names)) if names else " (it has no open dimension)"
            raise ModelError(f"--dim {name}: model {model.path} has no open dimension of that name{known}")
    if open_dims:
        raise ModelError(f"model {model.path}: {'; '.join(dict.fromkeys(open_dims))}")
    if batch > 1 and not batched:
        shapes = "; ".join(f"{item.name} {list(_shape(item) or ())}" for item in inputs)
        raise ModelError(
            f"--batch {batch}: no input of model {model.path} has a first dimension that is open or 1 ({shapes}); "
            "export it with an open batch dimension"
        )


def _rebatch_reshapes(proto: onnx.ModelProto, batch: int) -> None:
    """Rewrite the constant target shapes of Reshape from a batch of 1 to `batch`, in place.

    Graphs exported for one image write `[1, 9216]` into their Reshape; element counts are checked after inference.
    """
    targets = {node.input[1] for node in proto.graph.node if node.op_type == "Reshape" and len(node.input) > 1}
    tensors = [item for item in proto.graph.initializer if item.name in targets]
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output[0] in targets:
            tensors.extend(attribute.t for attribute in node.attribute if attribute.name == "value")
    for tensor in tensors:
        shape = numpy_helper.to_array(tensor).copy()
        if shape.size > 1 and shape[0] == 1:
            shape[0] = batch
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


# -- weights, folding, inference


def _hide_weights(proto: onnx.ModelProto) -> None:
    """Turn initializers that are large, stored elsewhere or without values into typed inputs, in place."""
    listed = {item.name for item in proto.graph.input}
    kept: list[TensorProto] = []
    for item in proto.graph.initializer:
        filled = item.data_type == TensorProto.STRING or _is_number(item)
        if item.data_location != TensorProto.EXTERNAL and filled and math.prod(item.dims) <= _FOLD_ELEMENTS:
            kept.append(item)
        elif item.name not in listed:
            proto.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _may_fold(node: onnx_ir.Node) -> bool | None:
    """Fold ConstantOfShape (kept by default) when it is small; everything else by the library's own rules."""
    if node.op_type != "ConstantOfShape" or node.inputs[0] is None or node.inputs[0].const_value is None:
        return None
    return int(np.prod(node.inputs[0].const_value.numpy())) <= _FOLD_ELEMENTS


def _fold(model: LoadedModel, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inline functions, fold constants and shape arithmetic, drop what is then unused."""
    prepare = onnx_ir.passes.Sequential(InlinePass(), RemoveInitializersFromInputsPass(), IdentityEliminationPass())
    remove_unused = RemoveUnusedNodesPass()
    logger = logging.getLogger("onnxscript.optimizer")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a node that cannot be folded stays, which is no news to the user
    try:
        graph = prepare(onnx_ir.serde.deserialize_model(proto)).model
        for _ in range(_FOLD_ROUNDS):
            fold_constants_ir(
                graph,
                onnx_shape_inference=True,
                input_size_limit=_FOLD_ELEMENTS,
                output_size_limit=_FOLD_ELEMENTS,
                should_fold=_may_fold,
            )
            graph = remove_unused(graph).model
        return onnx_ir.serde.serialize_model(graph)
    except Exception as error:
        raise ModelError(f"model {model.path}: constants cannot be folded: {_reason(error)}") from error
    finally:
        logger.setLevel(level)


def _infer(model: LoadedModel, proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True, strict_mode=True)
    except Exception as error:
        raise ModelError(f"model {model.path}: shapes cannot be inferred: {_reason(error)}") from error


def _recognise(model: LoadedModel, proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return recognise(proto)
    except Exception as error:
        raise ModelError(f"model {model.path}: patterns cannot be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: the libraries wrap the useful sentence several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


# -- the graph


def _build(model: LoadedModel, proto: onnx.ModelProto, weights: set[str], inputs: set[str]) -> Graph:
    graph = proto.graph
    shapes = {item.name: _shape(item) for item in (*graph.input, *graph.output, *graph.value_info)}
    integers = {
        item.name
        for item in (*graph.input, *graph.output, *graph.value_info)
        if item.type.tensor_type.elem_type in _INTEGERS
    }
    tensors: dict[str, Tensor] = {}
    for item in graph.initializer:
        tensors[item.name] = _constant(item.name, item)
    for item in graph.input:
        if item.name not in tensors:
            tensors[item.name] = Tensor(
                item.name, shapes[item.name] or (), constant=item.name in weights, integer=item.name in integers
            )
    nodes: list[Node] = []
    for proto_node in graph.node:
        value = next((item.t for item in proto_node.attribute if item.name == "value" and item.HasField("t")), None)
        if proto_node.op_type == "Constant" and value is not None:
            tensors[proto_node.output[0]] = _constant(proto_node.output[0], value)
            continue
        node = _node(model, proto_node, tensors, shapes, integers)
        tensors.update({output.name: output for output in node.outputs})
        if not node.outputs[0].constant:
            _check_reshape(model, node)
            nodes.append(node)
    check_sizes(model, nodes)
    return Graph(
        name=model.name,
        opset=model.opset,
        inputs=tuple(tensors[item.name] for item in graph.input if item.name in inputs),
        outputs=tuple(tensors[item.name] for item in graph.output if item.name in tensors),
        nodes=tuple(nodes),
    )


def _node(
    model: LoadedModel,
    proto: onnx.NodeProto,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...] | None],
    integers: AbstractSet[str],
) -> Node:
    name = proto.name or proto.output[0]
    missing = [item for item in proto.input if item and item not in tensors]
    if missing:
        raise ModelError(
            f"model {model.path}: node {name} ({proto.op_type}) reads {missing[0]}, which nothing computes"
        )
    inputs = tuple(tensors[item] if item else None for item in proto.input)
    constant = all(item is None or item.constant for item in inputs)
    leaves = _leaves(inputs) if constant and proto.op_type not in _GENERATORS else ()
    outputs: list[Tensor] = []
    for output in proto.output:
        shape = shapes.get(output)
        if shape is None and output and not constant:
            raise ModelError(
                f"model {model.path}: the shape of {output}, computed by node {name} ({proto.op_type}), "
                "cannot be inferred before running the model"
            )
        integer = output in integers
        outputs.append(Tensor(output, shape or (), constant=constant, integer=integer, leaves=leaves))
    attributes = {item.name: _attribute(item) for item in proto.attribute}
    return Node(
        name,
        proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}",
        inputs,
        tuple(outputs),
        {key: value for key, value in attributes.items() if value is not None},
    )


def _leaves(inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The constants of the file that a constant node takes its values from; shapes and indices only if no others."""
    found = {leaf.name: leaf for item in inputs if item is not None for leaf in (item.leaves or (item,))}
    return tuple(leaf for leaf in found.values() if not leaf.integer) or tuple(found.values())


def _check_reshape(model: LoadedModel, node: Node) -> None:
    if node.op == "Reshape" and node.input(0).elements != node.outputs[0].elements:
        raise ModelError(
            f"model {model.path}: node {node.name} (Reshape) cannot turn {node.input(0).shape} into "
            f"{node.outputs[0].shape}; the model was exported for another batch or input size"
        )


def _constant(name: str, item: TensorProto) -> Tensor:
    """A constant; its values are kept when they are few, in the file, and numbers."""
    shape = tuple(item.dims)
    integer = item.data_type in _INTEGERS
    if math.prod(shape) > _FOLD_ELEMENTS or not _is_number(item):
        return Tensor(name, shape, constant=True, integer=integer)
    values = tuple(float(x) for x in numpy_helper.to_array(item).ravel().tolist())
    return Tensor(name, shape, constant=True, values=values, integer=integer)


def _shape(item: ValueInfoProto) -> tuple[int, ...] | None:
    """Static shape; None when the rank or a dimension is unknown."""
    if not item.type.tensor_type.HasField("shape"):
        return None
    dims = item.type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _is_number(item: TensorProto) -> bool:
    """Whether the file itself holds numbers for the tensor; graphs without weights keep only its shape."""
    if item.data_type in (TensorProto.STRING, TensorProto.UNDEFINED) or item.external_data:
        return False
    typed = (item.float_data, item.double_data, item.int32_data, item.int64_data, item.uint64_data)
    return bool(item.raw_data) or any(len(values) for values in typed) or 0 in item.dims


def _attribute(item: onnx.AttributeProto) -> Attribute | None:
    """Numbers, strings and lists of numbers; graphs and tensors are of no use to lowering."""
    value = helper.get_attribute_value(item)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple) or hasattr(value, "__len__"):
        items = list(value)
        if all(isinstance(x, int) for x in items):
            return tuple(items)
        if all(isinstance(x, int | float) for x in items):
            return tuple(float(x) for x in items)
        if all(isinstance(x, bytes) for x in items):
            return tuple(x.decode(errors="replace") for x in items)
    return None
