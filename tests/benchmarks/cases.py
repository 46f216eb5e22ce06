"""The fixed cases of the benchmark: what is simulated, on which chip, and how the lanes differ."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from hwconfigs import HwConfig, load_hw
from lowering import lower
from lowering.mix import Scheduler
from lowering.mix_placement import Workload, place_workloads
from lowering.onnxim import lower_onnxim
from lowering.program import Program
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS
from vsim.api import SimPoint
from vsim.mixes import MixPoint

TIMINGS = 64
SERVER, MOBILE = "npu-server-128x128x4", "npu-mobile-8x8"
LLAMA_LAYER = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))
"""Weights that the decode of one token reads in a layer of Llama-3-8B: queries, keys and values; output; gate and up;
down. The attention over the cache is not lowered yet."""


@dataclass(frozen=True)
class Case:
    """One case: `points(n)` gives n points that differ in their memory timing, so that lanes do not run in step."""

    name: str
    what: str
    points: Callable[[int], list[SimPoint] | list[MixPoint]]
    lanes: tuple[int, ...]


def _file_of(model: onnx.ModelProto) -> Path:
    path = Path(tempfile.mkdtemp()) / "model.onnx"
    onnx.save(model, path)
    return path


@cache
def _program(model: str, preset: str) -> Program:
    built = {
        "gemm": lambda: _file_of(models.mm(1024, 1024, 1024)),
        "gemv": lambda: _file_of(models.mm(1, 4096, 4096)),
        "decode": lambda: _file_of(models.chain(1, LLAMA_LAYER)),
        "resnet18": lambda: _file_of(models.resnet18()),
    }
    return lower(built[model]() if model in built else model, load_hw(preset))


def _chips(hw: HwConfig) -> list[HwConfig]:
    """All with other timings."""
    timing = hw.dram.table().timing
    changes = [{"nRP": timing["nRP"] + index % 16, "nCL": timing["nCL"] + index // 16} for index in range(TIMINGS)]
    return [hw.with_overrides({f"dram.timing.{key}": value for key, value in own.items()}) for own in changes]


def _varied(hw: HwConfig, programs: Sequence[Program], count: int, **options: Any) -> list[SimPoint]:
    chips = _chips(hw)
    return [SimPoint(chips[lane % TIMINGS], programs[lane % len(programs)], **options) for lane in range(count)]


def _default(*names: str, preset: str) -> Callable[[int], list[SimPoint]]:
    return lambda count: _varied(load_hw(preset), [_program(name, preset) for name in names], count)


def _compat(*size: int) -> Callable[[int], list[SimPoint]]:
    hw = CONFIGURATIONS["server"]
    return lambda count: _varied(hw, [lower_onnxim(models.mm(*size), hw)], count, compat=True)


def _tenants(*names: str, scheduler: Scheduler) -> Callable[[int], list[MixPoint]]:
    """Tenants on one server chip, the second as soon as the first."""
    hw = load_hw(SERVER)

    def points(count: int) -> list[MixPoint]:
        workloads = [Workload(name, _program(name, SERVER), (0,)) for name in names]
        chips, mix = _chips(hw), place_workloads("tenants", workloads, hw, scheduler)
        return [MixPoint(chips[lane % TIMINGS], mix) for lane in range(count)]

    return points


RESNET50 = "onnx:light_resnet50"
CASES = (
    Case("gemm", "memory-bound GEMM 1024x1024x1024, server", _default("gemm", preset=SERVER), (1, 64, 128, 256)),
    Case("gemv", "GEMV 1x4096x4096, server", _default("gemv", preset=SERVER), (1, 64, 128, 256)),
    Case("gemm-compat", "the GEMM as ONNXim runs it, deep queues, server", _compat(1024, 1024, 1024), (64, 128)),
    Case("gemv-compat", "the GEMV as ONNXim runs it, deep queues, server", _compat(1, 4096, 4096), (64, 128)),
    Case("decode", "projections of a Llama-3-8B layer, one token, server", _default("decode", preset=SERVER), (128,)),
    Case("mix", "GEMM, GEMV, ResNet-50 in one batch", _default("gemm", "gemv", RESNET50, preset=SERVER), (128,)),
    Case(
        "tenants", "ResNet-50 beside the projections, by turns of layers, server",
        _tenants(RESNET50, "decode", scheduler=Scheduler.TIME_MULTIPLEX), (128,),
    ),
    Case("resnet50", "ResNet-50, server", _default(RESNET50, preset=SERVER), (128,)),
    Case("resnet18", "ResNet-18, mobile", _default("resnet18", preset=MOBILE), (64, 512, 1024)),
)  # fmt: skip


def scaling(kind: str, count: int, lanes: int) -> list[SimPoint]:
    """Points of the GEMM on a server chip with another number of "channels" or "cores"."""
    key = {"channels": "dram.channels", "cores": "cores.count"}[kind]
    hw = load_hw(SERVER).with_overrides({key: count})
    return _varied(hw, [lower(_file_of(models.mm(1024, 1024, 1024)), hw)], lanes)
