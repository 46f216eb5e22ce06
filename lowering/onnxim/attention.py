"""The fused Attention node as ONNXim runs it, faults included (`onnxim.md` section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.onnxim.token_rows import PlaceTile
from lowering.onnxim.vector_time import VectorUnit
from lowering.program import LayerInfo

_KEYS, _VALUES, _QUERIES = range(3)
"""Scratchpad entries."""
_LOGITS = Operand(0, acc=True)


@dataclass(frozen=True)
class Attention:
    """`heads` heads of `width` features: `queries` rows attend to `keys` rows. Addresses in bytes.

    q, k, v: those of the node's first three inputs, which are not the projections (Q6).
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


def emit_attention(builder: ProgramBuilder, hw: HwConfig, attention: Attention, op: str, place: PlaceTile) -> None:
    """One tile a head, which holds all of its operands; every head reads the keys and values of head 0 (Q6).

    Raises UserError when the operands of a head do not fit.
    """
    _check_capacity(hw, attention)
    a, p = attention, hw.precision_bytes
    unit, side = VectorUnit(hw.core(0)), hw.core(0).rows

    def operand(base: int, row: int, rows: int) -> Descriptor:
        return Descriptor.contiguous(base + row * a.width * p, rows * a.width * p, hw.dram.request_bytes)

    scores = -(-a.queries // side) * a.keys
    weighted = a.queries * a.width
    macs = 2 * a.batch * a.heads * a.queries * a.keys * a.width
    cycles = a.batch * a.heads * (max(scores, 4) + max(weighted, 4))
    builder.begin_layer(LayerInfo(a.name, op, macs=macs, systolic_cycles=cycles, notes=("one tile a head",)))
    for head in range(a.batch * a.heads):
        first = head % a.heads * a.queries
        builder.begin_tile(place())
        builder.load(_KEYS, operand(a.k, 0, a.keys))
        builder.load(_VALUES, operand(a.v, 0, a.keys))
        builder.load(_QUERIES, operand(a.q, first, a.queries))
        builder.systolic(
            dst=_LOGITS, src_a=Operand(_QUERIES), src_b=Operand(_KEYS), size1=Extent(scores), preload="none"
        )
        builder.vector(dst=_LOGITS, src_a=_LOGITS, size1=Extent(unit.softmax(a.keys * p, a.queries)))
        builder.systolic(dst=_LOGITS, src_a=_LOGITS, src_b=Operand(_VALUES), size1=Extent(weighted), preload="none")
        builder.store(_LOGITS.entry, operand(a.y, first, a.queries))
        builder.end_tile()
    builder.end_layer()


def _check_capacity(hw: HwConfig, a: Attention) -> None:
    core, p = hw.core(0), hw.precision_bytes
    operands, logits = (2 * a.keys + a.queries) * a.width * p, a.queries * a.keys * p
    for needed, kib, key in ((operands, core.spad_kib, "spad_kib"), (logits, core.acc_kib, "acc_kib")):
        if needed > kib * 1024 // 2:
            raise UserError(
                f"node {a.name}: one head needs {needed} bytes, more than half of cores.{key} = {kib}; "
                "ONNXim keeps whole heads on chip"
            )
