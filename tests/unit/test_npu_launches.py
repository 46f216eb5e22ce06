"""Layers that are launches: they start in a core tick of their own, not before their cycle."""

from __future__ import annotations

import pytest

from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.program import LayerInfo, Program
from tests.golden.onnxim_reference import CONFIGURATIONS
from vsim.api import SimPoint, simulate

HW = CONFIGURATIONS["mobile_c4"]
LATE, FAR = 5_000, 40_000_000


def program(*launches: int | None) -> Program:
    """Equal layers of one tile a core; launches: cycle of each layer's launch, None for a layer that is none."""
    builder = ProgramBuilder("launches", HW.cores.count, HW.dram.request_bytes)
    for index, launch in enumerate(launches):
        if launch is not None:
            builder.launch(launch)
        builder.begin_layer(LayerInfo(f"layer{index}", "test"))
        for core in range(HW.cores.count):
            builder.begin_tile(core)
            builder.load(0, Descriptor(64 * core, 8))
            builder.systolic(dst=Operand(0, acc=True), src_a=Operand(0), src_b=Operand(0), size1=Extent(8))
            builder.store(0, Descriptor(4096 + 64 * core, 8))
            builder.end_tile()
        builder.end_layer()
    return builder.build()


LATE_LAYERS = program(LATE, LATE // 2, 3 * LATE)
POINTS = {
    "none": SimPoint(HW, program(None, None), compat=True),
    "next tick": SimPoint(HW, program(None, 0), compat=True),
    "late": SimPoint(HW, LATE_LAYERS, compat=True),
    "out of reach of a skip": SimPoint(HW, program(None, FAR), compat=True),
    "ends while it waits": SimPoint(HW, program(None, FAR), compat=True, max_cycles=2_000),
}


@pytest.fixture(scope="module", params=[None, len(POINTS)], ids=["kernel", "step"])
def lanes(request):
    return request.param


@pytest.fixture(scope="module")
def results(lanes):
    return dict(zip(POINTS, simulate(list(POINTS.values()), lanes=lanes), strict=True))


def times(result) -> list[tuple[int, int]]:
    assert result.status == "ok"
    return [(layer["start_cycle"], layer["finish_cycle"]) for layer in result.layers]


def test_a_launch_takes_a_tick(results):
    [(_, joined), (begin, _)] = times(results["none"])
    assert begin == joined
    [(_, finish), (start, _)] = times(results["next tick"])
    assert (finish, start) == (joined, joined + 1)


def test_a_launch_waits_for_its_cycle(results):
    [(first, end), (second, second_end), (third, _)] = times(results["late"])
    assert first == LATE and second == end + 1 and second_end < third == 3 * LATE


def test_waiting_beyond_the_horizon_of_idle_skip_is_no_deadlock(results):
    """Forty milliseconds, many times what fits int32 picoseconds."""
    result = results["out of reach of a skip"]
    assert times(result)[1][0] == FAR
    assert result.iterations < 100_000


def test_idle_skip_changes_nothing(results, lanes):
    # As many lanes as above: nothing compiles anew.
    ticking, *_ = simulate([POINTS["late"]] * len(POINTS), idle_skip=False, lanes=lanes)
    assert ticking.to_json() == results["late"].to_json()
    assert ticking.iterations > results["late"].iterations


def test_a_run_that_ends_while_it_waits_has_not_started_the_layer(results):
    result = results["ends while it waits"]
    assert result.status == "cycle_limit"
    assert result.layers[1]["start_cycle"] is None


def test_impossible_launches_are_refused():
    with pytest.raises(ValueError, match="launch in cycle"):
        ProgramBuilder("launches", 1, 32).launch(1 << 30)
