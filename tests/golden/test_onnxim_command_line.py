"""Recorded runs of ONNXim through `vsim run MODEL --hw CONFIG.json --compat onnxim --json`, with its configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.onnxim_cases import NAMELESS
from tests.golden.onnxim_reference import load_cases
from vsim.cli import main

CASES = ("V_ports1_conv_n1_c128_h28_m128_k3_s1", "T_resnet18_64px", "T_resnet18_b4", "T_bert_base_l1_seq128")
"""A convolution, a network, a batch of four images, an encoder whose length is open."""


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_case(name: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = load_cases(shared)[name]
    chip = tmp_path / "chip.json"
    chip.write_text(json.dumps(case.data["config"]))
    dims = [f"--dim={key}={size}" for key, size in case.open_dims.items()]
    arguments = ["run", str(case.model_path), "--hw", str(chip), "--batch", str(case.batch), *dims]
    assert main([*arguments, "--compat", "onnxim", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], result["cycles"]) == ("ok", case.data["total_cycles"])
    recorded = case.data["layers"]
    assert [layer["finish_cycle"] for layer in result["layers"]] == [layer["finish_cycle"] for layer in recorded]
    named = [(ours["name"], theirs["name"]) for ours, theirs in zip(result["layers"], recorded, strict=True)]
    assert [pair for pair in named if pair[0] != pair[1] and pair[1] != NAMELESS] == []
    counted = {"reads": "mem_reads", "writes": "mem_writes", "row_conflicts": "dram_row_conflicts"}
    assert {key: result["dram"][key] for key in counted} == {key: case.data["dram"][of] for key, of in counted.items()}
