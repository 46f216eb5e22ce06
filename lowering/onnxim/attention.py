"""The fused Attention node as ONNXim runs it, faults included (`onnxim.md` section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.onnxim.faults import NONE, Fault, Repairs
from lowering.onnxim.token_rows import PlaceTile
from lowering.onnxim.vector_time import VectorUnit
from lowering.program import LayerInfo

_KEYS, _VALUES, _QUERIES = range(3)
"""Scratchpad entries."""
_LOGITS = Operand(0, acc=True)
_RESULTS = Operand(1, acc=True)
SUM_BYTES = 4
"""Bytes of an element in the accumulators."""


@dataclass(frozen=True)
class Attention:
    """`heads` heads of `width` features: `queries` rows attend to `keys` rows. Addresses in bytes.

    q, k, v: those of the node's first three inputs, which are not the projections (Q6). projections: that of the matrix
    [batch x queries, 3 x heads x width] of queries, keys and values. past: of the cache [2, batch, heads, past, width],
    None where there is none.
    """

    name: str
    batch: int
    heads: int
    width: int
    queries: int
    keys: int
    q: int
    k: int
    v: int
    y: int
    projections: int = 0
    past: int | None = None


def emit_attention(
    builder: ProgramBuilder,
    hw: HwConfig,
    attention: Attention,
    op: str,
    place: PlaceTile,
    repaired: Repairs = NONE,
) -> None:
    """One tile a head, which holds all of its operands; every head reads the keys and values of head 0 (Q6).

    repaired: Q6 and Q13 count. With Q13, a tile has no more queries of its head than accumulators for their scores.
    Raises UserError when the operands of a head do not fit.
    """
    _check_capacity(hw, attention, repaired)
    if repaired & {Fault.Q6, Fault.Q13}:
        _emit_parts(builder, hw, attention, op, place, repaired)
        return
    a, p = attention, hw.precision_bytes
    unit, side = VectorUnit(hw.core(0)), hw.core(0).rows
    scores = -(-a.queries // side) * a.keys
    weighted = a.queries * a.width
    macs = 2 * a.batch * a.heads * a.queries * a.keys * a.width
    cycles = a.batch * a.heads * (max(scores, 4) + max(weighted, 4))
    builder.begin_layer(LayerInfo(a.name, op, macs=macs, systolic_cycles=cycles, notes=("one tile a head",)))
    for head in range(a.batch * a.heads):
        first = head % a.heads * a.queries
        builder.begin_tile(place())
        builder.load(_KEYS, _rows(hw, a, a.k, 0, a.keys))
        builder.load(_VALUES, _rows(hw, a, a.v, 0, a.keys))
        builder.load(_QUERIES, _rows(hw, a, a.q, first, a.queries))
        builder.systolic(
            dst=_LOGITS, src_a=Operand(_QUERIES), src_b=Operand(_KEYS), size1=Extent(scores), preload="none"
        )
        builder.vector(dst=_LOGITS, src_a=_LOGITS, size1=Extent(unit.softmax(a.keys * p, a.queries)))
        builder.systolic(dst=_LOGITS, src_a=_LOGITS, src_b=Operand(_VALUES), size1=Extent(weighted), preload="none")
        builder.store(_LOGITS.entry, _rows(hw, a, a.y, first, a.queries))
        builder.end_tile()
    builder.end_layer()


def _rows(hw: HwConfig, a: Attention, base: int, row: int, rows: int) -> Descriptor:
    """Rows of one head as the original expects them, one behind the other."""
    line = a.width * hw.precision_bytes
    return Descriptor.contiguous(base + row * line, rows * line, hw.dram.request_bytes)


def _emit_parts(
    builder: ProgramBuilder, hw: HwConfig, a: Attention, op: str, place: PlaceTile, repaired: Repairs
) -> None:
    """The heads cut along their queries."""
    right = Fault.Q6 in repaired
    most = _queries_per_tile(hw, a, repaired)
    parts = [(first, min(most, a.queries - first)) for first in range(0, a.queries, most)]
    sizes = [_pass_rows(hw, a, count, right) for _, count in parts]
    cycles = sum(passes * max(rows, 4) for pair in sizes for passes, rows in pair) * a.batch * a.heads
    macs = 2 * a.batch * a.heads * a.queries * a.keys * a.width
    notes = (f"{most} queries of a head a tile",)
    builder.begin_layer(LayerInfo(a.name, op, macs=macs, systolic_cycles=cycles, notes=notes))
    for head in range(a.batch * a.heads):
        for (first, count), (scores, weighted) in zip(parts, sizes, strict=True):
            builder.begin_tile(place())
            _load_part(builder, hw, a, head, first, count, right)
            _compute_part(builder, hw, a, count, scores, weighted, right)
            if right:
                builder.store(_RESULTS.entry, _own_rows(hw, a, a.y, 1, head, first, count, 0))
            else:
                builder.store(_LOGITS.entry, _rows(hw, a, a.y, head % a.heads * a.queries + first, count))
            builder.end_tile()
    builder.end_layer()


def _queries_per_tile(hw: HwConfig, a: Attention, repaired: Repairs) -> int:
    if Fault.Q13 not in repaired:
        return a.queries
    of_one = (a.keys + (a.width if Fault.Q6 in repaired else 0)) * SUM_BYTES
    fit = hw.core(0).acc_kib * 1024 // 2 // of_one
    if fit < 1:
        raise UserError(
            f"node {a.name}: the scores of one query with {a.keys} keys exceed half of cores.acc_kib = "
            f"{hw.core(0).acc_kib}"
        )
    return min(fit, a.queries)


def _pass_rows(hw: HwConfig, a: Attention, queries: int, right: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """(passes, rows of each) of the scores and of the weighted values of a tile."""
    side = hw.core(0).rows
    if not right:
        return (1, -(-queries // side) * a.keys), (1, queries * a.width)
    blocks = -(-a.keys // side) * -(-a.width // side)
    return (blocks, queries), (blocks, queries)


def _load_part(
    builder: ProgramBuilder, hw: HwConfig, a: Attention, head: int, first: int, count: int, right: bool
) -> None:
    """Keys, values and the part's queries; of a cache, the old keys and values first."""
    if not right:
        builder.load(_KEYS, _rows(hw, a, a.k, 0, a.keys))
        builder.load(_VALUES, _rows(hw, a, a.v, 0, a.keys))
        builder.load(_QUERIES, _rows(hw, a, a.q, head % a.heads * a.queries + first, count))
        return
    old = a.keys - a.queries
    for index, entry in enumerate((_KEYS, _VALUES)):
        new = _own_rows(hw, a, a.projections, 3, head, 0, a.queries, 1 + index)
        builder.load(entry, new)
        if a.past is not None and old:
            cached = _rows(hw, a, a.past, (index * a.batch * a.heads + head) * old, old)
            builder.load(_QUERIES + 1 + index, cached)
    builder.load(_QUERIES, _own_rows(hw, a, a.projections, 3, head, first, count, 0))


def _own_rows(
    hw: HwConfig, a: Attention, base: int, parts: int, head: int, first: int, count: int, part: int
) -> Descriptor:
    """Rows of one head in a matrix [batch x queries, parts x heads x width], of its column group `part`."""
    line = a.width * hw.precision_bytes
    row = head // a.heads * a.queries + first
    start = base + ((row * parts + part) * a.heads + head % a.heads) * line
    return Descriptor.from_rows(start, count, parts * a.heads * line, line, hw.dram.request_bytes)


def _compute_part(
    builder: ProgramBuilder,
    hw: HwConfig,
    a: Attention,
    queries: int,
    scores: tuple[int, int],
    weighted: tuple[int, int],
    right: bool,
) -> None:
    """Scores, softmax, and the weighted sum of the values, whose blocks are the stationary weights in turn."""
    softmax = VectorUnit(hw.core(0)).softmax(
        a.keys * hw.precision_bytes, queries, elementwise_rows=queries if right else 1
    )
    cached = right and a.past is not None and a.keys > a.queries
    steps = (
        (_LOGITS, Operand(_QUERIES), _KEYS, scores),
        (_RESULTS if right else _LOGITS, _LOGITS, _VALUES, weighted),
    )
    for index, (dst, src_a, entry, (passes, rows)) in enumerate(steps):
        if index:
            builder.vector(dst=_LOGITS, src_a=_LOGITS, size1=Extent(softmax))
        if cached:
            # Passes wait for the old rows too, which lie in an entry of their own.
            builder.vector(dst=Operand(entry), src_a=Operand(_QUERIES + 1 + index), size1=Extent(0))
        builder.systolic(
            dst=dst,
            src_a=src_a,
            src_b=Operand(entry),
            counts=(passes, 1, 1),
            size1=Extent(rows),
            preload="all" if right else "none",
        )


def _check_capacity(hw: HwConfig, a: Attention, repaired: Repairs) -> None:
    core, p = hw.core(0), hw.precision_bytes
    operands, logits = (2 * a.keys + a.queries) * a.width * p, a.queries * a.keys * p
    if Fault.Q13 in repaired:
        logits = 0
    for needed, kib, key in ((operands, core.spad_kib, "spad_kib"), (logits, core.acc_kib, "acc_kib")):
        if needed > kib * 1024 // 2:
            raise UserError(
                f"node {a.name}: one head needs {needed} bytes, more than half of cores.{key} = {kib}; "
                "ONNXim keeps whole heads on chip"
            )
