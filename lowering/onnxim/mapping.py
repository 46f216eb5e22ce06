"""Tile sizes as ONNXim's built-in heuristic chooses them (`onnxim.md` section 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

from hwconfigs.errors import UserError
from hwconfigs.schema import CoreConfig, HwConfig

ACC_ROW_BYTES = 32


@dataclass(frozen=True)
class GemmMapping:
    """Inner tile sizes of Y[n, m] = sum over k; every one a positive multiple of the array size.

    repaired: the original divides by zero here (section 13, Q3), and one block stands where it has none.
    """

    n: int
    m: int
    k: int
    repaired: bool = False


def gemm_mapping(hw: HwConfig, n: int, m: int, k: int) -> GemmMapping:
    """Tile sizes for a GEMM of `n` rows, `m` columns and depth `k` on the first core of `hw`.

    Where the original divides by zero (section 13, Q3), a tile of one block takes its place.
    Raises UserError when the array is not square or one block does not fit the memories.
    """
    core = hw.core(0)
    d = check_array(core)
    ij, kk, repaired = _largest_tile_blocks(core.spad_kib * 1024, core.acc_kib * 1024, d, hw.precision_bytes)
    tiles_n = min(_ceil(n, d), _ceil(n, ij * d))
    tiles_m = min(_ceil(m, d), _ceil(m, ij * d))
    tiles_k = min(_ceil(k, d), _ceil(k, kk * d))
    tiles_n, tiles_m = _spread_over_cores(tiles_n, tiles_m, n, m, hw.cores.count)
    inner = [_inner_blocks(total, tiles, d) for total, tiles in ((n, tiles_n), (m, tiles_m), (k, tiles_k))]
    sizes = (max(blocks, 1) * d for blocks in inner)
    return GemmMapping(*sizes, repaired=repaired or 0 in inner)


def check_array(core: CoreConfig) -> int:
    """The side of the array. Raises UserError when it is not square or its side is no power of two."""
    if core.cols != core.rows or core.rows & (core.rows - 1):
        raise UserError(
            f"--compat onnxim needs a square systolic array whose side is a power of two, not {core.rows}x{core.cols}"
            " (cores.rows, cores.cols)"
        )
    return core.rows


def _largest_tile_blocks(spad_bytes: int, acc_bytes: int, d: int, precision_bytes: int) -> tuple[int, int, bool]:
    """Side of the output tile and depth of the operand tiles, in blocks of d; whether the original has no such."""
    # A half must hold one block of each operand; the original counts one request per accumulator row (Q13).
    if 2 * d * d * precision_bytes > spad_bytes // 2 or d * ACC_ROW_BYTES > acc_bytes // 2:
        raise UserError(
            f"a tile of one {d}x{d} block does not fit: cores.spad_kib = {spad_bytes // 1024}, "
            f"cores.acc_kib = {acc_bytes // 1024}; enlarge the memories or shrink the array"
        )
    spad_blocks = spad_bytes // (2 * d * precision_bytes) // 2 // d
    # The original divides by zero when the square root is 0 or exceeds the scratchpad's blocks (Q3).
    root = isqrt(acc_bytes // (d * 4 * 2) // d)
    ij = max(1, min(root, spad_blocks))
    return ij, max(1, spad_blocks // ij), not 1 <= root <= spad_blocks


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


def _inner_blocks(total: int, tiles: int, d: int) -> int:
    """Tile size in blocks, rounded down: 0 is what the original divides by."""
    padded = _ceil(total, d) * d
    return _ceil(padded, tiles) // d


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
