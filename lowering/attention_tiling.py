"""How an attention layer is cut: query tiles that stay, key tiles that stream, and the choice of their sizes.

A *query tile* is `heads` query heads of one group times `rows` positions; a *key tile* is `keys` keys with values,
worked off in blocks of `columns` keys. A *chain* is one query tile with all its key tiles, on one core, the two loops
of FlashAttention-2 (Dao, 2023). While the vector unit works on one block's scores, the array computes those of the
next one, as in the ping-pong schedule of FlashAttention-3 (Shah et al., 2024): there are two buffers for scores.
Every combination of sizes is priced in closed form; as in `lowering.mapper` prices depend on the cores only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from hwconfigs.schema import CoreConfig
from lowering.array_timing import RowGroups, group_rows, tile_cycles
from lowering.chip import Chip
from lowering.mapper import TILE_OVERHEAD_CYCLES, UNHIDDEN
from lowering.mapping import ACCUMULATOR_BYTES, MappingError, ranges
from lowering.operators import Cost, add_costs, latency, times, tree_passes

STATISTICS = 2
"""Running values of each row in the accumulators: maximum and sum."""

_PARTS = (
    *range(1, 9),
    *range(10, 17, 2),
    *range(20, 33, 4),
    *(size << k for k in range(3, 18) for size in (5, 6, 7, 8)),
)
"""Numbers of parts into which the queries are cut."""

_MOST_ROW_SIZES = 8
"""Only so many row sizes are priced for each of the other sizes, the largest that fit: they load keys least often."""

SCORE_COST: Cost = {"mac": 1, "exp": 1}
"""Each score: scaled and reduced by the maximum in one multiply-add, exponential."""
MASK_COST: Cost = {"add": 1}
"""Each score of a mask that is read."""
SOFTCAP_COST: Cost = {"mul": 2, "exp": 1, "add": 2, "div": 1}
"""Each score with a soft cap: cap * tanh(score / cap)."""
STATISTICS_COST: Cost = {"add": 2, "exp": 1, "mac": 1}
"""Each row and key tile: new maximum, exponential of the difference to the old one, sum times that plus new sum."""
RESCALE_COST: Cost = {"mul": 1}
"""Each result element and key tile beyond the first."""
FINAL_ROW_COST: Cost = {"div": 1}
"""Each row, once: reciprocal of the sum."""


@dataclass(frozen=True)
class AttentionShape:
    """What one attention layer computes; sizes in elements and positions.

    head, v_head: elements of a key and of a value. past_len, new_len: keys from the cache and keys that come with the
    queries. causal: query i sees keys up to past_len + i. window: it sees the last `window` of these only; 0: all.
    mask: sizes of the mask for (batch, heads, queries, keys), 1 where it is broadcast; () without one.
    """

    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    past_len: int
    new_len: int
    head: int
    v_head: int
    causal: bool = False
    window: int = 0
    softcap: bool = False
    mask: tuple[int, ...] = ()

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.q_heads // self.kv_heads

    @property
    def kv_len(self) -> int:
        """Keys of the past and new ones."""
        return self.past_len + self.new_len

    def visible(self, first: int, rows: int) -> tuple[int, int]:
        """(first, end) of the keys that at least one of `rows` queries from `first` on sees; never empty."""
        if not self.causal:
            return 0, self.kv_len
        end = min(self.kv_len, self.past_len + first + rows)
        start = self.past_len + first - self.window + 1 if self.window else 0
        return min(max(0, start), end - 1), end

    @property
    def score_cost(self) -> Cost:
        """Vector operations for each score."""
        return add_costs(SCORE_COST, MASK_COST if self.mask else {}, SOFTCAP_COST if self.softcap else {})


@dataclass(frozen=True)
class Tiling:
    """Sizes of a query tile (heads x rows), of a key tile, and of the blocks in which it is worked off."""

    heads: int
    rows: int
    keys: int
    columns: int

    def blocks(self, keys: int, granule: int) -> list[int]:
        """Keys of each block of a tile of `keys` keys."""
        return [count for _, count in cut(keys, self.columns, granule)]


def cut(total: int, size: int, granule: int) -> list[tuple[int, int]]:
    """0..total in even (start, length) pieces of whole granules, at most `size` long."""
    return [(0, total)] if total <= size else ranges(total, size, granule, False)


@dataclass(frozen=True)
class TileBytes:
    """Bytes of one step of a chain, data only: key and value tile, mask tile, probabilities; accumulators."""

    keys: int
    mask: int
    probabilities: int
    accumulators: int

    @property
    def scratchpad(self) -> int:
        """All of the scratchpad's."""
        return self.keys + self.mask + self.probabilities


def tile_bytes(shape: AttentionShape, tiling: Tiling, element_bytes: int) -> TileBytes:
    """What a whole tile needs. The query tile stays in the accumulator memory, at operand width, beside its results."""
    rows, keys = tiling.heads * tiling.rows, tiling.keys
    scores = tiling.columns if tiling.columns >= keys else 2 * tiling.columns
    sums = (scores + shape.v_head + STATISTICS) * ACCUMULATOR_BYTES
    return TileBytes(
        keys=keys * (shape.head + shape.v_head) * element_bytes,
        mask=mask_elements(shape, tiling) * element_bytes,
        probabilities=rows * keys * element_bytes,
        accumulators=rows * (sums + shape.head * element_bytes),
    )


def mask_elements(shape: AttentionShape, tiling: Tiling) -> int:
    """Elements of the mask that a whole tile reads: broadcast dimensions once."""
    if not shape.mask:
        return 0
    own = (1, tiling.heads, tiling.rows, tiling.keys)
    return math.prod(size if full > 1 else 1 for size, full in zip(own, shape.mask, strict=True))


# -- compute


def row_passes(rows: int, core: CoreConfig) -> RowGroups:
    """The passes of a query tile of `rows` rows over each weight block."""
    return group_rows(1, 1, rows, (1, rows), core.rows)


def score_blocks(shape: AttentionShape, keys: int, core: CoreConfig) -> int:
    """Weight blocks of Q K^T: the keys are stationary, transposed while they are preloaded, at no cost."""
    return math.ceil(shape.head / core.rows) * math.ceil(keys / core.cols)


def value_blocks(shape: AttentionShape, keys: int, core: CoreConfig) -> int:
    """Weight blocks of P V."""
    return math.ceil(keys / core.rows) * math.ceil(shape.v_head / core.cols)


def array_cycles(shape: AttentionShape, rows: int, keys: int, core: CoreConfig) -> int:
    """Cycles that a tile of `keys` keys occupies the array; blocks are whole passes wide, so they do not matter."""
    blocks = score_blocks(shape, keys, core) + value_blocks(shape, keys, core)
    return tile_cycles(blocks, row_passes(rows, core), core)


def softmax_cycles(shape: AttentionShape, rows: int, keys: int, element_bytes: int, core: CoreConfig) -> int:
    """Vector cycles for the scores of `rows` x `keys`: maxima, exponentials, sums, running statistics.

    Rows shorter than the vector unit share its operations and its reduction tree.
    """
    unit = core.vector_bits // 8
    row_bytes = keys * element_bytes
    trees = rows * tree_passes(row_bytes, unit) if row_bytes > unit else math.ceil(rows / (unit // row_bytes))
    scores = math.ceil(rows * row_bytes / unit) * latency(shape.score_cost, core)
    statistics = math.ceil(rows * element_bytes / unit) * latency(STATISTICS_COST, core)
    return 2 * trees * core.latency.add_tree + scores + statistics


def rescale_cycles(shape: AttentionShape, rows: int, element_bytes: int, core: CoreConfig) -> int:
    """Vector cycles that multiply the results of `rows` rows by a factor for each row."""
    return math.ceil(rows * shape.v_head * element_bytes / (core.vector_bits // 8)) * latency(RESCALE_COST, core)


def final_cycles(shape: AttentionShape, rows: int, element_bytes: int, core: CoreConfig) -> int:
    """Vector cycles of the division by the sums at the end of a chain."""
    reciprocals = math.ceil(rows * element_bytes / (core.vector_bits // 8)) * latency(FINAL_ROW_COST, core)
    return reciprocals + rescale_cycles(shape, rows, element_bytes, core)


def softmax_operations(shape: AttentionShape, rows: int, keys: int) -> Cost:
    """`softmax_cycles` as operations on single elements; maxima and sums take one for each score."""
    scores = times(add_costs(shape.score_cost, {"add": 2}), rows * keys)
    return add_costs(scores, times(STATISTICS_COST, rows))


def final_operations(shape: AttentionShape, rows: int) -> Cost:
    """`final_cycles` as operations on single elements."""
    return add_costs(times(FINAL_ROW_COST, rows), times(RESCALE_COST, rows * shape.v_head))


# -- the choice


@lru_cache(maxsize=1024)
def choose_tiling(shape: AttentionShape, chip: Chip) -> Tiling:
    """The cheapest sizes that fit half the scratchpad and half the accumulators.

    Raises MappingError with the bytes that the smallest tile needs when nothing fits.
    """
    granule = max(chip.array_rows, chip.array_cols)
    row_sizes = sorted({math.ceil(shape.q_len / parts) for parts in _PARTS}, reverse=True)
    fitting: list[Tiling] = []
    for heads in _halvings(shape.group, 1):
        for keys in _halvings(shape.kv_len, granule):
            for columns in _halvings(keys, granule):
                tilings = (Tiling(heads, rows, keys, columns) for rows in row_sizes)
                fitting += islice((tiling for tiling in tilings if _fits(shape, tiling, chip)), _MOST_ROW_SIZES)
    if not fitting:
        smallest = min(granule, shape.kv_len)
        least = tile_bytes(shape, Tiling(1, 1, smallest, smallest), chip.element_bytes)
        raise MappingError(
            f"the smallest tile needs {least.scratchpad} bytes of scratchpad and {least.accumulators} of accumulators, "
            f"half of them are {chip.spad_bytes} and {chip.acc_bytes}; enlarge cores.spad_kib or cores.acc_kib"
        )
    lengths = {rows: _lengths(shape, rows) for rows in {tiling.rows for tiling in fitting}}
    return min(fitting, key=lambda tiling: _price(shape, tiling, lengths[tiling.rows], chip))


def _fits(shape: AttentionShape, tiling: Tiling, chip: Chip) -> bool:
    needed = tile_bytes(shape, tiling, chip.element_bytes)
    return needed.scratchpad <= chip.spad_bytes and needed.accumulators <= chip.acc_bytes


def _lengths(shape: AttentionShape, rows: int) -> NDArray[np.int64]:
    """The keys that each query tile of `rows` positions streams."""
    bounds = [shape.visible(*tile) for tile in ranges(shape.q_len, rows, 1, False)]
    return np.array([end - start for start, end in bounds], np.int64)


def _price(shape: AttentionShape, tiling: Tiling, lengths: NDArray[np.int64], chip: Chip) -> float:
    """Estimated cycles; the terms are those of `lowering.mapper`."""
    core, element = chip.cores[0], chip.element_bytes
    rows, keys, steps = tiling.heads * tiling.rows, int(lengths.sum()), int((-(-lengths // tiling.keys)).sum())
    alike = shape.batch * shape.kv_heads * math.ceil(shape.group / tiling.heads)
    chains, step_keys = alike * len(lengths), math.ceil(keys / steps)
    columns = min(tiling.columns, step_keys)
    vector = softmax_cycles(shape, rows, columns, element, core) + rescale_cycles(shape, rows, element, core)
    step = max(array_cycles(shape, rows, step_keys, core), vector * math.ceil(step_keys / columns))
    step += vector + TILE_OVERHEAD_CYCLES
    compute = math.ceil(chains / chip.n_cores) * steps / len(lengths) * step
    key_bytes = (shape.head + shape.v_head) * element
    mask_bytes = mask_elements(shape, tiling) * element / tiling.keys
    nominal = 4 * chip.array_rows
    transfer = (alike * keys * (key_bytes + mask_bytes) + chains * rows * key_bytes) / nominal
    # Nothing overlaps the first step's loads and the last step's work.
    exposed = min(chains, chip.n_cores) * step_keys * key_bytes / nominal + step
    return max(compute, transfer) + UNHIDDEN * min(compute, transfer) + exposed


def _halvings(size: int, granule: int) -> list[int]:
    """`size`, half of it, a quarter, ... in whole granules, down to one granule; largest first."""
    sizes = [size]
    while sizes[-1] > granule:
        sizes.append(math.ceil(math.ceil(sizes[-1] / 2) / granule) * granule)
        if sizes[-1] >= sizes[-2]:
            sizes.pop()
            break
    return sizes
