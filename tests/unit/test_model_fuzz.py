"""Broken graphs: whatever is done to a valid one, there is a program or one clear error, never a traceback."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hwconfigs import load_hw
from lowering import LoadedModel, ModelError, UnsupportedError, load_model, lower
from tests.one_node import loaded, one_node
from tests.unit.test_operators import CASES

SERVER = load_hw("npu-server-128x128x4")


def small_graph() -> onnx.GraphProto:
    """A little of everything: convolution, norms, attention-like products, lookups, movement, a loop, recurrence."""
    weights = {
        "w": (16, 8, 3, 3),
        "scale": (16,),
        "bias": (16,),
        "dense": (16, 32),
        "table": (50, 16),
        "lstm_w": (1, 64, 16),
        "lstm_r": (1, 64, 16),
        "transposed": (16, 8, 2, 2),
    }
    constants = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    numbers = {"shape": [1, 16, 64], "axes": [1], "starts": [0], "ends": [8], "pads": [0, 0, 1, 0, 0, 1], "three": 3}
    constants += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    constants.append(numpy_helper.from_array(np.array(True), "yes"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["cond"], ["go"]), helper.make_node("Relu", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        node("InstanceNormalization", ["c", "scale", "bias"], ["n"], "norm"),
        node("ConvTranspose", ["n", "transposed"], ["up"], "transpose", strides=[2, 2]),
        node("ReduceMean", ["up"], ["mean"], "mean", keepdims=1),
        node("Reshape", ["n", "shape"], ["r"], "reshape"),
        node("Transpose", ["r"], ["t"], "turn", perm=[0, 2, 1]),
        node("Gather", ["table", "ids"], ["g"], "lookup"),
        node("Concat", ["t", "g"], ["cat"], "join", axis=1),
        node("LayerNormalization", ["cat", "scale", "bias"], ["ln"], "layernorm"),
        node("MatMul", ["ln", "dense"], ["d"], "dense"),
        node("Softmax", ["d"], ["s"], "softmax", axis=-1),
        node("Slice", ["s", "starts", "ends", "axes"], ["cut"], "slice"),
        node("Pad", ["cut", "pads"], ["padded"], "pad"),
        node("Loop", ["three", "yes", "padded"], ["looped"], "loop", body=body),
        node("Split", ["ln"], ["half", ""], "split", axis=1, num_outputs=2),
        node("LSTM", ["half", "lstm_w", "lstm_r"], ["y", "y_h"], "lstm", hidden_size=16),
        node("FusedMatMul", ["looped", "looped"], ["f"], "fused", domain="com.microsoft", transB=1),
        node("TopK", ["d", "axes"], ["v", "i"], "top"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 12]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("mean", "y", "f", "v")]
    return helper.make_graph(nodes, "small", inputs, outputs, constants)


def drop_node(graph: onnx.GraphProto, dice: random.Random) -> None:
    del graph.node[dice.randrange(len(graph.node))]


def duplicate_name(graph: onnx.GraphProto, dice: random.Random) -> None:
    first, second = dice.sample(list(graph.node), 2)
    if dice.random() < 0.5:
        first.name = second.name
    else:
        first.output[0] = second.output[0]


def make_cycle(graph: onnx.GraphProto, dice: random.Random) -> None:
    first, second = dice.sample(range(len(graph.node)), 2)
    graph.node[min(first, second)].input[0] = graph.node[max(first, second)].output[0]


def swap_inputs(graph: onnx.GraphProto, dice: random.Random) -> None:
    names = [name for node in graph.node for name in node.input]
    node = dice.choice(graph.node)
    node.input[dice.randrange(len(node.input))] = dice.choice([*names, "", "nothing"])


def drop_input(graph: onnx.GraphProto, dice: random.Random) -> None:
    node = dice.choice(graph.node)
    del node.input[dice.randrange(len(node.input))]


def change_operator(graph: onnx.GraphProto, dice: random.Random) -> None:
    dice.choice(graph.node).op_type = dice.choice(
        [*(node.op_type for node in graph.node), "Einsum", "GRU", "Scan", "No"]
    )


def change_size(graph: onnx.GraphProto, dice: random.Random) -> None:
    """A dimension of an input or a weight: zero, one, negative or something that contradicts the rest."""
    size = dice.choice([0, 1, -1, 3, 17])
    if dice.random() < 0.5:
        dims = dice.choice(graph.input).type.tensor_type.shape.dim
        if len(dims):
            dice.choice(dims).dim_value = size
        return
    weight = dice.choice(graph.initializer)
    if len(weight.dims):
        shape = list(weight.dims)
        shape[dice.randrange(len(shape))] = max(0, size)
        kind = helper.tensor_dtype_to_np_dtype(weight.data_type)
        weight.CopyFrom(numpy_helper.from_array(np.zeros(shape, kind), weight.name))


def change_attribute(graph: onnx.GraphProto, dice: random.Random) -> None:
    """An attribute's numbers, its type, or its name."""
    attribute = dice.choice([item for node in graph.node for item in node.attribute])
    what = dice.randrange(4)
    if what == 0:
        attribute.i = dice.choice([-7, 0, 2, 99])
    elif what == 1 and attribute.ints:
        attribute.ints[dice.randrange(len(attribute.ints))] = dice.choice([-7, 0, 2, 99])
    elif what == 2:
        del attribute.ints[:1]
    else:
        attribute.name = dice.choice(["axis", "pads", "body", "unknown"])


def change_constant(graph: onnx.GraphProto, dice: random.Random) -> None:
    """The numbers of a shape, an axis or a trip count."""
    tensor = dice.choice([item for item in graph.initializer if item.data_type == TensorProto.INT64])
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[dice.randrange(values.size)] = dice.choice([-1000, -1, 0, 1, 5, 1000])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def forget_type(graph: onnx.GraphProto, dice: random.Random) -> None:
    dice.choice(graph.input).type.Clear()


MUTATIONS: list[Callable[[onnx.GraphProto, random.Random], None]] = [
    drop_node,
    duplicate_name,
    make_cycle,
    swap_inputs,
    drop_input,
    change_operator,
    change_size,
    change_attribute,
    change_constant,
    forget_type,
]


def apply(
    mutate: Callable[[onnx.GraphProto, random.Random], None], graph: onnx.GraphProto, dice: random.Random
) -> None:
    """Mutate; a graph in which there is nothing (left) to change in this way is no example."""
    try:
        mutate(graph, dice)
    except (IndexError, ValueError):
        assume(False)


def outcome(model: LoadedModel) -> str:
    """Lower; the message of a clear error, or nothing. Anything else fails the test."""
    try:
        lower(model, SERVER)
    except (ModelError, UnsupportedError) as error:
        assert "one.onnx" in str(error), error
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_the_unbroken_graph_is_lowered() -> None:
    program = lower(loaded(small_graph()), SERVER)
    assert not program.warnings
    assert [layer.op for layer in program.layers].count("Relu") == 1  # three trips, fused


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), picks=st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3))
def test_broken_graphs_give_one_clear_error(
    seed: int, picks: list[Callable[[onnx.GraphProto, random.Random], None]]
) -> None:
    graph, dice = small_graph(), random.Random(seed)
    for mutate in picks:
        apply(mutate, graph, dice)
    outcome(loaded(graph))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(CASES)), mutate=st.sampled_from(MUTATIONS))
def test_broken_operators_give_one_clear_error(
    seed: int, name: str, mutate: Callable[[onnx.GraphProto, random.Random], None]
) -> None:
    """The same for a graph of any one operator."""
    model = CASES[name]()
    apply(mutate, model.proto.graph, random.Random(seed))
    outcome(model)


def test_sizes_of_zero_are_named() -> None:
    model = one_node("Slice", [4, 8], np.array([2]), np.array([2]), np.array([1]))
    with pytest.raises(ModelError, match=r"one\.onnx: node the_node \(Slice\): out0 has shape \(4, 0\)"):
        lower(model, SERVER)


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda g: g.node[0].input.__setitem__(0, "f"), r"node conv \(Conv\) reads f.*cycle"),
        (lambda g: g.node[0].input.__setitem__(0, "nil"), r"node conv \(Conv\) reads nil, which nothing computes"),
        (lambda g: g.node[1].output.__setitem__(0, "c"), r"node norm .* computes c, which is there already"),
        (lambda g: setattr(g.input[1].type.tensor_type.shape.dim[1], "dim_value", 0), "ids is open"),
        (
            lambda g: g.initializer[5].CopyFrom(numpy_helper.from_array(np.zeros((0, 64, 16), np.float32), "lstm_w")),
            r"node lstm",
        ),
    ],
)
def test_messages_name_the_node(mutate: Callable[[onnx.GraphProto], None], message: str) -> None:
    graph = small_graph()
    mutate(graph)
    with pytest.raises(ModelError, match=message) as caught:
        lower(loaded(graph), SERVER)
    assert "one.onnx" in str(caught.value)


def test_operator_sets_of_the_future() -> None:
    with pytest.raises(ModelError, match=r"one\.onnx: operator set 99, the installed onnx package knows up to"):
        lower(loaded(small_graph(), opset=99), SERVER)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(0, 1), flip=st.integers(0, 2**32))
def test_truncated_and_damaged_files(tmp_path: Path, keep: float, flip: int) -> None:
    """Files cut off anywhere, and files with a byte changed."""
    data = bytearray(loaded(small_graph()).proto.SerializeToString())
    data = data[: int(len(data) * keep)]
    if data and flip % 2:
        data[flip % len(data)] ^= 1 << flip % 8
    path = tmp_path / "one.onnx"
    path.write_bytes(data)
    try:
        lower(load_model(path), SERVER)
    except (ModelError, UnsupportedError) as error:
        assert "one.onnx" in str(error)
