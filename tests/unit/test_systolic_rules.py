"""The streaming rules against Gemmini's RTL, in closed form, and against a pass-by-pass replay of themselves."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from lowering.systolic_rules import (
    MIN_PASS_ROWS,
    conv_passes,
    conv_stream_axis,
    first_pass_start,
    gemm_passes,
    next_pass_start,
    pass_finish,
    pass_occupancy,
    split_line,
    tile_busy_cycles,
)

RTL_FILE = Path(__file__).parent.parent / "data" / "gemmini_rtl.json"
ROWS = COLS = 8
MEAN_BAR_PCT, WORST_BAR_PCT = 1.5, 5.0


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _tiles(total: int, inner: int) -> list[int]:
    return [min(inner, total - start) for start in range(0, total, inner)]


def _parse_mapping(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """The [T]otal and [I]nner loop sizes of a mapping line; letters that it leaves out are 1."""
    sections = dict(re.findall(r"\[([TOI])\]([^-\[]*)", text))
    total, inner = (
        dict.fromkeys("NCMSRQP", 1)
        | {letter: int(size) for letter, size in re.findall(r"([NCMSRQP])(\d+)", sections[tag])}
        for tag in "TI"
    )
    return total, inner


def _busy_cycles(mapping: str) -> int:
    total, inner = _parse_mapping(mapping)
    if total["P"] * total["Q"] == 1:
        tile_passes = [gemm_passes(n, ROWS) for n in _tiles(total["N"], inner["N"])]
    else:
        axis = conv_stream_axis(inner["P"], inner["Q"])
        tile_passes = [
            conv_passes(p, q, axis, ROWS)
            for p in _tiles(total["P"], inner["P"])
            for q in _tiles(total["Q"], inner["Q"])
        ]
    blocks = [
        _ceil_div(m, COLS) * _ceil_div(c, ROWS) * inner["S"] * inner["R"]
        for m in _tiles(total["M"], inner["M"])
        for c in _tiles(total["C"], inner["C"])
    ]
    return sum(tile_busy_cycles(b, passes, ROWS, COLS) for passes in tile_passes for b in blocks)


def _rtl_errors_pct() -> dict[str, float]:
    cases = json.loads(RTL_FILE.read_text())["cases"]
    return {case["case"]: 100 * (_busy_cycles(case["mapping"]) / case["gemmini_rtl_cycles"] - 1) for case in cases}


def test_rtl_cases_within_the_bars() -> None:
    errors = _rtl_errors_pct()
    assert len(errors) == 24
    worst = max(errors, key=lambda name: abs(errors[name]))
    assert abs(errors[worst]) <= WORST_BAR_PCT, worst
    assert sum(map(abs, errors.values())) / len(errors) <= MEAN_BAR_PCT


def test_rtl_convolutions_within_one_percent_on_average() -> None:
    errors = [abs(error) for name, error in _rtl_errors_pct().items() if name.startswith("ResNet18")]
    assert sum(errors) / len(errors) <= 1.0


def test_line_of_17_pixels() -> None:
    assert split_line(17, 8) == (8, 8, 1)
    assert sum(pass_occupancy(rows, False, 8) for rows in split_line(17, 8)) == 8 + 8 + MIN_PASS_ROWS


def test_passes_cover_the_tile_and_respect_lines() -> None:
    passes = conv_passes(5, 13, "cols", 8)
    assert passes == (8, 5) * 5
    assert conv_passes(13, 5, "rows", 8) == passes
    assert sum(gemm_passes(37, 8)) == 37
    assert max(gemm_passes(37, 8)) == 8


@pytest.mark.parametrize(("rows", "cols", "axis"), [(15, 17, "cols"), (17, 14, "rows"), (7, 7, "cols")])
def test_stream_axis_is_the_longer_side(rows: int, cols: int, axis: str) -> None:
    assert conv_stream_axis(rows, cols) == axis


def test_single_row_gemm_pays_the_weight_load_per_block() -> None:
    one, two = (tile_busy_cycles(blocks, (1,), 8, 8) for blocks in (1, 2))
    assert two - one == 8


def test_preload_hides_behind_the_previous_pass_when_queued_in_time() -> None:
    assert next_pass_start(now=90, prev_start=100, prev_rows=20, preload=True, array_rows=8) == 120
    assert next_pass_start(now=90, prev_start=100, prev_rows=1, preload=True, array_rows=8) == 108
    assert next_pass_start(now=106, prev_start=100, prev_rows=8, preload=True, array_rows=8) == 114
    assert next_pass_start(now=150, prev_start=100, prev_rows=8, preload=True, array_rows=8) == 158
    assert next_pass_start(now=150, prev_start=100, prev_rows=8, preload=False, array_rows=8) == 150


@pytest.mark.parametrize("passes", [(8,), (1,), (8, 8, 1), (7, 7), (3, 2, 5)])
@pytest.mark.parametrize("array", [(8, 8), (16, 4)])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_closed_form_equals_a_replay(passes: tuple[int, ...], array: tuple[int, int], blocks: int) -> None:
    """Every pass queued at once: the replayed burst ends where `tile_busy_cycles` says."""
    rows, cols = array
    queue = [(streamed, index == 0) for _ in range(blocks) for index, streamed in enumerate(passes)]
    start = first_pass_start(0, rows)
    for (prev_rows, _), (_, preload) in pairwise(queue):
        start = next_pass_start(0, start, prev_rows, preload, rows)
    assert pass_finish(start, queue[-1][0], rows, cols) == tile_busy_cycles(blocks, passes, rows, cols)
