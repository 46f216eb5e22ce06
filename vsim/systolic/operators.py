"""The operators of the vector unit, as one table of coefficients that a single formula reads.

Of SimDIT's cost of an operator (specs/systolic.md section 1.5) only the coefficients differ: instructions per output
element, per element of the pooling window and per channel; tiles loaded and stored; what has to fit in the memory.
An instruction after one whose result it reads costs two bubbles; the cycle counts contain them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True)
class VectorOperator:
    """Coefficients of one operator. "Tile" is the output tile, "window" the input tile of a pooling operator."""

    # Cycles of one vector of outputs.
    cycles: float = 0
    cycles_of_window: float = 0
    """Per element of the pooling window."""
    divides: float = 0
    exps: float = 0
    passes: float = 1
    """How often the pipeline fills in a tile."""
    # Cycles of one vector of channels, once for all tiles of these channels.
    channel_cycles: float = 0
    channel_divides: float = 0
    channel_rsqrts: float = 0
    # Tiles that move between DRAM and the vector memory, for each tile of work and for each tile of channels.
    tile_loads: float = 0
    window_loads: float = 0
    tile_stores: float = 0
    window_stores: float = 0
    channel_loads: float = 0
    channel_stores: float = 0
    # What must fit in one vector memory, in words: tiles of these kinds, and words of each lane.
    fit_tiles: float = 0
    fit_windows: float = 0
    fit_channels: float = 0
    fit_lanes: float = 0
    channel_share: float = 1
    """The channels of a tile may take this share of a vector memory."""
    batch_first: float = 0
    """1 where a tile grows over the batch before it grows over the channels."""
    whole_batch: float = 0
    """1 where every tile works on the whole batch, whatever part of it is loaded at once."""
    # Operations, for the activity: simple (one cycle) ones, of the kinds above, and those with an immediate operand.
    operations: float = 0
    window_operations: float = 0
    channel_operations: float = 0
    immediate_operations: float = 0
    channel_immediates: float = 0

    COLUMNS: ClassVar[dict[str, int]]


VectorOperator.COLUMNS = {field.name: index for index, field in enumerate(fields(VectorOperator))}

_STREAM = {"tile_loads": 1, "tile_stores": 1, "fit_tiles": 1, "cycles": 1, "operations": 1}
_SGD = {"cycles": 2, "tile_loads": 2, "tile_stores": 1, "fit_tiles": 1, "operations": 2}
_POOL = {"cycles_of_window": 1, "window_loads": 1, "tile_stores": 1, "fit_windows": 1, "window_operations": 1}

OPERATORS: dict[str, VectorOperator] = {
    "relu": VectorOperator(**_STREAM, immediate_operations=1),
    "elem_add": VectorOperator(**(_STREAM | {"tile_loads": 2})),
    "relu_grad": VectorOperator(**(_STREAM | {"tile_loads": 2})),
    "sgd1d": VectorOperator(**_SGD),
    "sgd2d": VectorOperator(**_SGD),
    "sgd4d": VectorOperator(**_SGD),
    "reduce_sum": VectorOperator(cycles=1, tile_loads=1, channel_stores=1, fit_tiles=1, whole_batch=1, operations=1),
    "max_pool": VectorOperator(**_POOL),
    "global_avg_pool": VectorOperator(**_POOL, divides=1),
    "max_pool_grad": VectorOperator(
        cycles_of_window=4,
        tile_loads=2,
        window_stores=1,
        fit_tiles=1,
        fit_windows=1,
        window_operations=2,
    ),
    "global_average_pool_grad": VectorOperator(
        cycles=2,
        cycles_of_window=1,
        divides=1,
        tile_loads=1,
        window_stores=1,
        fit_windows=1,
        window_operations=1,
    ),
    "mean_var": VectorOperator(
        cycles=5,
        channel_cycles=11,
        channel_divides=2,
        channel_rsqrts=1,
        tile_loads=1,
        channel_stores=2,
        fit_tiles=1,
        fit_lanes=1,
        channel_share=1 / 2,
        batch_first=1,
        operations=3,
        channel_operations=3,
        channel_immediates=2,
    ),
    "batch_norm": VectorOperator(
        cycles=10,
        tile_loads=1,
        tile_stores=1,
        channel_loads=4,
        fit_tiles=1,
        channel_share=1 / 4,
        batch_first=1,
        operations=4,
    ),
    "batchnorm_grad_x_mu": VectorOperator(
        cycles=22,
        passes=2,
        channel_cycles=3,
        channel_divides=1,
        tile_loads=5,
        tile_stores=1,
        channel_loads=3,
        channel_stores=2,
        fit_tiles=1,
        fit_channels=3,
        batch_first=1,
        operations=10,
        channel_operations=1,
    ),
}
"""By SimDIT's names."""

FREE_OPERATORS = frozenset(
    {
        "coarse_flatten",
        "flatten_grad",
        "cross_entropy_loss",
        "cross_entropy_loss_grad",
        "tensor_transpose4d",
        "batchnorm_grad_inv_std",
        "batchnorm_grad_xhat",
        "batchnorm_grad_dbeta",
        "batchnorm_grad_dgamma",
        "batchnorm_grad_dgamma_mul_xhat",
        "batchnorm_grad_gamma_inv_std",
        "batchnorm_grad_scaled_gy",
        "batchnorm_grad_dx_rhs",
        "batchnorm_grad_dx",
    }
)
"""Operators that cost nothing in SimDIT: views, and the parts of batch normalisation that one entry stands for."""
