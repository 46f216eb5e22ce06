"""Tiling of one matrix layer: explicit, or found by a search over even splits.

The search keeps what the spec's Gemmini heuristic is for (`onnxim.md` section 5: the tile's operands fill half the
scratchpad and its partial sums half the accumulators) and drops its faults: sizes are never zero, remainders are
spread over the tiles, and every core gets its share. It prices every candidate in closed form and takes the
cheapest; the prices depend on the cores only, not on the DRAM or the NoC, so that a sweep over those compares equal
programs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwconfigs.errors import UserError
from lowering.systolic_rules import MIN_PASS_ROWS

ACCUMULATOR_BYTES = 4
"""Bytes of one partial sum."""

MAX_WEIGHT_ENTRIES = 480
"""Scratchpad entries for weight blocks in one tile."""

TILE_OVERHEAD_CYCLES = 64
"""What the search adds to every tile besides filling and draining the array: dispatch, first loads, drain."""

UNHIDDEN = 0.25
"""Share of the shorter of computing and transferring that the search takes as not overlapped."""

IDLE_CORE_FACTOR = 4
"""Price factor of tilings that leave cores without work; they win only where nothing else fits."""


class MappingError(UserError):
    """A tiling that cannot be used: unreadable, or too large for the core."""


@dataclass(frozen=True)
class MatmulShape:
    """What one matrix layer computes, as a convolution; a matrix product is one image of 1 x rows pixels.

    images x groups x (in_channels -> out_channels per group); pads are those at the top and at the left.
    diagonal: several groups share an array pass, as blocks on its diagonal (grouped convolutions with few
    channels per group); then a tile's input channels follow from its output channels.
    """

    images: int
    groups: int
    in_channels: int
    out_channels: int
    in_rows: int
    in_cols: int
    out_rows: int
    out_cols: int
    kernel_rows: int = 1
    kernel_cols: int = 1
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    diagonal: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates, products with padding zeros included."""
        outputs = self.images * self.groups * self.out_channels * self.out_rows * self.out_cols
        return outputs * self.in_channels * self.kernel_rows * self.kernel_cols

    @property
    def tile_groups(self) -> int:
        """Groups that are tiled together."""
        return self.groups if self.diagonal else 1

    @property
    def tile_out_channels(self) -> int:
        """Output channels over which tiles are cut: of one group, or of all groups when `diagonal`."""
        return self.out_channels * self.tile_groups


@dataclass(frozen=True)
class Mapping:
    """Inner (per tile) sizes: images N, input channels C, output channels M, kernel rows S and columns R,
    output rows P and columns Q.

    exact: cut exactly these sizes and leave the remainder to the last tile (as a mapping file means it);
    otherwise the tiles of a dimension differ by at most one granule.
    """

    N: int = 1
    C: int = 1
    M: int = 1
    S: int = 1
    R: int = 1
    P: int = 1
    Q: int = 1
    exact: bool = False


LETTERS = tuple(item.name for item in fields(Mapping) if item.name != "exact")
_TOKEN = re.compile(r"([A-Z])(\d+)[XY]?")


def parse_mapping(line: str) -> Mapping:
    """Read a line such as `[T] N1 C64 M64 - [O] ... - [I] N1 C64 M8 P15 Q17 S3 R3`; the `[I]` sizes count.

    A matrix product writes its rows as N (there are no P and Q). Letters that are missing mean 1.
    Raises MappingError when there is no `[I]` section, or an unknown or zero size.
    """
    section = re.search(r"\[I\]([^-\[]*)", line)
    if section is None:
        raise MappingError(f"mapping {line.strip()!r}: no [I] section with the inner sizes")
    sizes: dict[str, int] = {}
    for token in section.group(1).split():
        match = _TOKEN.fullmatch(token)
        if match is None or match.group(1) not in LETTERS or int(match.group(2)) < 1:
            raise MappingError(f"mapping {line.strip()!r}: {token!r} is no size; valid letters: {' '.join(LETTERS)}")
        sizes[match.group(1)] = int(match.group(2))
    mapping = Mapping(**sizes, exact=True)
    if "P" not in sizes and "Q" not in sizes:
        return replace(mapping, N=1, Q=mapping.N)
    return mapping


@dataclass(frozen=True)
class Budget:
    """What a tile may use.

    array_rows, array_cols: of the smallest core. spad_bytes, acc_bytes: half of each memory (double buffering).
    in_pitch_bytes: bytes of a whole input pixel. aligned_channels: channels that fill whole requests.
    residual_bytes: scratchpad bytes for each output element (fused residual operands).
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

    @property
    def aligned_channels(self) -> int:
        """Channels that fill whole requests."""
        return max(1, self.request_bytes // self.element_bytes)

    @property
    def nominal_bytes_per_cycle(self) -> int:
        """Memory bandwidth that the search assumes for the whole chip: four bytes for each array row.

        512 B/cycle for a 128x128 array, 32 for an 8x8 one: about what the presets' DRAM delivers. It is fixed,
        not taken from the DRAM description, so that tilings do not move under a DRAM sweep.
        """
        return 4 * self.array_rows


def diagonal_groups(in_channels: int, out_channels: int, groups: int, array_rows: int, array_cols: int) -> int:
    """How many groups of a grouped convolution fit one array pass as blocks on its diagonal."""
    return max(1, min(array_rows // in_channels, array_cols // out_channels, groups))


def kernel_positions(shape: MatmulShape, array_rows: int) -> int:
    """Kernel positions whose channels share one array pass when the channels alone leave most rows empty.

    This is the multi-tile scheme of channel-first implicit im2col (Zhou et al., IISWC 2021, measured on TPUs).
    """
    return max(1, array_rows // shape.in_channels) if not shape.diagonal else 1


def ranges(total: int, size: int, granule: int, exact: bool) -> list[tuple[int, int]]:
    """Cut 0..total into (start, length) pieces of at most about `size`.

    exact: all pieces but the last are `size` long. Otherwise lengths are multiples of `granule` (but for the last)
    and as equal as possible.
    """
    if exact:
        return [(start, min(size, total - start)) for start in range(0, total, size)]
    granules = math.ceil(total / granule)
    parts = math.ceil(granules / max(1, size // granule))
    edges = [granules * part // parts * granule for part in range(parts)] + [total]
    return [(edges[i], edges[i + 1] - edges[i]) for i in range(parts)]


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


@lru_cache(maxsize=4096)
def choose_mapping(shape: MatmulShape, budget: Budget) -> Mapping:
    """The cheapest tiling that fits, by the closed-form price of `_price`.

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
    best = int(np.argmin(np.where(fits, price, np.inf)))
    sizes = {name: int(values[best]) for name, values in flat.items()}
    return replace(Mapping(), **sizes)


def _too_large(spad: NDArray[np.int64], acc: NDArray[np.int64], budget: Budget) -> str:
    if spad.min() > budget.spad_bytes:
        return (
            f"the smallest tile needs {int(spad.min())} bytes of scratchpad, half of it is {budget.spad_bytes}; "
            "enlarge cores.spad_kib"
        )
    return (
        f"the smallest tile needs {int(acc.min())} bytes of accumulators, half of them is {budget.acc_bytes}; "
        "enlarge cores.acc_kib"
    )


def _price(
    shape: MatmulShape, budget: Budget, inner: dict[str, NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Scratchpad bytes, accumulator bytes and estimated cycles of every candidate (arrays of one length)."""
    n, p, q, m, c, s, r = (inner[name] for name in "NPQMCSR")
    element, request, height, width = (
        budget.element_bytes,
        budget.request_bytes,
        budget.array_rows,
        budget.array_cols,
    )

    def parts(total: int, size: NDArray[np.int64]) -> NDArray[np.int64]:
        return -(-total // size)

    rows_in = np.where(s == 1, p, (p - 1) * shape.stride[0] + (s - 1) * shape.dilation[0] + 1)
    cols_in = np.where(r == 1, q, (q - 1) * shape.stride[1] + (r - 1) * shape.dilation[1] + 1)
    rows_in, cols_in = np.minimum(rows_in, shape.in_rows), np.minimum(cols_in, shape.in_cols)
    if shape.diagonal:
        channels, all_channels = m // shape.out_channels * shape.in_channels, shape.in_channels * shape.groups
    else:
        channels, all_channels = c, shape.in_channels * shape.groups
    pixel = np.where(channels == all_channels, budget.in_pitch_bytes, (-(-channels * element // request) + 1) * request)
    # Single pixels of a strided access come in whole requests, and so do rows of small pixels.
    pixel = np.where((r == 1) & (shape.stride[1] > 1), np.maximum(pixel, request), pixel)
    small = np.where(pixel % request != 0, request, 0)
    act = n * rows_in * (cols_in * pixel + small) + request
    k_blocks, k_chunks = _weight_blocks(shape, budget, inner)
    m_blocks = _column_blocks(shape, budget, m)
    # Blocks that are no whole requests are padded up to some.
    ragged = (c % height != 0) | (m % width != 0) | (height * width * element % request != 0)
    weights = m * c * s * r * element + np.where(ragged, k_blocks * m_blocks * request, 0)
    data = n * rows_in * cols_in * channels + m * c * s * r
    spad = data * element + n * p * q * m * budget.residual_bytes
    acc = n * p * q * m * ACCUMULATOR_BYTES

    # The passes over one weight block, as `array_timing.tile_cycles` counts them.
    length, lines = np.maximum(p, q), n * np.minimum(p, q)
    tail = np.maximum((length - 1) % height + 1, MIN_PASS_ROWS)
    block = lines * ((-(-length // height) - 1) * height + tail) + np.maximum(height - tail, 0)
    tile_cycles = k_blocks * m_blocks * block + 2 * height + width + TILE_OVERHEAD_CYCLES
    chains = (
        parts(shape.images, n)
        * parts(shape.out_rows, p)
        * parts(shape.out_cols, q)
        * parts(shape.tile_out_channels, m)
        * (shape.groups // shape.tile_groups)
    )
    compute = -(-chains // budget.n_cores) * k_chunks * tile_cycles
    stored = n * p * q * m * element
    traffic = chains * (k_chunks * (act + weights) + stored * (1 + budget.residual_bytes // max(1, element)))
    bandwidth = budget.nominal_bytes_per_cycle
    busy = np.minimum(chains, budget.n_cores)
    # Nothing overlaps the first tile's loads and the last tile's stores.
    exposed = busy * (spad + stored) / bandwidth
    transfer = traffic / bandwidth
    hidden = np.minimum(compute, transfer)
    # Unequal shares cost even where memory is the bound: half of the imbalance counts.
    imbalance = 0.5 + 0.5 * (-(-chains // budget.n_cores) * budget.n_cores / chains)
    idle = np.where(chains < budget.n_cores, IDLE_CORE_FACTOR, imbalance)
    return spad, acc, (np.maximum(compute, transfer) + UNHIDDEN * hidden + exposed) * idle


def _weight_blocks(
    shape: MatmulShape, budget: Budget, inner: dict[str, NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Weight blocks along K in one tile, and the number of tiles along K."""
    c, s, r = inner["C"], inner["S"], inner["R"]
    packed = kernel_positions(shape, budget.array_rows)
    whole = c == shape.in_channels
    blocks = np.where(whole & (packed > 1), -(-s * r // packed), s * r * -(-c // budget.array_rows))
    chunks = -(-shape.in_channels // c) * -(-shape.kernel_rows // s) * -(-shape.kernel_cols // r)
    return blocks, chunks


def _column_blocks(shape: MatmulShape, budget: Budget, m: NDArray[np.int64]) -> NDArray[np.int64]:
    """Weight blocks along M in one tile."""
    if not shape.diagonal:
        return -(-m // budget.array_cols)
    packed = diagonal_groups(shape.in_channels, shape.out_channels, shape.groups, budget.array_rows, budget.array_cols)
    return -(-m // (packed * shape.out_channels))
