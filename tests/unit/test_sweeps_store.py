"""The result folder: every finished point survives, and a folder never mixes sweeps unasked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwconfigs.errors import UserError
from sweeps.manifest import RunRecord
from sweeps.store import JOURNAL, MANIFEST, ResultFolder, read_manifest, read_table, write_tables
from tests.sweep_results import SPEC, load, result, store_results

OTHER_SPEC = SPEC.replace("[1, 2, 4]", "[2, 4, 8]")


def start(folder: Path, out: Path, count: int, text: str = SPEC, *, resume: bool = False) -> None:
    """Store the first `count` points and stop as a killed process does: no tables, the manifest says running."""
    loaded, expansion = load(folder, text)
    with ResultFolder.open(out, expansion.points, resume=resume) as results:
        RunRecord(loaded, expansion, results).write("running")
        for point in expansion.points[:count]:
            results.append(point.digest, result(point))


def test_a_point_is_on_disk_when_append_returns(tmp_path: Path):
    _, expansion = load(tmp_path)
    point = expansion.points[0]
    with ResultFolder.open(tmp_path / "out", expansion.points, resume=False) as results:
        results.append(point.digest, result(point))
        [line] = (tmp_path / "out" / JOURNAL).read_text().splitlines()
        assert json.loads(line) == {"hash": point.digest, "result": result(point)}


def test_finished_points_are_found_again(tmp_path: Path):
    start(tmp_path, tmp_path / "out", 4)
    points = load(tmp_path)[1].points
    with ResultFolder.open(tmp_path / "out", points, resume=False) as results:
        assert results.results == {point.digest: result(point) for point in points[:4]}


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_costs_only_its_own_point(tmp_path: Path, cut: int):
    start(tmp_path, tmp_path / "out", 3)
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-cut])
    points = load(tmp_path)[1].points
    with ResultFolder.open(tmp_path / "out", points, resume=False) as results:
        assert list(results.results) == [point.digest for point in points[:2]]
        results.append(points[2].digest, result(points[2]))
    with ResultFolder.open(tmp_path / "out", points, resume=False) as results:
        assert list(results.results) == [point.digest for point in points[:3]]


def test_a_damaged_line_is_named(tmp_path: Path):
    start(tmp_path, tmp_path / "out", 3)
    journal = tmp_path / "out" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(UserError, match=r"journal\.jsonl:2: damaged line"):
        ResultFolder.open(tmp_path / "out", load(tmp_path)[1].points, resume=False)


def test_another_sweep_is_refused_unless_resumed(tmp_path: Path):
    out = store_results(tmp_path)
    points = load(tmp_path, OTHER_SPEC)[1].points
    with pytest.raises(UserError, match="holds another sweep \\(4 of its 6 points are among these 6\\); use --resume"):
        ResultFolder.open(out, points, resume=False)
    with ResultFolder.open(out, points, resume=True) as results:
        assert sum(point.digest in results.results for point in points) == 4


def test_a_spec_with_the_same_points_is_the_same_sweep(tmp_path: Path):
    out = store_results(tmp_path)
    points = load(tmp_path, SPEC.replace("tiny", "renamed") + "# comment\n")[1].points
    with ResultFolder.open(out, points, resume=False) as results:
        assert all(point.digest in results.results for point in points)


def test_a_foreign_folder_is_left_alone(tmp_path: Path):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not a result folder, and not empty"):
        ResultFolder.open(out, load(tmp_path)[1].points, resume=True)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_out_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="cannot write the results there"):
        ResultFolder.open(tmp_path / "out", load(tmp_path)[1].points, resume=False)


def test_only_one_process_writes(tmp_path: Path):
    points = load(tmp_path)[1].points
    with (
        ResultFolder.open(tmp_path / "out", points, resume=False),
        pytest.raises(UserError, match="another vsim is writing"),
    ):
        ResultFolder.open(tmp_path / "out", points, resume=False)
    with ResultFolder.open(tmp_path / "out", points, resume=False):
        pass


def test_tables_hold_every_point_in_order(tmp_path: Path):
    out = store_results(tmp_path, failed=frozenset({2}))
    points = load(tmp_path)[1].points
    rows = read_table(out, "results")
    assert [row["point"] for row in rows] == list(range(6))
    assert [row["hash"] for row in rows] == [point.digest for point in points]
    assert [row["dram.channels"] for row in rows] == [1, 1, 2, 2, 4, 4]
    assert [row["status"] for row in rows] == ["ok", "ok", "deadlock", "ok", "ok", "ok"]
    assert rows[0]["dram_row_hits"] == 6
    assert rows[0]["load_bytes"] == 128
    layers = read_table(out, "layers")
    assert [(row["point"], row["layer"], row["name"]) for row in layers[:3]] == [(0, 0, "a"), (0, 1, "b"), (1, 0, "a")]
    channels = [row for row in read_table(out, "channels") if row["point"] == 5]
    assert [row["reads"] for row in channels] == [5, 6, 7, 8]


def test_equal_results_are_equal_files(tmp_path: Path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        store_results(folder)
    for name in ("results", "layers", "cores", "channels"):
        assert len({(folder / "out" / f"{name}.parquet").read_bytes() for folder in folders}) == 1


def test_a_column_may_mix_names_and_numbers(tmp_path: Path):
    _, expansion = load(tmp_path)
    mixed = [replace(point, values={"x": value}) for point, value in zip(expansion.points, (1, "auto"), strict=False)]
    write_tables(tmp_path, mixed, {point.digest: result(point) for point in mixed})
    assert [row["x"] for row in read_table(tmp_path, "results")] == ["1", "auto"]


def test_a_point_that_was_not_lowered_has_a_row(tmp_path: Path):
    _, expansion = load(tmp_path)
    failed = {"status": "not_lowered", "message": "layer conv1: a tile does not fit"}
    write_tables(tmp_path, expansion.points, {expansion.points[1].digest: failed})
    [row] = read_table(tmp_path, "results")
    assert (row["point"], row["status"], row["message"]) == (1, *failed.values())
    assert read_table(tmp_path, "layers") == []


def test_manifest_says_what_ran(tmp_path: Path):
    start(tmp_path, tmp_path / "out", 2)
    loaded, expansion = load(tmp_path)
    with ResultFolder.open(tmp_path / "out", expansion.points, resume=False) as results:
        record = RunRecord(loaded, expansion, results)
        for point in expansion.points[2:]:
            results.append(point.digest, result(point))
        record.write("finished")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["spec"] == SPEC
    assert [entry["hash"] for entry in manifest["points"]] == [point.digest for point in expansion.points]
    assert {entry["status"] for entry in manifest["points"]} == {"ok"}
    assert [run["state"] for run in manifest["runs"]] == ["running", "finished"]
    assert manifest["runs"][1]["points_finished"] == 4
    assert {"vsim", "jax", "python"} <= set(manifest["runs"][0]["versions"])
    assert manifest["axes"][0] == {"keys": ["dram.channels"], "values": [[1], [2], [4]]}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}'])
def test_a_foreign_manifest_is_refused(tmp_path: Path, content: str):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_manifest(tmp_path)
