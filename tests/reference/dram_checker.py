"""An independent judge of DRAM command streams, written from the timing tables. It imports nothing from `vsim`.

`check` replays nothing and schedules nothing: it takes the commands that a controller issued and asks of every pair
that a rule names whether it kept its distance, and of every command whether the bank was in a state that allows it.
It reports the violations, the smallest slack of every rule, and the rules that were tight. It is itself tested by
mutation (`test_dram_checker.py`): a generator with one weakened rule must be caught.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from numpy.typing import NDArray

from hwconfigs.dram_table import Command as TableCommand
from hwconfigs.dram_table import DramStandard, Level

LEVELS = ("channel", "rank", "bank_group", "bank")
_LEVEL_NAMES = {"pseudochannel": "rank", "bankgroup": "bank_group"}
_COMMAND_NAMES = {"REFab": "REF", "PREpb": "PRE", "PREab": "PREA"}


@dataclass(frozen=True)
class DramCommand:
    """One command on a channel's bus. Fields below a command's scope are -1 (all banks of the rank)."""

    clk: int
    name: str
    rank: int
    bank_group: int = -1
    bank: int = -1
    row: int = -1

    def node(self, level: str) -> tuple[int, ...]:
        """Which part of the channel the command addresses at `level`."""
        return {
            "channel": (),
            "rank": (self.rank,),
            "bank_group": (self.rank, self.bank_group),
            "bank": (self.rank, self.bank_group, self.bank),
        }[level]


@dataclass(frozen=True)
class Rule:
    """`after` and a later `next` in the same part of the channel at `level` are at least `cycles` apart.

    window: the distance counts from the window-th most recent `after`. sibling: the rule holds between different parts.
    """

    level: str
    after: str
    next: str
    cycles: int
    window: int = 1
    sibling: bool = False

    def __str__(self) -> str:
        scope = f"{self.level} (other)" if self.sibling else self.level
        window = f" (window {self.window})" if self.window > 1 else ""
        return f"{scope} {self.after}->{self.next} {self.cycles}{window}"


@dataclass(frozen=True)
class Violation:
    """A command that came too early, or in a state that forbids it."""

    what: str
    command: DramCommand
    earlier: DramCommand | None = None
    rule: Rule | None = None

    def __str__(self) -> str:
        since = f" after {self.earlier.name} at {self.earlier.clk}" if self.earlier else ""
        return f"{self.command.name} at {self.command.clk}{since}: {self.what}"


@dataclass
class Report:
    """violations in order of time; slack[rule]: smallest spare distance of any pair (negative when violated)."""

    violations: list[Violation] = field(default_factory=list)
    slack: dict[Rule, int] = field(default_factory=dict)

    @property
    def tight(self) -> set[Rule]:
        """Rules that some pair met without a cycle to spare."""
        return {rule for rule, spare in self.slack.items() if spare == 0}


def _level(name: str) -> str:
    return _LEVEL_NAMES.get(name.lower(), name.lower())


def _command(name: str) -> str:
    return _COMMAND_NAMES.get(name, name)


def rules_from_json(path: Path) -> list[Rule]:
    """The complete constraint table of a recorded trace folder (`timing.json`)."""
    data = json.loads(path.read_text())
    return [
        Rule(
            _level(c["level"]),
            _command(c["preceding"]),
            _command(c["following"]),
            c["latency"],
            c["window"],
            c["sibling"],
        )
        for c in data["constraints"]
    ]


def rules_from_standard(standard: DramStandard) -> list[Rule]:
    """The rules of one of the tables in `hwconfigs/dram`, timing overrides applied."""
    table = standard.constraint_table()
    rules = [
        Rule(LEVELS[level], after.name, following.name, table[level][after][following])
        for level in Level
        for after in TableCommand
        for following in TableCommand
        if table[level][after][following]
    ]
    if standard.faw:
        rules.append(Rule("rank", "ACT", "ACT", standard.faw, window=4))
    return rules


def commands_from_recording(recorded: Mapping[str, NDArray]) -> list[DramCommand]:
    """The command stream of a recorded trace (`cmd_*` arrays, see `dram.md` section 1). A missing level counts as 0."""
    names = [_command(str(name)) for name in recorded["cmd_names"]]
    levels = [_level(str(name)) for name in recorded["level_names"]]

    def column(level: str) -> list[int]:
        place = recorded["cmd_addr_vec"]
        return place[:, levels.index(level)].tolist() if level in levels else [0] * len(place)

    places = zip(*(column(level) for level in ("rank", "bank_group", "bank", "row")), strict=True)
    clocks, commands = recorded["cmd_clk"].tolist(), recorded["cmd_id"].tolist()
    return [DramCommand(c, names[i], *place) for c, i, place in zip(clocks, commands, places, strict=True)]


def check(commands: Iterable[DramCommand], rules: Sequence[Rule], commands_per_clk: int = 1) -> Report:
    """Judge the commands of one channel, in order of issue."""
    report = Report()
    ordered = list(commands)
    _check_bus(ordered, commands_per_clk, report)
    _check_states(ordered, report)
    for rule in rules:
        _check_rule(ordered, rule, report)
    report.violations.sort(key=lambda violation: violation.command.clk)
    return report


def _check_bus(commands: list[DramCommand], commands_per_clk: int, report: Report) -> None:
    for earlier, command in zip(commands, commands[commands_per_clk:], strict=False):
        if command.clk <= earlier.clk:
            report.violations.append(Violation("command bus is taken, or time runs backwards", command, earlier))


def _check_states(commands: list[DramCommand], report: Report) -> None:
    """A bank is opened only when closed, accessed only in its open row, refreshed only with its rank closed."""
    open_row: dict[tuple[int, ...], int] = {}
    for command in commands:
        bank = command.node("bank")
        wrong = None
        if command.name == "ACT":
            wrong = "bank is open" if bank in open_row else None
            open_row[bank] = command.row
        elif command.name in ("RD", "WR"):
            wrong = None if open_row.get(bank) == command.row else f"row {command.row} is not open"
        elif command.name == "PRE":
            wrong = None if open_row.pop(bank, None) is not None else "bank is closed"
        else:
            still_open = [key for key in open_row if key[0] == command.rank]
            if command.name == "PREA":
                for key in still_open:
                    del open_row[key]
            elif still_open:
                wrong = f"{len(still_open)} banks of the rank are open"
        if wrong:
            report.violations.append(Violation(wrong, command))


def _check_rule(commands: list[DramCommand], rule: Rule, report: Report) -> None:
    recent: dict[tuple[int, ...], deque[DramCommand]] = {}
    for command in commands:
        node = command.node(rule.level)
        if command.name == rule.next:
            for other, history in recent.items():
                applies = (other[:-1] == node[:-1] and other != node) if rule.sibling else other == node
                if applies and len(history) == rule.window:
                    _judge(rule, history[0], command, report)
        if command.name == rule.after:
            recent.setdefault(node, deque(maxlen=rule.window)).append(command)


def _judge(rule: Rule, earlier: DramCommand, command: DramCommand, report: Report) -> None:
    distance = command.clk - earlier.clk
    report.slack[rule] = min(report.slack.get(rule, distance - rule.cycles), distance - rule.cycles)
    if distance < rule.cycles:
        what = f"{distance} cycles apart, rule {rule}"
        report.violations.append(Violation(what, command, earlier, rule))
