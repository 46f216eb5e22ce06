"""`vsim systolic replay`: the closed-form models equal recorded runs of SimDIT and SCALE-Sim, faults included."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwconfigs.systolic_schema import load_systolic
from tests.conftest import DATA
from vsim.cli import main
from vsim.systolic.designs import stack
from vsim.systolic.evaluate import totals
from vsim.systolic.layers import Layer, MatrixLayer
from vsim.systolic.networks import from_graph, network
from vsim.systolic.replay import replay_file

EXCERPTS = DATA / "systolic"


@pytest.mark.parametrize(
    ("file", "compat", "items"),
    [
        ("simdit_layers.jsonl.gz", "simdit", 375),
        ("simdit_networks.json", "simdit", 10),
        ("scalesim_cases.json", "scalesim", 33),
    ],
)
def test_equals_excerpts(file: str, compat: str, items: int):
    report = replay_file(EXCERPTS / file, compat)
    assert (report.equal, report.items, report.different) == (items, items, [])
    assert report.worst_relative < 1e-15


@pytest.mark.parametrize(
    ("file", "compat", "items"),
    [
        ("simdit/layers.jsonl.gz", "simdit", 9181),
        ("simdit/networks.json", "simdit", 113),
        ("scalesim/cases.json", "scalesim", 210),
    ],
)
def test_equals_every_recorded_run(shared: Path, file: str, compat: str, items: int):
    report = replay_file(shared / "reference" / file, compat)
    assert (report.equal, report.items, report.different) == (items, items, [])


def test_training_graph_is_the_recorded_one(shared: Path):
    graph = json.loads((shared / "reference" / "simdit" / "resnet50_training_graph.json").read_text())
    for batch in (2, 32):
        layers = [_with_zeros(layer) for layer in network("ResNet50", "Training", batch=batch)]
        assert layers == from_graph(graph, batch=batch)


def _with_zeros(layer: Layer) -> Layer:
    """The graph does not say which convolutions are dilated with zeros."""
    return replace(layer, useful_kernel=1.0, useful_input=1.0) if isinstance(layer, MatrixLayer) else layer


def test_headline_of_resnet50_training():
    design = stack([load_systolic("simdit-training-08")])
    sums = totals(network("ResNet50", "Training", batch=32), design, faults=True)
    assert sums.fits.all()
    assert sums.cycles[0] == 992_512_402.25
    assert sums.vector.compute_cycles[0] + sums.vector.stall_cycles[0] == 590_400_352
    assert round(100 * sums.vector_share[0], 2) == 59.49


def test_published_networks_that_are_not_among_the_recordings():
    """specs/systolic.md section 1.8: totals to the digits given there."""
    designs = ["01", "05", "08", "12"]
    fused = totals(
        network("ResNet50", "Training", batch=32, fusion=True),
        stack([load_systolic(f"simdit-training-{design}") for design in designs]),
        faults=True,
    )
    assert [f"{cycles:.5e}" for cycles in fused.cycles] == ["4.95870e+09", "2.06555e+09", "9.53538e+08", "8.59517e+08"]
    assert round(100 * fused.vector_share[2], 2) == 59.42
    batches = {2: 2.6197e8, 16: 6.0288e8, 64: 1.7718e9, 128: 3.5362e9, 256: 7.0652e9}
    design = stack([load_systolic("simdit-training-08")])
    for batch, cycles in batches.items():
        [total] = totals(network("ResNet50", "Training", batch=batch), design, faults=True).cycles
        np.testing.assert_allclose(total, cycles, rtol=2e-5)


def test_changed_record_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with gzip.open(EXCERPTS / "simdit_layers.jsonl.gz", "rt") as lines:
        run = json.loads(next(lines))
    run["layers"][1]["stall"] += 1
    file = tmp_path / "layers.jsonl"
    file.write_text(json.dumps(run) + "\n")
    assert main(["systolic", "replay", str(file), "--compat", "simdit", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["items"] - report["equal"] == 1
    [difference] = report["different"]
    assert difference["quantity"] == "stall"
    assert difference["recorded"] - difference["computed"] == 1
    assert "layer 1 relu" in difference["where"]


@pytest.mark.parametrize(
    ("content", "compat", "message"),
    [
        ("{", "simdit", "not valid JSON"),
        ("[]", "simdit", "expected a list of recorded runs"),
        ('[{"a": 1}]', "scalesim", "is no recording of scalesim"),
        ('[{"layers": []}]', "simdit", "key 'phase' is missing"),
        ('[{"total": 1, "net": "ResNet50", "phase": "Training", "design": "03", "batch": 1}]', "simdit", "'fusion'"),
        (
            '[{"total": 1, "net": "ResNet50", "phase": "Training", "design": "03", "batch": 1, "fusion": false}]',
            "simdit",
            "'simdit-training-03' is none of the presets",
        ),
        ('[{"dataflow": "ws", "kind": "gemm", "layer": {"M": 1, "N": 1}}]', "scalesim", "key 'layer.K' is missing"),
    ],
)
def test_bad_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, compat: str, message: str
):
    file = tmp_path / "runs.json"
    file.write_text(content)
    assert main(["systolic", "replay", str(file), "--compat", compat]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
