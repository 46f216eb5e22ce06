"""`--compat onnxim` equals recorded runs of ONNXim: matrix products, convolutions, networks, its language mode.

Layer names, layer finishes, totals, requests and row states, compared by `onnxim_cases`. The rows of the specification
in one batch, alone and without idle skip are in `test_npu_onnxim.py`, instruction sequences in
`test_onnxim_lowering.py`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from pathlib import Path

import pytest

from tests.golden.onnxim_cases import catalogue, compare, of_row
from tests.golden.onnxim_reference import CONFIGURATIONS, LANGUAGE_ROWS, ROWS, LanguageRow
from vsim.api import simulate
from vsim.onnxim_language import simulate_language

LONG = ("E1_resnet18", "E4_resnet18")
"""34 and 16 million cycles of small arrays, a minute: `make check-onnxim` has them, the tests have not."""
GROUPS = {
    "products": (45, ["*_matmul_*", "*_gemm_*"]),
    "convolutions": (25, ["*_conv_*"]),
    "networks": (17, ["*_resnet18*", "*_bert_*", "*_gpt2_*", "transformer_block"]),
    "language": (7, ["language *", "*_lang_*"]),
}
"""How many runs at least, and the patterns of their names."""


def test_what_differs_first_is_said() -> None:
    """The comparison itself, on a recorded run of 907 cycles."""
    run = of_row(next(row for row in ROWS if row.workload == "mm_128_128_128"))
    [result] = simulate([run.point])
    assert run.first_difference(result) is None
    differences = {
        "layer mm finishes at 810, recorded 811": dataclasses.replace(run, finishes={0: 811}),
        "total 907, recorded 908": dataclasses.replace(run, total=908),
        "row_conflicts 72, recorded 73": dataclasses.replace(run, dram={**run.dram, "row_conflicts": 73}),
        "layer 0 is mm, recorded fc": dataclasses.replace(run, layers=("fc",)),
        "1 layers, recorded 2": dataclasses.replace(run, layers=("mm", "relu")),
    }
    assert [other.first_difference(result) for other in differences.values()] == list(differences)
    assert run.first_difference(dataclasses.replace(result, status="cycle_limit")) == "status cycle_limit"


def test_every_recorded_run_has_a_group(shared: Path, tmp_path: Path) -> None:
    """But the rows, which have their own tests, and the longest."""
    names = set(catalogue(tmp_path)) - {str(row) for row in ROWS} - set(LONG)
    patterns = [pattern for _, group in GROUPS.values() for pattern in group]
    assert {name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)} == set()


@pytest.mark.parametrize("group", GROUPS)
def test_recorded_runs(shared: Path, tmp_path: Path, group: str) -> None:
    """Every run but those of `LONG` and `onnxim_cases.MAPPED`."""
    least, patterns = GROUPS[group]
    makers = {
        name: maker
        for name, maker in catalogue(tmp_path).items()
        if name not in LONG and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    assert len(makers) >= least
    assert compare([make() for make in makers.values()]) == {}


@pytest.mark.parametrize("row", LANGUAGE_ROWS, ids=lambda row: row.name)
def test_language_rows_from_their_requests(row: LanguageRow) -> None:
    """Which requests form an iteration is found out here, not taken from the recording."""
    served = simulate_language(row.model, row.requests, CONFIGURATIONS["server"], scheduler=row.scheduler)
    finishes = [layer["finish_cycle"] for layer in served.result.layers]
    ours = finishes if row.scheduler == "simple" else list(served.finish_cycles)
    assert (ours, served.result.cycles) == (list(row.finishes), row.total)
