"""The cycle-level model equals recorded runs of ONNXim: layer finishes, totals, requests and row states.

In one batch by the JAX step, one by one by the kernel (`vsim.npu.kernel`), and without idle skip. Rows of one machine
share a batch whatever their size.
"""

from __future__ import annotations

from typing import Any

import pytest

from lowering.onnxim import lower_onnxim
from lowering.onnxim.language import lower_language, plan
from tests.golden.onnxim_reference import (
    CONFIGURATIONS,
    LANGUAGE_ROWS,
    ROWS,
    SMALL_LLAMA,
    GoldenRow,
)
from vsim.api import SimPoint, SimResult, simulate

DEFAULT_CYCLES = 60_000
"""Longer rows take minutes by the step, in a batch: `make check-long` has them."""
FIRST_LAYER_CYCLES = 20_300
LANES = 64
"""Without such a number the kernel runs the points one to a core."""

ALONE = ("server-mm_128_128_128", "mobile_c4-mm_64_64_64", "mobile_c1-mm_64_64_64")
"""One machine each."""


def points(rows: list[GoldenRow] | tuple[GoldenRow, ...]) -> list[SimPoint]:
    return [SimPoint(row.hw, lower_onnxim(row.model, row.hw), compat=True, label=str(row)) for row in rows]


def figures(result: SimResult) -> dict[str, Any]:
    """What a recording says of a run."""
    dram = result.dram
    return {
        "status": result.status,
        "finishes": tuple(layer["finish_cycle"] for layer in result.layers),
        "total": result.cycles,
        "row_states": (dram["row_hits"], dram["row_misses"], dram["row_conflicts"]),
    }


def recorded(row: GoldenRow) -> dict[str, Any]:
    return {"status": "ok", "finishes": row.finishes, "total": row.total, "row_states": row.row_states}


def check_rows(rows: list[GoldenRow] | tuple[GoldenRow, ...], **options: Any) -> None:
    results = simulate(points(rows), **options)
    ours = {str(row): figures(result) for row, result in zip(rows, results, strict=True)}
    assert ours == {str(row): recorded(row) for row in rows}


@pytest.mark.parametrize(("configuration", "count"), [("server", 16), ("mobile_c4", 3), ("mobile_c1", 2)])
def test_rows_of_a_chip_in_one_batch(configuration: str, count: int):
    """The server's with the first layer of a language model: grouped-query attention, gated feed-forward, norms."""
    rows = [row for row in ROWS if row.configuration == configuration and row.total < DEFAULT_CYCLES]
    assert len(rows) == count
    served = [first_layer_of_a_language_model()] if configuration == "server" else []
    results = simulate([*points(rows), *served], lanes=LANES)
    ours = {str(row): figures(result) for row, result in zip(rows, results[:count], strict=True)}
    assert ours == {str(row): recorded(row) for row in rows}
    for result in results[count:]:
        assert [layer["finish_cycle"] for layer in result.layers[:11]] == list(LANGUAGE_ROWS[0].finishes[:11])


def first_layer_of_a_language_model() -> SimPoint:
    language, hw = LANGUAGE_ROWS[0], CONFIGURATIONS["server"]
    program = lower_language(SMALL_LLAMA, plan(language.requests, language.scheduler, 0, ()), hw)
    return SimPoint(hw, program, compat=True, max_cycles=FIRST_LAYER_CYCLES)


def test_rows_one_by_one():
    """By the kernel, which the rows of all chips share."""
    check_rows(ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if str(row) in ALONE], ids=str)
def test_row_alone_with_and_without_idle_skip(row: GoldenRow):
    [point] = points([row])
    [skipping], [ticking] = simulate([point]), simulate([point], idle_skip=False)
    assert figures(skipping) == recorded(row)
    assert ticking.to_json() == skipping.to_json()
    assert ticking.iterations > skipping.iterations


def test_chunks_of_the_fixed_latency_memory():
    """Its ready times are kept with the requests: clocks restart after every chunk, here a hundred times."""
    [row] = [row for row in ROWS if row.overrides.get("dram.standard") == "simple" and row.workload == "mm_256_256_256"]
    check_rows([row], chunk_iterations=17, lanes=1)


@pytest.mark.slow
def test_all_rows_in_one_batch():
    check_rows(ROWS, lanes=LANES)


@pytest.mark.slow
def test_all_rows_in_one_batch_without_idle_skip():
    check_rows(ROWS, lanes=LANES, idle_skip=False)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_as_a_lone_lane(row: GoldenRow):
    check_rows([row], lanes=1)
