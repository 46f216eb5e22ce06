"""Models of one operator, in memory, with weights that have no data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lowering import LoadedModel

Operand = Sequence[int] | np.ndarray | tuple[str, Sequence[int]] | None
"""A shape (a computed float tensor), an array (a constant with values), ("weight", shape), ("int", shape), None."""


def one_node(
    op: str, *operands: Operand, outputs: int = 1, domain: str = "", opset: int = 23, **attributes: object
) -> LoadedModel:
    """A graph of one node whose outputs are all the graph's."""
    names: list[str] = []
    inputs: list[onnx.ValueInfoProto] = []
    constants: list[TensorProto] = []
    for index, operand in enumerate(operands):
        name = f"in{index}" if operand is not None else ""
        names.append(name)
        if isinstance(operand, np.ndarray):
            constants.append(numpy_helper.from_array(operand, name))
        elif isinstance(operand, tuple) and operand and operand[0] == "weight":
            constants.append(_weight(name, operand[1]))
        elif isinstance(operand, tuple) and operand and isinstance(operand[0], str):
            kinds = {"int": TensorProto.INT64, "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8}
            inputs.append(helper.make_tensor_value_info(name, kinds[operand[0]], operand[1]))
        elif operand is not None:
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, operand))
    results = [f"out{index}" for index in range(outputs)]
    node = helper.make_node(op, names, results, name="the_node", domain=domain, **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    graph = helper.make_graph([node], "one", inputs, values, constants)
    for value in graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return loaded(graph, opset)


def loaded(graph: onnx.GraphProto, opset: int = 23) -> LoadedModel:
    """A graph as a loaded model."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return LoadedModel("one", Path("one.onnx"), helper.make_model(graph, opset_imports=imports), opset)


def _weight(name: str, shape: Sequence[int]) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "absent.bin"
    return tensor
