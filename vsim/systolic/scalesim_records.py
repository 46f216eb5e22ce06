"""Recorded runs of SCALE-Sim (``cases.json``): layer by layer, replayed in one batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from hwconfigs.errors import UserError
from vsim.systolic.dataflow_traffic import Convolution, dram_reads
from vsim.systolic.dataflows import Sparsity, product_costs, products
from vsim.systolic.report import Report, value_at

_COST_KEYS = {
    "compute_cycles": "compute_cycles",
    "sram_accesses_words.ifmap": "ifmap_words",
    "sram_accesses_words.filter": "filter_words",
    "sram_accesses_words.ofmap": "ofmap_words",
}


def replay_cases(cases: list[dict[str, Any]], path: Path) -> Report:
    """Compute cycles and SRAM words of every case; DRAM reads of those that ran in mode CALC."""
    report = Report(str(path), "scalesim", "cases")
    places = [f"{path}: case {index} ({case.get('topology_layer')})" for index, case in enumerate(cases)]
    rows = list(zip(cases, places, strict=True))
    sizes = [_sizes(case, where) for case, where in rows]
    flows = [value_at(case, "dataflow", where) for case, where in rows]
    arrays = [tuple(value_at(case, "array", where)) for case, where in rows]
    sparsities = [_sparsity(case, where) for case, where in rows]
    computed = product_costs(products(sizes, flows, arrays, sparsities), faults=True)
    drawn = user = 0
    for index, (case, where) in enumerate(rows):
        values = {key: float(getattr(computed, name)[index]) for key, name in _COST_KEYS.items()}
        sparsity = sparsities[index]
        if sparsity is not None and sparsity.row_wise:
            # How many rows each column keeps is drawn at random, and the inputs that are read follow it.
            del values["sram_accesses_words.ifmap"]
            drawn += 1
        elif value_at(case, "mode", where) == "CALC":
            values |= _dram_reads(case, where, sizes[index], sparsity)
            values["mapping_eff_pct"] = 100 * float(computed.mapping_efficiency[index])
            # SCALE-Sim counts the products of the dense layer, also where they are left out.
            possible = values["compute_cycles"] * arrays[index][0] * arrays[index][1]
            values["overall_util_pct"] = 100 * math.prod(sizes[index]) / possible
        else:
            user += 1
        recorded = [float(value_at(case, key, where)) for key in values]
        name = f"{case.get('topology_layer')} {flows[index]} {arrays[index][0]}x{arrays[index][1]}"
        report.add(f"{name}, case {index}", list(values), recorded, list(values.values()))
    if user:
        report.notes.append(f"{user} cases of mode USER: their stalls and DRAM words are not modelled")
    if drawn:
        report.notes.append(f"{drawn} cases of row-wise sparsity: input words follow SCALE-Sim's random numbers")
    return report


def _convolution(case: dict[str, Any], where: str) -> Convolution | None:
    if value_at(case, "kind", where) != "conv":
        return None
    names = ("H", "W", "R", "S", "C", "F", "stride")
    return Convolution(*(value_at(case, f"layer.{name}", where) for name in names))


def _sizes(case: dict[str, Any], where: str) -> tuple[int, int, int]:
    convolution = _convolution(case, where)
    if convolution is not None:
        return convolution.sizes
    m, n, k = (value_at(case, f"layer.{name}", where) for name in "MNK")
    return m, n, k


def _sparsity(case: dict[str, Any], where: str) -> Sparsity | None:
    text = case.get("sparsity")
    if text is None:
        return None
    kept, separator, group = str(text).partition(":")
    if not separator or not kept.isdigit() or not group.isdigit():
        raise UserError(f"{where}: sparsity {text!r} is not N:M")
    return Sparsity(int(kept), int(group), row_wise=bool(case.get("sparsity_rowwise")))


def _dram_reads(
    case: dict[str, Any], where: str, sizes: tuple[int, int, int], sparsity: Sparsity | None
) -> dict[str, float]:
    m, n, k = sizes
    convolution = _convolution(case, where)
    inputs = convolution.input_addresses() if convolution else np.arange(m * k).reshape(m, k)
    kept = k if sparsity is None else sparsity.rows_kept(k)
    ifmap, weights = dram_reads(
        inputs[:, :kept],
        np.arange(kept * n).reshape(kept, n),
        value_at(case, "dataflow", where),
        tuple(value_at(case, "array", where)),
        value_at(case, "sram_kb.ifmap", where),
        value_at(case, "sram_kb.filter", where),
    )
    return {"dram_accesses_words.ifmap": float(ifmap), "dram_accesses_words.filter": float(weights)}
