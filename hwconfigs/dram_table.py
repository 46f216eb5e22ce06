"""DRAM standards as data: organisation, timing values and the table of minimum distances between commands.

A standard is a YAML file in ``hwconfigs/dram``; a later standard may extend an earlier one and state only what differs.
All times are cycles of the DRAM command clock. The command set is that of an open-page controller with all-bank
refresh; commands with auto-precharge do not occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import model_validator

from hwconfigs.errors import ConfigError, nearest
from hwconfigs.expression import evaluate
from hwconfigs.validation import Frozen, build, within
from hwconfigs.yaml_file import Document, read_document

TABLES = Path(__file__).parent / "dram"

Bits = Annotated[int, within(0, 24)]
ConstraintTable = tuple[tuple[tuple[int, ...], ...], ...]


class Command(IntEnum):
    """DRAM commands, in the order of rows and columns of the constraint table."""

    ACT = 0
    PRE = 1
    RD = 2
    WR = 3
    PREA = 4
    REF = 5


class Level(IntEnum):
    """Nesting of a channel. RANK is whatever shares a channel's command bus: ranks, or the pseudo-channels of HBM."""

    CHANNEL = 0
    RANK = 1
    BANK_GROUP = 2
    BANK = 3


class AddressField(NamedTuple):
    """Where a field lies in the in-channel address, counted in accesses (byte address with the offset bits dropped)."""

    shift: int
    bits: int


class Organisation(Frozen):
    """Structure of one channel. Counts are powers of two; bits above the row field are dropped (the row wraps)."""

    offset_bits: Bits
    """log2 of the bytes of one access (one burst)."""
    column_bits: Bits
    """log2 of the accesses in one row of one bank."""
    ranks: Annotated[int, within(1, 16)]
    bank_groups: Annotated[int, within(1, 16)]
    banks: Annotated[int, within(1, 64)]
    """Banks in one bank group."""
    row_bits: Bits
    order: tuple[Literal["column", "rank", "bank_group", "bank", "row"], ...]
    """Fields of the in-channel address, least significant first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("ranks", "bank_groups", "banks"):
            count = getattr(self, key)
            if count & (count - 1):
                raise ValueError(f"{key} = {count} is not a power of two")
        if sorted(self.order) != ["bank", "bank_group", "column", "rank", "row"]:
            raise ValueError("order must name column, rank, bank_group, bank and row once each")
        return self

    @property
    def access_bytes(self) -> int:
        """Bytes that one RD or WR command moves."""
        return 1 << self.offset_bits

    @property
    def banks_per_channel(self) -> int:
        """Banks of one channel over all ranks and bank groups."""
        return self.ranks * self.bank_groups * self.banks

    @property
    def channel_bytes(self) -> int:
        """Capacity of one channel in bytes."""
        return self.banks_per_channel << (self.row_bits + self.column_bits + self.offset_bits)

    def address_fields(self) -> dict[str, AddressField]:
        """Shift and width of every field of the in-channel access number, keyed by field name."""
        widths = {
            "column": self.column_bits,
            "rank": self.ranks.bit_length() - 1,
            "bank_group": self.bank_groups.bit_length() - 1,
            "bank": self.banks.bit_length() - 1,
            "row": self.row_bits,
        }
        fields: dict[str, AddressField] = {}
        shift = 0
        for name in self.order:
            fields[name] = AddressField(shift, widths[name])
            shift += widths[name]
        return fields


class Constraint(Frozen):
    """A command of ``after`` must be followed by one of ``next`` no sooner than ``cycles``, within the same ``level``.

    With ``window`` 4 the distance is counted from the fourth most recent command instead of the last (four-activate
    window). ``cycles`` is an expression over the timing values.
    """

    level: Literal["channel", "rank", "bank_group", "bank"]
    after: tuple[Literal["ACT", "PRE", "RD", "WR", "PREA", "REF"], ...]
    next: tuple[Literal["ACT", "PRE", "RD", "WR", "PREA", "REF"], ...]
    cycles: int | str
    window: Literal[1, 4] = 1


class DramStandard(Frozen):
    """One DRAM standard at one speed. Build with `load_standard`; change timing with `with_timing`."""

    name: str
    source: str
    organisation: Organisation
    tck_ps: Annotated[int, within(100, 100_000)]
    """Rated period of the command clock in picoseconds."""
    timing: dict[str, Annotated[int, within(0, 1_000_000)]]
    """Timing values in cycles, by their JEDEC names with a leading n. nREFI and nRFC are always present."""
    read_latency: str
    """Cycles from the RD command to the last data beat."""
    refreshable: bool = True
    """False where the modelled controller never refreshes this standard."""
    constraints: tuple[Constraint, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("nREFI", "nRFC"):
            if key not in self.timing:
                raise ValueError(f"timing.{key} is missing")
        if self.timing["nREFI"] <= self.timing["nRFC"]:
            raise ValueError(
                f"timing.nREFI = {self.timing['nREFI']} must exceed timing.nRFC = {self.timing['nRFC']}: "
                "a rank that always refreshes serves nothing"
            )
        for constraint in self.constraints:
            evaluate(constraint.cycles, self.timing)
            if constraint.window == 4 and (constraint.level, constraint.after, constraint.next) != (
                "rank",
                ("ACT",),
                ("ACT",),
            ):
                raise ValueError("a window of 4 is modelled between ACT commands of a rank only")
        evaluate(self.read_latency, self.timing)
        return self

    @property
    def rated_mhz(self) -> float:
        """Highest command clock of the speed grade in MHz."""
        return 1e6 / self.tck_ps

    @property
    def read_latency_cycles(self) -> int:
        """Cycles from the RD command to the completion of the read."""
        return evaluate(self.read_latency, self.timing)

    @property
    def faw(self) -> int:
        """Cycles that must hold at least four ACT commands of a rank; 0 where the standard has no such window."""
        windows = [evaluate(c.cycles, self.timing) for c in self.constraints if c.window == 4]
        return max(windows, default=0)

    @property
    def refresh_interval_cycles(self) -> int:
        """Cycles between two all-bank refreshes of a rank (nREFI)."""
        return self.timing["nREFI"]

    @property
    def refresh_cycles(self) -> int:
        """Cycles a rank is busy with one all-bank refresh (nRFC)."""
        return self.timing["nRFC"]

    def with_timing(self, overrides: Mapping[str, int]) -> DramStandard:
        """Copy of the standard with some timing values replaced (cycles). Raises `ConfigError` for an unknown name."""
        for key in overrides:
            if key not in self.timing:
                raise ConfigError(f"timing.{key} is not a timing value of {self.name}{nearest(key, self.timing)}")
        data = self.model_dump() | {"timing": {**self.timing, **overrides}}
        return build(DramStandard, data, lambda _: f"DRAM standard {self.name}")

    def constraint_table(self, timing_overrides: Mapping[str, int] | None = None) -> ConstraintTable:
        """Minimum distances in cycles, indexed ``[Level][preceding Command][following Command]``; 0 = none.

        Where a standard states several distances for one pair the largest counts. The four-activate window is not
        part of the table, see `faw`.
        """
        timing = self.with_timing(timing_overrides).timing if timing_overrides else self.timing
        table = [[[0] * len(Command) for _ in Command] for _ in Level]
        for constraint in self.constraints:
            if constraint.window != 1:
                continue
            rows = table[Level[constraint.level.upper()]]
            cycles = evaluate(constraint.cycles, timing)
            for after in constraint.after:
                row = rows[Command[after]]
                for following in constraint.next:
                    row[Command[following]] = max(row[Command[following]], cycles)
        return tuple(tuple(tuple(row) for row in rows) for rows in table)


def standard_names() -> list[str]:
    """Names of the standards that `load_standard` knows, sorted."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


@cache
def load_standard(name: str) -> DramStandard:
    """The DRAM standard ``name``. Raises `ConfigError`, with the nearest name, if there is none."""
    document = _read_table(name)
    data = {"name": name, **_merged(document)}
    return build(DramStandard, data, document.where)


def _read_table(name: str) -> Document:
    if name not in standard_names():
        raise ConfigError(f"unknown DRAM standard {name!r}{nearest(name, standard_names())}")
    return read_document(TABLES / f"{name}.yaml")


def _merged(document: Document) -> dict[str, Any]:
    """The keys of a table laid over those of the table it extends, organisation and timing value by value."""
    data = dict(document.data)
    base_name = data.pop("extends", None)
    if base_name is None:
        return data
    base = _merged(_read_table(base_name))
    merged = base | data
    for key in ("organisation", "timing"):
        merged[key] = base[key] | data.get(key, {})
    return merged
