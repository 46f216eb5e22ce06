"""AllReduce and AllGather: traffic and link time of one chip against the ring's closed form."""

from __future__ import annotations

import math

import pytest

from hwconfigs import load_hw
from lowering.chip import Chip
from lowering.ir import Graph, Node, Tensor
from lowering.network import lower_graph
from lowering.program import Col, Op, Program

SERVER = load_hw("npu-server-128x128x4")


def collective(op: str, shape: tuple[int, int], degree: int, bytes_per_cycle: float) -> Program:
    x = Tensor("x", shape)
    y = Tensor("y", (shape[0], shape[1] * (degree if op == "AllGather" else 1)))
    node = Node("c", op, (x,), (y,), {"degree": degree, "link_bytes_per_cycle": bytes_per_cycle})
    return lower_graph(Graph("g", 24, (x,), (y,), (node,)), Chip.of(SERVER))


def longest_core_cycles(program: Program) -> int:
    """Vector cycles of the core that has most of them."""
    per_core = [0] * program.n_cores
    for core in range(program.n_cores):
        for tile in range(*program.schedule[0, core]):
            rows = program.rows[program.tiles[tile, 0] : program.tiles[tile, 1]]
            vector = rows[rows[:, Col.OP] == Op.VECTOR]
            per_core[core] += int((vector[:, Col.SIZE1] * vector[:, Col.SIZE2]).sum())
    return max(per_core)


@pytest.mark.parametrize("degree", [2, 4, 8])
@pytest.mark.parametrize("bytes_per_cycle", [25.0, 100.0])
def test_all_reduce_takes_the_rings_time_and_touches_each_element_twice(degree: int, bytes_per_cycle: float):
    program = collective("AllReduce", (512, 4096), degree, bytes_per_cycle)
    size = 512 * 4096 * 2
    assert (program.layers[0].load_bytes, program.layers[0].store_bytes) == (size, size)
    # Exact but for rounding each of the 16 tiles up to a cycle.
    expected = 2 * (degree - 1) / degree * size / bytes_per_cycle
    assert expected <= longest_core_cycles(program) <= expected + 4


@pytest.mark.parametrize("degree", [2, 4])
def test_all_gather_receives_what_the_other_chips_have(degree: int):
    program = collective("AllGather", (8, 4096), degree, 50.0)
    own = 8 * 4096 * 2
    assert (program.layers[0].load_bytes, program.layers[0].store_bytes) == (own, degree * own)
    expected = (degree - 1) * own / 50
    assert expected <= longest_core_cycles(program) <= expected + 4


def test_adding_takes_over_where_the_link_is_faster():
    program = collective("AllReduce", (512, 4096), 4, 1e9)
    units = SERVER.cores.vector_bits // 8
    per_core = 512 * 4096 * 2 // 4 * 3 // 4
    assert longest_core_cycles(program) >= math.ceil(per_core / units) * SERVER.core(0).latency.add


def test_a_ragged_result_is_stored_whole():
    """A pixel of 5 elements takes 16 bytes, one of 10 takes 32: nothing is left out, nothing written twice."""
    program = collective("AllGather", (3, 5), 2, 50.0)
    assert (program.layers[0].load_bytes, program.layers[0].store_bytes) == (64, 96)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="1 chips"):
        collective("AllReduce", (4, 4), 1, 50.0)
