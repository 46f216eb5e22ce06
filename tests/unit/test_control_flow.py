"""Loops and conditions that do not depend on the data; quantised graphs around matrix layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwconfigs import load_hw
from lowering import LoadedModel, ModelError, lower, read_graph
from tests.one_node import loaded

SERVER = load_hw("npu-server-128x128x4")


def value(name: str, shape: list[int] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, number: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(number, name)


def loop(trips: TensorProto | None, condition: str = "Identity") -> LoadedModel:
    """`trips` products with one weight; every state is collected."""
    body = helper.make_graph(
        [
            helper.make_node(condition, ["cond"], ["go"], "test"),
            helper.make_node("MatMul", ["state", "weight"], ["next"], "product"),
        ],
        "body",
        [value("trip", [], TensorProto.INT64), value("cond", [], TensorProto.BOOL), value("state", None)],
        [value("go", [], TensorProto.BOOL), value("next", None), value("next", None)],
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["last", "all"], "loop", body=body)
    inputs = [value("x", [8, 64])] + ([] if trips is not None else [value("trips", [], TensorProto.INT64)])
    weights = [constant("weight", np.zeros((64, 64), np.float32))] + ([trips] if trips is not None else [])
    return loaded(helper.make_graph([node], "g", inputs, [value("last", None), value("all", None)], weights))


def test_a_loop_with_constant_trips_is_unrolled() -> None:
    model = loop(constant("trips", np.array(3, np.int64)))
    graph = read_graph(model)
    assert [tensor.shape for tensor in graph.outputs] == [(8, 64), (3, 8, 64)]
    assert graph.parameters == 64 * 64
    program = lower(model, SERVER)
    assert [layer.op for layer in program.layers].count("MatMul") == 3
    assert sum(layer.macs for layer in program.layers) == 3 * 8 * 64 * 64


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: loop(None), "node loop .Loop.: its trip count is not constant"),
        (lambda: loop(constant("trips", np.array(-1, np.int64))), "node loop .Loop.: -1 trips"),
        (lambda: loop(constant("trips", np.array(3, np.int64)), "Not"), "its condition is computed in the loop"),
    ],
)
def test_loops_that_depend_on_data_are_refused(model: object, message: str) -> None:
    assert callable(model)
    with pytest.raises(ModelError, match=message):
        lower(model(), SERVER)


def test_a_constant_condition_takes_one_branch() -> None:
    branches = {
        name: helper.make_graph([helper.make_node(op, ["x"], [name], op)], name, [], [value(name, [8, 64])])
        for name, op in (("then_branch", "Relu"), ("else_branch", "Sigmoid"))
    }
    node = helper.make_node("If", ["yes"], ["y"], "choice", **branches)
    graph = helper.make_graph(
        [node], "g", [value("x", [8, 64])], [value("y", None)], [constant("yes", np.array(False))]
    )
    assert [layer.op for layer in lower(loaded(graph), SERVER).layers] == ["Sigmoid"]


def test_new_elementwise_operators_fuse_with_their_producer() -> None:
    """A chain after a product, with a side branch that meets it again, stays one layer."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["p"], "p"),
        node("Floor", ["p"], ["f"], "f"),
        node("Pow", ["f", "two"], ["q"], "q"),
        node("IsNaN", ["q"], ["nan"], "nan"),
        node("Where", ["nan", "two", "q"], ["y"], "y"),
    ]
    weights = [constant("w", np.zeros((64, 64), np.float32)), constant("two", np.array(2, np.float32))]
    graph = helper.make_graph(nodes, "g", [value("x", [64, 64])], [value("y", None)], weights)
    program = lower(loaded(graph), SERVER)
    assert [layer.op for layer in program.layers] == ["MatMul"]
    assert program.layers[0].notes == ("fused: Floor, Pow, IsNaN, Where",)


def test_quantisation_around_a_product_is_fused() -> None:
    """Quantise, dequantise, multiply by a dequantised weight, quantise: the product's operands are read as they lie."""
    scale = constant("scale", np.array(0.1, np.float32))
    zero = constant("zero", np.array(0, np.int8))
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], "xq"),
        node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], "xd"),
        node("DequantizeLinear", ["w", "scale", "zero"], ["wd"], "wd"),
        node("MatMul", ["xd", "wd"], ["p"], "p"),
        node("QuantizeLinear", ["p", "scale", "zero"], ["y"], "y"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", [64, 64])], [value("y", None, TensorProto.INT8)],
        [scale, zero, constant("w", np.zeros((64, 64), np.int8))],
    )  # fmt: skip
    program = lower(loaded(graph), SERVER)
    assert [layer.op for layer in program.layers] == ["QuantizeLinear", "MatMul"]
    assert "QuantizeLinear" in program.layers[1].notes[0]
    assert program.layers[1].macs == 64**3
