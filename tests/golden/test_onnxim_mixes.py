"""Several models on one chip equal recorded runs of ONNXim: layers, totals, requests and row states, four schedulers.

The rows are those of `onnxim.md` section 16; the cases are `S_*` of `cases.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lowering.mix import Scheduler
from lowering.models import load_model
from lowering.onnxim.mix import Request, lower_onnxim_mix
from tests import models
from tests.golden.onnxim_reference import ABORTS, CONFIGURATIONS, Case, mix_cases
from vsim.mixes import MixPoint, simulate_mixes
from vsim.npu.results import SimResult


@dataclass(frozen=True)
class MixRow:
    """A run of an MLP beside its twin, or beside a matrix product that comes 2 ns later."""

    scheduler: Scheduler
    beside: str
    finishes: tuple[int, ...]
    total: int

    @property
    def requests(self) -> list[Request]:
        """What runs."""
        first = models.mlp(256, 256, 1024, 2048)
        if self.beside == "twin":
            return [Request("A", first), Request("A", first, partition=1)]
        return [Request("A", first), Request("B", models.mm(512, 256, 2048), 2e-6, partition=1)]


MIX_ROWS = (
    MixRow(Scheduler.SIMPLE, "two", (3281, 3283, 19259, 27572), 32650),
    MixRow(Scheduler.SIMPLE, "twin", (3259, 3261, 20987, 24224, 24225, 39680), 40576),
    MixRow(Scheduler.TIME_MULTIPLEX, "two", (3326, 3328, 9115, 29186), 30261),
    MixRow(Scheduler.TIME_MULTIPLEX, "twin", (3306, 3308, 6395, 6397, 22875, 40306), 41476),
    MixRow(Scheduler.SPATIAL_SPLIT, "two", (3303, 3304, 14028, 32348), 32562),
    MixRow(Scheduler.SPATIAL_SPLIT, "twin", (7213, 7214, 7484, 7485, 39926, 41988), 42202),
    MixRow(Scheduler.PARTITION_CPU, "two", (13329, 16694, 16695, 51161), 51375),
    MixRow(Scheduler.PARTITION_CPU, "twin", (5928, 5930, 9582, 9583, 32277, 51174), 51389),
)
SHORT_CYCLES = 13_000
"""Cases of a matrix product and a convolution; the longer ones are of networks."""
SERVER = CONFIGURATIONS["server"].with_overrides(
    {"onnxim": {"scheduler": "simple", "layout": "NHWC", "dram_type": "ramulator2", "icnt_type": "simple"}}
    | {"onnxim.partition": [0, 1, 1, 1]}
)


def check_rows(**options: Any) -> None:
    points = [MixPoint(SERVER, lower_onnxim_mix(row.requests, SERVER, row.scheduler), compat=True) for row in MIX_ROWS]
    for row, result in zip(MIX_ROWS, simulate_mixes(points, **options), strict=True):
        assert result.status == "ok"
        assert (tuple(layer["finish_cycle"] for layer in result.layers), result.cycles) == (row.finishes, row.total)


def test_rows():
    check_rows()


@pytest.mark.slow
def test_rows_side_by_side():
    check_rows(lanes=len(MIX_ROWS))


def point_of(case: Case, folder: Path) -> MixPoint:
    hw = case.hw(folder)
    listed = [(entry, load_model(path)) for entry, path in zip(case.data["models_list"], case.model_paths, strict=True)]
    requests = [
        Request(
            name=entry["name"],
            model=model.proto,
            request_time_ms=entry.get("request_time", 0.0),
            partition=entry.get("partition_id", 0),
            batch=entry["batch_size"],
            dims={key: value for key, value in entry.items() if isinstance(value, int)},
        )
        for entry, model in listed
    ]
    return MixPoint(hw, lower_onnxim_mix(requests, hw, Scheduler(case.data["scheduler"])), compat=True)


def difference(case: Case, result: SimResult) -> dict[str, tuple[Any, Any]]:
    """Recorded and simulated value of every figure that differs."""
    dram = case.data["dram"]
    names = {"mem_reads": "reads", "mem_writes": "writes"}
    names |= {f"dram_{name}": name for name in ("row_hits", "row_misses", "row_conflicts")}
    recorded: dict[str, Any] = {
        "status": "ok",
        "total_cycles": case.data["total_cycles"],
        "layers": sorted((layer["start_cycle"], layer["finish_cycle"]) for layer in case.data["layers"]),
        "models": sorted((model["cycle"], model["model"]) for model in case.data["models_finish"]),
        **{name: dram[name] for name in names},
    }
    ours: dict[str, Any] = {
        "status": result.status,
        "total_cycles": result.cycles,
        "layers": sorted((layer["start_cycle"] or 0, layer["finish_cycle"] or 0) for layer in result.layers),
        "models": sorted((tenant["finish_cycle"] or 0, tenant["name"]) for tenant in result.tenants),
        **{name: result.dram[own] for name, own in names.items()},
    }
    return {key: (value, ours[key]) for key, value in recorded.items() if ours[key] != value}


def check_cases(cases: Sequence[Case], folder: Path, **options: Any) -> None:
    results = simulate_mixes([point_of(case, folder) for case in cases], **options)
    compared = zip(cases, results, strict=True)
    assert {case.name: found for case, result in compared if (found := difference(case, result))} == {}


def short_cases(shared: Path) -> list[Case]:
    cases = [case for case in mix_cases(shared).values() if case.data["total_cycles"] <= SHORT_CYCLES]
    assert len(cases) == 12
    return cases


def test_short_cases(shared, tmp_path):
    check_cases(short_cases(shared), tmp_path)


@pytest.mark.slow
def test_short_cases_side_by_side(shared, tmp_path):
    check_cases(short_cases(shared), tmp_path, lanes=12)


def test_networks(shared, tmp_path):
    """ResNet-18 on small images beside its twin, a convolution or an encoder."""
    cases = [case for case in mix_cases(shared).values() if case.data["total_cycles"] > SHORT_CYCLES]
    assert len(cases) == 4
    check_cases(cases, tmp_path)


def test_cases_that_abort_the_original(shared, tmp_path):
    """Beside BERT, which the original cannot lower."""
    cases = list(mix_cases(shared, ABORTS).values())
    assert len(cases) == 2
    for result in simulate_mixes([point_of(case, tmp_path) for case in cases]):
        assert result.status == "ok"
        assert result.noc["requests"] * 32 == sum(row["load_bytes"] + row["store_bytes"] for row in result.layers)
