"""Tile sizes as ONNXim's built-in heuristic chooses them (`onnxim.md` section 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

from hwconfigs.errors import UserError
from hwconfigs.schema import CoreConfig, HwConfig
from lowering.onnxim.faults import NONE, Fault, Repairs

ACC_ROW_BYTES = 32


@dataclass(frozen=True)
class GemmMapping:
    """Inner tile sizes of Y[n, m] = sum over k; every one a positive multiple of the array size.

    forced: the original divides by zero here (Q3), and these sizes take its place.
    """

    n: int
    m: int
    k: int
    forced: bool = False


def gemm_mapping(hw: HwConfig, n: int, m: int, k: int, repaired: Repairs = NONE) -> GemmMapping:
    """Tile sizes for a GEMM of `n` rows, `m` columns and depth `k` on the first core of `hw`.

    Where the original divides by zero (section 13, Q3), a tile of one block takes its place. repaired: Q4 counts.
    Raises UserError when the array is not square or one block does not fit the memories.
    """
    core = hw.core(0)
    d = check_array(core)
    ij, kk, none_fits = _largest_tile_blocks(core.spad_kib * 1024, core.acc_kib * 1024, d, hw.precision_bytes)
    tiles_n = min(_ceil(n, d), _ceil(n, ij * d))
    tiles_m = min(_ceil(m, d), _ceil(m, ij * d))
    tiles_k = min(_ceil(k, d), _ceil(k, kk * d))
    if Fault.Q4 in repaired:
        inner_n, inner_m = _balanced(_ceil(n, d), _ceil(m, d), (tiles_n, tiles_m), hw.cores.count)
        return GemmMapping(inner_n * d, inner_m * d, _inner(k, tiles_k, d), none_fits)
    tiles_n, tiles_m = _spread_over_cores(tiles_n, tiles_m, n, m, hw.cores.count)
    forced = none_fits or any(_ceil(_ceil(size, d) * d, tiles) < d for size, tiles in ((n, tiles_n), (m, tiles_m)))
    return GemmMapping(_inner(n, tiles_n, d), _inner(m, tiles_m, d), _inner(k, tiles_k, d), forced)


def check_array(core: CoreConfig) -> int:
    """The side of the array. Raises UserError when it is not square or its side is no power of two."""
    if core.cols != core.rows or core.rows & (core.rows - 1):
        raise UserError(
            f"--compat onnxim needs a square systolic array whose side is a power of two, not {core.rows}x{core.cols}"
            " (cores.rows, cores.cols)"
        )
    return core.rows


def _largest_tile_blocks(spad_bytes: int, acc_bytes: int, d: int, precision_bytes: int) -> tuple[int, int, bool]:
    """Side of the output tile and depth of the operand tiles, in blocks of d; whether the original finds none."""
    # A half must hold one block of each operand; the original counts one request per accumulator row (Q13).
    if 2 * d * d * precision_bytes > spad_bytes // 2 or d * ACC_ROW_BYTES > acc_bytes // 2:
        raise UserError(
            f"a tile of one {d}x{d} block does not fit: cores.spad_kib = {spad_bytes // 1024}, "
            f"cores.acc_kib = {acc_bytes // 1024}; enlarge the memories or shrink the array"
        )
    spad_blocks = spad_bytes // (2 * d * precision_bytes) // 2 // d
    # The original divides by zero when the square root is 0 or exceeds the scratchpad's blocks (Q3).
    original = isqrt(acc_bytes // (d * 4 * 2) // d)
    ij = max(1, min(original, spad_blocks))
    return ij, max(1, spad_blocks // ij), not 0 < original <= spad_blocks


def _spread_over_cores(tiles_n: int, tiles_m: int, n: int, m: int, n_cores: int) -> tuple[int, int]:
    """Cut the longer side further when there are fewer tiles than cores, then add the remainder to it (Q4)."""

    def cut(step: Callable[[int], int]) -> None:
        nonlocal tiles_n, tiles_m
        if m > n and m > n_cores:
            tiles_m = step(tiles_m)
        elif n > m and n > n_cores:
            tiles_n = step(tiles_n)

    if tiles_n * tiles_m < n_cores:
        factor = _ceil(n_cores, tiles_n * tiles_m)
        cut(lambda tiles: tiles * factor)
    remainder = tiles_n * tiles_m % n_cores
    if remainder:
        cut(lambda tiles: tiles + remainder)
    return tiles_n, tiles_m


def _balanced(blocks_n: int, blocks_m: int, least: tuple[int, int], n_cores: int) -> tuple[int, int]:
    """Tile sides in blocks, of at least as many tiles each way, that give the busiest core least to do.

    Of equal ones the least tiles, then the squarest: they load least.
    """

    def price(sides: tuple[int, int]) -> tuple[int, int, int]:
        tiles = _ceil(blocks_n, sides[0]) * _ceil(blocks_m, sides[1])
        return _ceil(tiles, n_cores) * sides[0] * sides[1], tiles, sides[0] + sides[1]

    wide_n = range(1, _ceil(blocks_n, least[0]) + 1)
    wide_m = range(1, _ceil(blocks_m, least[1]) + 1)
    return min(((side_n, side_m) for side_n in wide_n for side_m in wide_m), key=price)


def _inner(total: int, tiles: int, d: int) -> int:
    """Tile size: rounded down to whole blocks, but at least one."""
    padded = _ceil(total, d) * d
    return max(_ceil(padded, tiles) // d, 1) * d


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
