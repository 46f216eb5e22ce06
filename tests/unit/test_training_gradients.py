"""The backward operators of a training graph, run with numbers, against `jax.vjp` of its forward operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowering import TrainingOptions, read_graph
from lowering.context import UnsupportedError
from lowering.models import LoadedModel
from lowering.training.derive import derive
from lowering.training.graph import Role, TrainingGraph
from tests.one_node import loaded, one_node
from tests.reference import training_interpreter as interpreter

GIVEN = TrainingOptions(loss="given")


def chain(
    nodes: Sequence[onnx.NodeProto], x: Sequence[int], weights: dict[str, Sequence[int]], **ints: Sequence[int]
) -> LoadedModel:
    """A graph from X to Y with weights without data, and with integer constants."""
    graph = helper.make_graph(
        list(nodes),
        "chain",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT) for name, shape in weights.items()]
        + [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in ints.items()],
    )
    return loaded(graph)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    """A node whose inputs are given in one string."""
    return helper.make_node(op, inputs.split(), [output], f"{op}.{output}", **attributes)


def check(model: LoadedModel, options: TrainingOptions = GIVEN) -> TrainingGraph:
    """Every parameter's gradient, and where several layers follow one another theirs, equals what jax says."""
    training = derive(read_graph(model), options)
    values = _values(training)
    forward = [o for o in training.operators if o.role is Role.FORWARD]
    output = forward[-1].node.outputs[0].name
    parameters = {t.name: values[t.name] for t in training.parameters}

    def network(trained: dict[str, jax.Array]) -> jax.Array:
        return interpreter.run(forward, values | trained)[output]

    _, pullback = jax.vjp(network, parameters)
    (wanted,) = pullback(values[f"{output} (gradient)"])
    found = interpreter.run(training.operators, values)
    updates = {o.node.input(0).name: o.node.input(1) for o in training.operators if o.role is Role.UPDATE}
    assert updates.keys() == wanted.keys()
    for name, gradient in updates.items():
        assert gradient.shape == wanted[name].shape == parameters[name].shape
        np.testing.assert_allclose(found[gradient.name], wanted[name], rtol=2e-4, atol=2e-4, err_msg=name)
        updated = found[f"{name} (updated)"]
        np.testing.assert_allclose(updated, parameters[name] - interpreter.RATE * found[gradient.name], rtol=1e-6)
    return training


def _values(training: TrainingGraph) -> interpreter.Values:
    """Numbers for every input and constant, away from zero and positive, so that roots and logarithms exist."""
    random = np.random.default_rng(7)
    produced = {t.name for o in training.operators for t in o.node.outputs}
    values: interpreter.Values = {}
    for operator in training.operators:
        for tensor in operator.node.inputs:
            if tensor is None or tensor.name in produced or tensor.name in values or tensor.values is not None:
                continue
            if tensor.integer:
                values[tensor.name] = jnp.asarray(random.integers(0, 4, tensor.shape))
            elif not tensor.name.endswith("(turned)"):
                values[tensor.name] = jnp.asarray(random.uniform(0.2, 1.0, tensor.shape).astype(np.float32))
    return values


ACTIVATIONS = ("Relu", "Sqrt", "Gelu", "Exp", "Log", "Softplus", "Erf", "Reciprocal", "Tanh", "Sigmoid")
"""In an order in which numbers stay positive."""

CONVOLUTIONS = {
    "3x3": (8, 4, 3, {"pads": [1] * 4}),
    "unpadded": (8, 4, 3, {}),
    "strided": (8, 4, 3, {"pads": [1] * 4, "strides": [2, 2]}),
    "strided, odd": (9, 4, 3, {"pads": [1] * 4, "strides": [2, 2]}),
    "1x1 strided": (8, 4, 1, {"strides": [2, 2]}),
    "7x7 strided": (11, 4, 7, {"pads": [3] * 4, "strides": [2, 2]}),
    "stride 3": (10, 4, 2, {"strides": [3, 3]}),
    "dilated": (9, 4, 3, {"pads": [2] * 4, "dilations": [2, 2]}),
    "dilated, strided": (9, 4, 3, {"pads": [2] * 4, "dilations": [2, 2], "strides": [2, 2]}),
    "asymmetric": (8, 4, 3, {"pads": [0, 1, 1, 0], "strides": [1, 2]}),
    "grouped": (8, 4, 3, {"pads": [1] * 4, "group": 2}),
    "depthwise, strided": (8, 4, 3, {"pads": [1] * 4, "group": 4, "strides": [2, 2]}),
}


def convolutions(name: str) -> LoadedModel:
    """A padded 3x3 convolution and the one of that name, with biases."""
    size, channels, kernel, attributes = CONVOLUTIONS[name]
    groups = attributes.get("group", 1)
    nodes = [
        node("Conv", "X W1 b1", "h", kernel_shape=[3, 3], pads=[1] * 4),
        node("Conv", "h W2 b2", "Y", kernel_shape=[kernel] * 2, **attributes),
    ]
    weights = {"W1": (channels, 3, 3, 3), "b1": (channels,), "W2": (8, channels // groups, kernel, kernel), "b2": (8,)}
    return chain(nodes, (2, 3, size, size), weights)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    """Two layers, so that the second one's input gradient is in the first one's weight gradient."""
    training = check(convolutions(name))
    inputs = [o for o in training.operators if o.role is Role.GRAD_INPUT]
    assert [o.kind for o in inputs] == ["ConvTranspose" if "strides" in CONVOLUTIONS[name][-1] else "Conv"]
    assert len(training.parameters) == 4


def test_convolution_of_one_dimension() -> None:
    nodes = [
        node("Conv", "X W1", "h", kernel_shape=[3], pads=[1, 1]),
        node("Conv", "h W2", "Y", kernel_shape=[3], strides=[2], pads=[1, 1]),
    ]
    check(chain(nodes, (2, 3, 9), {"W1": (4, 3, 3), "W2": (6, 4, 3)}))


def test_transposed_convolution() -> None:
    nodes = [
        node("Conv", "X W1", "h", kernel_shape=[3, 3], pads=[1] * 4),
        node("ConvTranspose", "h W2 b2", "Y", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    ]
    check(chain(nodes, (2, 3, 5, 5), {"W1": (4, 3, 3, 3), "W2": (4, 6, 3, 3), "b2": (6,)}))


MODELS: dict[str, Callable[[], LoadedModel]] = {
    "gemm": lambda: chain(
        [node("Gemm", "X W1 b1", "h", transB=1), node("Gemm", "h W2 b2", "Y")],
        (5, 6), {"W1": (7, 6), "b1": (7,), "W2": (7, 3), "b2": (3,)},
    ),
    "matmul": lambda: chain(
        [node("MatMul", "X W1", "h"), node("Add", "h b", "a"), node("MatMul", "a W2", "Y")],
        (2, 5, 6), {"W1": (6, 7), "b": (7,), "W2": (7, 3)},
    ),
    "matmul of two computed": lambda: chain(
        [node("MatMul", "X W1", "a"), node("MatMul", "X W2", "b"), node("Transpose", "b", "c", perm=[0, 2, 1]),
         node("MatMul", "a c", "s"), node("Softmax", "s", "p", axis=-1), node("MatMul", "p b", "Y")],
        (2, 5, 6), {"W1": (6, 7), "W2": (6, 7)},
    ),
    "tied weights": lambda: chain(
        [node("MatMul", "X W1", "a"), node("Relu", "a", "b"), node("MatMul", "b W1", "Y")], (5, 6), {"W1": (6, 6)},
    ),
    "residual": lambda: chain(
        [node("Conv", "X W1", "a", kernel_shape=[1, 1]), node("Relu", "a", "b"),
         node("Conv", "b W2", "c", kernel_shape=[1, 1]), node("Add", "b c", "d"), node("Relu", "d", "Y")],
        (2, 4, 5, 5), {"W1": (4, 4, 1, 1), "W2": (4, 4, 1, 1)},
    ),
    "batch norm": lambda: chain(
        [node("Conv", "X W1", "a", kernel_shape=[1, 1]), node("BatchNormalization", "a s h m v", "b"),
         node("Sigmoid", "b", "Y")],
        (2, 4, 5, 5), {"W1": (6, 4, 1, 1), "s": (6,), "h": (6,), "m": (6,), "v": (6,)},
    ),
    "max pool": lambda: chain(
        [node("Conv", "X W1", "a", kernel_shape=[1, 1]),
         node("MaxPool", "a", "Y", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)],
        (2, 4, 8, 8), {"W1": (6, 4, 1, 1)},
    ),
    "average pool": lambda: chain(
        [node("Conv", "X W1", "a", kernel_shape=[1, 1]),
         node("AveragePool", "a", "b", kernel_shape=[3, 3], strides=[2, 2]),
         node("GlobalAveragePool", "b", "c"), node("Flatten", "c", "Y")],
        (2, 4, 9, 9), {"W1": (6, 4, 1, 1)},
    ),
    "layer norm": lambda: chain(
        [node("MatMul", "X W1", "a"), node("LayerNormalization", "a s b", "c"), node("MatMul", "c W2", "Y")],
        (2, 5, 6), {"W1": (6, 8), "s": (8,), "b": (8,), "W2": (8, 3)},
    ),
    "rms norm": lambda: chain(
        [node("MatMul", "X W1", "a"), node("RMSNormalization", "a s", "c"), node("MatMul", "c W2", "Y")],
        (2, 5, 6), {"W1": (6, 8), "s": (8,), "W2": (8, 3)},
    ),
    "attention": lambda: chain(
        [node("MatMul", "X Wq", "q"), node("MatMul", "X Wk", "k"), node("MatMul", "X Wv", "v"),
         node("Attention", "q k v", "Y", q_num_heads=2, kv_num_heads=2)],
        (2, 5, 6), {"Wq": (6, 8), "Wk": (6, 8), "Wv": (6, 8)},
    ),
    "attention of grouped heads, causal": lambda: chain(
        [node("MatMul", "X Wq", "q"), node("MatMul", "X Wk", "k"), node("MatMul", "X Wv", "v"),
         node("Attention", "q k v", "Y", q_num_heads=4, kv_num_heads=2, is_causal=1)],
        (2, 5, 6), {"Wq": (6, 16), "Wk": (6, 8), "Wv": (6, 8)},
    ),
    "scale and shift": lambda: chain(
        [node("Mul", "X S", "a"), node("Sub", "a b", "c"), node("Div", "c D", "d"), node("Add", "X d", "Y")],
        (2, 5, 6), {"S": (6,), "b": (5, 1), "D": (2, 1, 6)},
    ),
    "split and concat": lambda: chain(
        [node("MatMul", "X W1", "a"), helper.make_node("Split", ["a", "sizes"], ["b", "c"], "split", axis=-1),
         node("Relu", "b", "d"), node("Concat", "d c", "Y", axis=-1)],
        (2, 5, 6), {"W1": (6, 8)}, sizes=[3, 5],
    ),
    "slice and reshape": lambda: chain(
        [node("MatMul", "X W1", "a"), node("Slice", "a start end axis", "b"), node("Reshape", "b shape", "Y")],
        (4, 6), {"W1": (6, 8)}, start=[0], end=[4], axis=[1], shape=[2, 8],
    ),
    "power": lambda: chain(
        [node("Mul", "X S", "a"), node("Pow", "a e", "b"), node("ReduceMean", "b axis", "Y")],
        (2, 5, 6), {"S": (6,)}, e=[3], axis=[-1],
    ),
    "batch norm of a matrix": lambda: chain(
        [node("Gemm", "X W1", "a"), node("BatchNormalization", "a s h m v", "b"), node("Gemm", "b W2", "Y")],
        (5, 6), {"W1": (6, 8), "s": (8,), "h": (8,), "m": (8,), "v": (8,), "W2": (8, 3)},
    ),
    "squeeze and excite": lambda: chain(
        [node("Conv", "X W1", "a", kernel_shape=[1, 1]), node("GlobalAveragePool", "a", "b"),
         node("Conv", "b W2", "c", kernel_shape=[1, 1]), node("Sigmoid", "c", "d"), node("Mul", "a d", "Y")],
        (2, 4, 5, 5), {"W1": (6, 4, 1, 1), "W2": (6, 6, 1, 1)},
    ),
    "local response": lambda: chain(
        [node("Conv", "X W1", "a", kernel_shape=[1, 1]), node("LRN", "a", "Y", size=3, alpha=0.9, beta=0.6, bias=1.5)],
        (2, 3, 4, 4), {"W1": (7, 3, 1, 1)},
    ),
    "local response, even window, defaults": lambda: chain(
        [node("Conv", "X W1", "a", kernel_shape=[1, 1]), node("Mul", "a S", "b"), node("LRN", "b", "Y", size=4)],
        (2, 3, 4, 4), {"W1": (7, 3, 1, 1), "S": (7, 1, 1)},
    ),
    "selection": lambda: chain(
        [node("Greater", "X M", "c"), node("MatMul", "X W1", "a"), node("MatMul", "X W2", "b"),
         node("Where", "c a b", "Y")],
        (2, 5, 6), {"M": (6,), "W1": (6, 6), "W2": (6, 6)},
    ),
    "selection, broadcast": lambda: chain(
        [node("ReduceMean", "X axis", "m"), node("Greater", "m M", "c"), node("MatMul", "X W1", "a"),
         node("ReduceMean", "a axis", "b"), node("Where", "c b a", "Y")],
        (2, 5, 6), {"M": (5, 1), "W1": (6, 6)}, axis=[-1],
    ),
    "selection of constants": lambda: chain(
        [node("Greater", "X M", "c"), node("MatMul", "X W1", "a"), node("Where", "c a K", "Y")],
        (2, 5, 6), {"M": (6,), "W1": (6, 6), "K": (5, 6)},
    ),
    "learned slopes": lambda: chain(
        [node("MatMul", "X W1", "a"), node("Sub", "a B", "b"), node("PRelu", "b S", "c"), node("MatMul", "c W2", "Y")],
        (2, 5, 6), {"W1": (6, 6), "B": (5, 6), "S": (6,), "W2": (6, 3)},
    ),
    "learned slopes of channels": lambda: chain(
        [node("Conv", "X W1 b1", "a", kernel_shape=[1, 1]), node("Sub", "a B", "b"), node("PRelu", "b S", "Y")],
        (2, 3, 4, 4), {"W1": (5, 3, 1, 1), "b1": (5,), "B": (5, 1, 1), "S": (5, 1, 1)},
    ),
    "fixed slope": lambda: chain(
        [node("Mul", "X S", "a"), node("Sub", "a B", "b"), node("LeakyRelu", "b", "Y", alpha=0.3)],
        (2, 5, 6), {"S": (6,), "B": (6,)},
    ),
    "rotary embedding": lambda: chain(
        [node("MatMul", "X W1", "a"), node("RotaryEmbedding", "a cos sin", "Y", num_heads=2)],
        (2, 5, 6), {"W1": (6, 8), "cos": (2, 5, 2), "sin": (2, 5, 2)},
    ),
    "rotary embedding of a part": lambda: chain(
        [node("MatMul", "X W1", "a"), node("Reshape", "a shape", "b"), node("Transpose", "b", "c", perm=[0, 2, 1, 3]),
         node("RotaryEmbedding", "c cos sin", "Y", rotary_embedding_dim=4)],
        (2, 5, 6), {"W1": (6, 16), "cos": (2, 5, 2), "sin": (2, 5, 2)}, shape=[2, 5, 2, 8],
    ),
    "activations in a row": lambda: chain(
        [node("Mul", "X S", "h0")]
        + [node(op, f"h{i}", f"h{i + 1}") for i, op in enumerate(ACTIVATIONS)]
        + [node("Neg", f"h{len(ACTIVATIONS)}", "n"), node("Sigmoid", "n", "g"), node("Mul", "n g", "Y")],
        (2, 5, 6), {"S": (6,)},
    ),
}  # fmt: skip


RESIZES: dict[str, tuple[list[int], dict[str, str]]] = {
    "nearest, doubled": ([8, 8], {"mode": "nearest"}),
    "nearest, uneven": ([7, 9], {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    "linear, larger": ([9, 7], {"mode": "linear"}),
    "linear, corners": ([7, 7], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    "linear, smaller": ([3, 2], {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
}


@pytest.mark.parametrize("name", RESIZES)
def test_resizing(name: str) -> None:
    """What the gradient gives back depends on mode, coordinates and rounding, so it must know them."""
    size, attributes = RESIZES[name]
    nodes = [
        node("Conv", "X W1", "a", kernel_shape=[1, 1]),
        helper.make_node("Resize", ["a", "", "", "sizes"], ["Y"], "resize", **attributes),
    ]
    check(chain(nodes, (1, 3, 4, 4), {"W1": (2, 3, 1, 1)}, sizes=[1, 2, *size]))


@pytest.mark.parametrize("name", MODELS)
def test_operators(name: str) -> None:
    check(MODELS[name]())


def test_embedding_whose_rows_are_looked_up_twice() -> None:
    graph = helper.make_graph(
        [node("Gather", "T ids", "a", axis=0), node("MatMul", "a W", "Y")],
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, (2, 6))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [TensorProto(name="T", dims=(5, 8), data_type=TensorProto.FLOAT),
         TensorProto(name="W", dims=(8, 3), data_type=TensorProto.FLOAT)],
    )  # fmt: skip
    check(loaded(graph))


@pytest.mark.parametrize("recompute", ["cheap", "segments"])
@pytest.mark.parametrize("name", ["residual", "batch norm", "layer norm", "attention", "max pool", "matmul"])
def test_recomputation_changes_no_gradient(name: str, recompute: str) -> None:
    model = MODELS[name]()
    plain = derive(read_graph(model), GIVEN)
    training = check(model, TrainingOptions(loss="given", recompute=recompute))
    assert training.saved_elements <= plain.saved_elements
    forward = {o.name for o in training.operators if o.role is Role.FORWARD}
    again = [o for o in training.operators if o.name.endswith("(again)")]
    assert all(o.role is Role.RECOMPUTE and o.forward in forward for o in again)
    assert len({o.name for o in again}) == len(again)


def test_cross_entropy_from_the_logits_of_a_final_softmax() -> None:
    nodes = [node("MatMul", "X W", "a"), node("Softmax", "a", "Y", axis=-1)]
    training = derive(read_graph(chain(nodes, (5, 6), {"W": (6, 4)})))
    assert [o.kind for o in training.operators] == [
        "MatMul", "CrossEntropyLoss", "CrossEntropyGrad", "MatMulWeightGrad", "Sgd",
    ]  # fmt: skip
    values = _values(training)

    def loss(weights: jax.Array) -> jax.Array:
        logits = jnp.log(jax.nn.softmax(values["X"] @ weights))
        return -jnp.take_along_axis(logits, values["training.labels"][:, None], 1).mean()

    found = interpreter.run(training.operators, values)
    value, wanted = jax.value_and_grad(loss)(values["W"])
    np.testing.assert_allclose(found["training.loss"], value.reshape(1), rtol=1e-5)
    np.testing.assert_allclose(found[training.operators[-1].node.input(1).name], wanted, rtol=1e-4, atol=1e-6)


def test_an_operator_without_a_gradient_is_named() -> None:
    model = one_node("CumSum", [4, 8], np.array(1, np.int64))
    proto = model.proto.graph
    proto.node.insert(0, node("Mul", "X S", "in0"))
    del proto.input[:]
    proto.input.append(helper.make_tensor_value_info("X", TensorProto.FLOAT, [4, 8]))
    proto.initializer.append(TensorProto(name="S", dims=(8,), data_type=TensorProto.FLOAT))
    with pytest.raises(UnsupportedError, match="node the_node: no gradient of operator CumSum is modelled"):
        derive(read_graph(model))
