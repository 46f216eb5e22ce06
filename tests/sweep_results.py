"""Result folders for tests of storage and figures: hand-made results, written through the storage layer itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from sweeps.manifest import RunRecord
from sweeps.points import Expansion, Point, expand
from sweeps.spec import LoadedSpec, load_spec
from sweeps.store import ResultFolder, write_tables

SPEC = """\
name: tiny
model: onnx:light_squeezenet
base: npu-mobile-8x8
sweep:
  dram.channels: [1, 2, 4]
  clocks.dram_mhz: [600, 1200]
"""


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model whose weights are in an external file that is not there."""
    for weight in model.graph.initializer:
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="weights.bin")
    onnx.save(model, path)


def write_spec(folder: Path, text: str = SPEC) -> Path:
    """Write a specification file and return its path."""
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def load(folder: Path, text: str = SPEC) -> tuple[LoadedSpec, Expansion]:
    """Load and expand a specification given as text."""
    loaded = load_spec(write_spec(folder, text))
    return loaded, expand(loaded)


def result(point: Point, *, status: str = "ok") -> dict[str, Any]:
    """Return a result in the form of `SimResult.to_json`: 1000 µs over the channels, two layers."""
    cycles = 1_000_000 // point.hw.dram.channels
    layer = {"op": "Conv", "macs": 10, "load_bytes": 64, "store_bytes": 32, "utilization": 0.5, "bound": "dram"}
    return {
        "status": status,
        "cycles": cycles,
        "time_us": cycles / 1000,
        "layers": [
            {"name": "a", "start_cycle": 0, "finish_cycle": cycles // 4, **layer},
            {"name": "b", "start_cycle": cycles // 4, "finish_cycle": cycles, **layer, "op": "Gemm"},
        ],
        "cores": [{"systolic_active_cycles": 7, "idle_cycles": 3}],
        "dram": {
            "reads": 5,
            "writes": 3,
            "row_hits": 6,
            "row_misses": 1,
            "row_conflicts": 1,
            "bandwidth_gbps": 2.5 * point.hw.dram.channels,
            "channels": [{"reads": 5 + channel} for channel in range(point.hw.dram.channels)],
        },
        "noc": {"requests": 8, "responses": 8},
        "roofs": {"macs": 64.0, "dram_bytes": 19.2 * point.hw.dram.channels, "noc_bytes": 256.0},
        "warnings": [],
    }


def store_results(folder: Path, text: str = SPEC, failed: frozenset[int] = frozenset()) -> Path:
    """Fill a result folder with a result for every point, those numbered in `failed` deadlocked; return the folder."""
    loaded, expansion = load(folder, text)
    out = folder / "out"
    with ResultFolder.open(out, expansion.points, resume=False) as results:
        record = RunRecord(loaded, expansion, results)
        for point in expansion.points:
            status = "deadlock" if point.index in failed else "ok"
            results.append(point.digest, result(point, status=status))
        write_tables(out, expansion.points, results.results)
        record.write("finished")
    return out
