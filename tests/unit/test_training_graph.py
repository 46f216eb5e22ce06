"""Training graphs of whole networks: against SimDIT's published graph, and in closed form."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from hwconfigs.errors import UserError
from lowering import TrainingOptions, load_model, read_graph
from lowering.context import UnsupportedError
from lowering.models import ModelError
from lowering.training.derive import derive
from lowering.training.graph import OperandRole, Role, TrainingGraph
from lowering.training.simdit import simdit_layers
from tests.conftest import DATA
from tests.models import mlp, resnet18
from tests.one_node import loaded

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def published() -> Rows:
    """ResNet-50's training graph of SimDIT, 1,310 rows; see tests/data/training/README.md."""
    return json.loads(gzip.decompress((DATA / "training" / "resnet50_training_graph.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def resnet50() -> TrainingGraph:
    return derive(read_graph(load_model("onnx:light_resnet50")))


def test_resnet50_is_the_published_graph_row_by_row(resnet50: TrainingGraph, published: Rows) -> None:
    assert simdit_layers(resnet50, faults=True) == published


def test_where_the_published_graph_is_faulty(resnet50: TrainingGraph, published: Rows) -> None:
    """`systolic.md` 1.6 and 1.9, 5: the four faults of `lowering.training.simdit`, and nothing else."""
    correct = simdit_layers(resnet50)
    first = published[-7:-4]
    assert [row["op"] for row in first] == ["tensor_transpose4d", "conv", "tensor_transpose4d"]
    assert first[1]["dims"] == {"OC": 3, "N": 1, "IC": 64, "KH": 7, "KW": 7, "OH": 229, "OW": 229}  # fault 1
    without = published[:-7] + published[-4:]
    pairs = [(ours, theirs) for ours, theirs in zip(correct, without, strict=True) if ours != theirs]
    padded = [(ours["dims"], theirs["dims"]) for ours, theirs in pairs if ours["op"] != "conv"]
    assert padded == [  # fault 4
        ({"N": 2048, "C": 1000}, {"N": 2048, "C": 1024}),
        ({"N": 1, "C": 1000}, {"N": 1, "C": 1024}),
        ({"C": 1000}, {"C": 1024}),
        ({"N": 64, "C": 3, "H": 7, "W": 7}, {"N": 64, "C": 32, "H": 7, "W": 7}),
    ]
    inputs = [pair for pair in pairs if "input_dilation" in pair[0]["params"]]
    weights = [pair for pair in pairs if "kernel_dilation" in pair[0]["params"]]
    assert len(pairs) == 4 + len(inputs) + len(weights)
    assert len(inputs) == 6
    assert all(ours["dims"] == theirs["dims"] for ours, theirs in inputs)  # fault 2: nothing but the zeros
    extents = [[(row["dims"]["KH"], row["dims"]["OH"]) for row in pair] for pair in weights]
    assert extents == [  # faults 2 and 3
        [(7, 1), (13, 2)], [(7, 3), (13, 4)], [(14, 1), (27, 2)], [(14, 3), (27, 4)],
        [(28, 1), (55, 2)], [(28, 3), (55, 4)], [(112, 7), (223, 7)],
    ]  # fmt: skip


def test_exported_resnet50_whose_batch_norm_was_folded(shared: Any, published: Rows) -> None:
    """Hugging Face's export has no head; everything else is there once the normalisations are restored."""
    model = load_model(shared / "models" / "resnet50_hf_torchscript.onnx")
    training = derive(read_graph(model), TrainingOptions(loss="given", restore_batch_norm=True))
    head = slice(225, 237)
    assert published[head.start]["op"] == "global_avg_pool"
    assert published[head.stop - 1]["op"] == "global_average_pool_grad"
    assert simdit_layers(training, faults=True) == published[: head.start] + published[head.stop :]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("bvlc_alexnet", 60_965_224), ("squeezenet", 1_235_496), ("vgg19", 143_667_240), ("inception_v1", 6_998_552)],
)
def test_classifiers_train_all_their_weights(name: str, parameters: int) -> None:
    """Published sizes; local response normalisation, concatenation, dropout and average pools are on the way."""
    training = derive(read_graph(load_model(f"onnx:light_{name}")))
    assert sum(tensor.elements for tensor in training.parameters) == parameters
    check_macs(training)


def check_macs(training: TrainingGraph) -> None:
    """Each product of the forward pass, outside attention, is repeated once for the input and once for the weights.

    There is no gradient of the first convolution's input; a transformer's first product reads a trained embedding.
    """
    written = [t.name for operator in training.operators for t in operator.node.outputs if t.name]
    assert len(set(written)) == len(written)
    attention = {operator.name for operator in training.operators if operator.kind == "Attention"}
    own = [operator for operator in training.operators if operator.forward not in attention]
    macs = {role: sum(operator.macs for operator in own if operator.role is role) for role in Role}
    first = next(operator for operator in own if operator.macs)
    assert macs[Role.GRAD_WEIGHT] == macs[Role.FORWARD]
    assert macs[Role.FORWARD] - macs[Role.GRAD_INPUT] == (first.macs if first.kind == "Conv" else 0)


EXPORTED = {
    "vit_b16_dynamo": {},
    "bert_base_torchscript": {"seq": 64},
    "gpt2_dynamo": {},
    "llama_gqa_4layer_dynamo": {},
    "t5_small_encoder_torchscript": {"seq": 64},
    "convnext_tiny_dynamo": {},
    "mobilenet_v2_torchscript": {},
    "efficientnet_b0_torchscript": {},
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_networks_can_be_trained(shared: Any, name: str) -> None:
    training = derive(read_graph(load_model(shared / "models" / f"{name}.onnx"), 1, EXPORTED[name]))
    check_macs(training)
    assert {row["role"] for row in training.rows()} >= {"forward", "loss", "grad_input", "grad_weight", "update"}


def test_recurrent_layers_are_refused_by_name(shared: Any) -> None:
    graph = read_graph(load_model(shared / "models" / "bilstm_tagger_torchscript.onnx"))
    with pytest.raises(UnsupportedError, match="no gradient of operator LSTM is modelled"):
        derive(graph)


@pytest.mark.parametrize("batch", [1, 4])
def test_macs_of_an_iteration(batch: int) -> None:
    """Forward, input gradients and weight gradients repeat the same products; the first layer has no input gradient."""
    training = derive(read_graph(load_model("onnx:light_resnet50"), batch))
    forward = training.macs(Role.FORWARD)
    first = batch * 64 * 3 * 7 * 7 * 112 * 112
    assert training.macs(Role.GRAD_WEIGHT) == forward
    assert training.macs(Role.GRAD_INPUT) == forward - first
    assert training.macs() == 3 * forward - first
    assert forward == batch * 4_089_184_256


def test_parameters_and_their_updates(resnet50: TrainingGraph) -> None:
    """Every weight is updated once, after its gradient: 25,557,032 of them, as torchvision's ResNet-50 has."""
    assert sum(tensor.elements for tensor in resnet50.parameters) == 25_557_032
    produced: set[str] = set()
    updated: list[str] = []
    for operator in resnet50.operators:
        if operator.role is Role.UPDATE:
            weight, gradient = operator.node.input(0), operator.node.input(1)
            assert gradient.name in produced
            assert gradient.shape == weight.shape
            assert resnet50.roles[gradient.name] is OperandRole.WEIGHT_GRADIENT
            updated.append(weight.name)
        produced.update(tensor.name for tensor in operator.node.outputs)
    assert sorted(updated) == sorted(tensor.name for tensor in resnet50.parameters)
    assert len(set(updated)) == len(updated) == 161


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("momentum", 1), ("adam", 2)])
def test_optimisers_keep_their_state_beside_every_parameter(optimizer: str, states: int) -> None:
    training = derive(read_graph(loaded(mlp(4, 6, 5, 3).graph, 13)), TrainingOptions(optimizer=optimizer))
    rows = [row for row in training.rows() if row["role"] == "update"]
    assert [row["inputs"][0]["shape"] for row in rows] == [[3, 5], [3], [5, 6], [5]]
    for row in rows:
        shapes = [operand["shape"] for operand in row["inputs"]]
        assert shapes == [shapes[0]] * (2 + states)
        roles = ["weight", "weight_gradient"] + ["optimizer_state"] * states
        assert [operand["role"] for operand in row["inputs"]] == roles
        assert len(row["outputs"]) == 1 + states


def test_rows_are_plain_and_say_what_operands_are() -> None:
    training = derive(read_graph(loaded(mlp(4, 6, 5, 3).graph, 13)))
    rows = json.loads(json.dumps(training.rows()))
    assert [(row["kind"], row["role"]) for row in rows] == [
        ("Gemm", "forward"), ("Relu", "forward"), ("Gemm", "forward"),
        ("CrossEntropyLoss", "loss"), ("CrossEntropyGrad", "grad_input"),
        ("Gemm", "grad_input"), ("MatMulWeightGrad", "grad_weight"), ("Sgd", "update"),
        ("ReduceGrad", "grad_weight"), ("Sgd", "update"),
        ("ReluGrad", "grad_input"),
        ("MatMulWeightGrad", "grad_weight"), ("Sgd", "update"), ("ReduceGrad", "grad_weight"), ("Sgd", "update"),
    ]  # fmt: skip
    weight = rows[6]
    assert weight["forward"] == "g2"
    assert [(operand["role"], operand["shape"]) for operand in weight["inputs"]] == [
        ("gradient", [4, 3]),
        ("activation", [4, 5]),
    ]
    assert weight["outputs"] == [{"name": "g2 (dB)", "shape": [3, 5], "role": "weight_gradient"}]
    assert weight["macs"] == 4 * 3 * 5


def test_recomputation_saves_less_and_computes_more() -> None:
    """Of ResNet-18: "cheap" keeps what convolutions give, "segments" a few tensors between blocks."""
    graph = read_graph(loaded(resnet18().graph, 13))
    kept = {name: derive(graph, TrainingOptions(recompute=name)) for name in ("none", "cheap", "segments")}
    forward = kept["none"].macs(Role.FORWARD)
    assert kept["none"].macs(Role.RECOMPUTE) == kept["cheap"].macs(Role.RECOMPUTE) == 0
    assert kept["segments"].saved_elements < kept["cheap"].saved_elements / 2 < kept["none"].saved_elements
    assert 0.5 * forward < kept["segments"].macs(Role.RECOMPUTE) <= forward
    names = [operator.name for operator in kept["segments"].operators]
    assert len(set(names)) == len(names)


def test_a_network_may_have_a_tensor_named_loss() -> None:
    proto = mlp(4, 6, 5, 3).graph
    for node in proto.node:
        node.output[:] = ["loss" if name == "H" else name for name in node.output]
        node.input[:] = ["loss" if name == "H" else name for name in node.input]
    training = derive(read_graph(loaded(proto, 13)))
    written = [tensor.name for operator in training.operators for tensor in operator.node.outputs]
    assert len(set(written)) == len(written)


def test_bad_requests() -> None:
    graph = read_graph(loaded(mlp(4, 6, 5, 3).graph, 13))
    with pytest.raises(UserError, match=r"--optimizer 'adamw' is unknown; did you mean 'adam'\?"):
        TrainingOptions(optimizer="adamw")
    with pytest.raises(ModelError, match="--loss-output Z: no such output; there are Y"):
        derive(graph, TrainingOptions(output="Z"))
    with pytest.raises(ModelError, match="--restore-batch-norm: no convolution of the graph has a bias"):
        derive(graph, TrainingOptions(restore_batch_norm=True))
