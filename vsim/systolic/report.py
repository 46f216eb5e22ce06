"""Replaying recorded runs: how many of their values the model reproduces, by how much the others differ, and which."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hwconfigs.errors import UserError

TOLERANCE = 1e-9
"""Relative difference up to which a value counts as equal: the last digits of 64-bit fractions."""
SHOWN = 10
"""Differences that a report names."""


@dataclass(frozen=True)
class Difference:
    """One recorded value that the model does not give."""

    where: str
    quantity: str
    recorded: float
    computed: float

    @property
    def relative(self) -> float:
        """Difference over the recorded value; over 1 where the record says 0."""
        return abs(self.computed - self.recorded) / (abs(self.recorded) or 1)


@dataclass
class Report:
    """What a replay found. An item is a layer, a network or a case; it is equal if all of its values are."""

    file: str
    compat: str
    kind: str
    """What the items are: layers, networks or cases."""
    items: int = 0
    equal: int = 0
    values: int = 0
    worst_relative: float = 0.0
    notes: list[str] = field(default_factory=list)
    different: list[Difference] = field(default_factory=list)

    def add(self, where: str, quantities: Sequence[str], recorded: Sequence[float], computed: Sequence[float]) -> None:
        """Count one item; all three sequences have an entry a quantity."""
        found = [Difference(where, *row) for row in zip(quantities, recorded, computed, strict=True)]
        wrong = [difference for difference in found if not difference.relative <= TOLERANCE]
        self.items += 1
        self.values += len(found)
        self.equal += not wrong
        self.worst_relative = max([self.worst_relative, *(difference.relative for difference in found)])
        self.different += wrong[: SHOWN - len(self.different)]

    @property
    def all_equal(self) -> bool:
        """Whether every item is equal."""
        return self.equal == self.items

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {
            "different": [asdict(difference) | {"relative": difference.relative} for difference in self.different]
        }


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a ``.json`` list or of one JSON object a line (``.jsonl``), plain or gzipped.

    Raises `UserError` that names file and line.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    # One object a line, or all of them as one value.
    parts = text.splitlines() if ".jsonl" in path.suffixes else [text]
    values: list[Any] = []
    for number, part in enumerate(parts):
        try:
            values += [json.loads(part)] if part.strip() else []
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number + error.lineno}: not valid JSON: {error.msg}") from None
    records = values if ".jsonl" in path.suffixes else values[0] if values else []
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: expected a list of recorded runs")
    return records


def value_at(record: dict[str, Any], key: str, where: str) -> Any:
    """The value at the dotted ``key``. Raises `UserError` that says ``where`` it is missing."""
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{where}: key {key!r} is missing")
        value = value[part]
    return value
