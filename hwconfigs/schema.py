"""The hardware description: what a chip is, in validated fields with units in their names.

A description is immutable; a sweep derives variants with `HwConfig.with_overrides`. Array sizes follow the
weight-stationary convention: ``rows`` is the reduction dimension (height), ``cols`` the output dimension (width).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, model_validator

from hwconfigs.dram_table import DramStandard, load_standard, standard_names
from hwconfigs.errors import ConfigError, closest, nearest
from hwconfigs.validation import Frozen, build, model_at, within

SIMPLE_DRAM = "simple"
"""`Dram.standard` of the memory that answers every request after a fixed latency."""
RAMULATOR1_DRAM = "ramulator1"
"""`Dram.standard` of imported ONNXim configurations that ask for Ramulator v1; not modelled."""

Mhz = Annotated[int, within(1, 100_000)]
Cycles = Annotated[int, within(1, 10_000)]
ArraySide = Annotated[int, within(1, 1024)]
MemoryKib = Annotated[int, within(1, 1 << 22)]
VectorBits = Annotated[int, within(8, 1 << 20)]


def _require_power_of_two(key: str, value: int) -> None:
    if value & (value - 1):
        lower = 1 << (value.bit_length() - 1)
        raise ValueError(f"{key} = {value} is not a power of two; nearest: {lower} or {2 * lower}")


class Clocks(Frozen):
    """Frequencies of the three clock domains."""

    core_mhz: Mhz
    noc_mhz: Mhz
    dram_mhz: Mhz
    """Command clock: half the data rate of a double-data-rate memory."""


class OpLatency(Frozen):
    """Cycles of one vector or scalar operation on one vector of operands."""

    add: Cycles = 1
    mul: Cycles = 1
    mac: Cycles = 1
    div: Cycles = 1
    exp: Cycles = 1
    gelu: Cycles = 1
    add_tree: Cycles = 1
    scalar_sqrt: Cycles = 1
    scalar_add: Cycles = 1
    scalar_mul: Cycles = 1


class CoreConfig(Frozen):
    """One core: a weight-stationary array, its two memories and its vector unit."""

    rows: ArraySide
    cols: ArraySide
    spad_kib: MemoryKib
    """Whole scratchpad; double buffering uses it as two halves."""
    acc_kib: MemoryKib
    """Whole accumulator memory; double buffering uses it as two halves."""
    vector_bits: VectorBits
    """Bits the vector unit processes in a cycle; a multiple of 8."""
    latency: OpLatency = OpLatency()
    drains_between_tiles: bool = False
    """True where a tile's first pass waits until the array is empty, as Gemmini's loop units appear to do."""

    @model_validator(mode="after")
    def _check_core(self) -> Self:
        if self.vector_bits % 8:
            raise ValueError(f"vector_bits = {self.vector_bits} is not a whole number of bytes")
        return self

    def __hash__(self) -> int:
        """By value, so that what depends on a core alone can be cached."""
        sizes = (self.rows, self.cols, self.spad_kib, self.acc_kib, self.vector_bits, self.drains_between_tiles)
        return hash((*sizes, *dict(self.latency).values()))


class LatencyOverride(Frozen):
    """Operation latencies of one core that differ from `Cores.latency`."""

    add: Cycles | None = None
    mul: Cycles | None = None
    mac: Cycles | None = None
    div: Cycles | None = None
    exp: Cycles | None = None
    gelu: Cycles | None = None
    add_tree: Cycles | None = None
    scalar_sqrt: Cycles | None = None
    scalar_add: Cycles | None = None
    scalar_mul: Cycles | None = None


class CoreOverride(Frozen):
    """Fields of one core of a heterogeneous chip that differ from `Cores`."""

    rows: ArraySide | None = None
    cols: ArraySide | None = None
    spad_kib: MemoryKib | None = None
    acc_kib: MemoryKib | None = None
    vector_bits: VectorBits | None = None
    latency: LatencyOverride | None = None
    drains_between_tiles: bool | None = None


class Cores(CoreConfig):
    """All cores: a common description, and what differs for single cores (``overrides``, by core number from 0)."""

    count: Annotated[int, within(1, 1024)]
    overrides: dict[int, CoreOverride] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_overrides(self) -> Self:
        for index in self.overrides:
            if not 0 <= index < self.count:
                raise ValueError(f"overrides.{index} names a core that does not exist; count is {self.count}")
            self.core(index)
        return self

    def core(self, index: int) -> CoreConfig:
        """Description of core ``index`` (from 0), its overrides applied."""
        if not 0 <= index < self.count:
            raise ConfigError(f"there is no core {index}; cores.count is {self.count}")
        common = self.model_dump(exclude={"count", "overrides"})
        override = self.overrides.get(index)
        own = override.model_dump(exclude_none=True) if override else {}
        latency = common["latency"] | own.pop("latency", {})
        return CoreConfig(**(common | own | {"latency": latency}))


class Dma(Frozen):
    """The engine that turns loads and stores of a core into memory requests."""

    outstanding_requests: Annotated[int, within(1, 1 << 16)] = 512
    """Requests one core may have in flight; a power of two."""
    descriptors_per_cycle: Annotated[int, within(1, 64)] = 4

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require_power_of_two("outstanding_requests", self.outstanding_requests)
        return self


class Dram(Frozen):
    """The memory system: one independent controller per channel."""

    standard: str
    """A table of ``hwconfigs/dram``, or "simple"."""
    channels: Annotated[int, within(1, 64)]
    request_bytes: Annotated[int, within(8, 1024)] = 32
    """Size of a memory request and of the interleaving between channels."""
    read_queue: Annotated[int, within(1, 4096)] = 64
    write_queue: Annotated[int, within(1, 4096)] = 64
    latency_cycles: Annotated[int, within(1, 100_000)] = 100
    """Access latency of the "simple" memory in DRAM cycles; the other standards do not use it."""
    size_gib: Annotated[int, within(0, 1 << 16)] = 0
    """Capacity that a workload must fit in; 0 = not checked."""
    refresh: bool = True
    timing: dict[str, Annotated[int, within(0, 1_000_000)]] = Field(default_factory=dict)
    """Timing values in cycles that replace those of the table, e.g. ``nRCD: 12``."""
    bank_hash: bool = True
    """Exchange the banks of a bank group by the low row bits, as memory controllers do against power-of-two strides."""
    scheduler: Literal["fr_fcfs_first_ready", "fr_fcfs"] = "fr_fcfs"
    """fr_fcfs: row hits first, then the oldest. fr_fcfs_first_ready: the oldest whose next command is ready."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # The channel hash and the removal of the channel bits from the address need whole bits.
        _require_power_of_two("channels", self.channels)
        _require_power_of_two("request_bytes", self.request_bytes)
        if self.is_table:
            self._check_table()
        elif self.standard not in (SIMPLE_DRAM, RAMULATOR1_DRAM):
            known = [*standard_names(), SIMPLE_DRAM]
            raise ValueError(f"standard = {self.standard!r} is unknown{nearest(self.standard, known)}")
        elif self.timing:
            raise ValueError(f"timing has no meaning for the standard {self.standard!r}")
        return self

    def _check_table(self) -> None:
        access = self.table().organisation.access_bytes
        if self.request_bytes != access and not self.is_onnxim:
            raise ValueError(
                f"request_bytes = {self.request_bytes} does not match the {access}-byte access of {self.standard}"
            )

    @property
    def is_table(self) -> bool:
        """True where the standard is a timing table, false for "simple" and what is not modelled."""
        return self.standard in standard_names()

    @property
    def is_onnxim(self) -> bool:
        """True for the tables that reproduce ONNXim, faults included; they are exempt from plausibility checks."""
        return self.standard.endswith("_ONNXIM")

    def table(self) -> DramStandard:
        """The timing table with the overrides of ``timing`` applied. Raises `ConfigError` where there is none."""
        if self.standard == RAMULATOR1_DRAM:
            raise ConfigError(
                'dram_type "ramulator" (Ramulator v1) is not modelled yet; expected "ramulator2" or "simple"'
            )
        if self.standard == SIMPLE_DRAM:
            raise ConfigError('dram.standard "simple" has no timing table')
        return _with_timing(self.standard, tuple(sorted(self.timing.items())))


@lru_cache(maxsize=1024)
def _with_timing(standard: str, timing: tuple[tuple[str, int], ...]) -> DramStandard:
    """The points of a sweep share few sets of timing values, each of which takes a millisecond to check."""
    return load_standard(standard).with_timing(dict(timing))


class Noc(Frozen):
    """The network between cores and memory channels."""

    kind: Literal["simple", "booksim2"] = "simple"
    """simple: fixed latency, one packet per destination and cycle. booksim2: accepted on import, not modelled yet."""
    latency_cycles: Annotated[int, within(1, 10_000)] = 1
    ports_per_core: Annotated[int, within(1, 64)] = 1


class OnnximOptions(Frozen):
    """What an imported ONNXim configuration says beyond the common fields; used by the compatibility mode only."""

    scheduler: str
    layout: Literal["NHWC", "NCHW"]
    dram_type: Literal["simple", "ramulator", "ramulator2"]
    icnt_type: Literal["simple", "booksim2"]
    dram_config_path: str | None = None
    icnt_config_path: str | None = None
    dram_nbl: Annotated[int, within(1, 64)] = 1
    partition: tuple[Annotated[int, within(0, 1023)], ...] = ()
    """Partition of each core, by core number; empty = all cores in partition 0."""


class HwConfig(Frozen):
    """A complete hardware description."""

    name: str
    source: str = ""
    """Where the numbers come from."""
    clocks: Clocks
    precision_bytes: Literal[1, 2, 4]
    """Bytes of one operand element in scratchpad and DRAM."""
    cores: Cores
    dma: Dma = Dma()
    dram: Dram
    noc: Noc = Noc()
    onnxim: OnnximOptions | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dram.is_table and not self.dram.is_onnxim:
            rated = self.dram.table().rated_mhz
            # One percent covers clocks that are quoted rounded, such as 1067 MHz for a period of 0.938 ns.
            if self.clocks.dram_mhz > 1.01 * rated:
                raise ValueError(
                    f"clocks.dram_mhz = {self.clocks.dram_mhz} is above the {rated:.0f} MHz that dram.standard "
                    f"{self.dram.standard} is rated for (the command clock is half the data rate)"
                )
        return self

    @classmethod
    def from_data(cls, data: Mapping[str, Any], origin: str = "hardware description") -> HwConfig:
        """Build from plain nested data. Raises `ConfigError` that names ``origin`` and the dotted key."""
        return build(cls, data, lambda _: origin)

    def core(self, index: int) -> CoreConfig:
        """Description of core ``index`` (from 0)."""
        return self.cores.core(index)

    def check_modelled(self) -> None:
        """Raise `ConfigError` if the description asks for something that is accepted on import but not simulated."""
        if self.noc.kind == "booksim2":
            raise ConfigError(f'{self.name}: icnt_type "booksim2" is not modelled yet; expected "simple"')
        if self.dram.standard == RAMULATOR1_DRAM:
            self.dram.table()

    def with_overrides(self, overrides: Mapping[str, Any]) -> HwConfig:
        """Copy with the values at dotted keys replaced, e.g. ``{"dram.channels": 8, "cores.overrides.1.rows": 64}``.

        Raises `ConfigError` with the nearest valid key for a key that does not exist, and for values out of range.
        """
        data = self.to_data()
        for key, value in overrides.items():
            _assign(data, key, value)
        return build(HwConfig, data, lambda _: self.name)

    def to_data(self) -> dict[str, Any]:
        """Plain nested data, every field stated; `from_data` takes it back."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_yaml(self) -> str:
        """YAML text that `load_hw` reads back to an equal description."""
        return yaml.safe_dump(self.to_data(), sort_keys=False, allow_unicode=True, width=100)


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at the dotted ``key`` of nested ``data``, making missing mappings on the way."""
    parts = key.split(".")
    _check_key(parts, key)
    place = data
    for part in parts[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"unknown key {key!r}: {part!r} holds a value, not keys")
        place = inner
    place[parts[-1]] = value


def _check_key(parts: Sequence[str], key: str) -> None:
    for depth, part in enumerate(parts):
        parent = model_at(HwConfig, parts[:depth])
        # Below a mapping with free keys (core numbers, timing names) the validation of the whole is the judge.
        if parent is not None and part not in parent.model_fields:
            siblings = [".".join([*parts[:depth], name]) for name in parent.model_fields]
            # A wrong first part ("core.rows") is best recognised by the whole key, a later one beside its siblings.
            meant = closest(key, dotted_keys()) if depth == 0 else None
            hint = f"; did you mean {meant!r}?" if meant else nearest(".".join(parts[: depth + 1]), siblings)
            raise ConfigError(f"unknown key {key!r}{hint}")


def dotted_keys(model: type[BaseModel] = HwConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a description that holds a value (not a group of keys), in the order of the schema."""
    keys: list[str] = []
    for name in model.model_fields:
        inner = model_at(model, [name])
        keys += dotted_keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return keys
