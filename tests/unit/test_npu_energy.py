"""Energy of cycle-level runs: one layer by hand, the counts behind it, and the doors that report it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from hwconfigs import load_hw
from hwconfigs.energy_schema import load_technology
from lowering import LoadedModel, lower
from lowering.program import Program
from sweeps.points import expand
from sweeps.runner import run_sweep
from sweeps.spec import SpecError, load_spec
from sweeps.store import read_table
from tests import models
from tests.one_node import loaded, one_node
from tests.sweep_results import save_model
from vsim.api import SimPoint, simulate
from vsim.cli import main
from vsim.npu.activity import program_activity
from vsim.npu.energy import with_energy

TABLE = load_technology("horowitz-45nm")
MOBILE = load_hw("npu-mobile-8x8").with_overrides({"cores.spad_kib": 32, "cores.acc_kib": 8})
"""Memories of tabulated sizes: 20 and 10 pJ for 64 bits."""


def gemm_relu() -> LoadedModel:
    """8 x 16 by 16 x 16 with a bias, then Relu."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["X", "W", "b"], ["h"], "gemm"), helper.make_node("Relu", ["h"], ["Y"], "relu")],
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [8, 16])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [
            TensorProto(name="W", dims=(16, 16), data_type=TensorProto.FLOAT),
            TensorProto(name="b", dims=(16,), data_type=TensorProto.FLOAT),
        ],
    )
    return loaded(graph)


def test_one_layer_by_hand():
    """Four weight blocks of 8 x 8 (two along the reduction) and one pass of 8 rows over each; 2-byte operands."""
    program = lower(gemm_relu(), MOBILE)
    [result] = simulate([SimPoint(MOBILE, program)])
    found = with_energy(result.to_json(), MOBILE, program, TABLE.with_overrides({"leakage_mw": 50.0}))
    macs, outputs, rows = 8 * 16 * 16, 8 * 16, 4 * 8
    operands = rows * 8 + 4 * 64
    sums = rows * 8
    # Every sum is written; those of the first half of the reduction begin, those of the second are added to.
    sum_accesses = sums + sums - outputs
    # Relu reads a sum and its bias and writes the result; the bias is loaded once, the result read once to be stored.
    epilogue = 3 * outputs
    dram_bytes = 2 * (8 * 16 + 16 * 16 + outputs) + 4 * 16
    expected = {
        "mac_pj": macs * (1.1 + 0.9),
        "vector_pj": outputs * 0.9,
        "spad_pj": 8 * (2 * operands + 2 * (8 * 16 + 16 * 16)) * 20 / 64,
        "acc_pj": 8 * (4 * sum_accesses + 4 * epilogue + 4 * 16 + 4 * outputs) * 10 / 64,
        "dram_pj": 8 * dram_bytes * TABLE.dram_pj_per_bit.value,
        "leakage_pj": (50e-3 + 100e-3 * 40 / 1024) * result.time_us * 1e-6 * 1e12,
    }
    spent = {name: value for name, value in found["energy"].items() if name.endswith("_pj")}
    assert spent == pytest.approx(expected, rel=1e-12)
    joules, seconds = sum(expected.values()) * 1e-12, result.cycles * 1e-9
    assert found["energy_j"] == pytest.approx(joules)
    assert found["power_w"] == pytest.approx(joules / seconds)
    assert found["edp_js"] == pytest.approx(joules * seconds)
    [layer] = found["layers"]
    assert layer["dynamic_pj"] == pytest.approx(sum(expected.values()) - expected["leakage_pj"])


def operations(program: Program, layer: int) -> dict[str, int]:
    """Operations of all cores on single elements by kind."""
    total: dict[str, int] = {}
    for core in program.layers[layer].activity:
        for kind, count in core.operations:
            total[kind] = total.get(kind, 0) + count
    return total


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (one_node("Softmax", [4, 64]), {"add": 3 * 256, "exp": 256, "mul": 256, "div": 4}),
        (one_node("Sigmoid", [4, 64]), {"add": 256, "exp": 256, "div": 256}),
        (one_node("MaxPool", [1, 32, 8, 8], kernel_shape=[2, 2], strides=[2, 2]), {"add": 4 * 512}),
        (
            one_node("LayerNormalization", [4, 64], ("weight", [64]), ("weight", [64])),
            {"add": 3 * 256, "mul": 2 * 256, "mac": 256},
        ),
    ],
    ids=["softmax", "sigmoid", "max pool", "layer norm"],
)
def test_vector_operations_are_those_of_the_operator(model: LoadedModel, expected: dict[str, int]):
    found = operations(lower(model, MOBILE), 0)
    per_row = {kind: count for kind, count in found.items() if kind not in expected}
    assert {kind: found.get(kind, 0) for kind in expected} == expected
    assert all(kind.startswith("scalar") or kind == "div" for kind in per_row)


@pytest.mark.parametrize("name", ["onnx:light_squeezenet", "block"])
def test_the_vector_unit_has_a_cycle_for_whatever_it_does(name: str):
    """With latencies of one cycle, operations on elements never exceed cycles x lanes; every busy layer has some."""
    hw = load_hw("npu-server-128x128x4")
    lanes = hw.cores.vector_bits // (8 * hw.precision_bytes)
    if name == "block":
        program = lower(loaded(models.transformer_block(64, 256, 4, 512).graph), hw)
    else:
        program = lower(name, hw)
    assert set(dict(hw.cores.latency).values()) == {1}
    for index, layer in enumerate(program.layers):
        assert sum(operations(program, index).values()) <= layer.vector_cycles * lanes, layer.name
        assert bool(layer.activity) or not layer.vector_cycles, layer.name


def test_a_reduction_of_one_block_reads_no_sums():
    """8 channels fill the array's height once: every sum begins, is written, and is read once to be stored."""
    program = lower(one_node("Conv", [1, 8, 4, 4], ("weight", [8, 8, 1, 1]), kernel_shape=[1, 1]), MOBILE)
    [acc] = program_activity(MOBILE, program).memories["acc"]
    assert acc.bits.tolist() == [2 * 16 * 8 * 32]


def test_unlike_cores_are_priced_at_their_own_memories():
    hw = load_hw("npu-mobile-8x8x4").with_overrides({"cores.overrides": {1: {"spad_kib": 256}}})
    program = lower(models_mm(), hw)
    memories = program_activity(hw, program).memories
    assert [memory.capacity_kib for memory in memories["spad"]] == [64, 256]
    assert [memory.capacity_kib for memory in memories["acc"]] == [16]
    assert all(memory.bits.sum() > 0 for memory in memories["spad"])


def models_mm() -> LoadedModel:
    """A product of 64 x 64 x 64."""
    return LoadedModel("mm", Path("mm.onnx"), models.mm(64, 64, 64), 13)


def test_bytes_are_integers_and_wider_operands_floating_point():
    for precision, kind in ((1, "integer"), (2, "float"), (4, "float")):
        hw = MOBILE.with_overrides({"precision_bytes": precision})
        activity = program_activity(hw, lower(models_mm(), hw))
        assert (activity.arithmetic, activity.operand_bits, activity.sum_bits) == (kind, 8 * precision, 32)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["run", *arguments, "--hw", "npu-mobile-8x8", "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def mm(tmp_path: Path) -> str:
    """Path of a product of 32 x 32 x 32."""
    save_model(models.mm(32, 32, 32), tmp_path / "mm.onnx")
    return str(tmp_path / "mm.onnx")


def test_command_line(mm: str, capsys: pytest.CaptureFixture[str]):
    plain = run_json(capsys, mm)
    assert "energy" not in plain
    priced = run_json(capsys, mm, "--energy", "horowitz-45nm")
    assert {key: priced[key] for key in ("cycles", "dram")} == {key: plain[key] for key in ("cycles", "dram")}
    moved = priced["dram"]["read_bytes"] + priced["dram"]["write_bytes"]
    assert priced["energy"]["dram_pj"] == pytest.approx(8 * moved * TABLE.dram_pj_per_bit.value)
    scaled = run_json(capsys, mm, "--energy", "horowitz-45nm", "--node-nm", "22.5", "--supply-v", "0.45")
    assert scaled["energy"]["mac_pj"] == pytest.approx(priced["energy"]["mac_pj"] / 8)
    assert main(["run", mm, "--hw", "npu-mobile-8x8", "--energy", "horowitz-45nm"]) == 0
    printed = capsys.readouterr().out
    assert "Energy: " in printed
    assert "dynamic pj" in printed


def test_a_run_that_does_not_end_well_has_no_energy(mm: str, capsys: pytest.CaptureFixture[str]):
    stopped = run_json(capsys, mm, "--energy", "horowitz-45nm", "--max-cycles", "50", code=1)
    assert "energy" not in stopped


def test_bad_tables_are_refused(mm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", mm, "--hw", "npu-mobile-8x8", "--energy", "horowitz-45"]) == 2
    assert "did you mean 'horowitz-45nm'" in capsys.readouterr().err
    assert main(["run", mm, "--hw", "npu-mobile-8x8", "--node-nm", "7"]) == 2
    assert "give it with --energy" in capsys.readouterr().err
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: s\nmodel: mm.onnx\nbase: npu-mobile-8x8\nenergy: horowitz\nsweep: {batch: [1]}\n")
    with pytest.raises(SpecError, match=r"spec.yaml:4: no table of unit energies is called 'horowitz'"):
        expand(load_spec(spec))


def test_a_sweep_has_columns_of_energy(mm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    text = "name: s\nmodel: mm.onnx\nbase: npu-mobile-8x8\nsweep: {clocks.dram_mhz: [300, 1200]}\n"
    spec.write_text(text)
    plain = [point.digest for point in expand(load_spec(spec)).points]
    spec.write_text(text + "energy: horowitz-45nm\n")
    loaded_spec = load_spec(spec)
    expansion = expand(loaded_spec)
    assert not {point.digest for point in expansion.points} & set(plain)
    run_sweep(loaded_spec, expansion, out)
    slow, fast = read_table(out, "results")
    alone = run_json(capsys, mm, "--energy", "horowitz-45nm", "--set", "clocks.dram_mhz=300")
    for column in ("energy_j", "power_w", "edp_js"):
        assert slow[column] == pytest.approx(alone[column])
    for part in ("mac", "vector", "spad", "acc", "dram", "leakage"):
        assert slow[f"energy_{part}_pj"] == pytest.approx(alone["energy"][f"{part}_pj"])
    assert slow["energy_table"] == "horowitz-45nm"
    dynamic = [row["energy_j"] - row["energy_leakage_pj"] * 1e-12 for row in (slow, fast)]
    assert dynamic[0] == pytest.approx(dynamic[1])
    assert slow["power_w"] < fast["power_w"]
    assert np.isfinite([row["dynamic_pj"] for row in read_table(out, "layers")]).all()


def test_programs_without_counts_are_counted_by_cycles(tmp_path: Path):
    """ONNXim's formulas give cycles only: each is an addition in every lane that reads and writes, and all sums add."""
    save_model(models.mlp(8, 16, 16, 16), tmp_path / "mlp.onnx")
    hw = load_hw("npu-mobile-8x8")
    program = lower(tmp_path / "mlp.onnx", hw, compat="onnxim")
    assert not any(layer.activity for layer in program.layers)
    activity = program_activity(hw, program)
    lanes = hw.cores.vector_bits // 16
    assert activity.simple_operations.tolist() == [layer.vector_cycles * lanes for layer in program.layers]
    assert activity.macs.sum() == sum(layer.macs for layer in program.layers)
    assert all(memory.bits.sum() > 0 for name in ("spad", "acc") for memory in activity.memories[name])
