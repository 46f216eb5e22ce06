"""`vsim map`: it prints and writes tile sizes that `vsim run --mapping` takes, searches, and tells what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwconfigs import load_hw
from lowering import lower
from tests import models
from tests.sweep_results import save_model
from vsim.cli import main
from vsim.mapping_search import only_layer

HW = ["--hw", "npu-mobile-8x8"]


@pytest.fixture
def mlp(tmp_path: Path) -> str:
    save_model(models.mlp(16, 32, 24, 8), tmp_path / "mlp.onnx")
    return str(tmp_path / "mlp.onnx")


def map_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["map", *arguments, *HW, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, *HW]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_it_shows_every_matrix_layer_and_writes_a_file(mlp: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "mlp.mapping"
    layers = map_json(capsys, mlp, "--out", str(file))["layers"]
    assert [(layer["name"], layer["op"], len(layer["lines"])) for layer in layers] == [
        ("g1", "Gemm", 1),
        ("g2", "Gemm", 1),
    ]
    assert len(file.read_text().splitlines()) == 2
    assert map_json(capsys, mlp, "--mapping", str(file))["layers"] == layers
    assert main(["map", mlp, *HW]) == 0
    assert "N16 C32 M24" in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_of_a_search_is_no_slower(mlp: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "found.mapping"
    found = map_json(capsys, mlp, "--search", "2", "--out", str(file))
    assert found["cycles"] <= found["default_cycles"]
    for layer in found["layers"]:
        assert len(layer["cycles"]) == 3
        assert min(layer["cycles"]) > 0
    assert main(["run", mlp, *HW, "--mapping", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cycles"] == found["cycles"]


def test_a_layer_alone_has_the_layers_own_tiles(mlp: str):
    program = lower(mlp, load_hw("npu-mobile-8x8x4"))
    parts = [only_layer(program, layer) for layer in range(program.n_layers)]
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), program.rows)
    assert [len(part.tiles) for part in parts] == np.diff(program.schedule, axis=2).sum(axis=(1, 2)).tolist()
    for part in parts:
        assert part.tiles[0, 0] == part.schedule.min() == 0
        assert part.schedule.max() == len(part.tiles)


def test_bad_input_is_one_line(mlp: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "bad.mapping"
    file.write_text("[T] N16 C32 M24 - [O] N1 C1 M2 - [I] N16 C32 M8\n")
    assert f"layer g1 (Gemm): {file}:1: 2 tiles of M8 do not cover M24" in error(
        capsys, "run", mlp, "--mapping", str(file)
    )
    file.write_text("[T] N16 C32 M24 - [O] N1 C1 M3 - [I] N16 C32 M8\n")
    assert f"layer g2 (Gemm): {file} has no line for it" in error(capsys, "map", mlp, "--mapping", str(file))
    assert "exclude each other" in error(capsys, "map", mlp, "--mapping", str(file), "--search", "2")
    file.write_text("[T] N1 C32 M24 - [O] N1 C1 M2 - [I] N16 C32 M8\n")
    named = error(capsys, "run", mlp, "--mapping", str(file), "--compat", "onnxim")
    assert f"{file}:1: 2 tiles of M8 do not cover M24" in named
    assert "no.mapping: No such file" in error(capsys, "map", mlp, "--mapping", "no.mapping")
