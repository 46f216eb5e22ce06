"""The corrected mode of the closed-form model: what each correction is worth, by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from hwconfigs.systolic_schema import SystolicHw, load_systolic
from lowering.models import load_model
from lowering.onnx_reader import read_graph
from tests.conftest import DATA
from tests.one_node import one_node
from vsim.cli import main
from vsim.systolic.bridge import bridge
from vsim.systolic.designs import stack
from vsim.systolic.evaluate import Evaluation, evaluate, network_cycles
from vsim.systolic.layers import Layer, MatrixLayer, VectorLayer
from vsim.systolic.networks import network
from vsim.systolic.run import layers_of, run
from vsim.systolic.schedule import layer_times

BASE = load_systolic("simdit-inference-03")
"""16x16, 8-bit operands, 32-bit sums; ports of 128 bits."""


def of_matrix(layer: MatrixLayer, hw: SystolicHw = BASE) -> dict[str, float]:
    cost = evaluate([layer], stack([hw])).matrix
    return {name: float(value[0, 0]) for name, value in cost._asdict().items()}


def test_one_tile_is_loaded_worked_on_and_stored():
    cost = of_matrix(MatrixLayer("layer", "conv", 8, 8, 16, 16, 1, 1, 1))
    # Weights 256 x 8 and bias 16 x 32 bits share a port, 64 x 16 inputs of 8 bits have one: 64 cycles; sums: 256.
    assert cost["compute_cycles"] == 64 + 15 + 15
    assert cost["stall_cycles"] == 64 + 256
    assert cost["dram_psum_bits"] == 0


def test_one_memory_behind_all_ports():
    layer = MatrixLayer("layer", "conv", 8, 8, 16, 16, 1, 1, 1)
    narrow = of_matrix(layer, BASE.with_overrides({"dram_bits_per_cycle": 64}))
    bits = 256 * 8 + 16 * 32 + 64 * 16 * 8 + 64 * 16 * 32
    assert narrow["stall_cycles"] == bits / 64


def test_inputs_that_stay_are_loaded_once():
    """Two tiles of output channels over one tile of map and reduction: SimDIT loads the inputs for each."""
    hw = BASE.with_overrides({"buffers.weight_kib": 4, "buffers.ifmap_kib": 64})
    layer = MatrixLayer("layer", "conv", 7, 7, 128, 32, 1, 1, 1)
    found = evaluate([layer], stack([hw]))
    assert found.matrix_tile.out_channels[0, 0] == 64
    assert found.matrix.dram_ifmap_bits[0, 0] == 49 * 32 * 8
    assert evaluate([layer], stack([hw]), faults=True).matrix.dram_ifmap_bits[0, 0] == 2 * 49 * 32 * 8


def test_tiles_do_not_overlap_more_than_the_layer():
    """A 5x5 kernel over a 10x10 map in rounded-up tiles: SimDIT counts 10 / 4 tiles of 4, the corrected mode 3."""
    hw = BASE.with_overrides({"buffers.ifmap_kib": 2, "buffers.weight_kib": 64})
    layer = MatrixLayer("layer", "conv", 10, 10, 16, 16, 5, 1, 1)
    found = evaluate([layer], stack([hw]))
    width = float(found.matrix_tile.width[0, 0])
    assert 10 % width
    tiles = -(-10 // width)
    columns = 10 - tiles + tiles * 5
    assert found.matrix.dram_ifmap_bits[0, 0] == columns * columns * 16 * 8
    assert found.matrix.macs[0, 0] == 100 * 25 * 16 * 16
    assert found.matrix.compute_cycles[0, 0] == 100 * 25 + 15 + 15


def test_inserted_zeros_cost_nothing():
    """Backward of a 3x3 convolution with stride 2 on the input: as many products as forward."""
    layers = network("ResNet18", "Training", batch=1)
    strided = [
        layer for layer in layers if isinstance(layer, MatrixLayer) and layer.useful_input == 0.25 and layer.kernel == 3
    ]
    backward = strided[0]
    forward = next(
        layer
        for layer in layers
        if isinstance(layer, MatrixLayer)
        and (layer.stride, layer.in_channels, layer.out_channels) == (2, backward.out_channels, backward.in_channels)
    )
    assert of_matrix(backward)["macs"] == of_matrix(forward)["macs"]
    hw = stack([BASE])
    with_zeros = evaluate([backward], hw, faults=True).matrix.macs[0, 0]
    assert with_zeros == 4 * of_matrix(backward)["macs"]


def test_weights_through_the_rows():
    """A block of weights hides behind the last pass before it: 49 pixels on 16 rows leave 1 in the last pass."""
    layer = MatrixLayer("layer", "gemm", 1, 1, 32, 16, 1, 1, 49)
    spare = BASE.with_overrides({"array.spare_weights": True})
    assert of_matrix(layer)["compute_cycles"] == 2 * 49 + 15 + 15
    assert of_matrix(layer, spare)["compute_cycles"] == 2 * (49 + 15) + 15 + 15 + 16


def test_groups_lie_side_by_side():
    depthwise = MatrixLayer("layer", "conv", 8, 8, 1, 1, 1, 1, 1, groups=32)
    single = MatrixLayer("layer", "conv", 8, 8, 1, 1, 1, 1, 1)
    products = MatrixLayer("layer", "gemm", 1, 1, 1, 1, 1, 1, 64, groups=32)
    assert of_matrix(depthwise)["compute_cycles"] == 2 * of_matrix(single)["compute_cycles"]
    assert of_matrix(products)["compute_cycles"] == 32 * of_matrix(single)["compute_cycles"]
    assert of_matrix(depthwise)["macs"] == 64 * 32


def test_vector_unit_moves_and_works_at_once():
    layer = VectorLayer("layer", "relu", 28, 28, 32, 1)
    cost = evaluate([layer], stack([BASE])).vector
    moving = 2 * 28 * 28 * 32 * 32 / 128
    compute = float(cost.compute_cycles[0, 0])
    tiles = (compute - 28 * 28 * 2) / 20
    assert tiles == 4
    assert compute + cost.stall_cycles[0, 0] == moving + compute / tiles


def _network(layers: list[Layer]) -> tuple[Evaluation, float]:
    found = evaluate(layers, stack([BASE]))
    return found, float(network_cycles(layers, stack([BASE]))[0])


def test_a_chain_takes_as_long_as_its_busiest_unit():
    layers = network("ResNet18", "Inference", batch=1, fusion=True)
    found, total = _network(layers)
    times = layer_times(layers, found).cycles[:, 0]
    vector = sum(time for layer, time in zip(layers, times, strict=True) if isinstance(layer, VectorLayer))
    assert max(times.sum() - vector, vector) < total < times.sum()
    apart = network("ResNet18", "Inference", batch=1)
    found, total = _network(apart)
    assert total == pytest.approx(layer_times(apart, found).cycles.sum(), rel=1e-12)


@pytest.mark.parametrize("name", ["light_resnet50", "light_densenet121", "light_vgg19", "light_bvlc_alexnet"])
def test_bridged_networks_have_the_macs_of_onnx_tool(name: str):
    recorded = json.loads((DATA / "onnx_tool_counts.json").read_text())["models"][name]
    layers = bridge(read_graph(load_model(f"onnx:{name}"), 1)).layers
    macs = evaluate([layer for layer in layers if isinstance(layer, MatrixLayer)], stack([BASE])).matrix.macs.sum()
    # onnx-tool counts an addition of a bias as a product.
    assert macs == sum(entry["macs"] - entry["biased_outputs"] for entry in recorded.values())


def test_bridge_of_single_operators():
    def layers(*operands: Any, **attributes: Any) -> list[Layer]:
        return bridge(read_graph(one_node(*operands, **attributes), 1)).layers

    [conv] = layers("Conv", (2, 8, 16, 16), ("weight", (32, 4, 3, 3)), group=2, pads=[1] * 4)
    assert isinstance(conv, MatrixLayer)
    assert (conv.groups, conv.out_channels, conv.in_channels, conv.kernel, conv.batch) == (2, 16, 4, 3, 2)
    [product] = layers("MatMul", (3, 4, 5), (3, 5, 6))
    assert isinstance(product, MatrixLayer)
    assert (product.groups, product.batch, product.in_channels, product.out_channels) == (3, 4, 5, 6)
    [transposed] = layers("ConvTranspose", (1, 8, 4, 4), ("weight", (8, 6, 2, 2)), strides=[2, 2])
    assert isinstance(transposed, MatrixLayer)
    assert (transposed.out_width, transposed.useful_input) == (8, 0.25)
    [softmax] = layers("Softmax", (3, 7))
    assert isinstance(softmax, VectorLayer)
    assert (softmax.channels, softmax.batch) == (7, 3)


def test_run_reports_the_headline(capsys: pytest.CaptureFixture[str]):
    arguments = ["systolic", "run", "simdit:ResNet50-training", "--hw", "simdit-training-08", "--batch", "32"]
    assert main([*arguments, "--compat", "simdit", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cycles"] == 992_512_402.25
    assert round(100 * report["vector_share"], 2) == 59.49
    assert len(report["layers"]) == 617
    assert sum(row["cycles"] for row in report["operators"]) == pytest.approx(report["serial_cycles"])


def test_run_of_an_onnx_model():
    report = run("m", layers_of("onnx:light_resnet50"), load_systolic("simdit-inference-09"))
    assert report["cycles"] < report["serial_cycles"]
    assert 0 < report["macs_of_peak"] < 1
    assert np.isclose(sum(row["of_cycles"] for row in report["operators"]), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simdit:ResNet34", "--hw", "simdit-inference-09"], "network 'ResNet34' is not known"),
        (["simdit:ResNet50-trainin", "--hw", "simdit-inference-09"], "phase 'Trainin' is not known"),
        (["onnx:light_resnet50", "--hw", "simdit-inference-09", "--compat", "simdit"], "not onnx:light_resnet50"),
        (["onnx:light_resnet50", "--hw", "simdit-inference-10"], "did you mean 'simdit-inference-1"),
        (["onnx:light_resnet50", "--hw", "simdit-inference-09", "--set", "array.rows"], "such as array.rows=32"),
        (["simdit:ResNet50", "--hw", "simdit-inference-09", "--set", "buffers.weight_kib=1"], "does not fit"),
        (["onnx:light_resnet50", "--hw", "simdit-inference-09", "--compat", "scalesim"], "vsim systolic replay"),
    ],
)
def test_bad_runs_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["systolic", "run", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
