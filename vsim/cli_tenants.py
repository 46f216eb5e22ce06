"""`vsim run` with the inputs of ONNXim's own command line: a list of models, or a language model with its trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwconfigs.errors import UserError, nearest
from hwconfigs.schema import HwConfig
from lowering.mix import ONNXIM_SCHEDULERS, Scheduler

if TYPE_CHECKING:
    from lowering.onnxim.mix import Request
    from vsim.api import SimResult


@dataclass(frozen=True)
class OnnximInputs:
    """Options of `vsim run` that give ONNXim's inputs; None (0): not given.

    scheduler: of a list, one of `Scheduler`, by default the one that the hardware description names; of the language
    mode, one of `SCHEDULERS`, by default static batches. max_batch: requests in an iteration, 0 for no limit.
    """

    models_list: Path | None
    models_dir: Path | None
    language: Path | None
    trace: Path | None
    scheduler: str | None
    max_batch: int

    @property
    def are_given(self) -> bool:
        """Whether any of them is."""
        return any(getattr(self, field.name) for field in fields(self))

    def check(self, compat: bool, others: Sequence[str]) -> None:
        """Raises UserError for options that do not go together; others: options for single models that are given."""
        if (self.models_list is None) == (self.language is None):
            raise UserError(
                "expected either --models-list with --models-dir, or --language with --trace; --scheduler and "
                "--max-batch go with them"
            )
        mode, partner, given = (
            ("--models-list", "--models-dir", self.models_dir)
            if self.models_list is not None
            else ("--language", "--trace", self.trace)
        )
        if given is None:
            raise UserError(f"{mode} needs {partner}")
        wrong = self.trace if self.models_list is not None else self.models_dir
        if wrong is not None or (self.max_batch and self.models_list is not None):
            raise UserError(f"{mode} takes --scheduler and {partner}, not the options of the other mode")
        if others:
            raise UserError(f"{others[0]} is for single models and does not go with {mode}")
        if not compat:
            raise UserError(f"{mode} reads ONNXim's inputs and needs --compat onnxim")

    def run(self, hw: HwConfig, max_cycles: int | None, *, idle_skip: bool) -> dict[str, Any]:
        """What `vsim run --json` prints. Raises UserError for files, models and hardware that cannot be used."""
        if self.models_list is not None and self.models_dir is not None:
            return self._run_list(self.models_list, self.models_dir, hw, max_cycles, idle_skip)
        assert self.language is not None and self.trace is not None
        return self._run_language(self.language, self.trace, hw, max_cycles, idle_skip)

    def _run_list(
        self, path: Path, folder: Path, hw: HwConfig, max_cycles: int | None, idle_skip: bool
    ) -> dict[str, Any]:
        from lowering.onnxim.mix import lower_onnxim_mix
        from lowering.onnxim.models_list import read_models_list

        scheduler = _scheduler(hw, self.scheduler)
        requests = read_models_list(path, folder)
        if len(requests) == 1 and "output_seq_len" in requests[0].dims:
            result = _run_alone(requests[0], folder, hw, max_cycles, idle_skip)
        else:
            from vsim.mixes import MixPoint, simulate_mixes

            mix = lower_onnxim_mix(requests, hw, scheduler)
            [result] = simulate_mixes([MixPoint(hw, mix, True, max_cycles, mix.name)], idle_skip=idle_skip)
        return {"model": str(path), "hw": hw.name, "scheduler": scheduler.value, **result.to_json()}

    def _run_language(
        self, path: Path, trace: Path, hw: HwConfig, max_cycles: int | None, idle_skip: bool
    ) -> dict[str, Any]:
        from lowering.onnxim.language import SCHEDULERS, read_language_model, read_trace

        scheduler = self.scheduler or SCHEDULERS[0]
        if scheduler not in SCHEDULERS:
            raise UserError(f"scheduler {scheduler!r} of the language mode is unknown{nearest(scheduler, SCHEDULERS)}")
        if max_cycles is not None:
            raise UserError("--max-cycles does not go with --language")
        model, requests = read_language_model(path), read_trace(trace)
        from vsim.onnxim_language import simulate_language

        served = simulate_language(
            model, requests, hw, scheduler=scheduler, max_batch=self.max_batch, idle_skip=idle_skip
        )
        iterations = [
            {"requests": [part.request for part in iteration.parts], "finish_cycle": finish}
            for iteration, finish in zip(served.iterations, served.finish_cycles, strict=False)
        ]
        return {"model": str(path), "hw": hw.name, **served.result.to_json(), "iterations": iterations}


def _run_alone(request: Request, folder: Path, hw: HwConfig, max_cycles: int | None, idle_skip: bool) -> SimResult:
    """A model that is launched again and again, token by token; `simple` and the other schedulers agree on it."""
    from lowering.onnxim import lower_onnxim
    from lowering.onnxim.mix import arrival_cycle
    from vsim.api import SimPoint, simulate

    if arrival_cycle(request, hw):
        raise UserError(f"model {request.name}: output_seq_len needs request_time = 0, not {request.request_time_ms}")
    program = lower_onnxim(folder / request.name / f"{request.name}.onnx", hw, batch=request.batch, dims=request.dims)
    [result] = simulate([SimPoint(hw, program, True, max_cycles, request.name)], idle_skip=idle_skip)
    ends = [layer["finish_cycle"] for layer in result.layers]
    tenant = {
        "name": request.name,
        "request_time": request.request_time_ms,
        "start_cycle": result.layers[0]["start_cycle"],
        "finish_cycle": None if None in ends else max(ends),
        "layers": list(result.layers),
    }
    return replace(result, tenants=(tenant,))


def _scheduler(hw: HwConfig, given: str | None) -> Scheduler:
    name = given or (hw.onnxim.scheduler if hw.onnxim is not None else None)
    if name is None:
        raise UserError(f"{hw.name} names no scheduler: add --scheduler NAME; valid: {', '.join(ONNXIM_SCHEDULERS)}")
    if name not in ONNXIM_SCHEDULERS:
        raise UserError(f"scheduler {name!r} is none of ONNXim's{nearest(name, ONNXIM_SCHEDULERS)}")
    return Scheduler(name)
