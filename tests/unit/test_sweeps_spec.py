"""From specification to points: axes, derived keys, exclusions, hashes, and errors that name the line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwconfigs.errors import UserError
from sweeps.points import Expansion, expand
from sweeps.spec import Range, load_spec
from tests.sweep_results import SPEC, load, write_spec

HEAD = "name: t\nmodel: onnx:light_squeezenet\nbase: npu-mobile-8x8\n"


def expanded(folder: Path, body: str) -> Expansion:
    return load(folder, HEAD + body)[1]


def values(expansion: Expansion, *keys: str) -> list[tuple[object, ...]]:
    return [tuple(point.values[key] for key in keys) for point in expansion.points]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"start": 1, "stop": 9, "step": 4}, [1, 5, 9]),
        ({"start": 1, "stop": 8, "step": 4}, [1, 5]),
        ({"start": 9, "stop": 1, "step": -4}, [9, 5, 1]),
        ({"start": 0.1, "stop": 0.5, "step": 0.1}, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ({"start": 1, "stop": 32, "num": 6, "scale": "log"}, [1, 2, 4, 8, 16, 32]),
        ({"start": 1, "stop": 3, "num": 9}, [1, 2, 3]),
        ({"start": 0.0, "stop": 1.0, "num": 3}, [0.0, 0.5, 1.0]),
        ({"start": 5, "stop": 5, "step": 1}, [5]),
    ],
)
def test_range(fields: dict[str, object], expected: list[float]):
    result = Range.model_validate(fields).values()
    assert result == expected
    assert [type(value) for value in result] == [type(value) for value in expected]


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(2, 50), st.sampled_from(["linear", "log"]))
def test_range_keeps_its_ends_and_order(start: int, stop: int, num: int, scale: str):
    result = Range.model_validate({"start": start, "stop": stop, "num": num, "scale": scale}).values()
    assert (result[0], result[-1]) == (start, stop)
    assert result == sorted(set(result), reverse=start > stop)


def test_product_has_the_first_axis_slowest(tmp_path: Path):
    points = expanded(tmp_path, "sweep: {dram.channels: [1, 2], batch: [1, 2, 3]}\n")
    assert values(points, "dram.channels", "batch") == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert [point.index for point in points.points] == list(range(6))
    assert [point.hw.dram.channels for point in points.points] == [1, 1, 1, 2, 2, 2]
    assert [point.batch for point in points.points] == [1, 2, 3, 1, 2, 3]


def test_zip_advances_together(tmp_path: Path):
    points = expanded(tmp_path, "zip: {cores.rows: [4, 8], cores.cols: [4, 16]}\nsweep: {batch: [1, 2]}\n")
    assert values(points, "batch", "cores.rows", "cores.cols") == [(1, 4, 4), (1, 8, 16), (2, 4, 4), (2, 8, 16)]


def test_derived_uses_swept_fixed_base_and_earlier_derived_values(tmp_path: Path):
    body = """\
set: {clocks.core_mhz: 700}
sweep: {dram.channels: [1, 2]}
derived:
  dram.read_queue: 32 * dram.channels
  dram.write_queue: dram.read_queue + clocks.core_mhz - cores.spad_kib
"""
    points = expanded(tmp_path, body)
    assert [point.hw.dram.read_queue for point in points.points] == [32, 64]
    assert [point.hw.dram.write_queue for point in points.points] == [32 + 700 - 64, 64 + 700 - 64]


def test_exclude_drops_points_that_match_every_part(tmp_path: Path):
    body = """\
sweep: {dram.channels: [1, 2, 4], batch: [1, 2]}
exclude:
  - {dram.channels: [1, 4], batch: 2}
  - {cores.rows: 9}
"""
    points = expanded(tmp_path, body)
    assert values(points, "dram.channels", "batch") == [(1, 1), (2, 1), (2, 2), (4, 1)]
    assert [re.sub(r"^.*/", "", warning) for warning in points.warnings] == [
        "spec.yaml:7: this condition matches no point"
    ]


def test_an_excluded_point_need_not_be_valid_hardware(tmp_path: Path):
    points = expanded(tmp_path, "sweep: {dram.channels: [1, 3]}\nexclude: {dram.channels: 3}\n")
    assert len(points.points) == 1


def test_models_base_and_dims_can_be_swept(tmp_path: Path):
    text = """\
name: t
sweep:
  model: [onnx:light_squeezenet, onnx:light_vgg19]
  base: [npu-mobile-8x8, gemmini-16x16]
  dims.sequence: [16, 32]
dims: {other: 3}
"""
    points = load(tmp_path, text)[1].points
    assert len(points) == 8
    assert {point.hw.name for point in points} == {"npu-mobile-8x8", "gemmini-16x16"}
    assert {point.model_path.stem for point in points} == {"light_squeezenet", "light_vgg19"}
    assert dict(points[1].dims) == {"other": 3, "sequence": 32}


def test_paths_start_at_the_folder_of_the_spec(tmp_path: Path):
    (tmp_path / "net.onnx").write_bytes(b"anything")
    (tmp_path / "chip.yaml").write_text(Path("hwconfigs/presets/gemmini-16x16.yaml").read_text())
    points = load(tmp_path, "name: t\nmodel: net.onnx\nbase: chip.yaml\n")[1].points
    assert points[0].model_path == tmp_path / "net.onnx"
    assert points[0].hw.name == "gemmini-16x16"


def test_inline_hardware_is_the_same_point_as_its_file(tmp_path: Path):
    chip = "".join(f"  {line}\n" for line in Path("hwconfigs/presets/npu-mobile-8x8.yaml").read_text().splitlines())
    inline = load(tmp_path, f"name: t\nmodel: onnx:light_squeezenet\nbase:\n{chip}")[1].points
    assert inline[0].digest == expanded(tmp_path, "").points[0].digest


def test_hash_depends_on_what_decides_the_result_only(tmp_path: Path):
    def digest(text: str) -> str:
        [point] = load(tmp_path, text)[1].points
        return point.digest

    (tmp_path / "a.onnx").write_bytes(b"one")
    (tmp_path / "b.onnx").write_bytes(b"one")
    base = "model: a.onnx\nbase: npu-mobile-8x8\n"
    reference = digest(f"name: t\n{base}")
    assert digest(f"# comment\nname: other\nlanes: 2\n{base}") == reference
    assert digest("name: t\nmodel: b.onnx\nbase: npu-mobile-8x8\n") == reference
    assert digest(f"name: t\n{base}sweep: {{dram.channels: [2]}}\n") == reference, "2 is the preset's own value"
    different = [
        f"{base}batch: 2\n",
        f"{base}dims: {{n: 2}}\n",
        f"{base}compat: onnxim\n",
        f"{base}skip_unknown: true\n",
        f"{base}max_cycles: 5\n",
        f"{base}set: {{dram.timing.nRCD: 20}}\n",
        "model: a.onnx\nbase: npu-mobile-8x8x4\n",
    ]
    digests = {digest(f"name: t\n{text}") for text in different}
    assert len(digests | {reference}) == len(different) + 1
    (tmp_path / "a.onnx").write_bytes(b"two")
    assert digest(f"name: t\n{base}") != reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "swep: {batch: [1]}\n", "spec.yaml:4: unknown key 'swep'; did you mean 'sweep'?"),
        ("model: onnx:light_squeezenet\nbase: npu-mobile-8x8\n", "spec.yaml: key 'name' is missing"),
        ("name: t\nbase: npu-mobile-8x8\n", "spec.yaml: key 'model' is missing"),
        ("name: t\nmodel: onnx:light_squeezenet\n", "spec.yaml: key 'base' is missing"),
        ("- a\n", "a sweep spec is a mapping"),
        ("", "a sweep spec is a mapping"),
        ("name: [\n", "spec.yaml:2: not valid YAML"),
        ("name: a\nname: b\n", "spec.yaml:2: key 'name' is given twice"),
        (HEAD + "batch: 0\n", "spec.yaml:4: batch = 0"),
        (HEAD + "batch: many\n", "spec.yaml:4: batch = 'many'"),
        (HEAD + "compat: gem5\n", "spec.yaml:4: compat = 'gem5' is not valid; expected 'onnxim'"),
        (
            HEAD + "sweep:\n  dram.chanels: [1]\n",
            "spec.yaml:5: unknown key 'dram.chanels'; did you mean 'dram.channels'?",
        ),
        (HEAD + "sweep:\n  bach: [1]\n", "spec.yaml:5: unknown key 'bach'; did you mean 'batch'?"),
        (HEAD + "set:\n  dram.channels: 3\n", "spec.yaml:5: "),
        (HEAD + "sweep:\n  batch: [1]\n  dram.channels: [1, 3]\n", "spec.yaml:6: "),
        (HEAD + "sweep:\n  batch: [1, x]\n", "spec.yaml:5: 'batch' must be a whole number above 0 (got 'x')"),
        (HEAD + "sweep:\n  batch: 4\n", "spec.yaml:5: 'batch' needs a list of values"),
        (HEAD + "sweep:\n  batch: []\n", "spec.yaml:5: 'batch' needs a list of values"),
        (HEAD + "sweep:\n  batch: [1, 2, 1]\n", "spec.yaml:5: batch=1 is listed twice"),
        (HEAD + "sweep:\n  batch: [[1]]\n", "spec.yaml:5: 'batch' can be swept over numbers"),
        (HEAD + "sweep:\n  batch: {start: 1, stop: 2}\n", "spec.yaml:5: range of 'batch': a range takes either"),
        (HEAD + "sweep:\n  batch: {start: 1, stp: 2}\n", "range of 'batch': unknown key 'stp'; did you mean"),
        (HEAD + "sweep:\n  batch: {start: 1, stop: 5, step: -1}\n", "step -1 never leads from 1 to 5"),
        (
            HEAD + "sweep:\n  batch: {start: 0, stop: 5, num: 3, scale: log}\n",
            "a log range needs start and stop above 0",
        ),
        (HEAD + "sweep:\n  batch: {start: 1, stop: 1.0e9, step: 1}\n", "more than 100000 values"),
        (HEAD + "set: {batch: 2}\nsweep: {batch: [1]}\n", "spec.yaml:5: 'batch' is already given by 'set'"),
        (HEAD + "zip:\n  - {batch: [1, 2], cores.rows: [1]}\n", "spec.yaml:5: keys zipped together need equally many"),
        (HEAD + "derived:\n  dram.channels: 2 *\n", "spec.yaml:5: 'dram.channels': '2 *' is not an arithmetic"),
        (
            HEAD + "derived:\n  dram.channels: 2 * dram.chanels\n",
            "spec.yaml:5: 'dram.channels': unknown key 'dram.chanels'",
        ),
        (
            HEAD + "derived:\n  dram.chanels: 2\n",
            "spec.yaml:5: unknown key 'dram.chanels'; did you mean 'dram.channels'?",
        ),
        (
            HEAD + "exclude:\n  - {dram.chanels: 2}\n",
            "spec.yaml:5: unknown key 'dram.chanels'; did you mean 'dram.channels'?",
        ),
        (HEAD + "exclude:\n  - {batch: 1}\n", "spec.yaml:4: every point is excluded"),
        (HEAD + "exclude:\n  - {batch: {a: 1}}\n", "spec.yaml:5: 'batch' must be excluded at a value"),
        ("name: t\nmodel: nowhere.onnx\nbase: npu-mobile-8x8\n", "spec.yaml:2: model"),
        ("name: t\nmodel: onnx:light_nothing\nbase: npu-mobile-8x8\n", "spec.yaml:2: model onnx:light_nothing"),
        ("name: t\nmodel: onnx:light_vgg19\nbase: npu-mobile\n", "spec.yaml:3: no hardware preset or file"),
        ("name: t\nmodel: onnx:light_vgg19\nbase: 7\n", "spec.yaml:3: base must be a preset"),
        ("name: t\nmodel: onnx:light_vgg19\nbase: {clocks: {}}\n", "spec.yaml:3: "),
        (HEAD + "x: &a [*a]\n", "spec.yaml"),
    ],
)
def test_errors_are_one_line_with_the_place(tmp_path: Path, text: str, message: str):
    path = write_spec(tmp_path, text)
    with pytest.raises(UserError) as caught:
        expand(load_spec(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"name: \x00\n"])
def test_unreadable_spec(tmp_path: Path, content: bytes):
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"spec\.yaml"):
        load_spec(path)


def test_too_many_points(tmp_path: Path):
    wide = "{start: 1, stop: 2000, step: 1}"
    with pytest.raises(UserError, match="4000000 points are more than 1000000"):
        expanded(tmp_path, f"sweep: {{batch: {wide}, clocks.core_mhz: {wide}}}\n")


def test_the_demo_has_64_points():
    loaded = load_spec(Path("sweeps/demo.yaml"))
    points = expand(loaded).points
    assert len(points) >= 64
    assert len({point.digest for point in points}) == len(points)


def test_no_sweep_is_one_point(tmp_path: Path):
    assert len(expanded(tmp_path, "").points) == 1
    assert len(load(tmp_path, SPEC)[1].points) == 6
