"""Simulating ONNXim's language mode: iterations are planned, simulated, and planned again until they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwconfigs import HwConfig
from lowering.onnxim.language import Iteration, LanguageModel, Request, lower_language, plan
from lowering.program import Program
from vsim.api import SimPoint, SimResult, simulate


@dataclass(frozen=True)
class LanguageResult:
    """The served trace. finish_cycles: core cycle in which each iteration ended."""

    result: SimResult
    program: Program
    iterations: tuple[Iteration, ...]
    finish_cycles: tuple[int, ...]


def simulate_language(
    model: LanguageModel,
    requests: Sequence[Request],
    hw: HwConfig,
    *,
    scheduler: str = "simple",
    max_batch: int = 0,
    idle_skip: bool = True,
) -> LanguageResult:
    """Serve `requests` as ONNXim's language mode does (`lowering.onnxim.language.plan`: scheduler, max_batch).

    Iterations do not depend on what comes after them, so every simulation makes at least one more of them final; where
    all requests arrive during the first iteration, one simulation is enough.
    Raises UserError for an unknown scheduler and for what does not fit the chip.
    """
    iterations = plan(requests, scheduler, max_batch, ())
    while True:
        program = lower_language(model, iterations, hw)
        [result] = simulate([SimPoint(hw, program, compat=True, label=model.name)], idle_skip=idle_skip)
        finish_cycles = _finish_cycles(result, program)
        planned = plan(requests, scheduler, max_batch, finish_cycles)
        if planned == iterations or len(finish_cycles) < len(iterations):
            return LanguageResult(result, program, iterations, finish_cycles)
        iterations = planned


def _finish_cycles(result: SimResult, program: Program) -> tuple[int, ...]:
    """Finish cycles of the iterations that ended: of the layers before launches, and of the last."""
    next_launches = [index for index, release in enumerate(program.releases) if index and release]
    ends = (result.layers[index - 1]["finish_cycle"] for index in [*next_launches, program.n_layers])
    return tuple(end for end in ends if end is not None)
