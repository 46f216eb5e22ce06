"""Hardware descriptions without the faults of ONNXim's memory (`onnxim.md` section 13, Q9 and Q10)."""

from __future__ import annotations

from hwconfigs.schema import HwConfig
from lowering.onnxim.faults import Fault, Repairs

_CORRECT_TABLES = {"HBM2_ONNXIM": "HBM2_2400"}
"""The table of the same device and data rate."""
_CORRECT_USE = frozenset({"DDR4_ONNXIM", "DDR4_3200AA_ONNXIM"})
"""Tables that are right, of devices that ONNXim clocks and addresses wrongly."""


def repaired_overrides(hw: HwConfig, repaired: Repairs) -> dict[str, object]:
    """The keys (`HwConfig.with_overrides`) of `hw` that differ without these faults, with their values.

    Q9: table, request size and clock of the memory. Q10: the scheduler of a description imported from ONNXim, or with
    one of its tables; a scheduler that a user chose otherwise stays.
    """
    overrides: dict[str, object] = {}
    standard = hw.dram.standard
    if Fault.Q9 in repaired and standard in _CORRECT_TABLES:
        overrides["dram.standard"] = _CORRECT_TABLES[standard]
    if Fault.Q9 in repaired and standard in _CORRECT_USE:
        table = hw.dram.table()
        overrides |= {
            "dram.request_bytes": table.organisation.access_bytes,
            "clocks.dram_mhz": round(table.rated_mhz),
        }
    if Fault.Q10 in repaired and (hw.dram.is_onnxim or (hw.onnxim is not None and hw.dram.is_table)):
        overrides["dram.scheduler"] = "fr_fcfs"
    current = hw.to_data()
    return {key: value for key, value in overrides.items() if _at(current, key) != value}


def repaired_hw(hw: HwConfig, repaired: Repairs) -> HwConfig:
    """The description without these faults."""
    overrides = repaired_overrides(hw, repaired)
    return hw.with_overrides(overrides) if overrides else hw


def _at(data: object, key: str) -> object:
    for part in key.split("."):
        data = data[part] if isinstance(data, dict) else None
    return data
