"""Energy and area of single operations and accesses at one technology, each with its public source.

The table is at the node and supply voltage where it was published. `Technology.at` scales it: the energy of logic and
of on-chip memory with the feature size and with the square of the voltage (energy of switching a capacitance, C V^2,
with C proportional to the feature size), area with the square of the feature size. DRAM is a chip of its own and does
not scale, nor does the leakage of memories. Between the tabulated widths and capacities values follow a power law;
beyond them, that of the last two.

The rule is the classical one, and pessimistic below 32 nm. A. Stillmaker and B. Baas, Integration 58 (2017) 74-81,
https://doi.org/10.1016/j.vlsi.2017.02.002, fit polynomials in the voltage to circuit simulations of each node (their
coefficients, as in github.com/wromaszkan/nodeScale, which agree with the paper's corrigendum where that quotes them):
from 45 nm, 0.9 V high-performance logic to 16 nm, 0.8 V they give 0.172 times the energy where the rule gives 0.281, to
7 nm, 0.7 V 0.068 where it gives 0.094; in area 1/5.3 and 1/17 where it gives 1/7.9 and 1/41.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from hwconfigs.errors import ConfigError, nearest
from hwconfigs.validation import Frozen, build
from hwconfigs.yaml_file import read_document

TABLES = Path(__file__).parent / "energy"

Positive = Annotated[float, Field(gt=0)]


class Constant(Frozen):
    """One value and where it comes from."""

    value: Annotated[float, Field(ge=0)]
    source: Annotated[str, Field(min_length=1)]


class Curve(Frozen):
    """Values at a few sizes (bits of an operand, KiB of a memory) and where they come from."""

    values: dict[Annotated[int, Field(gt=0)], Positive]
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.values) < 2:
            raise ValueError("values needs at least two sizes to interpolate between")
        return self

    def at(self, size: float) -> float:
        """The value at ``size`` > 0, by a power law through the two nearest sizes."""
        sizes = sorted(self.values)
        above = next((index for index, known in enumerate(sizes) if known >= size), len(sizes) - 1)
        low, high = sizes[max(above, 1) - 1], sizes[max(above, 1)]
        slope = math.log(self.values[high] / self.values[low]) / math.log(high / low)
        return self.values[low] * (size / low) ** slope


class Technology(Frozen):
    """A table of unit energies and areas. ``_pj``: picojoules; ``_um2``: square micrometres; ``_mw``: milliwatts."""

    name: str
    node_nm: Positive
    supply_v: Positive
    integer_multiply_pj: Curve
    integer_add_pj: Curve
    float_multiply_pj: Curve
    float_add_pj: Curve
    divide_per_multiply: Constant
    """Energy of a division over that of a multiplication of the same width."""
    exp_per_multiply: Constant
    rsqrt_per_multiply: Constant
    sram_64_bit_access_pj: Curve
    dram_pj_per_bit: Constant
    """Of memories whose standard `dram_pj_per_bit_of` does not have."""
    dram_pj_per_bit_of: dict[str, Constant] = {}
    """By standard, as `hwconfigs.schema.Dram.standard` begins: HBM2, LPDDR4."""
    leakage_mw: Constant
    """Of the whole chip but its memories."""
    sram_leakage_mw_per_mib: Constant
    integer_multiply_um2: Curve
    integer_add_um2: Curve
    float_multiply_um2: Curve
    float_add_um2: Curve
    sram_um2_per_bit: Constant

    def dram(self, standard: str) -> Constant:
        """Energy of a bit read or written in a memory of a standard such as ``HBM2_2400``."""
        return self.dram_pj_per_bit_of.get(standard.split("_")[0], self.dram_pj_per_bit)

    def at(self, *, node_nm: float, supply_v: float) -> Technology:
        """The table at another node and supply. Raises `ConfigError` for values that are not positive."""
        if min(node_nm, supply_v) <= 0:
            raise ConfigError(f"{self.name}: node_nm = {node_nm} and supply_v = {supply_v} must be above 0")
        energy = node_nm / self.node_nm * (supply_v / self.supply_v) ** 2
        area = (node_nm / self.node_nm) ** 2
        rule = f"scaled from {self.node_nm:g} nm, {self.supply_v:g} V to {node_nm:g} nm, {supply_v:g} V"
        data = self.model_dump()
        for key, entry in data.items():
            factor = area if "_um2" in key else energy if key.endswith("_pj") else None
            if factor is None:
                continue
            if "values" in entry:
                entry["values"] = {size: value * factor for size, value in entry["values"].items()}
            else:
                entry["value"] *= factor
            entry["source"] += f"; {rule}"
        return build(Technology, data | {"node_nm": node_nm, "supply_v": supply_v}, lambda _: self.name)

    def with_overrides(self, overrides: Mapping[str, Any]) -> Technology:
        """Copy with entries replaced: ``{"dram_pj_per_bit": 3.9}``, or a whole ``{"value": ..., "source": ...}``.

        A bare number replaces the value; its source becomes "given". Raises `ConfigError`.
        """
        data = self.model_dump()
        for key, value in overrides.items():
            if key not in data:
                raise ConfigError(f"unknown key {key!r}{nearest(key, data)}")
            is_constant = isinstance(data[key], dict) and "value" in data[key]
            data[key] = {"value": value, "source": "given"} if is_constant and not isinstance(value, Mapping) else value
        return build(Technology, data, lambda _: self.name)


def technology_names() -> list[str]:
    """Names of the shipped tables, sorted."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def load_technology(name_or_path: str | Path) -> Technology:
    """The table called ``name_or_path``: one of ``hwconfigs/energy``, else a YAML file. Raises `ConfigError`."""
    name = str(name_or_path)
    path = TABLES / f"{name}.yaml" if name in technology_names() else Path(name_or_path)
    if path.suffix not in (".yaml", ".yml", ".json") and not path.is_file():
        raise ConfigError(f"no table of unit energies is called {name!r}{nearest(name, technology_names())}")
    document = read_document(path)
    return build(Technology, document.data, document.where)
