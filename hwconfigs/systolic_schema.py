"""The hardware description of the closed-form systolic model: one array, one vector unit, their memories and ports.

The template is SimDIT's (GeneSys): a weight-stationary array with a buffer for each operand, beside it a vector unit
of as many lanes as the array has columns, and a port to DRAM for each of weights, input, output and vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import model_validator

from hwconfigs.errors import ConfigError, nearest
from hwconfigs.validation import Frozen, build, within
from hwconfigs.yaml_file import read_document

PRESETS = Path(__file__).parent / "systolic"

ArraySide = Annotated[int, within(1, 4096)]
ElementBits = Annotated[int, within(1, 64)]
BufferKib = Annotated[int, within(1, 1 << 22)]
PortBits = Annotated[int, within(1, 1 << 20)]
Latency = Annotated[int, within(1, 10_000)]


class Array(Frozen):
    """The systolic array; the vector unit has as many lanes as the array has columns."""

    rows: ArraySide
    """Reduction dimension: input channels."""
    cols: ArraySide
    """Output channels."""
    spare_weights: bool = False
    """True where an element holds one weight and a spare, loaded through the rows; else each has a memory of weights.

    The compatibility mode takes no time for it.
    """


class Precision(Frozen):
    """Width of each kind of operand."""

    activation_bits: ElementBits
    weight_bits: ElementBits
    bias_bits: ElementBits = 32
    accumulator_bits: ElementBits = 32
    """Partial sums, what the array puts out, and every operand of the vector unit."""
    output_bits: ElementBits | None = None
    """What a matrix layer stores, where it is narrower than a sum; the compatibility mode always stores sums."""


class Buffers(Frozen):
    """Whole on-chip memories. All but the vector memory are double buffered: a tile may use half."""

    weight_kib: BufferKib
    ifmap_kib: BufferKib
    ofmap_kib: BufferKib
    bias_kib: BufferKib
    vector_kib: BufferKib
    """The two vector memories together; an operand tile may fill one of them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("ofmap_kib", "vector_kib"):
            if getattr(self, key) % 2:
                raise ValueError(f"{key} = {getattr(self, key)} does not divide into two memories of whole KiB")
        return self


class Ports(Frozen):
    """Width of the ports to DRAM."""

    weight_bits_per_cycle: PortBits
    """Weights and biases."""
    ifmap_bits_per_cycle: PortBits
    ofmap_bits_per_cycle: PortBits
    """Partial sums and outputs, read and written."""
    vector_bits_per_cycle: PortBits
    """Everything the vector unit reads and writes."""


class VectorLatency(Frozen):
    """Cycles that one vector instruction occupies the unit; those not named here take one."""

    div_cycles: Latency
    exp_cycles: Latency
    rsqrt_cycles: Latency


class SystolicHw(Frozen):
    """A complete description of one design."""

    name: str
    source: str = ""
    """Where the numbers come from."""
    clock_mhz: Annotated[int, within(1, 100_000)]
    array: Array
    precision: Precision
    buffers: Buffers
    ports: Ports
    dram_bits_per_cycle: PortBits | None = None
    """What the one memory behind all ports delivers; null: as much as the ports together can take."""
    vector_latency: VectorLatency

    @property
    def shared_dram_bits_per_cycle(self) -> int:
        """Width of the one memory behind the ports."""
        ports: dict[str, int] = dict(self.ports)
        return self.dram_bits_per_cycle or sum(ports.values())

    def to_data(self) -> dict[str, Any]:
        """Plain nested data, every field stated."""
        return self.model_dump(mode="json", exclude_none=True)

    def with_overrides(self, overrides: Mapping[str, Any]) -> SystolicHw:
        """Copy with the values at dotted keys replaced, e.g. ``{"array.rows": 32}``. Raises `ConfigError`."""
        data = self.to_data()
        for key, value in overrides.items():
            *parents, last = key.split(".")
            place: Any = data
            for part in parents:
                if not isinstance(place.get(part), dict):
                    raise ConfigError(f"unknown key {key!r}{nearest(part, place)}")
                place = place[part]
            place[last] = value
        return build(SystolicHw, data, lambda _: self.name)

    def to_yaml(self) -> str:
        """YAML text that `load_systolic` reads back to an equal description."""
        return yaml.safe_dump(self.to_data(), sort_keys=False, allow_unicode=True, width=100)


def systolic_preset_names() -> list[str]:
    """Names of the shipped designs, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_systolic(name_or_path: str | Path) -> SystolicHw:
    """The design called ``name_or_path``: a preset of ``hwconfigs/systolic``, else a YAML file.

    Raises `ConfigError` with one line naming file, line and key.
    """
    name = str(name_or_path)
    path = PRESETS / f"{name}.yaml" if name in systolic_preset_names() else Path(name_or_path)
    if path.suffix not in (".yaml", ".yml", ".json") and not path.is_file():
        raise ConfigError(f"no systolic design or file is called {name!r}{nearest(name, systolic_preset_names())}")
    document = read_document(path)
    if not isinstance(document.data, Mapping):
        raise ConfigError(f"{path}: is not a systolic design; expected keys such as array, buffers and ports")
    return build(SystolicHw, document.data, document.where)
