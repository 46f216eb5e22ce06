"""One network on the cycle-level model and on the closed form, layer by layer: `vsim compare`.

A row is a layer of the cycle-level model with all that its node was lowered to, and the chains of the closed form that
stem from the same node (what is fused behind it included). What one of the two does not have, has a note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwconfigs import HwConfig
from hwconfigs.errors import UserError
from lowering.chip import Chip
from lowering.llm.configs import is_config
from lowering.models import load_model
from lowering.network import lower_graph
from lowering.onnx_reader import read_graph
from vsim.api import Progress, SimPoint, SimResult, simulate
from vsim.systolic.bridge import Bridged, bridge
from vsim.systolic.chips import LEFT_OUT, chip_designs, notes_on, on_chips
from vsim.systolic.designs import Designs
from vsim.systolic.evaluate import Evaluation, evaluate_chains
from vsim.systolic.layers import Layer, chain_starts, split
from vsim.systolic.schedule import layer_times

NO_CLOSED_FORM = "no closed form"
DOES_NOT_FIT = "no closed form: it finds no tile that fits"
FREE = "costs nothing at the cycle level"


@dataclass(frozen=True)
class _Closed:
    """What the closed form says of one node; cycles: None where no tile fits."""

    cycles: float | None
    dram_bytes: float


def compare(
    model: str,
    hw: HwConfig,
    *,
    batch: int = 1,
    dims: Mapping[str, int] | None = None,
    max_cycles: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Plain data: a row a layer, totals, and what the closed form leaves out.

    ``ratio`` is closed form over cycle level. Cycles are core cycles; a layer of the cycle-level model that did not end
    has none. Raises `UserError` for a model or a chip that one of the two does not know.
    """
    if is_config(model):
        raise UserError(f"vsim compare takes an ONNX model: a config.json such as {model} has no closed form")
    hw.check_modelled()
    designs = chip_designs([hw])
    graph = read_graph(load_model(model), batch, dims)
    program = lower_graph(graph, Chip.of(hw))
    bridged = bridge(graph, skip_unknown=True)
    [result] = simulate([SimPoint(hw, program, max_cycles=max_cycles, label=program.name)], on_progress=on_progress)
    closed = _closed_form(bridged, designs, hw)
    rows = _rows(result, closed)
    return {
        "model": model,
        "hw": hw.name,
        "status": result.status,
        "layers": rows,
        "total": _total(result, rows, closed),
        "left_out": list(LEFT_OUT),
        "notes": notes_on(hw),
        "warnings": [*result.warnings, *bridged.warnings],
    }


def _closed_form(bridged: Bridged, designs: Designs, hw: HwConfig) -> dict[str, _Closed]:
    """By node, in the order of the network."""
    layers = on_chips(bridged.layers)
    if not layers:
        return {}
    found, of_chains = evaluate_chains(layers, designs)
    fits = _fits(found, layers)
    bits = layer_times(layers, found).dram_bits[:, 0]
    cycles: dict[str, float] = defaultdict(float)
    moved: dict[str, float] = defaultdict(float)
    for start, value in zip(chain_starts(layers), of_chains[:, 0], strict=True):
        cycles[bridged.heads[start]] += float(value) / hw.cores.count
    for head, of_layer in zip(bridged.heads, bits, strict=True):
        moved[head] += float(of_layer) / 8
    misfits = {head for head, fit in zip(bridged.heads, fits, strict=True) if not fit}
    return {head: _Closed(None if head in misfits else cycles[head], moved[head]) for head in moved}


def _fits(found: Evaluation, layers: Sequence[Layer]) -> np.ndarray:
    fits = np.ones(len(layers), bool)
    matrix, vector = split(layers)
    fits[matrix], fits[vector] = found.matrix.fits[:, 0], found.vector.fits[:, 0]
    return fits


def _rows(result: SimResult, closed: Mapping[str, _Closed]) -> list[dict[str, Any]]:
    members: dict[str, list[Mapping[str, Any]]] = {}
    for layer in result.layers:
        members.setdefault(_node(layer["name"], closed), []).append(layer)
    keys, before = list(members), -1
    for head in closed:
        if head not in members:
            keys.insert(before + 1, head)
        before = keys.index(head)
    return [_row(key, members.get(key, []), closed.get(key)) for key in keys]


def _node(name: str, heads: Mapping[str, Any]) -> str:
    """The node that a layer was lowered for, as the closed form has it: the layer, or "node (part)"."""
    node = name
    while node not in heads and " (" in node:
        node = node.rpartition(" (")[0]
    return node if node in heads else name


def _row(name: str, layers: Sequence[Mapping[str, Any]], closed: _Closed | None) -> dict[str, Any]:
    """The layers of one node, and its closed form."""
    ended = bool(layers) and all(layer["finish_cycle"] is not None for layer in layers)
    cycles = sum(layer["finish_cycle"] - layer["start_cycle"] for layer in layers) if ended else None
    longest = max(layers, key=lambda layer: layer["bound_cycles"], default={"op": "", "bound": None})
    of_closed = closed.cycles if closed is not None else None
    return {
        "name": name,
        "op": longest["op"],
        "cycles": cycles,
        "closed_form_cycles": of_closed,
        "ratio": of_closed / cycles if cycles and of_closed is not None else None,
        "bound": longest["bound"],
        "bytes": sum(layer["load_bytes"] + layer["store_bytes"] for layer in layers),
        "closed_form_bytes": closed.dram_bytes if closed is not None else None,
        "note": _note(layers, closed),
    }


def _note(layers: Sequence[Mapping[str, Any]], closed: _Closed | None) -> str:
    if closed is None:
        return NO_CLOSED_FORM
    if closed.cycles is None:
        return DOES_NOT_FIT
    return "" if layers else FREE


def _total(result: SimResult, rows: Sequence[Mapping[str, Any]], closed: Mapping[str, _Closed]) -> dict[str, Any]:
    """Sums; ``both``: of the layers that have both numbers. The cycles of a run end with its last store."""
    of_both = [row for row in rows if row["ratio"] is not None]
    cycles, closed_cycles = (sum(row[key] for row in of_both) for key in ("cycles", "closed_form_cycles"))
    whole = sum(item.cycles or 0.0 for item in closed.values())
    return {
        "cycles": result.cycles,
        "closed_form_cycles": whole,
        "ratio": whole / result.cycles if result.cycles else None,
        "bytes": result.dram["read_bytes"] + result.dram["write_bytes"],
        "closed_form_bytes": sum(item.dram_bytes for item in closed.values()),
        "layers": len(rows),
        "both": {
            "layers": len(of_both),
            "cycles": cycles,
            "closed_form_cycles": closed_cycles,
            "ratio": closed_cycles / cycles if cycles else None,
        },
    }
