"""DRAM tables against the recorded timing tables of Ramulator2, and the arithmetic and laws they rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwconfigs.dram_table import Command, DramStandard, Level, load_standard, standard_names
from hwconfigs.errors import ConfigError
from hwconfigs.expression import evaluate
from tests.conftest import DATA, SHARED

COMMANDS = {"PREpb": "PRE", "PREab": "PREA", "REFab": "REF"} | {c: c for c in ("ACT", "PRE", "RD", "WR", "PREA")}
LEVELS = {"channel": "channel", "pseudochannel": "rank", "rank": "rank", "bankgroup": "bank_group", "bank": "bank"}

EXCERPT = json.loads((DATA / "dram_timing_excerpt.json").read_text())["folders"]
RECORDED = {
    "HBM2_ONNXIM": "HBM2_fork",
    "DDR4_3200AA_ONNXIM": "DDR4_fork",
    "HBM2_2400": "HBM2_upstream",
    "DDR4_3200": "DDR4_upstream",
}
"""Table -> the recorded folder whose constraints it must equal."""
UNREACHABLE = {("rank", "REF", "PREA", 1), ("rank", "REF", "REF", 1)}
"""A rank is closed after a refresh and the next one is far away; the recorded tables differ in stating these."""

Rules = dict[tuple[str, str, str, int], int]


def rules_of(standard: DramStandard) -> Rules:
    """Every distance of a table, keyed (level, preceding, following, window)."""
    table = standard.constraint_table()
    rules = {
        (level.name.lower(), before.name, after.name, 1): table[level][before][after]
        for level in Level
        for before in Command
        for after in Command
        if table[level][before][after]
    }
    return rules | {("rank", "ACT", "ACT", 4): standard.faw}


def recorded_rules(folder: str) -> Rules:
    return {(level, before, after, window): n for level, before, after, window, n in EXCERPT[folder]["constraints"]}


def normalised(timing: dict[str, Any]) -> Rules:
    """The rules of a recorded timing.json in our names: six commands, one branch, the largest of duplicates."""
    rules: Rules = {}
    for rule in timing["constraints"]:
        names = rule["preceding"], rule["following"]
        if rule["sibling"] or not set(names) <= set(COMMANDS):
            continue
        key = (LEVELS[rule["level"].lower()], COMMANDS[names[0]], COMMANDS[names[1]], rule["window"])
        rules[key] = max(rules.get(key, 0), rule["latency"])
    return rules


@pytest.mark.parametrize("name", RECORDED)
def test_constraints_equal_the_recorded_table(name: str):
    ours, recorded = rules_of(load_standard(name)), recorded_rules(RECORDED[name])
    differing = {key for key in ours.keys() | recorded.keys() if ours.get(key) != recorded.get(key)}
    assert differing <= UNREACHABLE


@pytest.mark.parametrize("name", RECORDED)
def test_timing_values_and_latency_equal_the_recorded_ones(name: str):
    standard, recorded = load_standard(name), EXCERPT[RECORDED[name]]
    assert {key: recorded["timing"][key] for key in standard.timing} == standard.timing
    assert standard.tck_ps == recorded["timing"]["tCK_ps"]
    assert standard.read_latency_cycles == recorded["read_latency"]
    assert standard.organisation.access_bytes == recorded["access_bytes"]


@pytest.mark.parametrize("name", ["HBM2_ONNXIM", "DDR4_3200AA_ONNXIM"])
def test_address_fields_equal_the_recorded_mapper(name: str):
    fields = load_standard(name).organisation.address_fields()
    assert {key: list(field) for key, field in fields.items()} == EXCERPT[RECORDED[name]]["fields"]


@pytest.mark.skipif(SHARED is None, reason="the recorded reference data are not beside this clone")
@pytest.mark.parametrize("folder", EXCERPT)
def test_excerpt_equals_its_origin(folder: str, shared: Path):
    timing = json.loads((shared / "reference" / "dram" / folder / "timing.json").read_text())
    assert recorded_rules(folder) == normalised(timing)
    assert EXCERPT[folder]["timing"] == timing["timing"]


def test_ddr4_onnxim_is_the_device_of_onnxims_configurations():
    """DDR4_16Gb_x4 / DDR4_1600J as in section 7.2 of the ONNXim specification."""
    rules = rules_of(load_standard("DDR4_ONNXIM"))
    expected = {
        "channel": {"RD RD": 4, "WR WR": 4},
        "rank": {"ACT ACT": 4, "RD RD": 4, "WR WR": 4, "RD WR": 7, "WR RD": 15, "RD PREA": 6, "WR PREA": 25}
        | {"ACT PREA": 28, "PREA ACT": 10, "ACT REF": 38, "PRE REF": 10, "PREA REF": 10, "REF ACT": 440},
        "bank_group": {"RD RD": 5, "WR WR": 5, "WR RD": 19, "ACT ACT": 5},
        "bank": {"ACT ACT": 38, "ACT RD": 10, "ACT WR": 10, "ACT PRE": 28, "PRE ACT": 10, "RD PRE": 6, "WR PRE": 25},
    }
    flat = {(level, *pair.split(), 1): n for level, pairs in expected.items() for pair, n in pairs.items()}
    assert {key: n for key, n in rules.items() if key not in UNREACHABLE} == flat | {("rank", "ACT", "ACT", 4): 16}
    standard = load_standard("DDR4_ONNXIM")
    assert standard.read_latency_cycles == 14
    assert standard.refresh_interval_cycles == 6240
    assert [field.bits for field in standard.organisation.address_fields().values()] == [7, 0, 2, 2, 18]


@pytest.mark.parametrize("name", standard_names())
def test_every_table_obeys_the_laws_of_dram(name: str):
    standard = load_standard(name)
    table = standard.constraint_table()
    bank, rank = table[Level.BANK], table[Level.RANK]
    assert len(table) == 4
    assert all(len(rows) == 6 and all(len(row) == 6 for row in rows) for rows in table)
    assert all(cycles >= 0 for rows in table for row in rows for cycles in row)
    assert bank[Command.ACT][Command.PRE] > bank[Command.ACT][Command.RD] >= bank[Command.PRE][Command.ACT] - 1
    assert standard.faw > rank[Command.ACT][Command.ACT] * 2
    assert rank[Command.RD][Command.RD] * standard.tck_ps > 1000, "a burst takes longer than a nanosecond"
    assert 0.01 < standard.refresh_cycles / standard.refresh_interval_cycles < 0.12
    assert standard.source


def test_only_the_reproduction_of_hbm2_never_refreshes():
    never = [name for name in standard_names() if not load_standard(name).refreshable]
    assert never == ["HBM2_2GBPS_ONNXIM", "HBM2_ONNXIM"]


def test_timing_overrides_reach_the_derived_constraints():
    standard = load_standard("DDR4_3200")
    changed = standard.constraint_table({"nCL": 30})
    assert changed[Level.RANK][Command.RD][Command.WR] == 30 + 4 + 2 - 16
    assert standard.with_timing({"nCL": 30}).read_latency_cycles == 34
    assert standard.constraint_table()[Level.RANK][Command.RD][Command.WR] == 12


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'HBM2_2400'"):
        load_standard("HBM2_240")
    with pytest.raises(ConfigError, match=r"timing\.nRDC .* did you mean 'nR"):
        load_standard("DDR4_3200").with_timing({"nRDC": 3})


def test_expressions_are_integer_arithmetic_only():
    values = {"a": 7, "b": 2}
    assert evaluate("max(a - b * 3, a // b) + -1", values) == 2
    assert evaluate(5, values) == 5
    for bad in (
        "a ** b",
        "a / b",
        "__import__('os')",
        "a.real",
        "a if b else 0",
        "1.5",
        "True",
        "min(a)",
        "a +",
        "a // 0",
    ):
        with pytest.raises(ConfigError, match="expression"):
            evaluate(bad, values)
    with pytest.raises(ConfigError, match="did you mean 'a'"):
        evaluate("A + b", values)
