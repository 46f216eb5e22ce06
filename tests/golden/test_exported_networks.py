"""The exported graphs at hand through the cycle-level model, default mode: each ends, and moves its tiling's bytes."""

from __future__ import annotations

from hwconfigs import load_hw
from lowering import lower
from tests.unit.test_model_counts import COUNTS, DIMS, source
from vsim.api import SimPoint, SimResult, simulate

SERVER = load_hw("npu-server-128x128x4")
NETWORKS = [name for name in COUNTS if not name.startswith("light_")]


def check(point: SimPoint, result: SimResult) -> None:
    """Ends well, moves the bytes that lowering says, and is no faster than memory and arrays allow."""
    assert result.status == "ok"
    assert result.warnings == ()
    hw, layers = point.hw, point.program.layers
    for info, layer in zip(layers, result.layers, strict=True):
        assert (layer["load_bytes"], layer["store_bytes"]) == (info.load_bytes, info.store_bytes), info.name
    loaded, stored = sum(info.load_bytes for info in layers), sum(info.store_bytes for info in layers)
    request_bytes = hw.dram.request_bytes
    assert (result.dram["reads"] * request_bytes, result.dram["writes"] * request_bytes) == (loaded, stored)
    core = hw.core(0)
    assert result.cycles >= (loaded + stored) / (hw.dram.channels * request_bytes)
    assert result.cycles >= sum(info.macs for info in layers) / (core.rows * core.cols * hw.cores.count)


def test_every_exported_network() -> None:
    """All twelve on the server preset, side by side."""
    assert len(NETWORKS) == 12
    programs = [lower(source(name), SERVER, dims=DIMS.get(name, {})) for name in NETWORKS]
    points = [SimPoint(SERVER, program, label=name) for name, program in zip(NETWORKS, programs, strict=True)]
    for point, result in zip(points, simulate(points), strict=True):
        print(f"{point.label}: {result.cycles:,} cycles")
        check(point, result)
