"""What each operator costs on the vector unit. The companion text is OPERATORS.md.

A cost counts vector operations for each element, by the latencies of `OpLatency`; a comparison or a selection
counts as an addition, as in ONNXim's COMP. One operation covers U = vector_bits / 8 bytes of elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hwconfigs.schema import CoreConfig

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
}
"""One computed operand; PRelu's slopes are constants."""

BINARY: dict[str, Cost] = {
    "Add": {"add": 1},
    "Sum": {"add": 1},
    "Sub": {"add": 1},
    "Mul": {"mul": 1},
    "Div": {"div": 1},
    "Max": {"add": 1},
    "Min": {"add": 1},
}
"""Elementwise operators of two or more operands, with broadcasting."""

AFFINE = frozenset({"Add", "Sum", "Sub", "Mul", "Div"})
"""With a constant for each channel these fold into the weights and the bias of the layer before."""

AFFINE_COST: Cost = {"mac": 1}
"""BatchNormalization on its own: one multiply-add with a scale and a shift of each channel."""

MATRIX = frozenset({"Conv", "Gemm", "MatMul"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


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


def tree_passes(n_bytes: int, unit_bytes: int) -> int:
    """Passes of a reduction tree that takes `unit_bytes` >= 2 bytes at a time down to one result."""
    passes = 0
    while n_bytes > unit_bytes:
        n_bytes = math.ceil(n_bytes / unit_bytes)
        passes += n_bytes
    return passes + 1
