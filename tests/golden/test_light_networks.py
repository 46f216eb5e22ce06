"""The nine light networks on the server preset: golden results, exact traffic, and lower bounds of time."""

from __future__ import annotations

import json

import pytest

from tests.golden.light_networks import GOLDENS, NETWORKS, point, summary
from vsim.api import SimPoint, SimResult, simulate


def check(network: str, sim_point: SimPoint, result: SimResult) -> None:
    """Golden equality and the laws that any result obeys."""
    golden = json.loads(GOLDENS.read_text())["networks"][network]
    assert summary(result) == golden
    program, hw = sim_point.program, sim_point.hw
    # Every channel moves at most one request a NoC tick; the clocks of core and NoC are equal here.
    bytes_per_cycle = hw.dram.channels * hw.dram.request_bytes
    for info, layer in zip(program.layers, result.layers, strict=True):
        assert (layer["load_bytes"], layer["store_bytes"]) == (info.load_bytes, info.store_bytes), info.name
        duration = layer["finish_cycle"] - layer["start_cycle"]
        # A layer ends when its stores have left the cores: only its loads bound its own time.
        assert duration >= info.load_bytes / bytes_per_cycle, info.name
        # systolic_cycles counts the passes end to end; the last one of each core may still be in the array.
        assert duration >= info.systolic_cycles / hw.cores.count, info.name
    moved = sum(info.load_bytes + info.store_bytes for info in program.layers)
    assert result.cycles >= moved / bytes_per_cycle


@pytest.mark.parametrize("network", NETWORKS)
def test_work_of_every_network(network: str) -> None:
    """The lowered work of all nine is that of the golden runs."""
    golden = json.loads(GOLDENS.read_text())["networks"][network]
    program = point(network).program
    assert sum(layer.macs for layer in program.layers) == golden["macs"]
    moved = sum(layer.load_bytes + layer.store_bytes for layer in program.layers)
    assert moved == (golden["reads"] + golden["writes"]) * program.request_bytes


def test_every_network() -> None:
    """All nine through the cycle-level model."""
    points = [point(network) for network in NETWORKS]
    for network, sim_point, result in zip(NETWORKS, points, simulate(points), strict=True):
        check(network, sim_point, result)
