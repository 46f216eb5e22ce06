"""Attention of one request in ONNXim's language mode, faults included (`onnxim.md` section 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.onnxim.faults import NONE, Fault, Repairs
from lowering.onnxim.vector_time import VectorUnit
from lowering.program import LayerInfo

FULL_PRECISION_BYTES = 4
"""Bytes of an element behind the exponential."""


@dataclass(frozen=True)
class RequestAttention:
    """`queries` new tokens of a request attend to `keys` >= `queries` tokens. Addresses in bytes.

    width: features of a head; kv_heads divides heads.
    """

    name: str
    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    q: int
    k: int
    v: int
    y: int

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class _Tiling:
    """queries, keys: of a tile; parts: tiles along the queries of each key head; steps: along the keys."""

    queries: int
    keys: int
    parts: int
    steps: int


def emit_request_attention(
    builder: ProgramBuilder,
    hw: HwConfig,
    attention: RequestAttention,
    op: str,
    core_of: Callable[[int], int],
    repaired: Repairs = NONE,
) -> None:
    """Append the layer: for each key head and part of the queries one tile for each step along the keys.

    repaired: Q13 and Q14 count.
    Raises UserError for more query heads to a key head than key heads, and for tiles that do not fit.
    """
    a = attention
    right = Fault.Q14 in repaired
    if a.group > a.kv_heads and not right:
        raise UserError(f"{a.name}: ONNXim cannot share {a.kv_heads} key heads among {a.heads} query heads")
    tiling = _tiling(hw, a, FULL_PRECISION_BYTES if Fault.Q13 in repaired else hw.precision_bytes)
    macs = 2 * a.queries * a.keys * a.heads * a.width
    builder.begin_layer(LayerInfo(a.name, op, macs=macs, notes=(f"tile {tiling.queries} x {tiling.keys} tokens",)))
    for index in range(a.kv_heads * tiling.parts):
        for step in range(tiling.steps):
            # Sums are not carried from step to step: the original takes each tile for another operator (Q14).
            builder.begin_tile(core_of(index), accumulate=right and step > 0)
            _emit_tile(_Setting(builder, hw, a, tiling, right), index, step)
            builder.end_tile()
    builder.end_layer()


def _tiling(hw: HwConfig, a: RequestAttention, score_bytes: int) -> _Tiling:
    core, p = hw.core(0), hw.precision_bytes
    spad, acc = core.spad_kib * 1024 // 2, core.acc_kib * 1024 // 2
    query_bytes = a.group * a.width * p
    if query_bytes >= spad:
        raise UserError(f"{a.name}: one token's queries fill half of cores.spad_kib = {core.spad_kib}")
    steps = max(-(-a.keys * score_bytes // acc), -(-2 * a.keys * a.width * p // (spad - query_bytes)))
    if steps > 1:
        keys = -(-a.keys // steps)
        return _Tiling(1, keys, a.queries, -(-a.keys // keys))
    queries = min(
        a.queries, acc // ((a.keys * score_bytes + 8) * a.group), (spad - 2 * a.keys * a.width * p) // query_bytes
    )
    if queries < 1:
        raise UserError(f"{a.name}: the scores of {a.keys} keys do not fit half of cores.acc_kib = {core.acc_kib}")
    return _Tiling(queries, a.keys, -(-a.queries // queries), 1)


@dataclass(frozen=True)
class _Setting:
    builder: ProgramBuilder
    hw: HwConfig
    attention: RequestAttention
    tiling: _Tiling
    right: bool
    """Q14 repaired."""

    def rows(self, base: int, first: int, count: int) -> Descriptor:
        """`count` rows of one head's features, from row `first` on."""
        row_bytes = self.attention.width * self.hw.precision_bytes
        return Descriptor.contiguous(base + first * row_bytes, count * row_bytes, self.hw.dram.request_bytes)


def _emit_tile(setting: _Setting, index: int, step: int) -> None:
    """Scratchpad entries: keys, queries of every head, values. Accumulators: scores of every head, then row values.

    Repaired, results of every head come after those.
    """
    a, tiling, builder = setting.attention, setting.tiling, setting.builder
    head = index // tiling.parts * a.group
    part = index % tiling.parts
    keys = min(tiling.keys, a.keys - step * tiling.keys)
    queries = min(tiling.queries, a.queries - part * tiling.queries)
    # The index of the key head is wrong, and every step starts over with the first key (Q14).
    first_key = head // a.kv_heads * a.keys
    if setting.right:
        first_key = index // tiling.parts * a.keys + step * tiling.keys
    builder.load(0, setting.rows(a.k, first_key, keys))
    for h in range(a.group):
        first_query = (head + h) * a.queries + part * tiling.queries
        builder.load(1 + h, setting.rows(a.q, first_query, queries))
    builder.load(1 + a.group, setting.rows(a.v, first_key, keys))
    _products(setting, Operand(1, (0, 0, 1)), Operand(0), 0, (queries, keys))
    for h in range(a.group):
        _softmax(setting, h, (queries, keys))
    # The result replaces the scores, which are an operand too: products of a head wait for each other (Q14).
    results = 2 * a.group if setting.right else 0
    _products(setting, Operand(0, (0, 0, 1), acc=True), Operand(1 + a.group), results, (queries, keys))
    if step == tiling.steps - 1:
        for h in range(a.group):
            _finish(setting, h, head + h, part if setting.right else step)


def _products(setting: _Setting, src_a: Operand, src_b: Operand, dst: int, sizes: tuple[int, int]) -> None:
    """One pass for each block of keys, block of features and head; the first head's loads the weights.

    sizes: queries and keys of the tile; the original takes those of a full one.
    """
    a, side = setting.attention, setting.hw.core(0).rows
    queries, keys = sizes if setting.right else (setting.tiling.queries, setting.tiling.keys)
    blocks = -(-keys // side) * -(-a.width // side)
    setting.builder.systolic(
        dst=Operand(dst, (0, 0, 1), acc=True),
        src_a=src_a,
        src_b=src_b,
        counts=(blocks, 1, a.group),
        size1=Extent(queries),
        preload="first",
    )


def _vector(setting: _Setting, dst: int, src_a: int, src_b: int | None, cycles: int) -> None:
    other = None if src_b is None else Operand(src_b, acc=True)
    setting.builder.vector(
        dst=Operand(dst, acc=True), src_a=Operand(src_a, acc=True), src_b=other, size1=Extent(cycles)
    )


def _softmax(setting: _Setting, head: int, sizes: tuple[int, int]) -> None:
    """The online softmax of one head (FlashAttention): row maximum, difference, exponential, row sum, scaling."""
    unit, p, full = VectorUnit(setting.hw.core(0)), setting.hw.precision_bytes, FULL_PRECISION_BYTES
    queries, keys = sizes if setting.right else (setting.tiling.queries, setting.tiling.keys)
    scores, row = head, setting.attention.group + head
    _vector(setting, row, scores, None, unit.adder_tree(keys * p + 1, queries))
    _vector(setting, scores, scores, row, unit.elementwise("add", queries * (keys + 1) * p))
    _vector(setting, scores, scores, None, unit.elementwise("exp", queries * (keys + 1) * full))
    _vector(setting, row, scores, None, unit.adder_tree(keys * full, queries))
    _vector(setting, row, row, None, unit.elementwise("mac", queries * keys * full))
    _vector(setting, scores, row, None, unit.elementwise("div", queries * full))
    _vector(setting, scores, scores, row, unit.elementwise("mul", queries * keys * full))


def _finish(setting: _Setting, entry: int, head: int, part: int) -> None:
    """Divide by the row sums as if the tile held all queries, and store the queries of the part.

    The original takes the step along the keys for the part (Q14).
    """
    a, unit, full = setting.attention, VectorUnit(setting.hw.core(0)), FULL_PRECISION_BYTES
    row, first = a.group + entry, part * setting.tiling.queries
    count = min(setting.tiling.queries, a.queries - first)
    divided = count if setting.right else a.queries
    if setting.right:
        entry += 2 * a.group
    _vector(setting, entry, row, None, unit.elementwise("div", divided * full))
    _vector(setting, entry, entry, row, unit.elementwise("mul", divided * a.width * full))
    if count < 1:
        raise UserError(
            f"{a.name}: the keys take {setting.tiling.steps} tiles a head; ONNXim then stores nothing, which --compat "
            "onnxim does not cover"
        )
    head_bytes = a.width * setting.hw.precision_bytes
    rows = Descriptor.from_rows(
        a.y + (first * a.heads + head) * head_bytes,
        count,
        a.heads * head_bytes,
        head_bytes,
        setting.hw.dram.request_bytes,
    )
    setting.builder.store(entry, rows)
