"""What each of ONNXim's faults costs a workload, layer by layer: `vsim explain-compat`.

Lanes side by side: compatibility mode as it is, with every fault repaired alone, with all repaired that the default
mode does not have, and the default mode on the same hardware. A lane's difference from the first is what its repair
moves; effects of faults do not add up where they hide each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from hwconfigs import HwConfig
from hwconfigs.errors import UserError
from lowering.onnxim.comparison import Comparison, Row
from lowering.onnxim.faults import FAULTS, IN_DEFAULT, NONE, SECTION, SWITCHES, Fault, Repairs
from lowering.onnxim.hardware import repaired_hw, repaired_overrides
from lowering.program import Program, TileCol
from vsim.api import Progress, SimPoint, SimResult, simulate
from vsim.npu.compile import ProgramNeeds, params_of, shape_of
from vsim.npu.results import OK

DRAIN = "stores after the last layer"
"""Name of the row that makes the rows add up to the cycles of the whole."""
DOES_NOT_OCCUR = "does not occur"
"""Why most faults have no column: their repair changes nothing that the workload is made of."""


@dataclass(frozen=True)
class ExplainedLayer:
    """A row, in core cycles. layers: names of the original's layers in it, default_layers: of the default mode's.

    moved: by the repair of a fault alone. together: by all repairs that the default mode has. remaining: what is left
    from there to the default mode: original + together + remaining = default.
    """

    name: str
    layers: tuple[str, ...]
    default_layers: tuple[str, ...]
    original_cycles: int
    moved_cycles: Mapping[Fault, int]
    together_cycles: int
    remaining_cycles: int
    default_cycles: int


@dataclass(frozen=True)
class Explanation:
    """layers add up to total. absent: faults without a column, and why.

    aborts: where ONNXim itself stops (Q3); there the original is one with this fault repaired. overrides:
    keys of the hardware description that are not those given, where its faults are repaired and in the default mode.
    """

    layers: tuple[ExplainedLayer, ...]
    total: ExplainedLayer
    faults: tuple[Fault, ...]
    absent: Mapping[Fault, str]
    aborts: tuple[str, ...]
    overrides: Mapping[str, object]
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `vsim explain-compat --json` prints it."""
        return {
            "faults": [
                {
                    "id": fault.value,
                    "behaviour": FAULTS[fault].behaviour,
                    "repair": FAULTS[fault].repair,
                    "kept_in_default_mode": FAULTS[fault].kept,
                    "source": f"{SECTION}, {fault.value}",
                }
                for fault in self.faults
            ],
            "absent": [{"id": fault.value, "reason": reason} for fault, reason in self.absent.items()],
            "onnxim_aborts": list(self.aborts),
            "corrected_hardware": dict(self.overrides),
            "layers": [_layer_json(layer) for layer in self.layers],
            "total": _layer_json(self.total),
            "warnings": list(self.warnings),
        }


def _layer_json(layer: ExplainedLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "layers": list(layer.layers),
        "default_layers": list(layer.default_layers),
        "original_cycles": layer.original_cycles,
        "moved_cycles": {fault.value: cycles for fault, cycles in layer.moved_cycles.items()},
        "together_cycles": layer.together_cycles,
        "remaining_cycles": layer.remaining_cycles,
        "default_cycles": layer.default_cycles,
    }


def explain(
    workload: Comparison,
    hw: HwConfig,
    *,
    max_cycles: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Explanation:
    """Simulate all lanes and tell what each repair moves.

    Raises UserError where one of the modes cannot run the workload, or where the original, all repairs together or the
    default mode does not come to its end; the repair of a fault that does not is named among the absent ones.
    """
    original = SimPoint(hw, workload.original(hw, NONE), compat=True, max_cycles=max_cycles)
    lanes, absent = _single_repairs(workload, original)
    all_hw = repaired_hw(hw, IN_DEFAULT)
    together = _point(workload, hw, IN_DEFAULT, max_cycles)
    default = SimPoint(all_hw, workload.default(all_hw), max_cycles=max_cycles)
    points = [original, together, default, *lanes.values()]
    results = simulate(points, on_progress=on_progress)
    for name, result in zip(("ONNXim", "all repairs together", "the default mode"), results, strict=False):
        if result.status != OK:
            raise UserError(f"{name} stopped with status {result.status} after {result.cycles:,} cycles")
    singles = dict(zip(lanes, results[3:], strict=True))
    for fault, result in list(singles.items()):
        if result.status != OK:
            absent[fault] = f"repaired alone, it stops with status {result.status}"
            del singles[fault]
    rows = workload.rows(original.program, default.program)
    return _explanation(rows, results[0], singles, results[1], results[2], absent, _Facts.of(original, hw))


@dataclass(frozen=True)
class _Facts:
    aborts: tuple[str, ...]
    overrides: Mapping[str, object]

    @staticmethod
    def of(original: SimPoint, hw: HwConfig) -> _Facts:
        return _Facts(original.program.warnings, repaired_overrides(hw, IN_DEFAULT))


def _point(workload: Comparison, hw: HwConfig, repaired: Repairs, max_cycles: int | None) -> SimPoint:
    own = repaired_hw(hw, repaired)
    program = workload.original(own, repaired)
    return SimPoint(own, program, compat=True, max_cycles=max_cycles, repaired=repaired)


def _single_repairs(workload: Comparison, original: SimPoint) -> tuple[dict[Fault, SimPoint], dict[Fault, str]]:
    """The lanes of the faults that occur, and why there is none for the others."""
    lanes: dict[Fault, SimPoint] = {}
    absent: dict[Fault, str] = {}
    for fault in Fault:
        if fault not in SWITCHES:
            absent[fault] = FAULTS[fault].repair
            if fault is Fault.Q3 and not original.program.warnings:
                absent[fault] = DOES_NOT_OCCUR
            continue
        try:
            point = _point(workload, original.hw, frozenset({fault}), original.max_cycles)
        except UserError as error:
            absent[fault] = f"cannot be repaired alone: {error}"
            continue
        if _differ(original, point) and _can_matter(fault, original):
            lanes[fault] = point
        else:
            absent[fault] = DOES_NOT_OCCUR
    return lanes, absent


def _can_matter(fault: Fault, point: SimPoint) -> bool:
    """Whether a repair of the engine meets what it repairs."""
    if fault is Fault.Q7:
        return bool(point.program.tiles[:, TileCol.ACCUMULATE].any())
    return fault is not Fault.Q10 or point.hw.dram.is_table


def _differ(a: SimPoint, b: SimPoint) -> bool:
    """Whether anything that a lane is made of differs."""
    if a.hw != b.hw or not _same_program(a.program, b.program):
        return True
    least = ProgramNeeds(1, 1, 1, 1)
    shapes = [shape_of(point.hw, least, compat=True, repaired=point.repaired) for point in (a, b)]
    params = [
        jax.tree.leaves(params_of(p.hw, compat=True, max_cycles=None, idle_skip=True, repaired=p.repaired))
        for p in (a, b)
    ]
    return shapes[0] != shapes[1] or not all(map(np.array_equal, *params))


def _same_program(a: Program, b: Program) -> bool:
    pairs = ((a.rows, b.rows), (a.tiles, b.tiles), (a.schedule, b.schedule), (a.pattern, b.pattern))
    return all(np.array_equal(x, y) for x, y in pairs)


def _explanation(
    rows: list[Row],
    original: SimResult,
    singles: Mapping[Fault, SimResult],
    together: SimResult,
    default: SimResult,
    absent: Mapping[Fault, str],
    facts: _Facts,
) -> Explanation:
    def line(name: str, cycles: Callable[[SimResult, bool], int], own: Row | None) -> ExplainedLayer:
        before, repaired, after = cycles(original, False), cycles(together, False), cycles(default, True)
        return ExplainedLayer(
            name=name,
            layers=tuple(original.layers[i]["name"] for i in own.original) if own else (),
            default_layers=tuple(default.layers[i]["name"] for i in own.default) if own else (),
            original_cycles=before,
            moved_cycles={fault: cycles(result, False) - before for fault, result in singles.items()},
            together_cycles=repaired - before,
            remaining_cycles=after - repaired,
            default_cycles=after,
        )

    def of_row(row: Row) -> ExplainedLayer:
        return line(row.name, lambda result, ours: _cycles(result, row.default if ours else row.original), row)

    lines = [*map(of_row, rows), line(DRAIN, lambda result, _: result.cycles - _last_finish(result), None)]
    return Explanation(
        layers=tuple(lines),
        total=line("total", lambda result, _: result.cycles, None),
        faults=tuple(singles),
        absent=dict(sorted(absent.items(), key=lambda item: int(item[0][1:]))),
        aborts=facts.aborts,
        overrides=facts.overrides,
        warnings=default.warnings,
    )


def _cycles(result: SimResult, layers: tuple[int, ...]) -> int:
    """From the end of the layer before to the end of each of these, so that all layers add up to the last finish."""
    finishes = [0, *(layer["finish_cycle"] for layer in result.layers)]
    return sum(finishes[index + 1] - finishes[index] for index in layers)


def _last_finish(result: SimResult) -> int:
    return result.layers[-1]["finish_cycle"]
