"""Sweeps over mixes: points and their hashes, errors, and whole runs whose lanes equal their own single runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hwconfigs.errors import UserError
from lowering.mix_spec import load_mix
from sweeps.mix_points import expand_mixes
from sweeps.runner import run_sweep
from sweeps.spec import load_spec
from sweeps.store import JOURNAL, read_table
from sweeps.tenants_table import jain_index
from tests.conftest import REPO_ROOT
from tests.tenants_sweep import SPEC, load, write_spec
from vsim.cli import main
from vsim.mixes import MixPoint, simulate_mixes

MIXES, ALONE = 8, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished sweep in `out`."""
    folder = tmp_path_factory.mktemp("sweep")
    assert main(["sweep", str(write_spec(folder)), "--out", str(folder / "out")]) == 0
    return folder


def stored(folder: Path) -> dict[str, dict]:
    lines = (folder / "out" / JOURNAL).read_text().splitlines()
    return {record["hash"]: record["result"] for record in map(json.loads, lines)}


def test_points_are_the_mixes_then_the_models_alone(tmp_path: Path):
    points = load(tmp_path)[1].points
    assert [point.is_alone for point in points] == [False] * MIXES + [True] * ALONE
    assert [point.index for point in points] == list(range(MIXES + ALONE))
    assert len({point.digest for point in points}) == MIXES + ALONE
    assert points[0].label == "tenants=wide+deep, scheduler=simple, clocks.dram_mhz=300"
    assert points[MIXES].label == "alone=wide.onnx batch 1, clocks.dram_mhz=300"
    of_digest = {point.digest: point for point in points[MIXES:]}
    for point in points[:MIXES]:
        lone = [of_digest[digest] for digest in point.alone]
        assert [point.mix.tenants[0].model for point in lone] == [tenant.model for tenant in point.mix.tenants]
        assert all(other.hw == point.hw for other in lone)


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("tenants.deep.batch", [1, 2]),
        ("tenants.deep.priority", [0, 3]),
        ("tenants.deep.model", ["deep.onnx", "wide.onnx"]),
        ("tenants.deep.dims.x", [4, 5]),
        ("tenants.deep.arrival", [{"at_once": 3}, {"interval_us": 2, "requests": 2}]),
        ("core_split", ["even"]),
        ("hw", ["npu-mobile-8x8x4", "edge-tpu-64x64"]),
        ("cores.spad_kib", [64, 128]),
    ],
)
def test_any_field_can_be_swept(tmp_path: Path, axis: str, values: list):
    base = yaml.safe_load(SPEC)
    base["mix"]["tenants"] = ["wide", "deep"]
    content = {**base, "alone": False, "sweep": {axis: values}}
    points = load(tmp_path, yaml.safe_dump(content))[1].points
    assert len({point.digest for point in points}) == len(points) == len(values)
    for point, value in zip(points, values, strict=True):
        where = point.mix.model_dump(mode="json") | {"hw": point.mix.hw} | {"cores": point.hw.cores.model_dump()}
        if axis.startswith("tenants."):
            where = point.mix.tenants[1].model_dump(mode="json", exclude_none=True)
        for key in axis.removeprefix("tenants.deep.").split("."):
            where = where[key]
        assert where == value


def test_cores_of_tenants_can_be_swept(tmp_path: Path):
    text = SPEC.replace("  core_split: even\n", "").replace("  scheduler: simple\n", "  scheduler: partition_cpu\n")
    text = text[: text.index("sweep:")] + "zip: {tenants.wide.cores: [[0], [1]], tenants.deep.cores: [[1], [0]]}\n"
    text += "set: {tenants: [wide, deep]}\nexclude: {tenants.wide.cores: '[1]'}\n"
    [point, *_] = load(tmp_path, text)[1].points
    assert [tenant.cores for tenant in point.mix.tenants] == [(0,), (1,)]
    assert point.values == {"tenants.wide.cores": "[0]", "tenants.deep.cores": "[1]"}


def test_derived_keys_see_tenants(tmp_path: Path):
    text = SPEC + "  tenants.wide.batch: [1, 2]\nderived: {dram.latency_cycles: 10 * tenants.wide.batch}\n"
    points = load(tmp_path, text.replace("[deep, deep]", "[deep, wide]"))[1].points
    assert {(point.values["tenants.wide.batch"], point.hw.dram.latency_cycles) for point in points[:16]} == {
        (1, 10),
        (2, 20),
    }


def test_a_mix_file_is_its_content(tmp_path: Path):
    """Its paths start from its own folder."""
    inner = {"hw": "chip.yaml", "scheduler": "simple", "tenants": [{"name": "wide", "model": "../wide.onnx"}]}
    (tmp_path / "mixes").mkdir()
    (tmp_path / "mixes" / "one.yaml").write_text(yaml.safe_dump(inner))
    write_spec(tmp_path)
    assert main(["hw", "list"]) == 0
    (tmp_path / "mixes" / "chip.yaml").write_text(load(tmp_path)[1].points[0].hw.to_yaml())
    named = load(tmp_path, "name: n\nmix: mixes/one.yaml\n")[1].points
    inner |= {"hw": "mixes/chip.yaml", "tenants": [{"name": "wide", "model": "wide.onnx"}]}
    inline = load(tmp_path, yaml.safe_dump({"name": "n", "mix": inner}))[1].points
    assert [point.digest for point in named] == [point.digest for point in inline]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[deep, deep]", "[deep, depp]", "spec.yaml:12: workload 'depp' is unknown; did you mean 'deep'"),
        ("[deep, deep]", "[wide, deep]", r"spec.yaml:12: tenants=wide\+deep is listed twice"),
        (
            "[deep, deep]",
            "[deep, {model: deep.onnx}]",
            "spec.yaml:12: a tenant is the name of a workload, or",
        ),
        ("[deep, deep]]", "deep]", "spec.yaml:12: tenants must be a list"),
        ("partition_cpu]", "fair]", "spec.yaml:13: scheduler = 'fair'"),
        ("core_split: even", "core_split: odd", "spec.yaml:6: core_split = 'odd' is not valid"),
        ("{model: wide.onnx}", "{model: wide.onnx, batch: 0}", "spec.yaml:8: batch = 0 is out of range"),
        ("{model: wide.onnx}", "{model: gone.onnx}", "gone.onnx: no such file"),
        ("{model: wide.onnx}", "{modl: wide.onnx}", "spec.yaml:8: unknown key 'modl'; did you mean 'model'"),
        ("  clocks.dram_mhz", "  clocks.drum_mhz", "spec.yaml:14: unknown key .*clocks.drum_mhz"),
        ("  clocks.dram_mhz", "  clock.dram_mhz", "spec.yaml:14: unknown key 'clock.dram_mhz'"),
        ("  clocks.dram_mhz: [300", "  tenants.deep.batch: [0", "spec.yaml:14: tenants.1.batch = 0 is out of range"),
        ("  clocks.dram_mhz", "  tenants.dep.batch", "spec.yaml:14: 'tenants.dep.batch' is no field of a tenant"),
        ("  clocks.dram_mhz", "  tenants.deep", "spec.yaml:14: 'tenants.deep' is no field of a tenant"),
        ("  clocks.dram_mhz: [300", "  clocks.dram_mhz: [[300]", "clocks.dram_mhz' can be swept over numbers"),
        ("alone: true", "batch: 2", "spec.yaml:10: batch does not go with a mix"),
        ("  scheduler: simple\n", "  scheduler: simple\n  sched: x\n", "spec.yaml:6: unknown key 'sched'"),
        ("{dram.standard: simple", "{dram.standard: simpl", "spec.yaml:4: npu-mobile-8x8x4: dram.standard = 'simpl'"),
        ("alone: true", "set: {tenants.wide.model.x: 1}", "spec.yaml:10: .*'model' of tenant wide has no fields"),
        ("hw: npu-mobile-8x8x4", "hw: npu-mobil", "spec.yaml:3: no hardware preset or file is called 'npu-mobil'"),
    ],
)
def test_bad_specifications_are_named(tmp_path: Path, old: str, new: str, message: str):
    with pytest.raises(UserError, match=message):
        load(tmp_path, SPEC.replace(old, new))


def test_keys_of_mixes_need_one(tmp_path: Path):
    (tmp_path / "spec.yaml").write_text("name: t\nmodel: m.onnx\nbase: npu-mobile-8x8\nalone: true\n")
    with pytest.raises(UserError, match=r"spec.yaml:4: alone does not go without a mix"):
        load_spec(tmp_path / "spec.yaml")


def test_a_mix_is_a_file_or_its_content(tmp_path: Path):
    with pytest.raises(UserError, match=r"spec.yaml:2: mix = 5: expected a mix file or its content"):
        load(tmp_path, "name: t\nmix: 5\n")
    with pytest.raises(UserError, match=r"gone.yaml: cannot be read"):
        load(tmp_path, "name: t\nmix: gone.yaml\n")


def test_every_lane_is_its_own_single_run(folder: Path):
    """As `vsim mix` does it: from a file, alone in its batch."""
    results, points = stored(folder), expand_mixes(load_spec(folder / "spec.yaml")).points
    for point in points:
        content = {**point.mix.model_dump(mode="json", exclude_none=True, exclude_defaults=True)}
        content["set"] = {**point.mix.set, "clocks.dram_mhz": point.hw.clocks.dram_mhz}
        (folder / "single.yaml").write_text(yaml.safe_dump(content))
        hw, mix = load_mix(folder / "single.yaml")
        assert hw.to_data() == point.hw.to_data()
        [single] = simulate_mixes([MixPoint(hw, mix)])
        assert json.loads(json.dumps(single.to_json())) == results[point.digest]


def test_finished_mixes_are_not_simulated_again(folder: Path):
    loaded = load_spec(folder / "spec.yaml")
    before = (folder / "out" / JOURNAL).read_bytes()
    summary = run_sweep(loaded, expand_mixes(loaded), folder / "out")
    assert (summary.points, summary.simulated, summary.reused, summary.failed) == (MIXES + ALONE, 0, MIXES + ALONE, ())
    assert (folder / "out" / JOURNAL).read_bytes() == before


def test_the_tenants_table_accounts_for_everything(folder: Path):
    results = stored(folder)
    points = {point.index: point for point in expand_mixes(load_spec(folder / "spec.yaml")).points}
    tenants, rows = (read_table(folder / "out", name) for name in ("tenants", "results"))
    assert len(tenants) == MIXES // 2 * (3 + 4) + ALONE
    for index, point in points.items():
        mine, result = [row for row in tenants if row["point"] == index], results[point.digest]
        assert sum(row["load_bytes"] for row in mine) == result["dram"]["read_bytes"] == rows[index]["load_bytes"]
        assert sum(row["store_bytes"] for row in mine) == result["dram"]["write_bytes"]
        assert sum(row["noc_bytes"] for row in mine) == result["noc"]["requests"] * point.hw.dram.request_bytes
        # Passes stream; filling the array and draining it comes on top.
        active = sum(core["systolic_active_cycles"] for core in result["cores"])
        assert active / 3 < sum(row["systolic_cycles"] for row in mine) < active
        for row in mine:
            assert row["latency_cycles"] == row["finish_cycle"] - row["arrival_cycle"]
            assert 0 < row["active_cycles"] <= row["finish_cycle"] - row["start_cycle"]


def test_windows_hold_every_byte(folder: Path):
    moved: dict[tuple[int, int], int] = {}
    for row in read_table(folder / "out", "windows"):
        key = row["point"], row["tenant"]
        assert row["start_cycle"] == row["window"] * row["window_cycles"]
        moved[key] = moved.get(key, 0) + row["bytes"]
    tenants = read_table(folder / "out", "tenants")
    assert moved == {(row["point"], row["tenant"]): row["load_bytes"] + row["store_bytes"] for row in tenants}


def test_slowdowns_are_against_running_alone(folder: Path):
    tenants, rows = (read_table(folder / "out", name) for name in ("tenants", "results"))
    alone = {
        (row["model"], rows[row["point"]]["clocks.dram_mhz"]): row for row in tenants if rows[row["point"]]["alone"]
    }
    for row in tenants:
        if not rows[row["point"]]["alone"]:
            of_model = alone[row["model"], rows[row["point"]]["clocks.dram_mhz"]]
            assert row["alone_cycles"] == of_model["latency_cycles"]
            assert row["slowdown"] == row["latency_cycles"] / of_model["latency_cycles"]
    first = [row for row in tenants if row["point"] == 0]
    wide, deep = first[0]["slowdown"], (first[1]["slowdown"] + first[2]["slowdown"]) / 2
    assert rows[0]["slowdown_max"] == deep
    assert rows[0]["weighted_speedup"] == pytest.approx(1 / wide + 1 / deep, rel=1e-12)
    assert rows[0]["fairness"] == pytest.approx((1 / wide + 1 / deep) ** 2 / 2 / (wide**-2 + deep**-2), rel=1e-12)


def test_fairness_has_its_limits():
    assert jain_index([2.0, 2.0, 2.0]) == 1
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_a_mix_that_cannot_be_had_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = SPEC.replace("[deep, deep]", "[deep, deep, wide]").replace("alone: true", "alone: false")
    text = text.replace("[300, 1200]", "[1200]").replace("simple, partition", "partition")
    out = tmp_path / "out"
    assert main(["sweep", str(write_spec(tmp_path, text)), "--out", str(out)]) == 1
    assert [row["status"] for row in read_table(out, "results")] == ["ok", "not_lowered"]
    assert "3 tenants cannot have cores of their own: the chip has 2" in capsys.readouterr().out
    assert [row["slowdown"] for row in read_table(out, "tenants")] == [None] * 3


def test_a_dry_run_lists_the_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["sweep", str(write_spec(tmp_path)), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == MIXES + ALONE
    assert lines[-1].endswith("alone=deep.onnx batch 1, clocks.dram_mhz=1200")


@pytest.mark.usefixtures("shared")
def test_the_sweep_that_comes_with_vsim():
    points = expand_mixes(load_spec(REPO_ROOT / "sweeps" / "mixes.yaml")).points
    mixes = [point for point in points if not point.is_alone]
    assert len({point.digest for point in mixes}) == len(mixes) == 256
    assert {len(point.mix.tenants) for point in mixes} == {2, 3}
    assert len({point.mix.scheduler for point in mixes}) == 4
    assert len({point.hw.clocks.dram_mhz for point in mixes}) == 2
    assert len({tenant.model for point in mixes for tenant in point.mix.tenants}) == 4
    assert len(points) == 256 + 2 * 11
