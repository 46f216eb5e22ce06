"""What limits a layer: the bounds count the program's tables, and name the resource that a layer is made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwconfigs import load_hw
from lowering import lower
from lowering.program import Program
from tests import models
from tests.sweep_results import save_model
from vsim.bounds import bounds_of, dram_peak_bytes_per_cycle, roofs_of


@pytest.mark.parametrize("preset", ["npu-mobile-8x8x4", "gemmini-16x16"])
def test_work_of_the_cores_adds_up_to_what_lowering_says(preset: str):
    """Both with and without a drain between tiles: array and vector cycles, and the requests of every layer."""
    hw = load_hw(preset)
    program = lower("onnx:light_squeezenet", hw)
    work = bounds_of(hw, program).work
    layers = program.layers
    assert work.systolic_cycles.sum(axis=1).tolist() == [layer.systolic_cycles for layer in layers]
    assert work.vector_cycles.sum(axis=1).tolist() == [layer.vector_cycles for layer in layers]
    moved = work.requests.sum(axis=1) * program.request_bytes
    assert moved.tolist() == [layer.load_bytes + layer.store_bytes for layer in layers]


def bound(tmp_path: Path, model: onnx.ModelProto, overrides: dict[str, Any]) -> str | None:
    hw = load_hw("npu-mobile-8x8").with_overrides(overrides)
    save_model(model, tmp_path / "model.onnx")
    return bounds_of(hw, lower(tmp_path / "model.onnx", hw)).name(0)


WIDE = {"dram.channels": 16, "noc.ports_per_core": 16}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (WIDE, "compute"),
        ({"dram.channels": 16, "noc.ports_per_core": 1, "clocks.noc_mhz": 100}, "noc"),
        ({"clocks.dram_mhz": 100}, "dram"),
    ],
)
def test_a_product_is_bound_by_what_the_chip_lacks(tmp_path: Path, overrides: dict[str, Any], expected: str):
    assert bound(tmp_path, models.mm(64, 64, 64), overrides) == expected


def test_slow_vector_operations_bound_an_elementwise_layer(tmp_path: Path):
    graph = helper.make_graph(
        [helper.make_node("Tanh", ["X"], ["Y"], "tanh")],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [64, 64])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [64, 64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    assert bound(tmp_path, model, {"cores.latency.exp": 200}) == "vector"
    assert bound(tmp_path, model, {"clocks.dram_mhz": 100}) == "dram"


def test_many_small_instructions_bound_by_dispatch():
    """A hand-made program: one core, one tile, a row of 1,000 vector operations that take no time."""
    from lowering.emit import Extent, Operand, ProgramBuilder
    from lowering.program import LayerInfo

    builder = ProgramBuilder("hand", 1, 64)
    builder.begin_layer(LayerInfo("a", "Add"))
    builder.begin_tile(0)
    builder.vector(dst=Operand(0), src_a=Operand(0), counts=(10, 10, 10), size1=Extent(0))
    builder.end_tile()
    builder.end_layer()
    builder.begin_layer(LayerInfo("nothing", "Reshape"))
    builder.end_layer()
    bounds = bounds_of(load_hw("npu-mobile-8x8"), builder.build())
    assert bounds.name(0) == "dispatch"
    assert bounds.cycles["dispatch"].tolist() == [1001, 0]
    assert bounds.name(1) is None


def test_peaks_of_the_presets_are_those_of_their_data_sheets():
    """DDR4-2400, two 64-bit channels: 38.4 GB/s; HBM2 at 2.4 Gb/s a pin, 16 channels of 128 bits: 614 GB/s."""
    for preset, gbps in (("npu-mobile-8x8", 38.4), ("npu-server-128x128x4", 614.4), ("edge-tpu-64x64", 12.8)):
        hw = load_hw(preset)
        assert dram_peak_bytes_per_cycle(hw) * hw.clocks.core_mhz / 1e3 == pytest.approx(gbps)
    assert roofs_of(load_hw("npu-server-128x128x4")).macs == 4 * 128 * 128


def test_imbalance_is_the_largest_share_over_the_mean():
    hw = load_hw("npu-mobile-8x8x4")
    program: Program = lower("onnx:light_squeezenet", hw)
    bounds = bounds_of(hw, program)
    systolic = bounds.work.systolic_cycles
    busy = np.flatnonzero(systolic.sum(axis=1))
    for layer in busy.tolist():
        assert bounds.imbalance(layer) == pytest.approx(systolic[layer].max() * 4 / systolic[layer].sum())
        assert 1 <= bounds.imbalance(layer) <= 4


def test_the_total_adds_up_what_bounds_each_layer(tmp_path: Path):
    """At least what any single resource needs for all layers."""
    hw = load_hw("npu-mobile-8x8").with_overrides({"clocks.dram_mhz": 300})
    save_model(models.chain(8, [(32, 512), (8, 64)]), tmp_path / "model.onnx")
    save_model(models.mm(256, 64, 64), tmp_path / "square.onnx")
    for name in ("model", "square"):
        bounds = bounds_of(hw, lower(tmp_path / f"{name}.onnx", hw))
        named = [(bounds.name(layer), layer) for layer in range(len(bounds.work.requests))]
        assert bounds.total_cycles == sum(bounds.cycles[bound][layer] for bound, layer in named if bound)
        assert bounds.total_cycles >= max(cycles.sum() for cycles in bounds.cycles.values())
