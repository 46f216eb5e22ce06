"""Scaled dot-product attention as one operator that streams keys and values through the scratchpad.

The IR operator ``Attention`` (a `lowering.ir.Node` with ``op="Attention"``) means what ONNX operator set 23 says:
``softmax(scale * Q K^T + mask) V`` for every head, each group of query heads sharing one key/value head.

Inputs, by position; absent optional ones are None. Of Q, K, V and Y each may have four or three dimensions:

====  ==========  ===========================================================================================
0     Q           (batch, q_heads, q_len, head) or (batch, q_len, q_heads * head)
1     K           (batch, kv_heads, new_len, head) or (batch, new_len, kv_heads * head)
2     V           (batch, kv_heads, new_len, v_head) or (batch, new_len, kv_heads * v_head)
3     mask        optional; broadcasts to (batch, q_heads, q_len, past_len + new_len), boolean or added; it is read
                  from memory unless it has a single element
4     past_key    optional, with 5: (batch, kv_heads, past_len, head)
5     past_value  (batch, kv_heads, past_len, v_head)
====  ==========  ===========================================================================================

Outputs: 0 Y, of either form with v_head in the place of head; optional, both or neither: 1 present_key
(batch, kv_heads, past_len + new_len, head) and 2 present_value (the same with v_head).

Attributes: ``q_num_heads``, ``kv_num_heads`` (int; required where Q or K, V have three dimensions, otherwise read from
the shapes); ``is_causal`` (int, default 0: query i sees keys 0 .. past_len + i); ``scale`` (float, without influence on
time); ``softcap`` (float, default 0: none; otherwise a tanh for each score). Beyond ONNX: ``window`` (int, default 0:
none; otherwise a query sees only the last ``window`` of the keys up to its own position, as in a sliding window).

The cache: present_key and past_key share memory, in the layout of present_key, and so do the values, when the past is
an input of the graph: new rows are appended in place, which writes new_len rows for each key/value head, and the past
is read where it lies. A past that another operator computes is copied into the present first. Without present outputs
nothing is written. Decoding one token at context 4096 is q_len = new_len = 1 with past_len = 4095 (or 4096).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hwconfigs.schema import CoreConfig
from lowering.attention_tiling import (
    RESCALE_COST,
    AttentionShape,
    Tiling,
    array_cycles,
    choose_tiling,
    cut,
    final_cycles,
    final_operations,
    rescale_cycles,
    row_passes,
    score_blocks,
    softmax_cycles,
    softmax_operations,
    value_blocks,
)
from lowering.balance import balance
from lowering.chip import Chip
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.layout import Layout
from lowering.mapper import TILE_OVERHEAD_CYCLES
from lowering.mapping import MappingError, ranges
from lowering.operators import times
from lowering.program import LayerInfo

# Entries. Scratchpad: keys and values from the cache and new ones, the mask, two buffers of probabilities.
_OLD_KEYS, _NEW_KEYS, _OLD_VALUES, _NEW_VALUES, _MASK, _PROBABILITIES = range(6)
# Accumulators, kept along a chain: the query tile, the results, two buffers of scores.
_QUERIES, _RESULTS, _SCORES = range(3)


Steps = tuple[tuple[int, int], ...]
"""(first, end) of the keys of each step of a chain."""

Written = dict[tuple[int, ...], tuple[int, int]]
"""Rows of one core that compute, as (first, end), by what they depend on."""


@dataclass(frozen=True)
class HeadRows:
    """Where the rows of every (batch, head) of a tensor lie.

    width: elements of a row. merged: a pixel holds the rows of all heads of one position (the three-dimensional form);
    otherwise every row is a pixel, ordered by batch, head, position. length: positions of one head.
    """

    layout: Layout
    heads: int
    length: int
    width: int
    merged: bool = False

    def region(self, batch: int, heads: tuple[int, int], rows: tuple[int, int]) -> Descriptor:
        """Rows (first, count) of heads (first, count)."""
        if self.merged:
            channels = heads[0] * self.width, heads[1] * self.width
            return self.layout.region(batch * self.length + rows[0], ((rows[1], 1),), *channels)
        first = (batch * self.heads + heads[0]) * self.length + rows[0]
        return self.layout.region(first, ((heads[1], self.length), (rows[1], 1)), 0, self.width)


@dataclass(frozen=True)
class KeyRows:
    """Keys or values: the new ones, the cache (None without one), and whether new rows are appended to it.

    The cache has room for the new rows behind the old ones where it is appended to.
    """

    new: HeadRows
    cache: HeadRows | None = None
    append: bool = False


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer with its tensors in place. mask: row-major, or None when none is read."""

    name: str
    shape: AttentionShape
    queries: HeadRows
    keys: KeyRows
    values: KeyRows
    results: HeadRows
    mask: Layout | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chain:
    """One query tile: (first, count) of the query heads and positions, (first, end) of the keys that it streams.

    append: (first, end) of the keys that this chain writes to the cache.
    """

    batch: int
    kv_head: int
    heads: tuple[int, int]
    rows: tuple[int, int]
    keys: tuple[int, int]
    append: tuple[int, int]

    @property
    def total_rows(self) -> int:
        """Rows of the score matrix."""
        return self.heads[1] * self.rows[1]

    def steps(self, tiling: Tiling, granule: int) -> Steps:
        """(first, end) of the keys of each step."""
        first, end = self.keys
        pieces = cut(end - first, tiling.keys, granule)
        return tuple((first + start, first + start + count) for start, count in pieces)


# -- chains


def chains(shape: AttentionShape, tiling: Tiling, append: bool) -> list[Chain]:
    """All query tiles. New keys are written to the cache by the first tile of their group that sees them."""
    found: list[Chain] = []
    for batch in range(shape.batch):
        for kv_head in range(shape.kv_heads):
            for first_head, heads in ranges(shape.group, tiling.heads, 1, False):
                written = shape.past_len
                for rows in ranges(shape.q_len, tiling.rows, 1, False):
                    keys = shape.visible(*rows)
                    mine = (written, max(written, keys[1])) if append and first_head == 0 else (0, 0)
                    written = mine[1]
                    of_group = (kv_head * shape.group + first_head, heads)
                    found.append(Chain(batch, kv_head, of_group, rows, keys, mine))
    return found


@dataclass(frozen=True)
class AttentionPlan:
    """A layer cut into chains with the (first, end) of the keys of every step, and every core's share of them.

    systolic_cycles: array cycles of all chains.
    """

    layer: AttentionLayer
    tiling: Tiling
    shares: tuple[tuple[tuple[Chain, Steps], ...], ...]
    systolic_cycles: int


def plan_attention(layer: AttentionLayer, chip: Chip, tiling: Tiling | None = None) -> AttentionPlan:
    """Cut the layer and give its chains to cores, the longest first. Raises MappingError when no tile fits."""
    try:
        sizes = tiling or choose_tiling(layer.shape, chip)
    except MappingError as error:
        raise MappingError(f"layer {layer.name} (Attention): {error}") from None
    granule = max(chip.array_rows, chip.array_cols)
    work = [(chain, chain.steps(sizes, granule)) for chain in chains(layer.shape, sizes, layer.keys.append)]
    kinds = list(dict.fromkeys(chip.cores))
    kind_of = [kinds.index(core) for core in chip.cores]
    cycles = [_chain_cycles(layer.shape, work, core) for core in kinds]
    costs = [
        [own + TILE_OVERHEAD_CYCLES * len(steps) for own, (_, steps) in zip(of_kind, work, strict=True)]
        for of_kind in cycles
    ]
    shares = balance([costs[kind] for kind in kind_of])
    busy = sum(cycles[kind][item] for kind, share in zip(kind_of, shares, strict=True) for item in share)
    return AttentionPlan(layer, sizes, tuple(tuple(work[item] for item in share) for share in shares), busy)


def _chain_cycles(shape: AttentionShape, work: Sequence[tuple[Chain, Steps]], core: CoreConfig) -> list[int]:
    """Cycles in which the array of `core` is busy with each chain."""
    known: dict[tuple[int, int], int] = {}

    def of_step(rows: int, keys: int) -> int:
        if (rows, keys) not in known:
            known[rows, keys] = array_cycles(shape, rows, keys, core)
        return known[rows, keys]

    return [sum(of_step(chain.total_rows, end - first) for first, end in steps) for chain, steps in work]


def emit_attention(builder: ProgramBuilder, plan: AttentionPlan, chip: Chip) -> None:
    """Write the layer's tiles."""
    layer, shape, tiling = plan.layer, plan.layer.shape, plan.tiling
    scores = sum(chain.total_rows * (chain.keys[1] - chain.keys[0]) for share in plan.shares for chain, _ in share)
    info = LayerInfo(
        layer.name,
        "Attention",
        macs=scores * (shape.head + shape.v_head),
        systolic_cycles=plan.systolic_cycles,
        notes=(
            *layer.notes,
            f"tiles of {tiling.heads} heads x {tiling.rows} queries, {tiling.keys} keys (by {tiling.columns})",
        ),
    )
    builder.begin_layer(info)
    number = 0
    for core, share in enumerate(plan.shares):
        written: Written = {}
        for chain, steps in share:
            for keys in steps:
                builder.begin_tile(core, accumulate=keys is not steps[0], acc_key=number)
                step = _Step(builder, plan, chip, chip.cores[core], chain, keys, written)
                step.write(first=keys is steps[0], last=keys is steps[-1])
                builder.end_tile()
            number += 1
    builder.end_layer()


# -- instructions


@dataclass(frozen=True)
class _Step:
    """One tile: a chain's queries with the keys (first, end).

    written: what the core's tiles have computed so far; the same again is repeated instead of written anew.
    """

    builder: ProgramBuilder
    plan: AttentionPlan
    chip: Chip
    core: CoreConfig
    chain: Chain
    keys: tuple[int, int]
    written: Written

    @property
    def layer(self) -> AttentionLayer:
        """The layer of the chain."""
        return self.plan.layer

    def write(self, first: bool, last: bool) -> None:
        """All instructions of the tile."""
        chain, builder, layer = self.chain, self.builder, self.layer
        if first:
            builder.load(_QUERIES, layer.queries.region(chain.batch, chain.heads, chain.rows), acc=True)
        keys = self._load(layer.keys, _OLD_KEYS)
        mask = self._load_mask()
        values = self._load(layer.values, _OLD_VALUES)
        alike = (chain.total_rows, self.keys[1] - self.keys[0], *keys, first, last)
        if alike in self.written:
            builder.repeat(*self.written[alike])
        else:
            start = builder.rows_written
            self._compute(keys, mask, values, first, last)
            self.written[alike] = start, builder.rows_written
        if last:
            builder.store(_RESULTS, layer.results.region(chain.batch, chain.heads, chain.rows))
        self._append(layer.keys, _NEW_KEYS)
        self._append(layer.values, _NEW_VALUES)

    # loads

    def _load(self, source: KeyRows, entry: int) -> list[int]:
        """Load the step's rows from the cache and from the new ones; returns the entries that hold them."""
        past, (first, end) = self.layer.shape.past_len, self.keys
        head, used = (self.chain.kv_head, 1), []
        if source.cache is not None and first < past:
            self.builder.load(entry, source.cache.region(self.chain.batch, head, (first, min(end, past) - first)))
            used.append(entry)
        if end > past:
            start = max(first, past)
            self.builder.load(entry + 1, source.new.region(self.chain.batch, head, (start - past, end - start)))
            used.append(entry + 1)
        return used

    def _load_mask(self) -> Operand | None:
        layout, sizes = self.layer.mask, self.layer.shape.mask
        if layout is None:
            return None
        own = ((self.chain.batch, 1), self.chain.heads, self.chain.rows, (self.keys[0], self.keys[1] - self.keys[0]))
        (batch, _), heads, rows, keys = (piece if size > 1 else (0, 1) for piece, size in zip(own, sizes, strict=True))
        pixel = (batch * sizes[1] + heads[0]) * sizes[2] + rows[0]
        self.builder.load(_MASK, layout.region(pixel, ((heads[1], sizes[2]), (rows[1], 1)), *keys))
        return Operand(_MASK)

    def _joined(self, entries: list[int]) -> Operand:
        """One operand for rows that come in two transfers: an instruction without duration waits for both."""
        operand = Operand(entries[0])
        if len(entries) > 1:
            self.builder.vector(dst=operand, src_a=operand, src_b=Operand(entries[1]), size1=Extent(0))
        return operand

    # computing

    def _compute(
        self, key_entries: list[int], mask: Operand | None, value_entries: list[int], first: bool, last: bool
    ) -> None:
        """Block by block: the scores of the next one come before the softmax of this one, which they hide."""
        granule = max(self.chip.array_rows, self.chip.array_cols)
        blocks = self.plan.tiling.blocks(self.keys[1] - self.keys[0], granule)
        keys, values = self._joined(key_entries), Operand(value_entries[0])
        self._scores(0, blocks[0], keys)
        for index, columns in enumerate(blocks):
            if index + 1 < len(blocks):
                self._scores(index + 1, blocks[index + 1], keys)
            self._softmax(index, columns, mask)
            if index == 0:
                values = self._joined(value_entries)
            self._results(index, columns, values, rescale=not first or index > 0)
        if last:
            results = Operand(_RESULTS, acc=True)
            shape, rows = self.layer.shape, self.chain.total_rows
            self.builder.vector(
                dst=results,
                src_a=results,
                size1=Extent(final_cycles(shape, rows, self.chip.element_bytes, self.core)),
                elements=rows * shape.v_head,
                operations=final_operations(shape, rows),
            )

    def _scores(self, index: int, columns: int, keys: Operand) -> None:
        blocks = score_blocks(self.layer.shape, columns, self.core)
        scores = Operand(_SCORES + index % 2, acc=True)
        self._product(scores, Operand(_QUERIES, acc=True), keys, blocks, first_of=columns)

    def _softmax(self, index: int, columns: int, mask: Operand | None) -> None:
        rows, element = self.chain.total_rows, self.chip.element_bytes
        cycles = softmax_cycles(self.layer.shape, rows, columns, element, self.core)
        scores, probabilities = Operand(_SCORES + index % 2, acc=True), Operand(_PROBABILITIES + index % 2)
        # Two passes over the scores: maxima, then exponentials with their sums. Only the second writes.
        self.builder.vector(
            dst=probabilities,
            src_a=scores,
            src_b=mask,
            size1=Extent(cycles),
            elements=2 * rows * columns,
            results=rows * columns,
            operations=softmax_operations(self.layer.shape, rows, columns),
        )

    def _results(self, index: int, columns: int, values: Operand, rescale: bool) -> None:
        results, probabilities = Operand(_RESULTS, acc=True), Operand(_PROBABILITIES + index % 2)
        if rescale:
            cycles = rescale_cycles(self.layer.shape, self.chain.total_rows, self.chip.element_bytes, self.core)
            self.builder.vector(dst=results, src_a=results, src_b=probabilities, size1=Extent(cycles))
            # The probabilities are awaited, not read.
            elements = self.chain.total_rows * self.layer.shape.v_head
            self.builder.note({"acc_reads": elements, "acc_writes": elements}, times(RESCALE_COST, elements))
        blocks = value_blocks(self.layer.shape, columns, self.core)
        first_of = 0 if rescale else self.layer.shape.v_head
        self._product(results, probabilities, values, blocks, first_of)

    def _product(self, dst: Operand, rows: Operand, weights: Operand, blocks: int, first_of: int) -> None:
        """first_of: columns of the product whose sums begin here."""
        groups = row_passes(self.chain.total_rows, self.core)
        self.builder.systolic(
            dst=dst,
            src_a=rows,
            src_b=weights,
            counts=(blocks, groups.lines, groups.passes),
            size2=groups.size,
            preload="first",
            first_sums=groups.streamed * math.ceil(first_of / self.core.cols) * self.core.cols,
        )

    # the cache

    def _append(self, target: KeyRows, entry: int) -> None:
        """Write those of the step's new rows that are this chain's to write."""
        first, end = max(self.keys[0], self.chain.append[0]), min(self.keys[1], self.chain.append[1])
        if target.cache is not None and first < end:
            place = target.cache.region(self.chain.batch, (self.chain.kv_head, 1), (first, end - first))
            self.builder.store(entry, place, acc=False)
