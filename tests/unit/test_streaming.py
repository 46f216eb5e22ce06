"""Weights that are read once come at nearly the rate that the memory system can sustain, however slow the NoC."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwconfigs import load_hw
from lowering import lower
from lowering.models import LoadedModel
from tests import models
from vsim.api import SimPoint, SimResult, simulate
from vsim.bounds import roofs_of

SERVER = load_hw("npu-server-128x128x4")
CLOCKS_MHZ = {"noc": 1200, "dram": 800}
"""What limits the server chip, by the DRAM's clock: 512 bytes a cycle of NoC, or 410 of DRAM."""
GEMV = LoadedModel("gemv", Path("gemv.onnx"), models.mm(1, 4096, 2048), 13)


@pytest.fixture(scope="module")
def results() -> dict[str, SimResult]:
    """A matrix-vector product for each limit."""
    points = []
    for mhz in CLOCKS_MHZ.values():
        hw = SERVER.with_overrides({"clocks.dram_mhz": mhz})
        points.append(SimPoint(hw, lower(GEMV, hw)))
    return dict(zip(CLOCKS_MHZ, simulate(points), strict=True))


@pytest.mark.parametrize("limit", CLOCKS_MHZ)
def test_a_matrix_vector_product_streams_its_weights(results: dict[str, SimResult], limit: str) -> None:
    """At least 85 % of what buses and refresh allow: a channel moves nothing while it refreshes."""
    timing = SERVER.dram.table().timing
    roofs = roofs_of(SERVER.with_overrides({"clocks.dram_mhz": CLOCKS_MHZ[limit]}))
    sustained = min(roofs.noc_bytes, roofs.dram_bytes) * (1 - timing["nRFC"] / timing["nREFI"])
    result = results[limit]
    assert (result.status, result.layers[0]["bound"]) == ("ok", limit)
    assert result.dram["read_bytes"] >= 4096 * 2048 * 2
    assert result.dram["read_bytes"] / result.cycles >= 0.85 * sustained


def test_a_slow_noc_delays_a_stream_but_does_not_throttle_it(results: dict[str, SimResult]) -> None:
    """A latency is paid on the way to the first weights and back, not in bandwidth."""
    latency = 64
    hw = SERVER.with_overrides({"noc.latency_cycles": latency})
    (slow,) = simulate([SimPoint(hw, lower(GEMV, hw))])
    fast = results["noc"]
    assert slow.layers[0]["bound"] == "noc"
    assert slow.cycles - fast.cycles <= 2 * 2 * latency
