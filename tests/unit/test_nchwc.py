"""Graphs in ONNX Runtime's blocked image layout are the same work as the plain graphs that they stand for."""

from __future__ import annotations

import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from hwconfigs import load_hw
from lowering import LoadedModel, Program, lower, read_graph
from lowering.nchwc import DOMAIN
from tests.one_node import loaded

SERVER = load_hw("npu-server-128x128x4")
CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 1}
POOL = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}


def network(nodes: list[NodeProto], image: list[int]) -> LoadedModel:
    """A graph from `x` to `y` with the weights that `nodes` read, which have no values."""
    sizes = {"w0": [32, 3, 3, 3], "w1": [32, 32, 3, 3], "b": [32]}
    read = {name for node in nodes for name in node.input}
    weights = [TensorProto(name=n, data_type=TensorProto.FLOAT, dims=sizes[n]) for n in sizes if n in read]
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", image), ("y", None))
    ]
    graph = helper.make_graph(nodes, "one", value[:1], value[1:], weights)
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return loaded(graph)


def blocked(op: str, inputs: list[str], output: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs, [output], output, domain=DOMAIN, **attributes)


def plain(op: str, inputs: list[str], output: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs, [output], output, **attributes)


def work(program: Program) -> list[tuple[int, int, int, int]]:
    return [(item.macs, item.load_bytes, item.store_bytes, item.vector_cycles) for item in program.layers]


def test_a_residual_block_is_that_of_the_plain_graph() -> None:
    fused = [
        blocked("Conv", ["x", "w0", "b"], "c0", activation="Relu", **CONV),
        blocked("MaxPool", ["c0"], "p", storage_order=0, ceil_mode=0, **POOL),
        blocked("Conv", ["p", "w1", "b", "p"], "c1", activation="Relu", **CONV),
        blocked("GlobalAveragePool", ["c1"], "g"),
        blocked("ReorderOutput", ["g"], "y", channels=32, channels_last=0),
    ]
    decomposed = [
        plain("Conv", ["x", "w0", "b"], "c0", **CONV),
        plain("Relu", ["c0"], "r0"),
        plain("MaxPool", ["r0"], "p", **POOL),
        plain("Conv", ["p", "w1", "b"], "c1", **CONV),
        plain("Add", ["c1", "p"], "s"),
        plain("Relu", ["s"], "r1"),
        plain("GlobalAveragePool", ["r1"], "y"),
    ]
    ours, theirs = (lower(network(nodes, [1, 3, 16, 16]), SERVER) for nodes in (fused, decomposed))
    assert work(ours) == work(theirs)
    assert len(ours.layers) == 4


def test_channels_beyond_the_last_one_are_cut_off() -> None:
    """24 channels in blocks of 16 are 32."""
    nodes = [
        blocked("Conv", ["x", "w0"], "c", **CONV),
        blocked("ReorderOutput", ["c"], "y", channels=24, channels_last=0),
    ]
    graph = read_graph(network(nodes, [1, 3, 8, 8]))
    assert graph.outputs[0].shape == (1, 24, 8, 8)


@pytest.mark.parametrize(("last", "shape"), [(0, (1, 32, 8, 8)), (1, (1, 8, 8, 32))])
def test_images_that_lie_channels_last(last: int, shape: tuple[int, ...]) -> None:
    nodes = [
        blocked("ReorderInput", ["x"], "b0", channels_last=last),
        blocked("Conv", ["b0", "w0"], "c", **CONV),
        blocked("ReorderOutput", ["c"], "y", channels=32, channels_last=last),
    ]
    image = [1, 8, 8, 3] if last else [1, 3, 8, 8]
    graph = read_graph(network(nodes, image))
    assert graph.outputs[0].shape == shape
    [conv] = [node for node in graph.nodes if "Conv" in node.op]
    assert conv.input(0).shape == (1, 3, 8, 8)


def test_the_model_itself_is_not_changed() -> None:
    """Compatibility mode reads it too, as ONNXim does."""
    model = network([blocked("Conv", ["x", "w0"], "y", **CONV)], [1, 3, 8, 8])
    before = onnx.ModelProto()
    before.CopyFrom(model.proto)
    lower(model, SERVER)
    assert model.proto == before
