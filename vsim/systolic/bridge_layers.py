"""The layers that rules of `vsim.systolic.bridge` and `vsim.systolic.training_rules` make."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowering.ir import Tensor
from lowering.operators import Cost
from vsim.systolic.layers import MatrixLayer, VectorLayer
from vsim.systolic.operators import VectorOperator


def product(name: str, rows: int, inner: int, columns: int, products: int = 1) -> MatrixLayer:
    """So many independent products of (rows, inner) by (inner, columns)."""
    return MatrixLayer(name, "gemm", 1, 1, columns, inner, 1, 1, rows, groups=products)


def vector_layer(
    name: str, operator: str, result: Tensor, cost: Cost, loads: int, *, stores: int = 1, fused: bool = False
) -> VectorLayer:
    """An elementwise layer over the elements of ``result``; loads, stores: full-sized operands and results in DRAM."""
    # Without a window it does not matter where an element lies: pixels and tokens count as images.
    channels = result.shape[1] if len(result.shape) > 3 else result.shape[-1] if result.shape else 1
    costs = coefficients(cost, loads=loads, stores=stores)
    images = max(1, result.elements // channels)
    return VectorLayer(name, operator, 1, 1, channels, images, fused=fused, costs=costs)


def coefficients(cost: Cost, *, loads: int, stores: int = 1) -> VectorOperator:
    """An elementwise operator whose every operation occupies the unit for its latency."""
    divides = cost.get("div", 0) + cost.get("scalar_sqrt", 0) + cost.get("gelu", 0)
    exps = cost.get("exp", 0) + cost.get("gelu", 0)
    simple = sum(count for name, count in cost.items() if name not in ("div", "scalar_sqrt", "exp"))
    return VectorOperator(
        cycles=simple,
        divides=divides,
        exps=exps,
        tile_loads=loads,
        tile_stores=stores,
        fit_tiles=1,
        operations=simple,
    )


def is_full(tensor: Tensor, result: Tensor) -> bool:
    """Whether an operand has an element for every one of the result, and is no constant."""
    return not tensor.constant and tensor.elements >= result.elements


def square(kernel: Sequence[int], channels: int) -> tuple[int, int]:
    """Side of the kernel and channels under it; another shape becomes a 1x1 kernel over all of its elements."""
    if len(kernel) == 2 and kernel[0] == kernel[1]:
        return kernel[0], channels
    return 1, channels * math.prod(kernel)


def sides(spatial: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of an image of one to three dimensions."""
    return spatial[-1], math.prod(spatial[:-1])
