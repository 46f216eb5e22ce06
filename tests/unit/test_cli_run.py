"""`vsim run` through the real engine: the JSON object, the tables, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests import models
from tests.conftest import DATA
from tests.sweep_results import save_model
from vsim.cli import main


@pytest.fixture(scope="module")
def mm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a matrix multiplication of 32 x 32 x 32."""
    path = tmp_path_factory.mktemp("models") / "mm.onnx"
    save_model(models.mm(32, 32, 32), path)
    return str(path)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run `vsim run --json` on the mobile preset and return the object it prints."""
    assert main(["run", *arguments, "--hw", "npu-mobile-8x8", "--json"]) == code
    output = capsys.readouterr()
    assert output.err == ""
    return json.loads(output.out)


def test_json_is_one_object_with_every_part(mm: str, capsys: pytest.CaptureFixture[str]):
    result = run_json(capsys, mm)
    assert (result["status"], result["warnings"]) == ("ok", [])
    assert result["time_us"] == pytest.approx(result["cycles"] / 1000)
    [layer] = result["layers"]
    assert {"name", "op", "start_cycle", "finish_cycle", "utilization"} <= set(layer)
    assert layer["finish_cycle"] <= result["cycles"]
    assert len(result["cores"]) == 1
    dram = result["dram"]
    assert dram["reads"] * 64 == layer["load_bytes"]
    assert dram["writes"] * 64 == layer["store_bytes"]
    cycles = layer["finish_cycle"] - layer["start_cycle"]
    assert 0 < layer["bound_cycles"] <= cycles
    assert layer["bound_utilization"] == layer["bound_cycles"] / cycles
    assert layer["dram_utilization"] == pytest.approx((dram["reads"] + dram["writes"]) * 64 / (38.4 * cycles))
    assert dram["row_hits"] + dram["row_misses"] + dram["row_conflicts"] == dram["reads"] + dram["writes"]
    assert dram["bandwidth_gbps"] > 0
    assert result["noc"]["requests"] == dram["reads"] + dram["writes"]


def test_idle_skip_changes_nothing(mm: str, capsys: pytest.CaptureFixture[str]):
    assert run_json(capsys, mm) == run_json(capsys, mm, "--no-idle-skip")


def test_overrides_take_effect(mm: str, capsys: pytest.CaptureFixture[str]):
    slow = run_json(capsys, mm, "--set", "clocks.dram_mhz=300")
    assert slow["cycles"] > run_json(capsys, mm)["cycles"]


def test_a_run_cut_short_exits_with_1(mm: str, capsys: pytest.CaptureFixture[str]):
    result = run_json(capsys, mm, "--max-cycles", "100", code=1)
    assert result["status"] == "cycle_limit"
    assert result["layers"][0]["finish_cycle"] is None
    assert main(["run", mm, "--hw", "npu-mobile-8x8", "--max-cycles", "100"]) == 1
    assert "stopped with status cycle_limit" in capsys.readouterr().out


def test_a_figure_that_cannot_be_drawn_costs_no_result(mm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    nowhere = str(tmp_path / "missing" / "roof.png")
    assert main(["run", mm, "--hw", "npu-mobile-8x8", "--roofline", nowhere]) == 2
    printed = capsys.readouterr()
    assert (printed.out, "there is no folder" in printed.err) == ("", True)
    run = ["run", mm, "--hw", "npu-mobile-8x8", "--max-cycles", "100", "--roofline", str(tmp_path / "roof.png")]
    assert main(run) == 2
    printed = capsys.readouterr()
    assert "stopped with status cycle_limit" in printed.out
    assert "nothing to draw" in printed.err


def test_tables_name_layers_and_totals(mm: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", mm, "--hw", "npu-mobile-8x8"]) == 0
    text = capsys.readouterr().out
    assert "MatMul" in text
    assert "row hits" in text
    assert "cycles" in text.splitlines()[-1]


def test_compat_runs_a_convolution_as_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Case E1_conv_n1_c16_h8_m16_k3_s1 of the recorded runs of ONNXim, with its own configuration file."""
    model, chip = tmp_path / "conv.onnx", tmp_path / "chip.json"
    graph = models.conv(16, 16, 3, 1, 1, 8)
    graph.graph.node[0].input.append("b")
    graph.graph.initializer.append(TensorProto(name="b", dims=[16], data_type=TensorProto.FLOAT))
    save_model(graph, model)
    chip.write_text(json.dumps(json.loads((DATA / "onnxim_configs.json").read_text())["E1_conv_n1_c16_h8_m16_k3_s1"]))
    assert main(["run", str(model), "--hw", str(chip), "--compat", "onnxim", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], result["cycles"], result["warnings"]) == ("ok", 3020, [])
    assert main(["run", str(model), "--hw", "npu-mobile-8x8", "--compat", "onnxim", "--json"]) == 0
    [warning] = json.loads(capsys.readouterr().out)["warnings"]
    assert "none of ONNXim's memories" in warning


def test_dim_and_unknown_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["X"], ["H"], "relu"), helper.make_node("Det", ["H"], ["Y"], "det")],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, "n", 32, 32])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, "n"])],
    )
    path = str(tmp_path / "det.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)

    def error(*arguments: str) -> str:
        assert main(["run", path, "--hw", "npu-mobile-8x8", *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "--dim n=SIZE" in error()
    assert "--dim m" in error("--dim", "m=2")
    unknown = error("--dim", "n=2")
    assert "Det" in unknown
    assert "det" in unknown
    result = run_json(capsys, path, "--dim", "n=2", "--skip-unknown")
    assert any("Det" in warning for warning in result["warnings"])
