"""Pruning a sweep by the closed form: what is simulated, what is recorded, and what cannot be pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hwconfigs.errors import UserError
from sweeps.estimates import estimate_points, pruned
from sweeps.points import Point, expand
from sweeps.spec import load_spec
from sweeps.store import read_manifest, read_table
from tests import models
from tests.sweep_results import save_model
from vsim.cli import main

SPEC = """\
name: tiny
model: mm.onnx
base: npu-mobile-8x8
sweep:
  clocks.dram_mhz: [300, 1200]
  clocks.core_mhz: [250, 1000]
"""


def write(folder: Path, text: str) -> Path:
    save_model(models.mm(64, 64, 64), folder / "mm.onnx")
    spec = folder / "spec.yaml"
    spec.write_text(text)
    return spec


def kept(folder: Path, text: str) -> list[Point]:
    """The points of a specification that are not pruned."""
    loaded = load_spec(write(folder, text))
    points = expand(loaded).points
    discarded = pruned(loaded, points, estimate_points(points))
    return [point for point in points if point.digest not in discarded]


def run(folder: Path, text: str, *options: str, code: int = 0) -> list[dict[str, Any]]:
    """Rows of the results table after `vsim sweep`."""
    assert main(["sweep", str(write(folder, text)), "--out", str(folder / "out"), *options]) == code
    return read_table(folder / "out", "results")


def test_the_fastest_by_time_not_by_cycles_are_kept(tmp_path: Path):
    """At 250 MHz a point has fewer cycles of waiting for memory than at 1000 MHz, and takes longer."""
    [best] = kept(tmp_path, SPEC + "prune: {keep: 0.25}\n")
    assert best.values == {"clocks.dram_mhz": 1200, "clocks.core_mhz": 1000}
    assert len(kept(tmp_path, SPEC + "prune: {keep: 0.3}\n")) == 2
    assert len(kept(tmp_path, SPEC + "prune: {keep: 1}\n")) == 4


def test_points_within_a_factor_of_the_fastest_are_kept(tmp_path: Path):
    loaded = load_spec(write(tmp_path, SPEC))
    points = expand(loaded).points
    estimates = estimate_points(points).values()
    times = {point.digest: estimate.time_us for point, estimate in zip(points, estimates, strict=True)}
    for factor in (1, 1.5, 3, 100):
        expected = [digest for digest, time in times.items() if time <= factor * min(times.values())]
        assert [point.digest for point in kept(tmp_path, SPEC + f"prune: {{factor: {factor}}}\n")] == expected


def test_what_the_closed_form_does_not_see_is_not_pruned(tmp_path: Path):
    text = SPEC.replace("clocks.core_mhz: [250, 1000]", "noc.latency_cycles: [1, 8]")
    assert [point.values["noc.latency_cycles"] for point in kept(tmp_path, text + "prune: {keep: 0.25}\n")] == [1, 8]


def test_every_workload_is_pruned_by_itself(tmp_path: Path):
    save_model(models.mm(128, 64, 64), tmp_path / "large.onnx")
    text = SPEC.replace("clocks.core_mhz: [250, 1000]", "model: [mm.onnx, large.onnx]")
    points = kept(tmp_path, text + "prune: {keep: 0.5}\n")
    assert [(point.model, point.hw.clocks.dram_mhz) for point in points] == [("mm.onnx", 1200), ("large.onnx", 1200)]


def test_pruned_points_are_recorded_without_cycles(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = run(tmp_path, SPEC + "prune: {keep: 0.25}\n")
    assert "1 of 4 points ok, 3 pruned by their estimates" in capsys.readouterr().out
    assert [row["status"] for row in rows] == ["pruned"] * 3 + ["ok"]
    for row in rows[:3]:
        assert [row[name] for name in ("cycles", "time_us", "macs", "load_bytes")] == [None] * 4
        assert row["estimate_us"] > rows[3]["estimate_us"] > 0
        assert row["estimate_us"] == row["estimate_cycles"] / row["clocks.core_mhz"]
        assert "the slowest point kept has" in row["message"]
    assert rows[3]["cycles"] > 0
    statuses = [point["status"] for point in read_manifest(tmp_path / "out")["points"]]
    assert statuses == ["pruned"] * 3 + ["ok"]
    assert read_manifest(tmp_path / "out")["runs"][0]["points_finished"] == 1
    assert main(["figures", str(tmp_path / "out")]) == 0
    assert "3 of 4 points did not finish with status ok and are left out" in capsys.readouterr().err


def test_a_pruned_point_is_simulated_when_it_is_no_longer_pruned(tmp_path: Path):
    first = run(tmp_path, SPEC + "prune: {keep: 0.25}\n")
    journal = (tmp_path / "out" / "journal.jsonl").read_bytes()
    assert run(tmp_path, SPEC + "prune: {keep: 0.25}\n") == first
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == journal
    rows = run(tmp_path, SPEC)
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert rows[3]["cycles"] == first[3]["cycles"]
    # A point that has a result keeps it.
    assert run(tmp_path, SPEC + "prune: {keep: 0.25}\n") == rows


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("clocks.core_mhz: [250, 1000]", "cores.overrides.0.rows: [8, 16]"), None),
        (("clocks.core_mhz: [250, 1000]", "cores.overrides.1.rows: [16, 32]\nset: {cores.count: 2}"), "cores differ"),
        (("sweep:", "compat: onnxim\nsweep:"), "faults of compat: onnxim"),
    ],
)
def test_a_point_without_a_closed_form_is_one_error(tmp_path: Path, change: tuple[str, str], reason: str | None):
    text = SPEC.replace(*change) + "prune: {keep: 0.5}\n"
    if reason is None:
        assert kept(tmp_path, text)
        return
    with pytest.raises(UserError, match=rf"spec.yaml:\d+: point .* cannot be pruned: .*{reason}"):
        kept(tmp_path, text)


def test_a_small_memory_has_no_closed_form(tmp_path: Path):
    text = SPEC + "set: {cores.rows: 256, cores.cols: 256, cores.spad_kib: 128}\n"
    points = expand(load_spec(write(tmp_path, text))).points
    for estimate in estimate_points(points).values():
        assert estimate.cycles is None
        assert "finds no tile" in estimate.reason


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ("{}", "give either 'keep' or 'factor'"),
        ("{keep: 0.5, factor: 2}", "give either 'keep' or 'factor'"),
        ("{keep: 2}", "prune.keep = 2 is out of range: expected above 0 and at most 1"),
        ("{factor: 0.5}", "prune.factor = 0.5 is out of range: expected at least 1"),
        ("{kep: 0.5}", "did you mean 'keep'"),
        ("0.5", "expected keys: keep, factor"),
    ],
)
def test_a_wrong_rule_is_one_error(tmp_path: Path, prune: str, message: str):
    with pytest.raises(UserError) as error:
        load_spec(write(tmp_path, SPEC + f"prune: {prune}\n"))
    assert message in str(error.value)


def test_a_mix_cannot_be_pruned(tmp_path: Path):
    mix = "name: t\nmix: {hw: npu-mobile-8x8, scheduler: simple, tenants: []}\nprune: {keep: 0.5}\n"
    with pytest.raises(UserError, match="prune does not go with a mix"):
        load_spec(write(tmp_path, mix))
