"""Weights that are read once come at nearly the rate that the memory system can sustain."""

from __future__ import annotations

from pathlib import Path

from hwconfigs import load_hw
from lowering import lower
from lowering.models import LoadedModel
from tests import models
from vsim.api import SimPoint, simulate
from vsim.bounds import roofs_of


def test_a_matrix_vector_product_streams_its_weights() -> None:
    """At least 85 % of what buses and refresh allow: a channel moves nothing while it refreshes."""
    hw = load_hw("npu-server-128x128x4")
    timing = hw.dram.table().timing
    roofs = roofs_of(hw)
    sustained = min(roofs.noc_bytes, roofs.dram_bytes) * (1 - timing["nRFC"] / timing["nREFI"])
    program = lower(LoadedModel("gemv", Path("gemv.onnx"), models.mm(1, 4096, 2048), 13), hw)
    [result] = simulate([SimPoint(hw, program)])
    assert result.status == "ok"
    assert result.dram["read_bytes"] >= 4096 * 2048 * 2
    assert result.dram["read_bytes"] / result.cycles >= 0.85 * sustained
