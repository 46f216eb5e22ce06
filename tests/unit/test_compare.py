"""`vsim compare`: the cycle-level model and the closed form of one chip, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from hwconfigs import load_hw
from hwconfigs.errors import UserError
from tests.sweep_results import save_model
from vsim.cli import main
from vsim.compare import FREE, NO_CLOSED_FORM, compare
from vsim.systolic.chips import chip_cycles, on_chips
from vsim.systolic.layers import MatrixLayer, VectorLayer

MOBILE = load_hw("npu-mobile-8x8")


def small_network() -> onnx.ModelProto:
    """Two convolutions with a Relu each, a pool, a transposition that moves data, and a product."""
    weight = TensorProto(name="c1.W", dims=(16, 8, 3, 3), data_type=TensorProto.FLOAT)
    second = TensorProto(name="c2.W", dims=(16, 16, 1, 1), data_type=TensorProto.FLOAT)
    last = TensorProto(name="fc.W", dims=(16, 8), data_type=TensorProto.FLOAT)
    nodes = [
        helper.make_node("Conv", ["X", "c1.W"], ["c1"], "c1", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "r1"),
        helper.make_node("MaxPool", ["r1"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "c2.W"], ["c2"], "c2", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "r2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "fc.W"], ["Y"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 8, 16, 16])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 8])],
        [weight, second, last],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "small.onnx"
    save_model(small_network(), path)
    return str(path)


@pytest.fixture(scope="module")
def content(model: str) -> dict[str, Any]:
    return compare(model, MOBILE)


def test_every_layer_has_both_numbers(content: dict[str, Any]):
    rows = {row["name"]: row for row in content["layers"]}
    assert list(rows) == ["c1", "pool", "c2", "mean", "fc"]
    for row in rows.values():
        assert row["note"] == ""
        assert row["ratio"] == row["closed_form_cycles"] / row["cycles"]
    assert rows["c1"]["bound"] == "compute"


def test_a_convolution_bound_by_the_array_is_close(content: dict[str, Any]):
    assert content["layers"][0]["ratio"] == pytest.approx(1, abs=0.1)


def test_bytes_of_a_convolution_are_those_of_its_tensors(content: dict[str, Any]):
    """All of c1 fits on the chip: inputs with their border, weights and biases once, results once, 2 bytes each."""
    elements = 18 * 18 * 8 + 9 * 8 * 16 + 16 + 16 * 16 * 16
    assert content["layers"][0]["closed_form_bytes"] == 2 * elements


def test_totals_are_those_of_the_rows(content: dict[str, Any]):
    total, rows = content["total"], content["layers"]
    assert total["closed_form_cycles"] == pytest.approx(sum(row["closed_form_cycles"] for row in rows))
    assert total["bytes"] == sum(row["bytes"] for row in rows)
    assert total["both"]["cycles"] == sum(row["cycles"] for row in rows) <= total["cycles"]
    assert total["both"]["layers"] == total["layers"] == 5


def test_the_command_prints_both_and_what_is_left_out(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", model, "--hw", "npu-mobile-8x8", "--set", "clocks.dram_mhz=300"]) == 0
    output = capsys.readouterr().out
    assert "not in the closed form: contention" in output
    assert "5 of 5 layers have both" in output
    assert main(["compare", model, "--hw", "npu-mobile-8x8", "--json", "--max-cycles", "50"]) == 1
    stopped = json.loads(capsys.readouterr().out)
    assert stopped["status"] == "cycle_limit"
    assert all(row["cycles"] is None and row["ratio"] is None for row in stopped["layers"])


def test_layers_that_one_of_the_two_does_not_have(tmp_path: Path):
    """TopK has no closed form; a transposition that is a view costs nothing at the cycle level."""
    k = helper.make_tensor("k", TensorProto.INT64, [1], [64])
    nodes = [
        helper.make_node("Constant", [], ["k"], "k", value=k),
        helper.make_node("TopK", ["X", "k"], ["s", "i"], "top"),
        helper.make_node("Transpose", ["s"], ["v"], "view", perm=[1, 0, 2]),
        helper.make_node("Relu", ["v"], ["Y"], "relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 8, 64])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [8, 1, 64])],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "g.onnx")
    found = compare(str(tmp_path / "g.onnx"), MOBILE)
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["top"]["note"] == NO_CLOSED_FORM
    assert rows["top"]["closed_form_cycles"] is None and rows["top"]["cycles"] > 0
    assert rows["view"]["note"] == FREE
    assert rows["view"]["cycles"] is None
    assert any("TopK" in warning for warning in found["warnings"])


def test_models_and_chips_without_a_closed_form_are_one_error(model: str, capsys: pytest.CaptureFixture[str]):
    mixed = MOBILE.with_overrides({"cores.count": 2, "cores.overrides.1.rows": 16})
    with pytest.raises(UserError, match="its cores differ"):
        compare(model, mixed)
    assert main(["compare", "config.json", "--hw", "npu-mobile-8x8"]) == 2
    assert "config.json has no closed form" in capsys.readouterr().err


CONV = MatrixLayer("conv", "conv", 16, 16, 16, 8, 3, 1, 1)


def test_cores_share_a_layer_and_the_memory():
    """Of four cores each has a fourth of the work; where the memory is the bound, cores gain nothing."""
    four = MOBILE.with_overrides({"cores.count": 4, "dram.channels": 8, "noc.ports_per_core": 8})
    alone = MOBILE.with_overrides({"dram.channels": 2, "noc.ports_per_core": 8})
    one, shared = chip_cycles([CONV], [alone, four])
    assert shared == pytest.approx(one / 4)
    slow = {"clocks.dram_mhz": 1}
    one, shared = chip_cycles([CONV], [MOBILE.with_overrides(slow), MOBILE.with_overrides({**slow, "cores.count": 4})])
    assert shared == pytest.approx(one, rel=0.01)


def test_the_slower_of_memory_and_network_counts():
    narrow = MOBILE.with_overrides({"clocks.noc_mhz": 10})
    assert chip_cycles([CONV], [narrow])[0] > 3 * chip_cycles([CONV], [MOBILE])[0]


def test_vector_lanes_are_those_of_the_chip():
    """64 x 4096 elements of 2 bytes, add: one cycle each 2048 bits, however wide the array is."""
    layer = VectorLayer("add", "elem_add", 1, 1, 64, 4096)
    fast = {"dram.channels": 64, "noc.ports_per_core": 64, "clocks.noc_mhz": 100_000}
    chips = [MOBILE.with_overrides({**fast, "cores.cols": cols, "cores.vector_bits": 128}) for cols in (8, 16)]
    cycles = chip_cycles([layer], chips)
    assert cycles[0] == cycles[1]
    assert cycles[0] == pytest.approx(64 * 4096 / 8, rel=0.05)


def test_tiles_of_a_chip_need_not_divide_the_map():
    [layer] = on_chips([CONV])
    assert isinstance(layer, MatrixLayer)
    assert layer.uneven_tiles
