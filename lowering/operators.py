"""What each operator costs on the vector unit. The companion text is OPERATORS.md.

A cost counts vector operations for each element, by the latencies of `OpLatency`; a comparison or a selection
counts as an addition, as in ONNXim's COMP. One operation covers U = vector_bits / 8 bytes of elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hwconfigs.schema import CoreConfig
from lowering.ir import Node
from lowering.training.costs import ELEMENTWISE

Cost = Mapping[str, int]
"""Operations for each element, by field of `OpLatency`."""

UNARY: dict[str, Cost] = {
    "Relu": {"add": 1},
    "Clip": {"add": 2},
    "LeakyRelu": {"mul": 1, "add": 1},
    "PRelu": {"mul": 1, "add": 1},
    "ThresholdedRelu": {"add": 1},
    "Sigmoid": {"exp": 1, "add": 1, "div": 1},
    "HardSigmoid": {"mac": 1, "add": 2},
    "HardSwish": {"mac": 1, "add": 2, "mul": 1},
    "Tanh": {"exp": 1, "add": 2, "div": 1},
    "Gelu": {"gelu": 1},
    "QuickGelu": {"mul": 2, "exp": 1, "add": 1, "div": 1},
    "Swish": {"mul": 1, "exp": 1, "add": 1, "div": 1},
    "Softsign": {"add": 2, "div": 1},
    "Shrink": {"add": 3},
    "Erf": {"exp": 1, "mac": 5, "div": 1},
    "Elu": {"exp": 1, "add": 2, "mul": 1},
    "Celu": {"exp": 1, "add": 2, "mul": 2},
    "Selu": {"exp": 1, "add": 2, "mul": 2},
    "Softplus": {"exp": 2, "add": 1},
    "Mish": {"exp": 3, "add": 3, "div": 1, "mul": 1},
    "Exp": {"exp": 1},
    "Neg": {"add": 1},
    "Abs": {"add": 1},
    "Reciprocal": {"div": 1},
    "Sqrt": {"scalar_sqrt": 1},
    "Log": {"exp": 1},
    "Sin": {"mac": 8},
    "Cos": {"mac": 8},
    "Tan": {"mac": 16, "div": 1},
    "Asin": {"mac": 5, "scalar_sqrt": 1},
    "Acos": {"mac": 5, "scalar_sqrt": 1},
    "Atan": {"mac": 8, "div": 1},
    "Sinh": {"exp": 2, "add": 1, "mul": 1},
    "Cosh": {"exp": 2, "add": 1, "mul": 1},
    "Asinh": {"mac": 1, "scalar_sqrt": 1, "add": 1, "exp": 1},
    "Acosh": {"mac": 1, "scalar_sqrt": 1, "add": 1, "exp": 1},
    "Atanh": {"add": 2, "div": 1, "exp": 1, "mul": 1},
    "Floor": {"add": 1},
    "Ceil": {"add": 1},
    "Round": {"add": 1},
    "Sign": {"add": 1},
    "Not": {"add": 1},
    "BitwiseNot": {"add": 1},
    "IsNaN": {"add": 1},
    "IsInf": {"add": 1},
    "Trilu": {"add": 1},
    "QuantizeLinear": {"mac": 1, "add": 3},
    "DequantizeLinear": {"add": 1, "mul": 1},
}
"""One computed operand; PRelu's slopes and the scales of quantisation are constants.

A logarithm takes as long as an exponential, sine and cosine a range reduction and an odd polynomial of degree 13
(8 mac); rounding, comparing and selecting count as additions. QuantizeLinear: scale and shift, round, two clips.
"""

BINARY: dict[str, Cost] = {
    "Add": {"add": 1},
    "Sum": {"add": 1},
    "Sub": {"add": 1},
    "Mul": {"mul": 1},
    "Div": {"div": 1},
    "Max": {"add": 1},
    "Min": {"add": 1},
    "Mean": {"mac": 1},
    "Pow": {"exp": 2, "mul": 1},
    "Mod": {"div": 1, "add": 1, "mac": 1},
    "BitShift": {"add": 1},
    "Where": {"add": 1},
    **{
        name: {"add": 1}
        for name in (
            *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
            *("And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
        )
    },
    **ELEMENTWISE,
}
"""Elementwise operators of two or more operands, with broadcasting; the cost is for each operand beyond the first.

Pow is exp(y log x); `elementwise_cost` knows the cheap constant exponents. Where takes one selection for each of its
two branches.
"""

_POWERS: dict[float, Cost] = {
    0.5: {"scalar_sqrt": 1},
    -0.5: {"scalar_sqrt": 1, "div": 1},
    -1.0: {"div": 1},
    1.0: {"add": 1},
    2.0: {"mul": 1},
    3.0: {"mul": 2},
    4.0: {"mul": 2},
}

AFFINE = frozenset({"Add", "Sum", "Sub", "Mul", "Div"})
"""With a constant for each channel these fold into the weights and the bias of the layer before."""

AFFINE_COST: Cost = {"mac": 1}
"""BatchNormalization on its own: one multiply-add with a scale and a shift of each channel."""

MATRIX = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def elementwise_cost(node: Node) -> Cost:
    """Operations for each element of an elementwise operator."""
    if node.op == "BatchNormalization":
        return AFFINE_COST
    if node.op in UNARY:
        return UNARY[node.op]
    exponent = node.numbers(1) if node.op == "Pow" else None
    if exponent is not None and len(exponent) == 1 and exponent[0] in _POWERS:
        return _POWERS[exponent[0]]
    return {name: count * max(1, len(node.inputs) - 1) for name, count in BINARY[node.op].items()}


def latency(cost: Cost, core: CoreConfig) -> int:
    """Vector cycles for each U bytes of elements."""
    return sum(count * getattr(core.latency, name) for name, count in cost.items())


def add_costs(*costs: Cost) -> Cost:
    """The operations of several costs together."""
    total: dict[str, int] = {}
    for cost in costs:
        for name, count in cost.items():
            total[name] = total.get(name, 0) + count
    return total


def times(cost: Cost, elements: int) -> dict[str, int]:
    """The operations on single elements that `cost` is for `elements` of them."""
    return {name: count * elements for name, count in cost.items()}


def lrn_cost(size: int) -> Cost:
    """LRN over `size` neighbouring channels: squares, window sum, scale and shift, power (log, mul, exp), division."""
    return {"mul": 2, "add": size - 1, "mac": 1, "exp": 2, "div": 1}


def softmax_row_cycles(row_bytes: int, core: CoreConfig) -> int:
    """Cycles of softmax over one row of `row_bytes` bytes; the caller multiplies by the rows.

    Maximum and sum by adder trees, then subtract, exponential and multiply over the row, and the reciprocal of the
    sum once: ONNXim's formula (`onnxim.md` 2.6) with the reciprocal added.
    """
    units = core.vector_bits // 8
    passes = math.ceil(row_bytes / units)
    table = core.latency
    return 2 * tree_passes(row_bytes, units) * table.add_tree + passes * (table.add + table.exp + table.mul) + table.div


def softmax_operations(rows: int, elements: int) -> Cost:
    """The same for `elements` elements in `rows` rows as operations on single elements; a tree adds each once."""
    return {"add": 3 * elements, "exp": elements, "mul": elements, "div": rows}


def tree_passes(n_bytes: int, unit_bytes: int) -> int:
    """Passes of a reduction tree that takes `unit_bytes` >= 2 bytes at a time down to one result."""
    passes = 0
    while n_bytes > unit_bytes:
        n_bytes = math.ceil(n_bytes / unit_bytes)
        passes += n_bytes
    return passes + 1
