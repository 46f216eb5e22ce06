"""Tile sizes from a file: the layer's own line is followed, and a file that does not fit is one clear error."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwconfigs import load_hw
from hwconfigs.schema import HwConfig
from lowering import MappingError, MappingTable, Program, lower
from lowering.chip import Chip
from lowering.emit import expand
from lowering.mapping_file import parse_entry, write_mapping_file
from lowering.mapping_table import shortest
from lowering.matmul import plan_matmul
from lowering.parts import Heuristic
from lowering.program import Op
from tests import models
from tests.sweep_results import save_model
from tests.unit.test_lowering_matmul import conv_shape, make_layer

MOBILE = load_hw("npu-mobile-8x8x4")
LARGE_CORE = {"rows": 16, "cols": 16, "spad_kib": 256, "acc_kib": 64}
MIXED = MOBILE.with_overrides({"cores.overrides": {0: LARGE_CORE}})


def same(one: Program, other: Program) -> bool:
    tables = ("rows", "tiles", "schedule", "pattern")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in tables)


@pytest.mark.parametrize(("hw", "model"), [(MOBILE, "shufflenet"), (MIXED, "squeezenet")], ids=["equal", "mixed"])
def test_a_written_mapping_gives_the_program_that_it_describes(tmp_path: Path, hw: HwConfig, model: str):
    program = lower(f"onnx:light_{model}", hw)
    lines = [line for layer in program.layers for line in layer.mapping]
    entries = shortest(lines)
    assert len(entries) < len(lines) or hw is MIXED
    write_mapping_file(tmp_path / "m.mapping", entries)
    again = lower(f"onnx:light_{model}", hw, mapping=MappingTable.read(tmp_path / "m.mapping"))
    assert same(program, again)


def product(tmp_path: Path, *lines: str, hw: HwConfig = MOBILE) -> Program:
    """A product of 64 x 128 by 128 x 96, named mm, with these lines."""
    save_model(models.mm(64, 128, 96), tmp_path / "mm.onnx")
    table = MappingTable("file", tuple(parse_entry(line, f"file:{n}") for n, line in enumerate(lines, start=1)))
    return lower(tmp_path / "mm.onnx", hw, mapping=table)


TOTAL = "N64 C128 M96"


def test_lines_by_size_and_by_name(tmp_path: Path):
    by_size = f"[T] {TOTAL} - [O] N4 C2 M3 - [I] N16 C64 M32"
    assert len(product(tmp_path, by_size).tiles) == 4 * 2 * 3
    # The last line of a size counts, as in ONNXim, and one with the layer's name before those.
    assert len(product(tmp_path, by_size, f"[T] {TOTAL} - [O] N8 C2 M3 - [I] N8 C64 M32").tiles) == 8 * 2 * 3
    assert len(product(tmp_path, f"[T:mm] {TOTAL} - [O] N2 C2 M3 - [I] N32 C64 M32", by_size).tiles) == 2 * 2 * 3


def test_lines_for_single_cores(tmp_path: Path):
    program = product(
        tmp_path,
        "[T:mm@2] N48 C128 M96 - [O] N3 C2 M3 - [I] N16 C64 M32",
        "[T:mm@0,1] N16 C128 M96 - [O] N2 C4 M3 - [I] N8 C32 M32",
    )
    tiles = np.diff(program.schedule[0], axis=1).ravel()
    assert tiles.tolist() == [12, 12, 18, 0]
    stored = [block for tile in expand(program) for i in tile.instructions if i.op is Op.STORE for block in i.blocks]
    assert len(stored) == len(set(stored)) == 64 * 96 * 2 // 64, "every output is stored once"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"layer mm \(MatMul\): file has no line for it, N64 C128 M96"),
        (["[T] N64 C128 M95 - [O] M95 N64 C128 - [I] N1"], r"layer mm \(MatMul\): file has no line for it"),
        (
            ["[T:mm] N32 C128 M96 - [O] N2 C2 M3 - [I] N16 C64 M32"],
            r"layer mm \(MatMul\): file has no line for it",
        ),
        (
            [f"[T] {TOTAL} - [O] N3 C2 M3 - [I] N16 C64 M32"],
            r"layer mm \(MatMul\): file:1: 3 tiles of N16 do not cover",
        ),
        (
            [f"[T] {TOTAL} - [O] N1 C1 M1 - [I] {TOTAL}"],
            r"layer mm \(MatMul\): file:1: a tile needs 40960 bytes of scratchpad, half of them is 32768",
        ),
        (
            ["[T:mm@0] N32 C128 M96 - [O] N2 C2 M3 - [I] N16 C64 M32"],
            r"file:1: the \[T\] of its lines for single cores",
        ),
        (
            ["[T:mm@0] N32 C128 M96 - [O] N2 C2 M3 - [I] N16 C64 M32"] * 2,
            "file:1: its lines must name different cores, each of 0 to 3",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_one_error(tmp_path: Path, lines: list[str], message: str):
    with pytest.raises(MappingError, match=message):
        product(tmp_path, *lines)


def test_ranks_are_distinct_tilings_in_order_of_price():
    chip = Chip.of(MOBILE)
    layer, _ = make_layer(conv_shape(64, 64, 28, kernel=3, pad=1), chip)
    tilings = [plan_matmul(layer, chip, Heuristic(rank)).parts[0].mapping for rank in range(6)]
    assert tilings[0] == plan_matmul(layer, chip).parts[0].mapping
    counts = {
        (math.ceil(28 / t.P), math.ceil(28 / t.Q), math.ceil(64 / t.M), math.ceil(64 / t.C), t.S) for t in tilings
    }
    assert len(counts) == 6


def test_each_kind_of_core_has_its_own_tiles_and_a_fair_part():
    """One 16 x 16 core beside three 8 x 8 ones: all busy about as long, and the large one's tiles are larger."""
    chip = Chip.of(MIXED)
    layer, _ = make_layer(conv_shape(256, 64, 16), replace(chip, request_bytes=32))
    plan = plan_matmul(layer, chip)
    assert [part.cores for part in plan.parts] == [(0,), (1, 2, 3)]
    large, small = plan.parts
    assert large.mapping != small.mapping
    assert (large.axis, small.start, large.length + small.length) == (small.axis, large.length, 16)
    assert 0.4 < large.length / 16 < 0.7, "the large core has 4 of 7 parts of the multipliers"
