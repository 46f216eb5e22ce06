"""Inference and training of one network, side by side: what `vsim systolic figures` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwconfigs.energy_schema import Technology
from hwconfigs.errors import UserError
from hwconfigs.systolic_schema import SystolicHw
from lowering.training.options import TrainingOptions
from vsim.systolic.bridge import Bridged
from vsim.systolic.designs import stack
from vsim.systolic.evaluate import evaluate, part_of
from vsim.systolic.kinds import kind_of
from vsim.systolic.layers import VectorLayer
from vsim.systolic.run import PUBLISHED, check_fits, layers_of, report
from vsim.systolic.schedule import layer_times

PHASES = ("inference", "training")


def compare_phases(
    model: str,
    hw: SystolicHw,
    *,
    batches: Sequence[int],
    sides: Sequence[int],
    dims: Mapping[str, int] | None = None,
    skip_unknown: bool = False,
    faults: bool = False,
    training: TrainingOptions | None = None,
    technology: Technology | None = None,
) -> dict[str, Any]:
    """Plain data: ``phases``, a report of `run` each at the largest batch, and ``non_conv``, the share of the cycles of
    the vector unit, layers one after the other, for every phase, batch and side of the array. All in one batch.

    sides: rows and columns of the arrays that ``non_conv`` is for; memories and ports stay those of ``hw``. Rows of the
    reports also have their kind (`vsim.systolic.kinds`). Raises `UserError`; for a side whose tiles do not fit, too.
    """
    training = _training_of(model, training)

    def layers(phase: str, batch: int) -> Bridged:
        name = f"{model}-training" if phase == "training" and training is None else model
        options = training if phase == "training" else None
        return layers_of(name, batch=batch, dims=dims, skip_unknown=skip_unknown, faults=faults, training=options)

    networks = {(phase, batch): layers(phase, batch) for phase in PHASES for batch in batches}
    if not all(network.layers for network in networks.values()):
        raise UserError(f"{model}: has no layer that the closed-form model knows")
    variants = [_with_array(hw, side) for side in sides]
    every = [layer for network in networks.values() for layer in network.layers]
    found = evaluate(every, stack([hw, *variants]), faults=faults)
    for number, design in enumerate([hw, *variants]):
        check_fits(every, found, design, number)
    ends = np.cumsum([len(network.layers) for network in networks.values()]).tolist()
    parts = {key: slice(end - len(networks[key].layers), end) for key, end in zip(networks, ends, strict=True)}

    def report_of(phase: str) -> dict[str, Any]:
        key = phase, max(batches)
        own = part_of(found, every, parts[key], 0)
        content = report(model, networks[key], hw, own, faults=faults, technology=technology)
        kinds = [{"kind": kind_of(layer)} for layer in networks[key].layers]
        return content | {"layers": [row | kind for row, kind in zip(content["layers"], kinds, strict=True)]}

    cycles = layer_times(every, found).cycles[:, 1:]
    of_vector = np.where([[isinstance(layer, VectorLayer)] for layer in every], cycles, 0)
    return {
        "model": model,
        "hw": hw.name,
        "batch": max(batches),
        "phases": {phase: report_of(phase) for phase in PHASES},
        "non_conv": [
            {"phase": phase, "batch": batch, "array": side, "share": float(share)}
            for (phase, batch), part in parts.items()
            for side, share in zip(sides, of_vector[part].sum(axis=0) / cycles[part].sum(axis=0), strict=True)
        ],
    }


def _training_of(model: str, training: TrainingOptions | None) -> TrainingOptions | None:
    """How an ONNX model is trained; None for SimDIT's own networks, which have a training graph by name."""
    default = TrainingOptions()
    if not model.startswith(PUBLISHED):
        return training or default
    if "-" in model.removeprefix(PUBLISHED):
        raise UserError(f"{model}: both phases are drawn; give the network alone, such as {PUBLISHED}ResNet50")
    if training not in (None, default):
        raise UserError(f"{model} is trained as SimDIT has it: options of training are for ONNX models")
    return None


def _with_array(hw: SystolicHw, side: int) -> SystolicHw:
    name = f"{hw.name} with a {side}x{side} array"
    return hw.with_overrides({"array.rows": side, "array.cols": side, "name": name})
