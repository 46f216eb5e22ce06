"""Training iterations on the closed-form model: the work of every operator, in the spec's shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwconfigs.systolic_schema import load_systolic
from lowering.ir import Node, Tensor
from lowering.models import load_model
from lowering.onnx_reader import read_graph
from lowering.training.derive import derive
from lowering.training.graph import Role
from lowering.training.options import TrainingOptions
from vsim.cli import main
from vsim.systolic.bridge import bridge
from vsim.systolic.layers import Layer, MatrixLayer, VectorLayer
from vsim.systolic.run import layers_of, run
from vsim.systolic.training_rules import TRAINING_RULES

DESIGN = load_systolic("simdit-training-08")


def macs(layers: list[Layer]) -> float:
    """Products of all matrix layers, without those with inserted zeros."""
    return sum(
        layer.groups * layer.out_width * layer.out_height * layer.out_channels * layer.in_channels * layer.batch
        * layer.kernel**2 * layer.useful_kernel * layer.useful_input
        for layer in layers if isinstance(layer, MatrixLayer)
    )  # fmt: skip


def test_resnet50_does_the_work_of_its_training_graph():
    """By role too; the report's counts are those of the formulas, the graph's those of the derivation."""
    options = TrainingOptions(optimizer="adam")
    graph = derive(read_graph(load_model("onnx:light_resnet50"), 2), options)
    report = run("m", layers_of("onnx:light_resnet50", batch=2, training=options), DESIGN)
    counted = {row["role"]: row["macs"] for row in report["roles"]}
    for role in (Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT):
        assert counted[role] == graph.macs(role)
    updates = next(row for row in report["roles"] if row["role"] == Role.UPDATE)
    # Output channels fill whole lanes. Weight, gradient and two moments are read, weight and moments written.
    lanes = DESIGN.array.cols
    elements = sum(
        -(-tensor.shape[0] // lanes) * lanes * tensor.elements // tensor.shape[0] for tensor in graph.parameters
    )
    assert updates["dram_bytes"] == 7 * elements * DESIGN.precision.accumulator_bits / 8
    assert updates["layers"] == len(graph.parameters)


@pytest.mark.parametrize("name", ["vit_b16_dynamo", "gpt2_dynamo"])
def test_transformers_do_the_work_of_their_training_graph(name: str, shared: Path):
    """Attention is left out: its forward pass computes products that a mask hides."""
    graph = derive(read_graph(load_model(str(shared / "models" / f"{name}.onnx")), 1), TrainingOptions(loss="mse"))
    layers = bridge(graph.graph).layers
    attention = [operator.name for operator in graph.operators if operator.kind == "Attention"]
    parts = {f"{operator} {part}" for operator in attention for part in ("scores", "values")}
    rest = [layer for layer in layers if layer.name not in parts]
    assert attention
    assert macs(rest) == sum(operator.macs for operator in graph.operators if operator.kind != "Attention")


def weight_gradient(kernel: int, stride: int, groups: int = 1) -> MatrixLayer:
    """Of 16 -> 32 channels, 8 images of 14x14 pixels at the output."""
    x = Tensor("x", (8, 16, 14 * stride, 14 * stride))
    dy = Tensor("dy", (8, 32, 14, 14))
    dw = Tensor("dw", (32, 16 // groups, kernel, kernel))
    node = Node("n", "ConvWeightGrad", (x, dy), (dw,), {"strides": (stride, stride), "group": groups})
    [layer] = TRAINING_RULES["ConvWeightGrad"](node)
    assert isinstance(layer, MatrixLayer)
    return layer


@pytest.mark.parametrize("groups", [1, 4])
def test_weight_gradient_is_a_convolution_with_the_output_gradient_as_kernel(groups: int):
    """Spec systolic.md 1.6: samples in the place of channels, the kernel's positions are the map."""
    layer = weight_gradient(3, 2, groups)
    assert (layer.out_width, layer.out_height, layer.batch, layer.in_channels) == (3, 3, 16 // groups, 8)
    assert (layer.out_channels, layer.groups, layer.kernel) == (32 // groups, groups, 27)
    assert macs([layer]) == pytest.approx(8 * 14 * 14 * 32 * 16 // groups * 9)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 2)])
def test_windows_that_do_not_overlap_make_a_product(kernel: int, stride: int):
    layer = weight_gradient(kernel, stride)
    assert layer.is_gemm
    assert (layer.batch, layer.in_channels, layer.out_channels) == (16 * kernel**2, 8 * 14 * 14, 32)


def test_batch_normalisation_has_the_costs_of_simdit():
    graph = derive(read_graph(load_model("onnx:light_resnet50"), 2), TrainingOptions())
    layers = [layer for layer in bridge(graph.graph).layers if isinstance(layer, VectorLayer)]
    counts = [
        sum(layer.operator == name for layer in layers) for name in ("mean_var", "batch_norm", "batchnorm_grad_x_mu")
    ]
    assert counts == [53, 53, 53]


def test_networks_of_simdit_are_trained_by_name(capsys: pytest.CaptureFixture[str]):
    assert main(["systolic", "run", "simdit:ResNet50", "--hw", "simdit-training-08", "--train"]) == 2
    assert "simdit:NAME-training" in capsys.readouterr().err
