"""Layers of the closed-form model: on the host as small records, for the formulas as two tables of arrays.

Matrix layers (convolution, matrix product) run on the array, vector layers on the vector unit. Sizes are those of the
network; each design pads them to its array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from flax import struct

from hwconfigs.errors import UserError, nearest
from vsim.systolic.operators import OPERATORS, VectorOperator

LARGEST_TILED_EXACTLY = 3
"""Up to this kernel a tile must divide the output map; SimDIT rounds up the tiles of larger ones."""


@dataclass(frozen=True)
class MatrixLayer:
    """A convolution with a square kernel, or a matrix product (a 1x1 map, kernel 1).

    Its output feeds the next layer in the vector unit without a trip to DRAM where ``fused``.
    """

    name: str
    operator: str
    out_width: int
    out_height: int
    out_channels: int
    in_channels: int
    kernel: int
    stride: int
    batch: int
    fused: bool = False
    groups: int = 1
    """So many of these layers, one after the other: groups of a convolution, products of a batch. Not in SimDIT."""
    useful_kernel: float = 1.0
    """Share of the kernel that is not inserted zeros; the compatibility mode multiplies the zeros too."""
    useful_input: float = 1.0
    """Share of the input that is not inserted zeros."""
    uneven_tiles: bool = False
    """Whether the last tile of a side of the map may be smaller than the others, whatever the kernel."""

    @property
    def is_gemm(self) -> bool:
        """Whether the layer is a matrix product: such a one runs output stationary at batch 1."""
        return self.operator.startswith("gemm")

    def __post_init__(self) -> None:
        _check_sizes(
            self,
            ("out_width", "out_height", "out_channels", "in_channels", "kernel", "stride", "batch", "groups"),
        )
        for share in (self.useful_kernel, self.useful_input):
            if not 0 < share <= 1:
                raise UserError(f"layer {self.name!r}: {share} is not a share in 0..1")


@dataclass(frozen=True)
class VectorLayer:
    """A layer of the vector unit; width and height are those of the pooled map for pooling and its gradient.

    ``feeds_matrix``: its output is stored with the width of an activation, since the next layer is a matrix layer.
    ``fused``: one operand comes from the layer before without a trip to DRAM.
    """

    name: str
    operator: str
    width: int
    height: int
    channels: int
    batch: int
    kernel: int = 1
    stride: int = 1
    feeds_matrix: bool = False
    fused: bool = False
    costs: VectorOperator | None = None
    """Its own coefficients; by default those of its operator in `vsim.systolic.operators`."""

    @property
    def coefficients(self) -> VectorOperator:
        """What the formulas read."""
        return self.costs or OPERATORS[self.operator]

    def __post_init__(self) -> None:
        if self.costs is None and self.operator not in OPERATORS:
            raise UserError(
                f"layer {self.name!r}: unknown operator {self.operator!r}{nearest(self.operator, OPERATORS)}"
            )
        _check_sizes(self, ("width", "height", "channels", "batch", "kernel", "stride"))


Layer = MatrixLayer | VectorLayer

_SIDES = {"out_width", "out_height", "width", "height", "kernel", "stride"}
"""Sizes that are cut into every number of parts; longer ones would make as many candidates."""


def _check_sizes(layer: Any, names: Iterable[str]) -> None:
    for name in names:
        value, most = getattr(layer, name), 1 << (14 if name in _SIDES else 31)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise UserError(f"layer {layer.name!r}: {name} = {value!r} is not a whole number in 1..{most}")


@struct.dataclass
class MatrixTable:
    """Float64 arrays of shape ``(layers,)``; candidate tiles ``(layers, candidates)``, from the smallest up."""

    out_width: jax.Array
    out_height: jax.Array
    out_channels: jax.Array
    in_channels: jax.Array
    kernel: jax.Array
    stride: jax.Array
    batch: jax.Array
    is_gemm: jax.Array
    fused: jax.Array
    groups: jax.Array
    useful_kernel: jax.Array
    useful_input: jax.Array
    kernel_tiles: jax.Array
    width_tiles: jax.Array
    height_tiles: jax.Array
    batch_tiles: jax.Array


@struct.dataclass
class VectorTable:
    """Float64 arrays of shape ``(layers,)``; candidates as in `MatrixTable`; ``coefficients`` ``(layers, columns)``."""

    width: jax.Array
    height: jax.Array
    channels: jax.Array
    batch: jax.Array
    kernel: jax.Array
    stride: jax.Array
    feeds_matrix: jax.Array
    fused: jax.Array
    width_tiles: jax.Array
    height_tiles: jax.Array
    batch_tiles: jax.Array
    coefficients: jax.Array


@struct.dataclass
class LayerTable:
    """A list of layers, its matrix and its vector layers apart; the order of the list is kept in each part."""

    matrix: MatrixTable
    vector: VectorTable


def split(layers: Sequence[Layer]) -> tuple[list[int], list[int]]:
    """Positions of the matrix and of the vector layers in ``layers``."""
    matrix = [index for index, layer in enumerate(layers) if isinstance(layer, MatrixLayer)]
    return matrix, [index for index, layer in enumerate(layers) if isinstance(layer, VectorLayer)]


@struct.dataclass
class Chains:
    """To which chain each matrix and each vector layer belongs; int arrays of shape ``(layers,)``."""

    matrix: jax.Array
    vector: jax.Array


def chain_starts(layers: Sequence[Layer]) -> list[int]:
    """Positions at which a chain begins: every layer but those that work on the output of the one before."""
    return [
        index for index, layer in enumerate(layers) if not index or isinstance(layer, MatrixLayer) or not layer.fused
    ]


def chains(layers: Sequence[Layer]) -> Chains:
    """Chains by number, from 0."""
    begins = np.zeros(len(layers), int)
    begins[chain_starts(layers)] = 1
    number: Any = np.cumsum(begins) - 1
    matrix, vector = split(layers)
    return Chains(number[matrix], number[vector])


def table(layers: Sequence[Layer]) -> LayerTable:
    """The arrays of ``layers``."""
    matrix = [layer for layer in layers if isinstance(layer, MatrixLayer)]
    vector = [layer for layer in layers if isinstance(layer, VectorLayer)]
    return LayerTable(_matrix_table(matrix), _vector_table(vector))


def _matrix_table(layers: Sequence[MatrixLayer]) -> MatrixTable:
    maps = [
        _map_tiles(
            layer.out_width, layer.out_height, exact=layer.kernel <= LARGEST_TILED_EXACTLY and not layer.uneven_tiles
        )
        for layer in layers
    ]
    return MatrixTable(
        *_columns(
            layers,
            "out_width",
            "out_height",
            "out_channels",
            "in_channels",
            "kernel",
            "stride",
            "batch",
            "is_gemm",
            "fused",
            "groups",
            "useful_kernel",
            "useful_input",
        ),
        kernel_tiles=_candidates([_rounded_up(layer.kernel) for layer in layers]),
        width_tiles=_candidates([[width for width, _ in tiles] for tiles in maps]),
        height_tiles=_candidates([[height for _, height in tiles] for tiles in maps]),
        batch_tiles=_candidates([_divisors(layer.batch) for layer in layers]),
    )


def _vector_table(layers: Sequence[VectorLayer]) -> VectorTable:
    maps = [_map_tiles(layer.width, layer.height, exact=True) for layer in layers]
    of_operators: Any = np.reshape([astuple(layer.coefficients) for layer in layers], (-1, len(VectorOperator.COLUMNS)))
    return VectorTable(
        *_columns(layers, "width", "height", "channels", "batch", "kernel", "stride", "feeds_matrix", "fused"),
        width_tiles=_candidates([[width for width, _ in tiles] for tiles in maps]),
        height_tiles=_candidates([[height for _, height in tiles] for tiles in maps]),
        batch_tiles=_candidates([_divisors(layer.batch) for layer in layers]),
        coefficients=of_operators,
    )


def _columns(layers: Sequence[Layer], *names: str) -> list[Any]:
    return [np.array([getattr(layer, name) for layer in layers], np.float64) for name in names]


@lru_cache(maxsize=4096)
def _divisors(size: int) -> tuple[int, ...]:
    small = [divisor for divisor in range(1, math.isqrt(size) + 1) if size % divisor == 0]
    return tuple(sorted({*small, *(size // divisor for divisor in small)}))


@lru_cache(maxsize=4096)
def _rounded_up(size: int) -> tuple[int, ...]:
    """Every ``ceil(size / parts)``, from the smallest."""
    return tuple(sorted({-(-size // parts) for parts in range(1, size + 1)}))


@lru_cache(maxsize=4096)
def _map_tiles(width: int, height: int, *, exact: bool) -> tuple[tuple[int, int], ...]:
    """The output map in the same number of parts along both sides, from the smallest tile."""
    parts = range(max(width, height), 0, -1)
    if exact:
        return tuple((width // n, height // n) for n in parts if width % n == 0 and height % n == 0)
    return tuple(sorted({(-(-width // n), -(-height // n)) for n in parts}))


def _candidates(lists: Sequence[Sequence[int]]) -> Any:
    """One row each, filled up in front with the smallest; the width is rounded so that few shapes are compiled."""
    longest = max((len(row) for row in lists), default=1)
    width = longest if longest <= 2 else -(-longest // 4) * 4
    return np.array([[row[0]] * (width - len(row)) + list(row) for row in lists], np.float64).reshape(-1, width)
