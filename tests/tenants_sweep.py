"""A small sweep over mixes for tests: tiny models on two small cores with a fast memory, or hand-made results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeps.manifest import RunRecord
from sweeps.mix_points import TenantsPoint, expand_mixes
from sweeps.points import Expansion
from sweeps.spec import LoadedSpec, load_spec
from sweeps.store import ResultFolder, write_tables
from tests import models
from tests.sweep_results import save_model

SPEC = """\
name: pairs
mix:
  hw: npu-mobile-8x8x4
  set: {dram.standard: simple, cores.count: 2}
  scheduler: simple
  core_split: even
workloads:
  wide: {model: wide.onnx}
  deep: {model: deep.onnx, arrival: {times_us: [0, 0.5]}}
alone: true
sweep:
  tenants: [[wide, deep], [deep, deep]]
  scheduler: [simple, partition_cpu]
  clocks.dram_mhz: [300, 1200]
"""
"""Eight mixes."""


def write_spec(folder: Path, text: str = SPEC) -> Path:
    """Write the models and a specification; return the path of the latter."""
    save_model(models.mlp(16, 32, 48, 16), folder / "wide.onnx")
    save_model(models.mlp(8, 16, 16, 8), folder / "deep.onnx")
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def load(folder: Path, text: str = SPEC) -> tuple[LoadedSpec, Expansion[TenantsPoint]]:
    """Load and expand a specification given as text."""
    loaded = load_spec(write_spec(folder, text))
    return loaded, expand_mixes(loaded)


WINDOW_CYCLES = 256


def result(point: TenantsPoint) -> dict[str, Any]:
    """Return a hand-made result: 1000 cycles for each element of all batches, and 500 for each tenant before it."""
    tenants = []
    for workload, tenant in enumerate(point.mix.tenants):
        cycles = 1000 * sum(each.batch for each in point.mix.tenants) + 500 * workload
        tenants.append(
            {
                "name": tenant.name,
                "workload": workload,
                "request_time": 0.0,
                "arrival_cycle": 0,
                "deadline_cycle": None,
                "start_cycle": 0,
                "finish_cycle": cycles,
                "latency_cycles": cycles,
                "active_cycles": cycles,
                "load_bytes": 768,
                "store_bytes": 256,
                "window_cycles": WINDOW_CYCLES,
                "window_bytes": [512, 256 * workload, 256],
                "layers": [],
            }
        )
    cycles = max(tenant["finish_cycle"] for tenant in tenants)
    return {
        "status": "ok",
        "cycles": cycles,
        "time_us": cycles / point.hw.clocks.core_mhz,
        "layers": [],
        "tenants": tenants,
    }


def store_results(folder: Path, text: str = SPEC) -> Path:
    """Fill a result folder with a hand-made result for every point; return the folder."""
    loaded, expansion = load(folder, text)
    out = folder / "out"
    with ResultFolder.open(out, expansion.points, resume=False) as results:
        record = RunRecord(loaded, expansion, results)
        for point in expansion.points:
            results.append(point.digest, result(point))
        write_tables(out, expansion.points, results.results)
        record.write("finished")
    return out
