"""Parts of a layer: each kind of core on a chip computes a part of its own, with tile sizes of its own.

On a chip of equal cores there is one part, the whole layer. Otherwise the outputs are divided along one dimension so
that all kinds end at about the same time, by the closed-form price of `lowering.mapper`; a kind that would only delay
the others gets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from lowering.mapper import Budget, Candidate, granules, rank_mappings
from lowering.mapping import Mapping, MappingError, MatmulShape

Axis = Literal["N", "P", "Q", "M"]
"""Images, output rows, output columns, output channels: what outputs are divided along."""

AXES: tuple[Axis, ...] = ("N", "P", "Q", "M")

REFINEMENTS = 3
"""Times that a division is corrected by the prices of its parts."""


@dataclass(frozen=True)
class CoreKind:
    """Cores that are alike in all that tile sizes depend on, by number, and what a tile of theirs may use."""

    cores: tuple[int, ...]
    budget: Budget


@dataclass(frozen=True)
class Part:
    """What some cores compute of a layer: `length` outputs from `start` on along `axis`, all in other dimensions."""

    cores: tuple[int, ...]
    mapping: Mapping
    axis: Axis
    start: int
    length: int

    def span(self, axis: Axis, total: int) -> tuple[int, int]:
        """(start, length) along one dimension of which the layer has `total`."""
        return (self.start, self.length) if axis == self.axis else (0, total)


class MappingChooser(Protocol):
    """Where tile sizes come from."""

    def is_exact(self, layer: str, shape: MatmulShape) -> bool:
        """Whether a convolution of this shape, as its node states it, is cut as ONNXim does (see `Mapping.exact`)."""
        ...

    def parts(self, layer: str, shape: MatmulShape, kinds: Sequence[CoreKind]) -> tuple[Part, ...]:
        """The parts of a layer. Raises MappingError, without the layer's name, when there are none that fit."""
        ...


@dataclass(frozen=True)
class Heuristic:
    """Tile sizes by closed-form price: the cheapest, or those of another rank (from 0; the last where there are fewer).

    bytes_per_cycle: memory bandwidth of the chip that the prices assume; 0: the nominal one.
    """

    rank: int = 0
    bytes_per_cycle: float = 0.0

    def is_exact(self, layer: str, shape: MatmulShape) -> bool:
        """Never: vsim's own rules apply."""
        return False

    def parts(self, layer: str, shape: MatmulShape, kinds: Sequence[CoreKind]) -> tuple[Part, ...]:
        """One part for each kind that gets work."""
        n_cores = sum(len(kind.cores) for kind in kinds)
        shares = [kind.budget.n_cores / n_cores for kind in kinds]
        budgets = [
            replace(kind.budget, chip_share=share, bytes_per_cycle=self.bytes_per_cycle * share)
            for kind, share in zip(kinds, shares, strict=True)
        ]
        kinds = [replace(kind, budget=budget) for kind, budget in zip(kinds, budgets, strict=True)]
        division = divide(shape, kinds)
        parts = []
        for kind, (start, length) in zip(kinds, division.spans, strict=True):
            if length:
                piece = part_shape(shape, division.axis, length)
                ranked = rank_mappings(piece, kind.budget, self.rank + 1)
                mapping = ranked[min(self.rank, len(ranked) - 1)].mapping
                parts.append(Part(kind.cores, mapping, division.axis, start, length))
        return tuple(parts)


@dataclass(frozen=True)
class Forced:
    """The same tile sizes for every layer, on all cores: for graphs of one layer."""

    mapping: Mapping

    def is_exact(self, layer: str, shape: MatmulShape) -> bool:
        """Always."""
        return True

    def parts(self, layer: str, shape: MatmulShape, kinds: Sequence[CoreKind]) -> tuple[Part, ...]:
        """The whole layer."""
        return (whole(shape, tuple(core for kind in kinds for core in kind.cores), self.mapping),)


def whole(shape: MatmulShape, cores: tuple[int, ...], mapping: Mapping) -> Part:
    """All of a layer."""
    return Part(tuple(sorted(cores)), mapping, "M", 0, shape.tile_out_channels)


def totals(shape: MatmulShape) -> dict[Axis, int]:
    """Sizes of a layer along the dimensions that it can be divided along."""
    return {"N": shape.images, "P": shape.out_rows, "Q": shape.out_cols, "M": shape.tile_out_channels}


def part_shape(shape: MatmulShape, axis: Axis, length: int) -> MatmulShape:
    """The shape of a part of `length` outputs along `axis`."""
    if length == totals(shape)[axis]:
        return shape
    if axis == "M" and shape.diagonal:
        return replace(shape, groups=length // shape.out_channels)
    return replace(shape, **{{"N": "images", "P": "out_rows", "Q": "out_cols", "M": "out_channels"}[axis]: length})


@dataclass(frozen=True)
class Division:
    """(start, length) of every kind's part along `axis`, 0 long for none, and the price of the slowest part."""

    axis: Axis
    spans: tuple[tuple[int, int], ...]
    price_cycles: float


def divide(shape: MatmulShape, kinds: Sequence[CoreKind]) -> Division:
    """The cheapest division of a layer among the kinds. Raises MappingError when no kind has a tile that fits."""
    options: list[Division] = []
    for index in range(len(kinds)):
        lengths = [totals(shape)["M"] if kind == index else 0 for kind in range(len(kinds))]
        options.append(_priced(shape, kinds, "M", lengths))
    if len(kinds) > 1:
        for axis in AXES:
            options += _divisions(shape, kinds, axis)
    best = min(options, key=lambda option: option.price_cycles)
    if math.isinf(best.price_cycles):
        # No kind fits: the error of the first says how much is missing.
        rank_mappings(shape, kinds[0].budget, 1)
    return best


def _divisions(shape: MatmulShape, kinds: Sequence[CoreKind], axis: Axis) -> list[Division]:
    """Divisions along one dimension: the first by the arrays' sizes, the next corrected by the prices of its parts."""
    weights = [float(len(k.cores) * k.budget.array_rows * k.budget.array_cols) for k in kinds]
    found: list[Division] = []
    for _ in range(REFINEMENTS):
        lengths = _lengths(shape, kinds, axis, weights)
        division = _priced(shape, kinds, axis, lengths)
        if division in found:
            break
        found.append(division)
        prices = [_price(shape, kind, axis, length) for kind, length in zip(kinds, lengths, strict=True)]
        weights = [
            length / price if length and math.isfinite(price) else 0.0
            for length, price in zip(lengths, prices, strict=True)
        ]
        if not any(weights):
            break
    return found


def _lengths(shape: MatmulShape, kinds: Sequence[CoreKind], axis: Axis, weights: Sequence[float]) -> list[int]:
    """Whole granules for each kind, in proportion to the weights; the rest goes to the heaviest."""
    total = totals(shape)[axis]
    step = math.lcm(*(getattr(granules(shape, kind.budget), axis) for kind in kinds))
    units = math.ceil(total / step)
    shares = [int(units * weight / sum(weights)) for weight in weights]
    heaviest = max(range(len(kinds)), key=lambda index: weights[index])
    shares[heaviest] += units - sum(shares)
    lengths = [share * step for share in shares]
    last = max(index for index, length in enumerate(lengths) if length)
    lengths[last] -= units * step - total
    return lengths


def _priced(shape: MatmulShape, kinds: Sequence[CoreKind], axis: Axis, lengths: Sequence[int]) -> Division:
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    price = max(_price(shape, kind, axis, length) for kind, length in zip(kinds, lengths, strict=True))
    return Division(axis, tuple(zip(starts, lengths, strict=True)), price)


def _price(shape: MatmulShape, kind: CoreKind, axis: Axis, length: int) -> float:
    """Cycles of a part; infinite when no tile fits."""
    if not length:
        return 0.0
    try:
        best: Candidate = rank_mappings(part_shape(shape, axis, length), kind.budget, 1)[0]
    except MappingError:
        return math.inf
    return best.price_cycles
