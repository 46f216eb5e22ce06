"""`--compat onnxim` equals recorded runs of ONNXim on networks, attention blocks and its language mode.

Layer finishes, totals, requests and row states. Single layers are in `test_npu_onnxim.py`, instruction sequences in
`test_onnxim_lowering.py`.
"""

from __future__ import annotations

import pytest

from hwconfigs import HwConfig
from lowering.onnxim import lower_onnxim
from lowering.onnxim.language import lower_language, plan, read_language_model, read_trace
from tests import models
from tests.golden.onnxim_reference import (
    CONFIGURATIONS,
    LANGUAGE_ROWS,
    SMALL_LLAMA,
    TRANSFORMER_BLOCK,
    Case,
    load_cases,
)
from tests.golden.test_npu_onnxim import case_difference
from vsim.api import SimPoint, simulate
from vsim.onnxim_language import simulate_language

MOST_CYCLES = 4_000_000
"""Longer recorded cases (ResNet-18 on 8x8 arrays) are left out: they take an hour and more here."""
TRACES = {
    "T_lang_opt125m_input": "input.csv",
    "T_lang_opt125m_short": "short.csv",
    "T_lang_opt125m_short_iter": "short.csv",
    "T_lang_llama3_8b_prefill8": "llama1.csv",
}


@pytest.mark.slow
def test_language_rows():
    for row in LANGUAGE_ROWS:
        served = simulate_language(SMALL_LLAMA, row.requests, CONFIGURATIONS["server"], scheduler=row.scheduler)
        finishes = [layer["finish_cycle"] for layer in served.result.layers]
        ours = finishes if row.scheduler == "simple" else list(served.finish_cycles)
        assert (row.name, ours, served.result.cycles) == (row.name, list(row.finishes), row.total)


@pytest.mark.slow
def test_transformer_block():
    hw = CONFIGURATIONS["mobile_c4"]
    program = lower_onnxim(models.transformer_block(64, 128, 2, 256), hw)
    [result] = simulate([SimPoint(hw, program, compat=True)])
    assert [layer["finish_cycle"] for layer in result.layers] == list(TRANSFORMER_BLOCK)
    assert result.cycles == 364584


def model_point(case: Case, hw: HwConfig) -> SimPoint:
    return SimPoint(hw, lower_onnxim(case.model_path, hw, batch=case.batch, dims=case.dims), compat=True)


def language_point(case: Case, hw: HwConfig) -> SimPoint:
    entry = case.data["models_list"][0]
    requests = read_trace(case.model_path.parents[2] / "traces" / TRACES[case.name])
    max_batch = entry.get("scheduler_config", {}).get("max_batch_size", 0)
    iterations = plan(requests, entry["scheduler"], max_batch, ())
    return SimPoint(hw, lower_language(read_language_model(case.model_path), iterations, hw), compat=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "language"])
def test_recorded_cases(shared, tmp_path, mode):
    """Every case but matrix products, mapped networks (the mapping file is not shipped) and hours of small arrays."""
    cases = {
        name: case
        for name, case in load_cases(shared, mode=mode).items()
        if case.data["total_cycles"] <= MOST_CYCLES and not name.endswith("mapping") and not _is_matrix(name)
    }
    assert len(cases) >= {"default": 45, "language": 4}[mode]
    point = model_point if mode == "default" else language_point
    points = [point(case, case.hw(tmp_path)) for case in cases.values()]
    differences = {
        case.name: difference
        for case, result in zip(cases.values(), simulate(points), strict=True)
        if (difference := case_difference(case, result))
    }
    assert differences == {}


def _is_matrix(name: str) -> bool:
    return "matmul" in name or "gemm" in name
