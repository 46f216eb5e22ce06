"""The command line: bad input is one line and exit code 2, and light commands stay light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hwconfigs.load import load_hw, preset_names
from hwconfigs.schema import HwConfig
from tests.sweep_results import SPEC, store_results, write_spec
from vsim.cli import main
from vsim.cli_tables import print_rows

PRESET = "npu-mobile-8x8"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hw", "show", "npu-mobil-8x8"], "did you mean 'npu-mobile-8x8'?"),
        (["hw", "show", PRESET, "--set", "dram.chanels=8"], "did you mean 'dram.channels'?"),
        (["hw", "show", PRESET, "--set", "dram.channels=3"], "dram.channels = 3"),
        (["hw", "show", PRESET, "--set", "dram.channels"], "expected KEY=VALUE"),
        (["hw", "show", PRESET, "--set", "=8"], "expected KEY=VALUE"),
        (["hw", "show", PRESET, "--set", "dram.channels=[1"], "is not a value"),
        (["hw", "show", PRESET, "--set"], "'--set' requires an argument"),
        (["hw", "show"], "Missing argument"),
        (["hw", "lst"], "No such command 'lst'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option"),
        (["run", "x.onnx"], "Missing option '--hw'"),
        (["run", "x.onnx", "--hw"], "'--hw' requires an argument"),
        (["run", "x.onnx", "--hw", PRESET, "--batch", "0"], "--batch"),
        (["run", "x.onnx", "--hw", PRESET, "--batch", "two"], "--batch"),
        (["run", "x.onnx", "--hw", PRESET, "--dim", "n"], "expected NAME=SIZE"),
        (["run", "x.onnx", "--hw", PRESET, "--dim", "n=0"], "is not a whole number above 0"),
        (["run", "x.onnx", "--hw", PRESET, "--dim", "n=1.5"], "is not a whole number above 0"),
        (["run", "x.onnx", "--hw", PRESET, "--compat", "gem5"], "--compat"),
        (["run", "x.onnx", "--hw", PRESET, "--max-cycles", "0"], "--max-cycles"),
        (["run", "no/such.onnx", "--hw", PRESET], "no/such.onnx"),
        (["run", "onnx:light_resnet5", "--hw", PRESET], "did you mean 'light_resnet50'?"),
        (["run", "README.md", "--hw", PRESET], "not an ONNX file"),
        (["sweep", "no/such.yaml", "--out", "out"], "no/such.yaml"),
        (["sweep", "sweeps/demo.yaml"], "missing option '--out'"),
        (["figures", "no/such/folder"], "no result folder"),
        (["figures", "README.md"], "not a folder"),
        (["dram", "replay"], "Missing argument"),
        (["dram", "replay", "no/such.npz"], "no/such.npz"),
        (["dram", "replay", "README.md"], "README.md"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    [line] = output.err.splitlines()
    assert line.startswith("vsim: error: ")
    assert message in line


def test_a_misspelt_key_in_a_spec_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = write_spec(tmp_path, SPEC.replace("dram.channels", "dram.chanels"))
    assert main(["sweep", str(spec), "--out", str(tmp_path / "out")]) == 2
    assert (
        capsys.readouterr().err == f"vsim: error: {spec}:5: unknown key 'dram.chanels'; did you mean 'dram.channels'?\n"
    )
    assert not (tmp_path / "out").exists()


def test_hw_list_names_every_preset(capsys: pytest.CaptureFixture[str]):
    assert main(["hw", "list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in preset_names())
    assert main(["hw", "list", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == preset_names()


@pytest.mark.parametrize("name", preset_names())
def test_hw_show_can_be_read_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["hw", "show", name]) == 0
    file = tmp_path / "shown.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_hw(file) == load_hw(name)


def test_hw_show_applies_overrides_in_order(capsys: pytest.CaptureFixture[str]):
    options = ["--set", "dram.channels=8", "--set", "dram.refresh=false", "--set", "dram.channels=4"]
    assert main(["hw", "show", PRESET, *options]) == 0
    shown = HwConfig.from_data(yaml.safe_load(capsys.readouterr().out))
    assert shown == load_hw(PRESET).with_overrides({"dram.channels": 4, "dram.refresh": False})


def test_dry_run_lists_the_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = write_spec(tmp_path)
    assert main(["sweep", str(spec), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[0].endswith("dram.channels=1, clocks.dram_mhz=600")


def test_figures_prints_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = store_results(tmp_path)
    assert main(["figures", str(out)]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {file.name for file in files} >= {"sweep.pdf", "sweep.png"}
    assert all(file.is_file() and file.parent == out / "figures" for file in files)


@pytest.mark.parametrize("arguments", [["hw", "list"], ["--help"], ["sweep", "sweeps/demo.yaml", "--dry-run"]])
def test_light_commands_load_no_heavy_library(arguments: list[str]):
    script = f"""
import sys
from vsim.cli import main
from vsim.cli_tables import print_rows
main({arguments})
print([name for name in ("jax", "pandas", "matplotlib", "pyarrow") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m vsim.cli sweep sweeps/demo.yaml --dry-run | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("run", "sweep", "figures", "hw", "dram"))


def test_names_and_numbers_stay_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Lines run over the edge instead: what is folded within a cell cannot be read or copied."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    print_rows("Rows", [{"name": "npu-server-128x128x4", "load_bytes": 1_234_567_890, "macs": 1_234_567_890_123}])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("npu-server-128x128x4", "1,234,567,890 ", "1,234,567,890,123"))
