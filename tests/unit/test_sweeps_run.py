"""Whole sweeps through the engine: results, resuming, killing and failing points."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowering import lower
from sweeps.points import Point, expand
from sweeps.runner import run_sweep
from sweeps.spec import load_spec
from sweeps.store import JOURNAL, read_manifest, read_table
from tests import models
from tests.sweep_results import save_model
from vsim.api import SimPoint, simulate
from vsim.cli import main

SPEC = """\
name: tiny
model: mm.onnx
base: npu-mobile-8x8
sweep:
  clocks.dram_mhz: [300, 600, 1200]
  noc.latency_cycles: [1, 8]
"""


def write(folder: Path, text: str = SPEC, *, size: int = 32) -> Path:
    """Write a matrix multiplication of size x size x size and a spec that uses it; return the spec's path."""
    save_model(models.mm(size, size, size), folder / "mm.onnx")
    spec = folder / "spec.yaml"
    spec.write_text(text)
    return spec


def points_of(spec: Path) -> tuple[Point, ...]:
    return expand(load_spec(spec)).points


def journal(out: Path) -> list[str]:
    """Return the hashes of the finished points in the order they finished."""
    file = out / JOURNAL
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["hash"] for line in lines if line.endswith("\n")]


def test_stored_results_are_those_of_the_engine(tmp_path: Path):
    spec, out = write(tmp_path), tmp_path / "out"
    loaded = load_spec(spec)
    summary = run_sweep(loaded, expand(loaded), out)
    assert (summary.points, summary.simulated, summary.reused, summary.failed) == (6, 6, 0, ())
    rows = read_table(out, "results")
    points = [SimPoint(hw=point.hw, program=lower(point.model_path, point.hw)) for point in points_of(spec)]
    for expected, row in zip([result.to_json() for result in simulate(points)], rows, strict=True):
        assert row["status"] == "ok"
        assert (row["cycles"], row["dram_reads"]) == (expected["cycles"], expected["dram"]["reads"])
    assert rows[0]["cycles"] > rows[-2]["cycles"], "a slower memory takes longer"
    assert sorted(journal(out)) == sorted(point.digest for point in points_of(spec))
    assert read_manifest(out)["runs"][0]["state"] == "finished"


def test_finished_points_are_not_simulated_again(tmp_path: Path):
    spec, out = write(tmp_path), tmp_path / "out"
    assert main(["sweep", str(spec), "--out", str(out)]) == 0
    first = (out / JOURNAL).read_bytes()
    tables = (out / "results.parquet").read_bytes()
    loaded = load_spec(spec)
    summary = run_sweep(loaded, expand(loaded), out)
    assert (summary.simulated, summary.reused) == (0, 6)
    assert (out / JOURNAL).read_bytes() == first
    assert (out / "results.parquet").read_bytes() == tables


def test_resume_reuses_matching_points_of_another_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec, out = write(tmp_path), tmp_path / "out"
    assert main(["sweep", str(spec), "--out", str(out)]) == 0
    write(tmp_path, SPEC.replace("[1, 8]", "[1, 4]"))
    capsys.readouterr()
    assert main(["sweep", str(spec), "--out", str(out)]) == 2
    assert "holds another sweep (3 of its 6 points are among these 6)" in capsys.readouterr().err
    assert main(["sweep", str(spec), "--out", str(out), "--resume"]) == 0
    assert len(journal(out)) == 9
    assert [row["noc.latency_cycles"] for row in read_table(out, "results")] == [1, 4] * 3


def test_kill_loses_no_finished_point(tmp_path: Path):
    spec, out = write(tmp_path, SPEC + "lanes: 1\n", size=128), tmp_path / "out"
    command = [sys.executable, "-m", "vsim.cli", "sweep", str(spec), "--out", str(out)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not journal(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = journal(out)
    assert 1 <= len(finished) < 6, "killed after the first point and before the last"
    before = (out / JOURNAL).read_bytes()
    assert main(["sweep", str(spec), "--out", str(out)]) == 0
    assert (out / JOURNAL).read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert journal(out)[: len(finished)] == finished
    assert sorted(journal(out)) == sorted(point.digest for point in points_of(spec)), "each point exactly once"
    assert [run["state"] for run in read_manifest(out)["runs"]] == ["running", "finished"]
    assert len(read_table(out, "results")) == 6


def test_a_failed_point_is_stored_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec, out = write(tmp_path, SPEC + "max_cycles: 50\n"), tmp_path / "out"
    assert main(["sweep", str(spec), "--out", str(out)]) == 1
    assert "0 of 6 points ok" in capsys.readouterr().out
    assert {row["status"] for row in read_table(out, "results")} == {"cycle_limit"}


def test_a_point_that_cannot_be_lowered_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = SPEC.replace("noc.latency_cycles: [1, 8]", "noc.kind: [simple, booksim2]")
    spec, out = write(tmp_path, text), tmp_path / "out"
    assert main(["sweep", str(spec), "--out", str(out)]) == 1
    statuses = [row["status"] for row in read_table(out, "results")]
    assert statuses == ["ok", "not_lowered"] * 3
    assert "3 of 6 points ok" in capsys.readouterr().out


def test_a_model_that_never_lowers_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = write(tmp_path)
    (tmp_path / "mm.onnx").write_text("this is no graph")
    assert main(["sweep", str(spec), "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "mm.onnx" in line
