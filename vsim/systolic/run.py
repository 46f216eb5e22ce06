"""One model on one design: what `vsim systolic run` reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hwconfigs.errors import UserError
from hwconfigs.systolic_schema import SystolicHw
from lowering.models import load_model
from lowering.onnx_reader import read_graph
from vsim.systolic.bridge import Bridged, bridge
from vsim.systolic.designs import stack
from vsim.systolic.evaluate import evaluate
from vsim.systolic.layers import Layer, MatrixLayer, split
from vsim.systolic.networks import network
from vsim.systolic.schedule import chain_cycles, chain_starts, layer_times

PUBLISHED = "simdit:"
"""Prefix of the networks of SimDIT's runs: ``simdit:ResNet50``, ``simdit:ResNet50-training``."""


def layers_of(
    model: str,
    *,
    batch: int = 1,
    dims: Mapping[str, int] | None = None,
    skip_unknown: bool = False,
    faults: bool = False,
) -> Bridged:
    """Layers of an ONNX model or of a published network. Raises `UserError`."""
    if model.startswith(PUBLISHED):
        name, _, phase = model.removeprefix(PUBLISHED).partition("-")
        return Bridged(network(name, phase.capitalize() or "Inference", batch=batch, fusion=not faults))
    if faults:
        raise UserError(
            f"--compat simdit knows the networks of SimDIT's runs, such as {PUBLISHED}ResNet50, not {model}"
        )
    return bridge(read_graph(load_model(model), batch, dims), skip_unknown=skip_unknown)


def run(model: str, bridged: Bridged, hw: SystolicHw, *, faults: bool = False) -> dict[str, Any]:
    """Plain data: every layer, sums for each operator, and totals.

    With ``faults`` layers run one after the other, as in SimDIT. Raises `UserError` for a layer that does not fit.
    """
    layers, designs = bridged.layers, stack([hw])
    if not layers:
        raise UserError(f"{model}: has no layer that the closed-form model knows")
    found = evaluate(layers, designs, faults=faults)
    _check_fits(layers, found, hw)
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
        }
        for index, layer in enumerate(layers)
    ]
    if faults:
        total = float(times.cycles.sum())
    else:
        total = float(chain_cycles(layers, found, times, designs).sum())
    vector = sum(row["cycles"] for row in rows if row["unit"] == "vector")
    serial = sum(row["cycles"] for row in rows)
    return {
        "model": model,
        "hw": hw.name,
        "layers": rows,
        "operators": _by_operator(rows),
        "cycles": total,
        "serial_cycles": serial,
        "chains": len(layers) if faults else len(chain_starts(layers)),
        "vector_share": vector / serial,
        "macs_of_peak": float(macs.sum()) / (total * hw.array.rows * hw.array.cols),
        "dram_bytes": sum(row["dram_bytes"] for row in rows),
        "milliseconds": total / hw.clock_mhz / 1000,
        "warnings": bridged.warnings,
    }


def _by_operator(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sums: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = sums.setdefault(
            row["op"],
            {"op": row["op"], "layers": 0, "cycles": 0.0, "stall_cycles": 0.0, "macs": 0.0, "dram_bytes": 0.0},
        )
        entry["layers"] += 1
        for key in ("cycles", "stall_cycles", "macs", "dram_bytes"):
            entry[key] += row[key]
    total = sum(entry["cycles"] for entry in sums.values())
    for entry in sums.values():
        entry["of_cycles"] = entry["cycles"] / total
    return sorted(sums.values(), key=lambda entry: -entry["cycles"])


def _check_fits(layers: list[Layer], found: Any, hw: SystolicHw) -> None:
    for positions, fits in zip(split(layers), (found.matrix.fits, found.vector.fits), strict=True):
        for position, fit in zip(positions, fits[:, 0], strict=True):
            if not fit:
                layer = layers[position]
                kind = "weight, ifmap, ofmap or bias" if isinstance(layer, MatrixLayer) else "vector"
                raise UserError(
                    f"layer {layer.name} ({layer.operator}): its smallest tile does not fit in the {kind} memory of "
                    f"{hw.name}; enlarge buffers"
                )
