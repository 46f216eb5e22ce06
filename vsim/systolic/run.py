"""One model on one design: what `vsim systolic run` reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwconfigs.energy_schema import Technology
from hwconfigs.errors import UserError
from hwconfigs.systolic_schema import SystolicHw
from lowering.models import load_model
from lowering.onnx_reader import read_graph
from lowering.training.derive import derive
from lowering.training.options import TrainingOptions
from vsim.energy import Activity, area_mm2, energy, leakage_pj
from vsim.systolic.bridge import Bridged, bridge
from vsim.systolic.designs import stack
from vsim.systolic.energy import layer_activity
from vsim.systolic.evaluate import Evaluation, cycles_of_evaluated, evaluate
from vsim.systolic.layers import Layer, MatrixLayer, chain_starts, split
from vsim.systolic.networks import network
from vsim.systolic.schedule import layer_times

PUBLISHED = "simdit:"
"""Prefix of the networks of SimDIT's runs: ``simdit:ResNet50``, ``simdit:ResNet50-training``."""


def layers_of(
    model: str,
    *,
    batch: int = 1,
    dims: Mapping[str, int] | None = None,
    skip_unknown: bool = False,
    faults: bool = False,
    training: TrainingOptions | None = None,
) -> Bridged:
    """Layers of an ONNX model, or of an iteration of its training, or of a published network. Raises `UserError`."""
    if model.startswith(PUBLISHED):
        if training is not None:
            raise UserError(
                f"--train takes an ONNX model; SimDIT's own networks are trained as {PUBLISHED}NAME-training"
            )
        name, _, phase = model.removeprefix(PUBLISHED).partition("-")
        return Bridged(network(name, phase.capitalize() or "Inference", batch=batch, fusion=not faults))
    if faults:
        raise UserError(
            f"--compat simdit knows the networks of SimDIT's runs, such as {PUBLISHED}ResNet50, not {model}"
        )
    graph = read_graph(load_model(model), batch, dims)
    if training is None:
        return bridge(graph, skip_unknown=skip_unknown)
    iteration = derive(graph, training)
    bridged = bridge(iteration.graph, skip_unknown=skip_unknown)
    roles = {operator.name: operator.role.value for operator in iteration.operators}
    return replace(bridged, warnings=[*iteration.warnings, *bridged.warnings], roles=roles)


def run(
    model: str, bridged: Bridged, hw: SystolicHw, *, faults: bool = False, technology: Technology | None = None
) -> dict[str, Any]:
    """Plain data: every layer, sums for each operator, and totals; with a ``technology`` also the energy.

    With ``faults`` layers run one after the other, as in SimDIT. Raises `UserError` for a layer that does not fit.
    """
    if not bridged.layers:
        raise UserError(f"{model}: has no layer that the closed-form model knows")
    found = evaluate(bridged.layers, stack([hw]), faults=faults)
    return report(model, bridged, hw, found, faults=faults, technology=technology)


def report(
    model: str,
    bridged: Bridged,
    hw: SystolicHw,
    found: Evaluation,
    *,
    faults: bool = False,
    technology: Technology | None = None,
) -> dict[str, Any]:
    """What `run` returns of a network of at least one layer that has been evaluated on ``hw`` alone."""
    layers = bridged.layers
    check_fits(layers, found, hw)
    times = layer_times(layers, found)
    macs = np.zeros(len(layers))
    macs[split(layers)[0]] = found.matrix.macs[:, 0]
    rows = [
        {
            "name": layer.name,
            "op": layer.operator,
            "unit": "array" if isinstance(layer, MatrixLayer) else "vector",
            "fused": layer.fused,
            "compute_cycles": float(times.compute_cycles[index, 0]),
            "stall_cycles": float(times.stall_cycles[index, 0]),
            "cycles": float(times.cycles[index, 0]),
            "macs": float(macs[index]),
            "dram_bytes": float(times.dram_bits[index, 0] / 8),
            **({"role": bridged.role_of(layer)} if bridged.roles else {}),
        }
        for index, layer in enumerate(layers)
    ]
    total = float(cycles_of_evaluated(layers, stack([hw]), found, faults=faults)[0])
    vector = sum(row["cycles"] for row in rows if row["unit"] == "vector")
    serial = sum(row["cycles"] for row in rows)
    spent: dict[str, Any] = {}
    if technology is not None:
        spent = {"energy": _energy(rows, layer_activity(layers, found, times, hw), technology, hw, total)}
    return {
        "model": model,
        "hw": hw.name,
        "layers": rows,
        "operators": _sums(rows, "op"),
        **({"roles": _sums(rows, "role")} if bridged.roles else {}),
        "cycles": total,
        "serial_cycles": serial,
        "chains": len(layers) if faults else len(chain_starts(layers)),
        "vector_share": vector / serial,
        "macs_of_peak": float(macs.sum()) / (total * hw.array.rows * hw.array.cols),
        "dram_bytes": sum(row["dram_bytes"] for row in rows),
        "milliseconds": total / hw.clock_mhz / 1000,
        "warnings": bridged.warnings,
        **spent,
    }


def _energy(
    rows: list[dict[str, Any]], activity: Activity, technology: Technology, hw: SystolicHw, cycles: float
) -> dict[str, Any]:
    """Energy of the whole run; every row gets its own. Leakage of a layer counts its cycles, of the run the run's."""
    found = energy(activity, technology, hw.clock_mhz)
    for row, joules in zip(rows, found.joules, strict=True):
        row["microjoules"] = float(joules * 1e6)
    parts = {name: float(values.sum()) * 1e-6 for name, values in found.picojoules.items()}
    seconds = cycles / (hw.clock_mhz * 1e6)
    parts["leakage"] = leakage_pj(technology, activity.memory_kib, seconds) * 1e-6
    total = sum(parts.values())
    precision = hw.precision
    area = area_mm2(
        technology,
        macs=hw.array.rows * hw.array.cols,
        operand_bits=max(precision.activation_bits, precision.weight_bits),
        sum_bits=precision.accumulator_bits,
        lanes=hw.array.cols,
        vector_bits=precision.accumulator_bits,
        memory_kib=sum(dict(hw.buffers).values()),
    )
    return {
        "technology": technology.name,
        "node_nm": technology.node_nm,
        "microjoules": parts,
        "total_microjoules": total,
        "average_watts": total * 1e-6 / seconds,
        "joule_seconds": total * 1e-6 * seconds,
        "area_mm2": area,
    }


def _sums(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Sums of the rows with the same entry under the key, the most cycles first."""
    sums: dict[str, dict[str, Any]] = {}
    counted = ("cycles", "stall_cycles", "macs", "dram_bytes")
    for row in rows:
        entry = sums.setdefault(row[key], {key: row[key], "layers": 0, **dict.fromkeys(counted, 0.0)})
        entry["layers"] += 1
        for name in counted:
            entry[name] += row[name]
    total = sum(entry["cycles"] for entry in sums.values())
    for entry in sums.values():
        entry["of_cycles"] = entry["cycles"] / total
    return sorted(sums.values(), key=lambda entry: -entry["cycles"])


def check_fits(layers: Sequence[Layer], found: Evaluation, hw: SystolicHw, design: int = 0) -> None:
    """Raise `UserError` for a layer that design number ``design``, which is ``hw``, cannot run."""
    for positions, fits in zip(split(layers), (found.matrix.fits, found.vector.fits), strict=True):
        for position, fit in zip(positions, fits[:, design], strict=True):
            if not fit:
                layer = layers[position]
                kind = "weight, ifmap, ofmap or bias" if isinstance(layer, MatrixLayer) else "vector"
                raise UserError(
                    f"layer {layer.name} ({layer.operator}): its smallest tile does not fit in the {kind} memory of "
                    f"{hw.name}; enlarge buffers"
                )
