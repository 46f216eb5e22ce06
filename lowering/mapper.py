"""The search for a tiling.

It keeps what the spec's Gemmini heuristic is for (`onnxim.md` section 5: a tile's operands fill half the scratchpad
and its partial sums half the accumulators) and drops its faults: sizes are never zero, remainders are spread over the
tiles, and every core gets its share. It prices every combination of even splits in closed form and takes the cheapest;
the prices depend on the cores only, not on the DRAM or the NoC, so that a sweep over those compares equal programs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lowering.mapping import (
    ACCUMULATOR_BYTES,
    Mapping,
    MappingError,
    MatmulShape,
    diagonal_groups,
    kernel_positions,
)
from lowering.systolic_rules import MIN_PASS_ROWS

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

TILE_OVERHEAD_CYCLES = 500
"""What the search adds to every tile: its dispatch, the loads that nothing hides, its drain."""

UNHIDDEN = 0.5
"""Share of the shorter of computing and transferring that the search takes as not overlapped.

This and the overhead steer the search only, no timing depends on them. Both were set by hand after simulating
ResNet-50 on the server preset only. Its cycles for (overhead, share) at commit 6f11c2a: (500, 1/2) 375,986; (300, 1)
380,450; (1000, 1/2) 375,367; (3000, 1/2) 368,338. The last is faster, with a single tile on most cores; it was not
taken since nothing would overlap where DRAM is slower. An earlier version of the model took 8 % longer with (64, 1/4).
"""

IDLE_CORE_FACTOR = 4
"""Price factor of tilings that leave cores without work; they win only where nothing else fits."""


@dataclass(frozen=True)
class Budget:
    """What a tile may use.

    n_cores: cores that share the layer, all alike. array_rows, array_cols: of each. spad_bytes, acc_bytes: half of
    each memory (double buffering). in_pitch_bytes: bytes of a whole input pixel. aligned_channels: channels that fill
    whole requests. residual_bytes: scratchpad bytes for each output element (fused residual operands). drains: the
    array empties between tiles. chip_share: these cores' part of the chip's nominal memory bandwidth.
    bytes_per_cycle: the bandwidth itself, where it is known; 0: the nominal one.
    """

    n_cores: int
    array_rows: int
    array_cols: int
    spad_bytes: int
    acc_bytes: int
    element_bytes: int
    request_bytes: int
    in_pitch_bytes: int
    residual_bytes: int = 0
    drains: bool = False
    chip_share: float = 1.0
    bytes_per_cycle: float = 0.0

    @property
    def aligned_channels(self) -> int:
        """Channels that fill whole requests."""
        return max(1, self.request_bytes // self.element_bytes)

    @property
    def memory_bytes_per_cycle(self) -> float:
        """Memory bandwidth that the search assumes. Nominally four bytes for each array row of the whole chip.

        512 B/cycle for a 128x128 array, 32 for an 8x8 one: about what the presets' DRAM delivers. It is fixed,
        not taken from the DRAM description, so that tilings do not move under a DRAM sweep.
        """
        return self.bytes_per_cycle or 4 * self.array_rows * self.chip_share


_PARTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
_COARSE_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def _sizes(total: int, granule: int, parts: tuple[int, ...]) -> list[int]:
    """Tile sizes that cut `total` into even parts, largest first; the smallest possible one is always included."""
    granules = math.ceil(total / granule)
    counts = [part for part in parts if part <= granules]
    while counts[-1] * 2 <= granules:
        counts.append(counts[-1] * 2)
    counts.append(granules)
    return sorted({min(total, math.ceil(granules / count) * granule) for count in counts}, reverse=True)


def granules(shape: MatmulShape, budget: Budget) -> Mapping:
    """The steps in which the search cuts each dimension (a `Mapping` of granules).

    Channels are cut at whole array blocks and whole requests; pixels of long rows at whole array passes.
    """
    rows, cols, aligned = budget.array_rows, budget.array_cols, budget.aligned_channels
    if shape.diagonal:
        packed = diagonal_groups(shape.in_channels, shape.out_channels, shape.groups, rows, cols)
        out = math.lcm(packed * shape.out_channels, aligned)
        step_in = shape.in_channels
    else:
        out, step_in = math.lcm(cols, aligned), math.lcm(rows, aligned)
    long_row = shape.out_cols > 4 * rows
    return Mapping(M=out, C=step_in, Q=rows if long_row else 1)


def choose_mapping(shape: MatmulShape, budget: Budget) -> Mapping:
    """The cheapest tiling that fits. Raises MappingError as `rank_mappings` does."""
    return rank_mappings(shape, budget, 1)[0].mapping


@dataclass(frozen=True)
class Candidate:
    """A tiling and its closed-form price in cycles."""

    mapping: Mapping
    price_cycles: float


@lru_cache(maxsize=4096)
def rank_mappings(shape: MatmulShape, budget: Budget, count: int) -> tuple[Candidate, ...]:
    """The `count` cheapest tilings that fit, by the closed-form price of `_price`; fewer when there are not so many.

    All candidates are priced at once. Those that cut a layer into the same numbers of tiles are one.
    Raises MappingError with the bytes that the smallest tile needs when nothing fits.
    """
    step = granules(shape, budget)
    axes = {
        "N": _sizes(shape.images, 1, (1, 2, 4, 8)),
        "P": _sizes(shape.out_rows, 1, _PARTS),
        "Q": _sizes(shape.out_cols, step.Q, _PARTS if shape.out_rows == 1 else _COARSE_PARTS),
        "M": _sizes(shape.tile_out_channels, step.M, _COARSE_PARTS),
        "C": _sizes(shape.in_channels, step.C, _COARSE_PARTS),
        "S": sorted({shape.kernel_rows, 1}, reverse=True),
        "R": sorted({shape.kernel_cols, 1}, reverse=True),
    }
    grid = dict(zip(axes, np.meshgrid(*(np.array(v, np.int64) for v in axes.values()), indexing="ij"), strict=True))
    flat = {name: values.ravel() for name, values in grid.items()}
    spad, acc, price = _price(shape, budget, flat)
    fits = (spad <= budget.spad_bytes) & (acc <= budget.acc_bytes)
    if not fits.any():
        raise MappingError(_too_large(spad, acc, budget))
    price = np.where(fits, price, np.inf)
    order = [int(np.argmin(price))] if count == 1 else np.argsort(price, kind="stable").tolist()
    found: dict[tuple[int, ...], Candidate] = {}
    for index in order[: int(fits.sum())]:
        sizes = {name: int(values[index]) for name, values in flat.items()}
        tiles = tuple(-(-int(values[0]) // sizes[name]) for name, values in axes.items())
        found.setdefault(tiles, Candidate(replace(Mapping(), **sizes), float(price[index])))
        if len(found) == count:
            break
    return tuple(found.values())


def _too_large(spad: IntArray, acc: IntArray, budget: Budget) -> str:
    if spad.min() > budget.spad_bytes:
        return (
            f"the smallest tile needs {int(spad.min())} bytes of scratchpad, half of it is {budget.spad_bytes}; "
            "enlarge cores.spad_kib"
        )
    return (
        f"the smallest tile needs {int(acc.min())} bytes of accumulators, half of them is {budget.acc_bytes}; "
        "enlarge cores.acc_kib"
    )


def _price(shape: MatmulShape, budget: Budget, inner: dict[str, IntArray]) -> tuple[IntArray, IntArray, FloatArray]:
    """Scratchpad bytes, accumulator bytes and estimated cycles of every candidate (arrays of one length)."""
    outputs = inner["N"] * inner["P"] * inner["Q"] * inner["M"]
    data, loaded = _operands(shape, budget, inner)
    spad = data * budget.element_bytes + outputs * budget.residual_bytes
    chains, steps = _counts(shape, inner)
    compute = -(-chains // budget.n_cores) * steps * _tile_cycles(shape, budget, inner)
    stored = outputs * budget.element_bytes
    transfer = chains * (steps * loaded + outputs * budget.residual_bytes + stored) / budget.memory_bytes_per_cycle
    # Nothing overlaps the first tile's loads and the last tile's stores.
    exposed = np.minimum(chains, budget.n_cores) * (spad + stored) / budget.memory_bytes_per_cycle
    # Unequal shares cost even where memory is the bound: half of the imbalance counts.
    imbalance = 0.5 + 0.5 * (-(-chains // budget.n_cores) * budget.n_cores / chains)
    idle = np.where(chains < budget.n_cores, IDLE_CORE_FACTOR, imbalance)
    cycles = np.maximum(compute, transfer) + UNHIDDEN * np.minimum(compute, transfer) + exposed
    return spad, outputs * ACCUMULATOR_BYTES, cycles * idle


def _operands(shape: MatmulShape, budget: Budget, inner: dict[str, IntArray]) -> tuple[IntArray, IntArray]:
    """Elements that one tile's input window and weights hold, and the bytes of whole requests that load them."""
    n, p, q, m, c, s, r = (inner[name] for name in "NPQMCSR")
    element, request = budget.element_bytes, budget.request_bytes
    rows = np.where(s == 1, p, (p - 1) * shape.stride[0] + (s - 1) * shape.dilation[0] + 1)
    cols = np.where(r == 1, q, (q - 1) * shape.stride[1] + (r - 1) * shape.dilation[1] + 1)
    pixels = n * np.minimum(rows, shape.in_rows) * np.minimum(cols, shape.in_cols)
    channels = m // shape.out_channels * shape.in_channels if shape.diagonal else c
    # A slice of a pixel that is no whole number of requests straddles one more; so may every group's slice.
    ragged = (channels * element % request != 0) | ((shape.groups > 1) & (shape.in_channels * element % request != 0))
    part = (-(-channels * element // request) + ragged) * request
    pixel = np.where(channels == shape.in_channels * shape.groups, budget.in_pitch_bytes, part)
    # Single pixels of a strided access come in whole requests.
    pixel = np.where((r == 1) & (shape.stride[1] > 1), np.maximum(pixel, request), pixel)
    blocks = _reduction_blocks(shape, budget, inner) * _column_blocks(shape, budget, m)
    whole = (c % budget.array_rows == 0) & (m % budget.array_cols == 0)
    whole &= budget.array_rows * budget.array_cols * element % request == 0
    weights = m * c * s * r
    padding = np.where(whole, 0, blocks * request)
    return pixels * channels + weights, pixels * pixel + weights * element + padding


def _tile_cycles(shape: MatmulShape, budget: Budget, inner: dict[str, IntArray]) -> IntArray:
    """Array cycles of one tile, as `array_timing.tile_cycles` counts them, and the tile's overhead."""
    n, p, q = inner["N"], inner["P"], inner["Q"]
    height = budget.array_rows
    length, lines = np.maximum(p, q), n * np.minimum(p, q)
    tail = np.maximum((length - 1) % height + 1, MIN_PASS_ROWS)
    block = lines * ((-(-length // height) - 1) * height + tail) + np.maximum(height - tail, 0)
    blocks = _reduction_blocks(shape, budget, inner) * _column_blocks(shape, budget, inner["M"])
    burst = 2 * height + budget.array_cols if budget.drains else 0
    return blocks * block + burst + TILE_OVERHEAD_CYCLES


def _counts(shape: MatmulShape, inner: dict[str, IntArray]) -> tuple[IntArray, IntArray]:
    """Number of chains, and of tiles along the reduction in each."""

    def product(**totals: int) -> IntArray:
        result = np.ones_like(inner["N"])
        for name, total in totals.items():
            result = result * -(-total // inner[name])
        return result

    chains = product(N=shape.images, P=shape.out_rows, Q=shape.out_cols, M=shape.tile_out_channels)
    steps = product(C=shape.in_channels, S=shape.kernel_rows, R=shape.kernel_cols)
    return chains * (shape.groups // shape.tile_groups), steps


def _reduction_blocks(shape: MatmulShape, budget: Budget, inner: dict[str, IntArray]) -> IntArray:
    """Weight blocks along the reduction in one tile."""
    c, positions = inner["C"], inner["S"] * inner["R"]
    packed = kernel_positions(shape, budget.array_rows)
    together = (c == shape.in_channels) & (packed > 1)
    return np.where(together, -(-positions // packed), positions * -(-c // budget.array_rows))


def _column_blocks(shape: MatmulShape, budget: Budget, m: IntArray) -> IntArray:
    """Weight blocks along M in one tile."""
    if not shape.diagonal:
        return -(-m // budget.array_cols)
    packed = diagonal_groups(shape.in_channels, shape.out_channels, shape.groups, budget.array_rows, budget.array_cols)
    return -(-m // (packed * shape.out_channels))
