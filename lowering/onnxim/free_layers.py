"""What the operators that ONNXim runs for free cost where Q12 is repaired: operands in, vector unit, result out.

Every operator by itself: nothing is fused. Tiles are contiguous ranges of the result with the same share of every
operand; operands smaller than the result (a bias) are loaded whole by every tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.onnxim.vector_time import VectorUnit
from lowering.program import LayerInfo

VIEWS = frozenset({"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
"""Operators that move and compute nothing."""
MOVES = frozenset({"Concat", "Expand", "Gather", "KVCacheConcat", "Pad", "ReorderInput", "ReorderOutput"})
MOVES |= {"Slice", "Split", "Transpose"}
"""Operators that only move data."""
_FUNCTIONS = {
    "Div": "div", "Erf": "gelu", "Exp": "exp", "Gelu": "gelu", "MaxPool": "comp", "Mul": "mul", "Relu": "comp",
    "Sigmoid": "exp", "Tanh": "exp",
}  # fmt: skip
"""Vector operation of an operator; "add" where not listed."""


@dataclass(frozen=True)
class FreeLayer:
    """sources: (address, bytes) of the operands; target: of the result.

    window: operands of one result element of a pool. row_bytes: of a row that a softmax or normalisation reduces.
    """

    name: str
    op: str
    sources: tuple[tuple[int, int], ...]
    target: tuple[int, int]
    window: int = 1
    row_bytes: int = 0


def emit_free_layer(builder: ProgramBuilder, hw: HwConfig, layer: FreeLayer, place: Callable[[], int]) -> None:
    """Append the layer, in at least two tiles a core where it is large enough. Raises UserError for what cannot fit."""
    request, half = hw.dram.request_bytes, hw.core(0).spad_kib * 1024 // 2
    size = layer.target[1]
    whole = sum(n_bytes for _, n_bytes in layer.sources if n_bytes < size)
    shared = sum(n_bytes for _, n_bytes in layer.sources if n_bytes >= size) + size
    if whole + request * (len(layer.sources) + 1) > half:
        raise UserError(f"node {layer.name}: its operands do not fit half of cores.spad_kib = {hw.core(0).spad_kib}")
    count = max(-(-shared // (half - whole)), min(2 * hw.cores.count, -(-size // request)))
    unit = layer.row_bytes or request
    step = max(-(-size // count) // unit, 1) * unit
    builder.begin_layer(LayerInfo(layer.name, layer.op, notes=("free in the original (Q12)",)))
    for first in range(0, size, step):
        end = min(first + step, size)
        builder.begin_tile(place())
        for index, (base, n_bytes) in enumerate(layer.sources):
            low, high = (0, n_bytes) if n_bytes < size else (first * n_bytes // size, end * n_bytes // size)
            builder.load(1 + index, Descriptor.contiguous(base + low, high - low, request))
        _compute(builder, VectorUnit(hw.core(0)), layer, end - first)
        builder.store(0, Descriptor.contiguous(layer.target[0] + first, end - first, request), acc=False)
        builder.end_tile()
    builder.end_layer()


def _compute(builder: ProgramBuilder, unit: VectorUnit, layer: FreeLayer, n_bytes: int) -> None:
    """One operation an operand, which waits for it; the first has the cost of the operator itself."""
    for index in range(len(layer.sources)):
        cycles = _cycles(unit, layer, n_bytes) if index == max(len(layer.sources) - 1, 0) else 0
        first, second = (Operand(0), Operand(1 + index)) if index else (Operand(1), None)
        builder.vector(dst=Operand(0), src_a=first, src_b=second, size1=Extent(cycles))


def _cycles(unit: VectorUnit, layer: FreeLayer, n_bytes: int) -> int:
    if layer.op in MOVES:
        return 0
    if layer.row_bytes:
        rows = max(n_bytes // layer.row_bytes, 1)
        if layer.op == "Softmax":
            return unit.softmax(layer.row_bytes, rows, elementwise_rows=rows)
        added = (len(layer.sources) - 1) * unit.elementwise("add", n_bytes)
        return added + unit.layer_norm_rows(layer.row_bytes, rows)
    operands = max(layer.window, len(layer.sources) - 1)
    return operands * unit.elementwise(_FUNCTIONS.get(layer.op, "add"), n_bytes)
