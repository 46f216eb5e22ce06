"""Energy, power and area: what a machine did, times what each thing costs. Any machine model may fill in `Activity`.

Nothing is known here about layers or arrays: counts go in (NumPy arrays of one shape, or numbers), joules come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hwconfigs.energy_schema import Technology

Counts = Any
"""A number, or an array; all of one activity have the same shape."""
Arithmetic = Literal["integer", "float"]
WORD_BITS = 64
"""An access of the table moves so many bits."""


@dataclass(frozen=True)
class Memory:
    """Traffic of one on-chip memory: bits read or written, and its capacity, which sets the energy of an access."""

    bits: Counts
    capacity_kib: float


@dataclass(frozen=True)
class Activity:
    """What happened. Operations of the vector unit are on words of ``vector_bits``."""

    cycles: Counts
    macs: Counts = 0
    """Multiplications of ``operand_bits``, each added to a sum of ``sum_bits``."""
    operand_bits: int = 8
    sum_bits: int = 32
    arithmetic: Arithmetic = "integer"
    simple_operations: Counts = 0
    """Additions, comparisons, and what else costs as much."""
    multiplications: Counts = 0
    divides: Counts = 0
    exps: Counts = 0
    rsqrts: Counts = 0
    vector_bits: int = 32
    memories: Mapping[str, tuple[Memory, ...]] = field(default_factory=dict)
    """By name; several of one name where their capacities differ."""
    dram_bits: Counts = 0
    dram_standard: str = ""
    """Of the memory (`hwconfigs.schema.Dram.standard`); empty: not known."""
    memory_kib: float = 0
    """On-chip memory of the chip, which leaks."""


@dataclass(frozen=True)
class Energy:
    """Picojoules by where they went, and what follows from them."""

    picojoules: dict[str, Counts]
    seconds: Counts

    @property
    def joules(self) -> Counts:
        """All of it."""
        return 1e-12 * sum(self.picojoules.values())

    @property
    def watts(self) -> Counts:
        """Average power."""
        return self.joules / self.seconds

    @property
    def joule_seconds(self) -> Counts:
        """Energy-delay product."""
        return self.joules * self.seconds


def energy(activity: Activity, technology: Technology, clock_mhz: float) -> Energy:
    """Energy of an activity at a clock in MHz."""
    multiply, add = _arithmetic(technology, activity.arithmetic)
    word = activity.vector_bits
    vector_multiply = multiply.at(word)
    seconds = np.asarray(activity.cycles) / (clock_mhz * 1e6)
    parts = {
        "mac": activity.macs * (multiply.at(activity.operand_bits) + add.at(activity.sum_bits)),
        "vector": activity.simple_operations * add.at(word)
        + vector_multiply
        * (
            activity.multiplications
            + activity.divides * technology.divide_per_multiply.value
            + activity.exps * technology.exp_per_multiply.value
            + activity.rsqrts * technology.rsqrt_per_multiply.value
        ),
        **{
            name: sum(
                memory.bits * technology.sram_64_bit_access_pj.at(memory.capacity_kib) / WORD_BITS
                for memory in memories
            )
            for name, memories in activity.memories.items()
        },
        "dram": activity.dram_bits * technology.dram(activity.dram_standard).value,
        "leakage": leakage_pj(technology, activity.memory_kib, seconds),
    }
    return Energy({name: np.asarray(value, np.float64) for name, value in parts.items()}, seconds)


def leakage_pj(technology: Technology, memory_kib: float, seconds: Counts) -> Counts:
    """Picojoules that a chip with so much on-chip memory leaks in a time."""
    milliwatts = technology.leakage_mw.value + technology.sram_leakage_mw_per_mib.value * memory_kib / 1024
    return seconds * milliwatts * 1e9


def _arithmetic(technology: Technology, kind: Arithmetic) -> tuple[Any, Any]:
    if kind == "integer":
        return technology.integer_multiply_pj, technology.integer_add_pj
    return technology.float_multiply_pj, technology.float_add_pj


def area_mm2(
    technology: Technology,
    *,
    macs: int,
    operand_bits: int,
    sum_bits: int,
    lanes: int,
    vector_bits: int,
    memory_kib: float,
    arithmetic: Arithmetic = "integer",
) -> dict[str, float]:
    """Area by part, in square millimetres: multipliers and adders, and memory cells; no wires and no control."""
    is_integer = arithmetic == "integer"
    multiply = technology.integer_multiply_um2 if is_integer else technology.float_multiply_um2
    add = technology.integer_add_um2 if is_integer else technology.float_add_um2
    square_micrometres = {
        "array": macs * (multiply.at(operand_bits) + add.at(sum_bits)),
        "vector": lanes * (multiply.at(vector_bits) + add.at(vector_bits)),
        "memory": memory_kib * 8 * 1024 * technology.sram_um2_per_bit.value,
    }
    return {name: value * 1e-6 for name, value in square_micrometres.items()}
