"""Presets, files, overrides, error messages, and the round trip through YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hwconfigs import ConfigError, HwConfig, dotted_keys, load_hw, load_standard, preset_names
from hwconfigs.yaml_file import read_document

SERVER = "npu-server-128x128x4"
MOBILE = "npu-mobile-8x8"


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_complete_and_plausible(name: str):
    hw = load_hw(name)
    assert hw.name == name
    assert len(hw.source) > 40, "a preset names its public source"
    assert hw.onnxim is None
    hw.check_modelled()
    assert not hw.dram.is_onnxim, "presets use corrected memory"
    standard = load_standard(hw.dram.standard)
    assert standard.refreshable
    assert hw.clocks.dram_mhz == pytest.approx(standard.rated_mhz, rel=0.001)
    assert hw.dram.request_bytes == standard.organisation.access_bytes


def test_the_presets_that_others_name_exist():
    assert {SERVER, MOBILE, "npu-mobile-8x8x4"} <= set(preset_names())
    server = load_hw(SERVER)
    assert (server.cores.count, server.core(0).rows, server.core(0).cols) == (4, 128, 128)
    assert (server.dram.standard, server.dram.channels) == ("HBM2_2400", 16)
    assert load_hw("npu-mobile-8x8x4").cores.count == 4


def test_descriptions_are_immutable():
    with pytest.raises(ValidationError):
        load_hw(SERVER).name = "other"


def test_overrides_on_dotted_keys():
    hw = load_hw(SERVER).with_overrides(
        {"dram.channels": 8, "cores.rows": 64, "dram.timing.nRCDRD": 20, "cores.overrides.1.cols": 32}
        | {"cores.overrides.1.latency.exp": 4}
    )
    assert hw.dram.channels == 8
    assert (hw.core(0).rows, hw.core(0).cols, hw.core(0).latency.exp) == (64, 128, 1)
    assert (hw.core(1).rows, hw.core(1).cols, hw.core(1).latency.exp) == (64, 32, 4)
    assert hw.dram.table().timing["nRCDRD"] == 20
    assert load_hw(SERVER).dram.channels == 16


def test_every_dotted_key_can_be_overridden_with_its_own_value():
    hw = load_hw(SERVER)
    data = hw.to_data()
    for key in dotted_keys():
        value: Any = data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            assert hw.with_overrides({key: value}) == hw


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("core.rows", 8, "unknown key 'core.rows'; did you mean 'cores.rows'"),
        ("cores.rwos", 8, "unknown key 'cores.rwos'; did you mean 'cores.rows'"),
        ("cores.overrides.1.rowz", 8, "did you mean 'cores.overrides.1.rows'"),
        ("name.x", 8, "'name' holds a value"),
        ("", 8, "unknown key ''"),
        ("cores.rows", 0, r"cores\.rows = 0 is out of range: expected 1\.\.1024"),
        ("cores.rows", 1025, r"expected 1\.\.1024"),
        ("cores.overrides.1.rows", 0, r"cores\.overrides\.1\.rows = 0 is out of range: expected 1\.\.1024"),
        ("cores.overrides.4.rows", 8, r"cores\.overrides\.4 names a core that does not exist; count is 4"),
        ("cores.overrides.x.rows", 8, r"cores\.overrides\.x"),
        ("cores.rows", "8", "expected a whole number"),
        ("cores.rows", True, "expected a whole number"),
        ("cores.rows", 8.0, "expected a whole number"),
        ("cores.vector_bits", 12, r"cores\.vector_bits = 12 is not a whole number of bytes"),
        ("cores", 3, "expected keys: rows, cols"),
        ("clocks.core_mhz", 0, "out of range"),
        ("precision_bytes", 3, "expected 1, 2 or 4"),
        (
            "dma.outstanding_requests",
            500,
            r"dma\.outstanding_requests = 500 is not a power of two; nearest: 256 or 512",
        ),
        ("dram.channels", 12, r"dram\.channels = 12 is not a power of two; nearest: 8 or 16"),
        ("dram.channels", 128, r"expected 1\.\.64"),
        ("dram.standard", "HBM2_240", "did you mean 'HBM2_2400'"),
        ("dram.standard", "DDR4_2400", r"dram\.request_bytes = 32 does not match the 64-byte access of DDR4_2400"),
        ("dram.timing.nRDC", 3, r"dram\.timing\.nRDC is not a timing value of HBM2_2400"),
        ("dram.timing.nRAS", -1, r"dram\.timing\.nRAS = -1 is out of range"),
        ("dram.timing.nREFI", 5, "nREFI = 5 must exceed"),
        ("dram.scheduler", "fcfs", "expected 'fr_fcfs_first_ready' or 'fr_fcfs'"),
        ("clocks.dram_mhz", 1600, r"clocks\.dram_mhz = 1600 is above the 1200 MHz"),
        ("noc.kind", "mesh", "expected 'simple' or 'booksim2'"),
    ],
)
def test_bad_overrides_are_refused_in_one_line(key: str, value: object, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        load_hw(SERVER).with_overrides({key: value})
    assert "\n" not in str(caught.value)


def test_a_slower_memory_clock_and_onnxims_tables_are_free():
    load_hw(SERVER).with_overrides({"clocks.dram_mhz": 800})
    load_hw(SERVER).with_overrides({"dram.standard": "HBM2_ONNXIM", "clocks.dram_mhz": 2400})


def test_simple_memory_needs_no_table():
    hw = load_hw(SERVER).with_overrides({"dram.standard": "simple", "dram.latency_cycles": 50})
    with pytest.raises(ConfigError, match="no timing table"):
        hw.dram.table()
    with pytest.raises(ConfigError, match=r"dram\.timing has no meaning"):
        hw.with_overrides({"dram.timing.nCL": 3})


def test_unknown_preset_and_missing_file():
    with pytest.raises(ConfigError, match=f"did you mean '{SERVER}'"):
        load_hw("npu-server")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_hw("nowhere.yaml")


GOOD = """\
name: small
clocks: {core_mhz: 1000, noc_mhz: 1000, dram_mhz: 1600}
precision_bytes: 1
cores:
  count: 2
  rows: 8
  cols: 8
  spad_kib: 64
  acc_kib: 16
  vector_bits: 256
  overrides:
    1: {rows: 16}
dram:
  standard: DDR4_3200
  channels: 2
  request_bytes: 64
"""


def test_yaml_file_with_defaults(tmp_path: Path):
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    hw = load_hw(path)
    assert (hw.core(0).rows, hw.core(1).rows) == (8, 16)
    assert (hw.dram.read_queue, hw.dram.refresh, hw.dram.scheduler) == (64, True, "fr_fcfs")
    assert (hw.dma.outstanding_requests, hw.noc.latency_cycles) == (512, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  rows: 8", "  rows: 0", r"small\.yaml:6: cores\.rows = 0 is out of range"),
        ("  rows: 8", "  rowz: 8", r"small\.yaml:6: unknown key 'cores\.rowz'; did you mean 'rows'"),
        ("  rows: 8", "  rows: 8\n  rows: 9", r"small\.yaml:7: key 'cores\.rows' is given twice"),
        ("  rows: 8\n", "", r"small\.yaml:4: key 'cores\.rows' is missing"),
        ("1: {rows: 16}", "2: {rows: 16}", r"small\.yaml:12: cores\.overrides\.2 names a core"),
        ("channels: 2", "channels: 3", r"small\.yaml:15: dram\.channels = 3 is not a power of two"),
        ("name: small", "name: [small", r"small\.yaml:\d+: not valid YAML"),
        (GOOD, "- 1\n", "is not a hardware description"),
        (GOOD, "", "is not a hardware description"),
        (GOOD, "{", r"small\.yaml:1: not valid YAML"),
        (GOOD, "a: &x [*x]", "refers to itself"),
        (GOOD, "a: \x01", "not valid YAML"),
    ],
)
def test_errors_in_files_name_the_line(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "small.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_hw(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [('{"name":\n}', r"chip\.json:2: not valid JSON"), ("[1]", "is not a hardware")]
)
def test_errors_in_json_files(tmp_path: Path, text: str, message: str):
    path = tmp_path / "chip.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_hw(path)


def test_files_that_are_not_text(tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_bytes(b"\x08\x0a\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not a text file"):
        load_hw(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_hw(tmp_path / "folder.yaml")


def test_document_places(tmp_path: Path):
    path = tmp_path / "spec.yaml"
    path.write_text("a:\n  - x: 1\n  - x: 2\n")
    document = read_document(path)
    assert document.where(["a", 1, "x"]) == f"{path}:3"
    assert document.where(["a", 1, "missing"]) == f"{path}:3"
    assert document.where(["missing"]) == str(path)


@st.composite
def descriptions(draw: st.DrawFn) -> HwConfig:
    """Valid descriptions: a preset with values drawn within their ranges, single cores and timing included."""
    base = load_hw(draw(st.sampled_from(preset_names())))
    side = st.integers(1, 1024)
    changes: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20),
                "source": st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=60),
                "cores.rows": side,
                "cores.cols": side,
                "cores.latency.exp": st.integers(1, 100),
                "cores.overrides.0": st.fixed_dictionaries({}, optional={"rows": side, "latency": st.just({"div": 9})}),
                "clocks.core_mhz": st.integers(1, 3000),
                "precision_bytes": st.sampled_from([1, 2, 4]),
                "dram.channels": st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
                "dram.refresh": st.booleans(),
                "dram.timing": st.fixed_dictionaries({}, optional={"nCL": st.integers(1, 60)}),
                "dram.scheduler": st.sampled_from(["fr_fcfs", "fr_fcfs_first_ready"]),
                "noc.latency_cycles": st.integers(1, 100),
            },
        )
    )
    return base.with_overrides(changes)


@given(hw=descriptions())
def test_round_trip_through_yaml(hw: HwConfig, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("hw") / "hw.yaml"
    path.write_text(hw.to_yaml(), encoding="utf-8")
    assert load_hw(path) == hw
    assert HwConfig.from_data(hw.to_data()) == hw
