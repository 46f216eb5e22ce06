"""Row-wise layers over tokens as ONNXim tiles them, faults included (`onnxim.md` section 4.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.onnxim.faults import NONE, Fault, Repairs
from lowering.onnxim.vector_time import VectorUnit
from lowering.program import LayerInfo

PlaceTile = Callable[[], int]
"""The core of the next tile that is not bound to one."""


@dataclass(frozen=True)
class Tokens:
    """`batch` times `tokens` rows of `features` elements; addresses of operands and result in bytes.

    other: the second operand: the residual of a SkipLayerNormalization, the bias otherwise (None: there is none).
    constants: rows of `features` elements that a normalisation has besides: scale, shift, bias.
    """

    name: str
    batch: int
    tokens: int
    features: int
    x: int
    other: int | None
    y: int
    constants: tuple[int, ...] = ()


def emit_skip_layer_norm(
    builder: ProgramBuilder, hw: HwConfig, rows: Tokens, op: str, place: PlaceTile, repaired: Repairs = NONE
) -> None:
    """Normalise and add, in that order. The result overwrites the first operand; scale and shift are not read (Q5).

    repaired: Q5 counts.
    """
    if rows.other is None:
        raise ValueError(f"node {rows.name}: no second operand")
    if Fault.Q5 in repaired:
        _emit_true_norm(builder, hw, rows, rows.other, op, place)
        return
    per_tile = _tokens_per_tile(hw, rows, _half_spad(hw) // (2 * rows.features * hw.precision_bytes))
    per_tile = _balanced(hw, rows, per_tile)
    builder.begin_layer(LayerInfo(rows.name, op, notes=(f"{per_tile} tokens a tile",)))
    for first, count in _slices(rows, per_tile):
        builder.begin_tile(place())
        builder.load(0, _lines(hw, rows.x, first, count, rows.features))
        builder.load(1, _lines(hw, rows.other, first, count, rows.features))
        _vector(builder, VectorUnit(hw.core(0)).layer_norm())
        _vector(builder, 0, second=1)
        builder.store(0, _lines(hw, rows.x, first, count, rows.features), acc=False)
        builder.end_tile()
    builder.end_layer()


def _emit_true_norm(builder: ProgramBuilder, hw: HwConfig, rows: Tokens, other: int, op: str, place: PlaceTile) -> None:
    """Add, then normalise every row; scale, shift and bias are read; the result goes to its own place."""
    unit, line_bytes = VectorUnit(hw.core(0)), rows.features * hw.precision_bytes
    most = (_half_spad(hw) - len(rows.constants) * line_bytes) // (2 * line_bytes)
    per_tile = _balanced(hw, rows, _tokens_per_tile(hw, rows, most))
    builder.begin_layer(LayerInfo(rows.name, op, notes=(f"{per_tile} tokens a tile",)))
    for first, count in _slices(rows, per_tile):
        builder.begin_tile(place())
        builder.load(0, _lines(hw, rows.x, first, count, rows.features))
        builder.load(1, _lines(hw, other, first, count, rows.features))
        for index, base in enumerate(rows.constants):
            builder.load(2 + index, _lines(hw, base, 0, 1, rows.features))
        _vector(builder, unit.elementwise("add", count * line_bytes), second=1)
        for index in range(len(rows.constants)):
            # Scale and shift are part of the formula below; this waits for them, and a bias is an addition more.
            _vector(builder, unit.elementwise("add", count * line_bytes) if index == 2 else 0, second=2 + index)
        _vector(builder, unit.layer_norm_rows(line_bytes, count))
        builder.store(0, _lines(hw, rows.y, first, count, rows.features), acc=False)
        builder.end_tile()
    builder.end_layer()


def emit_bias_activation(
    builder: ProgramBuilder,
    hw: HwConfig,
    rows: Tokens,
    activation: str,
    op: str,
    place: PlaceTile,
    *,
    balanced: bool = False,
    gated: bool = False,
    repaired: Repairs = NONE,
) -> None:
    """Add a bias, if there is one, and apply an activation ("gelu" or "comp").

    balanced: cut into at least two tiles a core. gated: half of the features gate the other half, but the store is as
    large as the input (Q15). repaired: Q15 counts.
    """
    unit = VectorUnit(hw.core(0))
    line_bytes = rows.features * hw.precision_bytes
    per_tile = _tokens_per_tile(hw, rows, _half_spad(hw) // line_bytes - 1)
    if balanced:
        per_tile = _balanced(hw, rows, per_tile)
    builder.begin_layer(LayerInfo(rows.name, op, notes=(f"{per_tile} tokens a tile",)))
    # The bias is read from one tensor size beyond its place.
    bias = None if rows.other is None else _lines(hw, rows.other, rows.tokens, 1, rows.features)
    stored = rows.features // 2 if gated and Fault.Q15 in repaired else rows.features
    for first, count in _slices(rows, per_tile):
        builder.begin_tile(place())
        builder.load(0, _lines(hw, rows.x, first, count, rows.features))
        if bias is not None:
            builder.load(1, bias)
            _vector(builder, unit.elementwise("add", count * line_bytes), second=1)
        activated = count * (line_bytes // 2 if gated else line_bytes)
        _vector(builder, unit.elementwise(activation, activated))
        if gated:
            _vector(builder, unit.elementwise("mul", activated))
        builder.store(0, _lines(hw, rows.y, first, count, stored), acc=False)
        builder.end_tile()
    builder.end_layer()


def _half_spad(hw: HwConfig) -> int:
    return hw.core(0).spad_kib * 1024 // 2


def _tokens_per_tile(hw: HwConfig, rows: Tokens, most: int) -> int:
    if most < 1:
        raise UserError(
            f"node {rows.name}: a row of {rows.features} elements does not fit half a scratchpad "
            f"(cores.spad_kib = {hw.core(0).spad_kib})"
        )
    return min(most, rows.tokens * rows.batch)


def _balanced(hw: HwConfig, rows: Tokens, per_tile: int) -> int:
    """Fewer tokens a tile when there would be less than two tiles a core. Tokens of one batch element count."""
    tiles = 2 * hw.cores.count
    return -(-rows.tokens // tiles) if -(-rows.tokens // per_tile) < tiles else per_tile


def _slices(rows: Tokens, per_tile: int) -> list[tuple[int, int]]:
    total = rows.tokens * rows.batch
    return [(first, min(per_tile, total - first)) for first in range(0, total, per_tile)]


def _lines(hw: HwConfig, base: int, first: int, count: int, features: int) -> Descriptor:
    """The requests of `count` lines from line `first` on: one for every request size from their first byte on."""
    line_bytes = features * hw.precision_bytes
    request_bytes = hw.dram.request_bytes
    return Descriptor((base + first * line_bytes) // request_bytes, -(-count * line_bytes // request_bytes))


def _vector(builder: ProgramBuilder, cycles: int, second: int | None = None) -> None:
    """An operation on scratchpad entry 0, in place, with entry `second` as its other operand."""
    other = None if second is None else Operand(second)
    builder.vector(dst=Operand(0), src_a=Operand(0), src_b=other, size1=Extent(cycles))
