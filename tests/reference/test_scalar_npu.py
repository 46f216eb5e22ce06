"""The scalar chip equals the real program: layer finishes, totals, row states, and every event of the logs."""

from __future__ import annotations

import pytest

from lowering.onnxim import lower_onnxim
from tests.golden.onnxim_reference import ROWS, GoldenRow, load_cases, read_events
from tests.reference.scalar_npu import Event, run

QUICK_ROW_CYCLES = 10_000
MOST_CPU_SECONDS = 0.5
LOGGED = [
    "E1_matmul_64",
    "E1_matmul_128",
    "T_matmul_256",
    "T_matmul_128_768_768",
    "V_dramsimple_lat10_matmul_512_768_768",
]
COMPARED = {
    "T+": ("spad", "aspad", "acc", "inst"),
    "T-": (),
    "LD": ("n", "a", "spad", "acc"),
    "ST": ("n", "a", "spad", "acc"),
    "EX": ("op", "start", "fin", "cs", "spad", "acc"),
}


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[pytest.mark.slow] * (row.total > QUICK_ROW_CYCLES), id=str(row)) for row in ROWS]
)
def test_golden_row(row: GoldenRow):
    hw = row.hw
    result = run(lower_onnxim(row.model, hw), hw)
    assert tuple(result.layer_finishes) == row.finishes
    assert result.cycles == row.total
    assert (result.hits, result.misses, result.conflicts) == row.row_states


@pytest.mark.parametrize("name", LOGGED)
def test_event_log(shared, tmp_path, name):
    case = load_cases(shared)[name]
    hw = case.hw(tmp_path)
    trace: list[Event] = []
    result = run(lower_onnxim(case.model_path, hw), hw, trace)
    assert result.layer_finishes == case.finishes
    assert result.cycles == case.data["total_cycles"]
    logged = [
        (event.kind, event.core, event.cycle, *(event.details[key] for key in COMPARED[event.kind]))
        for event in read_events(shared / "reference" / "onnxim" / "events" / f"{name}.txt.gz")
    ]
    ours = [
        (event.kind, event.core, event.cycle, *(event.details[key] for key in COMPARED[event.kind])) for event in trace
    ]
    assert ours == logged


@pytest.mark.slow
def test_all_recorded_matrix_cases(shared, tmp_path):
    """Every single-matrix case that the original ran within a few seconds: finishes, total, requests, row states."""
    compared = 0
    for name, case in load_cases(shared).items():
        config = case.data["config"]
        dram = {key: value for key, value in (case.data["dram"] or {}).items() if value is not None}
        if not ("matmul" in name or "gemm" in name) or case.data["cpu_s"] > MOST_CPU_SECONDS:
            continue
        if config["icnt_type"] != "simple" or config["dram_type"] == "ramulator":
            continue
        hw = case.hw(tmp_path)
        result = run(lower_onnxim(case.model_path, hw), hw)
        assert (result.layer_finishes, result.cycles) == (case.finishes, case.data["total_cycles"]), name
        ours = {
            "mem_reads": result.reads,
            "mem_writes": result.writes,
            "dram_row_hits": result.hits,
            "dram_row_misses": result.misses,
            "dram_row_conflicts": result.conflicts,
        }
        assert dram.items() <= ours.items(), name
        compared += 1
    assert compared >= 15


def test_requests_are_recorded_on_demand():
    row = next(row for row in ROWS if str(row) == "mobile_c1-mm_64_64_64")
    hw = row.hw
    result = run(lower_onnxim(row.model, hw), hw, record_requests=True)
    assert len(result.requests) == result.reads + result.writes == sum(row.row_states)
    assert all(r.issued < r.delivered and r.dram_accept <= r.dram_complete for r in result.requests)
