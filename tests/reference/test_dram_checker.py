"""The checker of DRAM command streams: quiet on right streams, and no weakened rule escapes it."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from hwconfigs.dram_table import load_standard
from tests.reference.dram_checker import (
    LEVELS,
    DramCommand,
    Rule,
    check,
    commands_from_recording,
    rules_from_json,
    rules_from_standard,
)
from tests.reference.scalar_dram import COMMANDS, DramTiming, replay

STANDARDS = ["HBM2_ONNXIM", "DDR4_ONNXIM"]
BINDING = {
    "HBM2_ONNXIM": 14,
    "DDR4_ONNXIM": 14,
}
"""How many rules, weakened by one cycle, change what the generator does on the stress trace; at least."""


def stress_trace(seed: int = 1) -> tuple[list[int], list[int], list[int]]:
    """Cycles, addresses and directions: sequential bursts, bank conflicts and random accesses, with idle gaps."""
    rng = random.Random(seed)
    cycles, addresses, writes = [], [], []
    clk = 0
    for _ in range(60):
        base, stride = rng.randrange(1 << 26), rng.choice([32, 64, 512, 1 << 12, 1 << 15, 1 << 17])
        write_share = rng.choice([0.0, 0.1, 0.5, 1.0])
        for i in range(rng.randrange(4, 40)):
            cycles.append(clk)
            addresses.append((base + i * stride) // 32 * 32 if rng.random() < 0.9 else rng.randrange(1 << 21) * 32)
            writes.append(int(rng.random() < write_share))
            clk += rng.choice([0, 0, 1, 3])
        clk += rng.choice([0, 0, 40, 400])
    return cycles, addresses, writes


def issue(timing: DramTiming) -> list[DramCommand]:
    """The commands of the scalar controller on the stress trace."""
    commands = replay(timing, *stress_trace(), end=14_000).commands
    return [DramCommand(c.clk, COMMANDS[c.command], *c.place[:4]) for c in commands]


def rule_of(constraint: tuple[int, int, int, int, int]) -> Rule:
    level, before, after, cycles, window = constraint
    return Rule(LEVELS[level], COMMANDS[before], COMMANDS[after], cycles, window)


@pytest.mark.parametrize("standard", STANDARDS)
def test_right_stream_is_clean_and_rules_are_tight(standard):
    table = load_standard(standard)
    report = check(issue(DramTiming.from_standard(table)), rules_from_standard(table))
    assert [str(violation) for violation in report.violations] == []
    assert len(report.tight) >= BINDING[standard]
    assert min(report.slack.values()) == 0


@pytest.mark.parametrize("standard", STANDARDS)
def test_every_weakened_rule_is_caught(standard):
    """Weakening a rule either changes nothing, or the first difference breaks exactly that rule."""
    table = load_standard(standard)
    timing, rules = DramTiming.from_standard(table), rules_from_standard(table)
    right = issue(timing)
    caught = 0
    for index, constraint in enumerate(timing.constraints):
        level, before, after, cycles, window = constraint
        weakened = list(timing.constraints)
        weakened[index] = (level, before, after, cycles - 1, window)
        commands = issue(replace(timing, constraints=tuple(weakened)))
        report = check(commands, rules)
        if commands == right:
            assert not report.violations
            continue
        caught += 1
        assert report.violations, f"{rule_of(constraint)} weakened and not noticed"
        assert report.violations[0].rule == rule_of(constraint)
        assert report.slack[rule_of(constraint)] == -1
    assert caught >= BINDING[standard]


def test_states_and_bus_are_checked():
    def what(*commands: DramCommand) -> list[str]:
        return [violation.what for violation in check(commands, []).violations]

    act = DramCommand(1, "ACT", 0, 0, 0, 5)
    assert what(act, DramCommand(20, "RD", 0, 0, 0, 5)) == []
    assert what(act, DramCommand(20, "RD", 0, 0, 0, 6)) == ["row 6 is not open"]
    assert what(act, DramCommand(20, "ACT", 0, 0, 0, 6)) == ["bank is open"]
    assert what(DramCommand(1, "PRE", 0, 0, 0)) == ["bank is closed"]
    assert what(act, DramCommand(20, "REF", 0)) == ["1 banks of the rank are open"]
    assert what(act, DramCommand(20, "PREA", 0), DramCommand(40, "REF", 0)) == []
    assert what(act, DramCommand(1, "ACT", 0, 0, 1, 5)) == ["command bus is taken, or time runs backwards"]


@pytest.mark.parametrize("folder", ["HBM2_fork", "DDR4_fork", "DDR4R2_fork", "DDR4_upstream"])
def test_recorded_streams_are_clean(shared, folder):
    path = shared / "reference" / "dram" / folder
    rules = rules_from_json(path / "timing.json")
    for trace in sorted(path.glob("*.npz"))[::3]:
        with np.load(trace) as recorded:
            report = check(commands_from_recording(recorded), rules)
        assert [str(violation) for violation in report.violations[:1]] == [], trace.name
