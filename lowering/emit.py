"""Writing programs: address descriptors, the run-length-encoding builder, and its inverse for tests and debugging.

A front end calls `ProgramBuilder` with one call per *loop nest* of instructions, in issue order. What the builder
adds is bookkeeping: pattern tables without duplicates, runs of equally spaced loads folded into one row, tiles
sorted by core, entry capacities, and the traffic of every layer.

`expand_tile` goes the other way: the primitive instructions of a tile with every memory block spelled out. The
scalar reference model and the tests read programs through it, so they share no code with the JAX model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lowering.program import ROW_COLUMNS, TILE_COLUMNS, Col, CoreActivity, Flag, LayerInfo, Op, Program, TileCol

INT32_MAX = 2**31 - 1

Preload = Literal["all", "first", "none"]


# --------------------------------------------------------------------------------------------------------------
# Descriptors: which memory blocks one load or store touches
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Descriptor:
    """The blocks of one transfer, ascending and distinct, in the periodic form of `lowering.program`.

    first_block: absolute number of the first block (byte address // request_bytes).
    requests: number of blocks, >= 1.
    pattern: offsets inside one period; None stands for 0, 1, 2, ...
    """

    first_block: int
    requests: int
    period_requests: int = 1
    period_pitch_blocks: int = 1
    pattern: tuple[int, ...] | None = None

    @staticmethod
    def contiguous(base_byte: int, n_bytes: int, request_bytes: int) -> Descriptor:
        """All blocks that the `n_bytes` >= 1 bytes from `base_byte` on touch."""
        first = base_byte // request_bytes
        return Descriptor(first, (base_byte + n_bytes - 1) // request_bytes - first + 1)

    @staticmethod
    def from_rows(base_byte: int, n_rows: int, row_pitch_bytes: int, row_bytes: int, request_bytes: int) -> Descriptor:
        """The blocks of `n_rows` rows of `row_bytes` bytes, `row_pitch_bytes` apart; a shared block counts once."""
        return Descriptor.from_segments(base_byte, ((n_rows, row_pitch_bytes),), row_bytes, request_bytes)

    @staticmethod
    def from_segments(
        base_byte: int, levels: Sequence[tuple[int, int]], segment_bytes: int, request_bytes: int
    ) -> Descriptor:
        """The blocks of a strided nest of segments.

        levels: (count, pitch in bytes) from the outermost loop to the innermost; pitches >= 0.
        segment_bytes: length of each segment, >= 1. For an image tile in NHWC:
        `from_segments(base, ((rows, row_pitch), (columns, pixel_pitch)), channels * element_bytes, request_bytes)`.
        """
        if segment_bytes < 1 or any(count < 1 or pitch < 0 for count, pitch in levels):
            raise ValueError(f"empty or backward transfer: levels {tuple(levels)}, segment of {segment_bytes} bytes")
        kept = tuple((count, pitch) for count, pitch in levels if count > 1)
        # Where the base lies inside its block decides the shape; the block number only shifts it.
        shape = _segment_shape(base_byte % request_bytes, kept, segment_bytes, request_bytes)
        return replace(shape, first_block=base_byte // request_bytes)

    @staticmethod
    def from_blocks(blocks: NDArray[np.int64]) -> Descriptor:
        """The shortest periodic form of an ascending, duplicate-free, non-empty list of block numbers."""
        gaps = np.diff(blocks)
        first, requests = int(blocks[0]), len(blocks)
        if gaps.size == 0 or int(gaps.max()) == 1:
            return Descriptor(first, requests)
        period = _smallest_period(gaps)
        pitch = int(gaps[:period].sum()) if period < requests else int(blocks[-1]) - first + 1
        identity = period == 1 or int(gaps[: period - 1].max()) == 1
        pattern = None if identity else tuple(int(block) - first for block in blocks[:period])
        return Descriptor(first, requests, period, pitch, pattern)

    def blocks(self) -> NDArray[np.int64]:
        """int64[requests]: the absolute block numbers, ascending."""
        index = np.arange(self.requests, dtype=np.int64)
        offset = index % self.period_requests
        if self.pattern is not None:
            offset = np.asarray(self.pattern, np.int64)[offset]
        return self.first_block + index // self.period_requests * self.period_pitch_blocks + offset

    def at(self, first_block: int) -> Descriptor:
        """The same shape elsewhere."""
        return replace(self, first_block=first_block)

    def starts_like(self, other: Descriptor) -> bool:
        """Whether this transfer's blocks are, relative to the first, the first ones of `other`."""
        if self.requests > other.requests:
            return False
        if (self.period_requests, self.period_pitch_blocks, self.pattern) == (
            other.period_requests,
            other.period_pitch_blocks,
            other.pattern,
        ):
            return True
        shortened = replace(other, first_block=self.first_block, requests=self.requests)
        return bool(np.array_equal(self.blocks(), shortened.blocks()))


@lru_cache(maxsize=4096)
def _segment_shape(
    offset: int, levels: tuple[tuple[int, int], ...], segment_bytes: int, request_bytes: int
) -> Descriptor:
    starts = np.array([offset], np.int64)
    for count, pitch in levels:
        starts = (starts[:, None] + np.arange(count, dtype=np.int64) * pitch).ravel()
    first = starts // request_bytes
    span = (starts + segment_bytes - 1) // request_bytes - first
    steps = np.arange(int(span.max()) + 1)
    touched = first[:, None] + steps
    return Descriptor.from_blocks(np.unique(touched[steps <= span[:, None]]))


def _smallest_period(gaps: NDArray[np.int64]) -> int:
    """Smallest q >= 1 with gaps[i + q] == gaps[i] wherever both exist; at most len(gaps) + 1 (no repetition)."""
    widest = np.flatnonzero(gaps == gaps.max())
    # A period maps the first widest gap onto another widest gap, or beyond the end of the list.
    inside = (widest[1:] - widest[0]).tolist()
    for period in (*inside, *range(len(gaps) - int(widest[0]), len(gaps))):
        if np.array_equal(gaps[period:], gaps[:-period]):
            return period
    return len(gaps) + 1


# --------------------------------------------------------------------------------------------------------------
# The builder
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """A scratchpad (or, with `acc`, accumulator) entry and how it moves with the three loops of the row."""

    entry: int
    steps: tuple[int, int, int] = (0, 0, 0)
    acc: bool = False

    def highest(self, counts: tuple[int, int, int]) -> int:
        """The highest entry touched in the loop nest."""
        return self.entry + sum(max(0, step) * (count - 1) for step, count in zip(self.steps, counts, strict=True))


@dataclass(frozen=True)
class Extent:
    """A size that may differ in the last trip of its loop."""

    size: int
    last: int | None = None

    @property
    def final(self) -> int:
        """The size in the last trip."""
        return self.size if self.last is None else self.last

    def total(self, trips: int) -> int:
        """Sum over all trips of the loop."""
        return self.size * (trips - 1) + self.final


ONE = Extent(1)


@dataclass
class _Run:
    """Loads (or stores) foldable into one row: `inner` items `inner_step` apart, `outer` times."""

    descriptor: Descriptor
    dst: int
    inner: int = 1
    inner_step: tuple[int, int] = (0, 0)
    last_requests: int = 0
    outer: int = 1
    outer_step: tuple[int, int] = (0, 0)

    def same_shape(self, other: _Run) -> bool:
        return (self.inner, self.inner_step, self.last_requests) == (
            other.inner,
            other.inner_step,
            other.last_requests,
        ) and self.descriptor == other.descriptor.at(self.descriptor.first_block)

    def extend(self, dst: int, item: Descriptor) -> bool:
        """Take one more item into the inner loop, if it continues it."""
        if self.last_requests != self.descriptor.requests or not item.starts_like(self.descriptor):
            return False
        step = (dst - self.dst, item.first_block - self.descriptor.first_block)
        if self.inner == 1:
            self.inner_step = step
        elif step != (self.inner_step[0] * self.inner, self.inner_step[1] * self.inner):
            return False
        self.inner += 1
        self.last_requests = item.requests
        return True

    def absorb(self, other: _Run) -> bool:
        """Take `other` as one more trip of the outer loop, if it continues it."""
        if not self.same_shape(other):
            return False
        step = (other.dst - self.dst, other.descriptor.first_block - self.descriptor.first_block)
        if self.outer == 1:
            self.outer_step = step
        elif step != (self.outer_step[0] * self.outer, self.outer_step[1] * self.outer):
            return False
        self.outer += 1
        return True


def _fold(items: Iterable[tuple[int, Descriptor]]) -> list[_Run]:
    runs: list[_Run] = []
    for dst, item in items:
        if not (runs and runs[-1].extend(dst, item)):
            runs.append(_Run(item, dst, last_requests=item.requests))
    folded: list[_Run] = []
    for run in runs:
        if not (folded and folded[-1].absorb(run)):
            folded.append(run)
    return folded


class ProgramBuilder:
    """Collects layers, tiles and instructions in order; `build` returns the `Program`.

    Call order: (begin_layer (begin_tile instructions* end_tile)* end_layer)* build. Instructions are written in the
    order in which their tile issues them. Misuse raises ValueError.
    """

    def __init__(self, name: str, n_cores: int, request_bytes: int) -> None:
        self.name = name
        self.n_cores = n_cores
        self.request_bytes = request_bytes
        self._rows: list[list[int]] = []
        self._tiles: list[list[int]] = []
        self._schedule: list[list[tuple[int, int]]] = []
        self._layers: list[LayerInfo] = []
        self._releases: list[int] = []
        self._release = 0
        self._pattern: list[int] = []
        self._pattern_start: dict[tuple[int, ...], int] = {}
        self._entries = {False: 1, True: 1}
        self._layer: LayerInfo | None = None
        self._layer_tiles: list[list[list[int]]] = []
        self._tile: tuple[int, list[int]] | None = None
        self._requests = {Op.LOAD: 0, Op.STORE: 0}
        self._vector_cycles = 0
        self._activity: list[Counter[str]] = []
        self._operations: list[Counter[str]] = []
        self._noted: dict[int, tuple[Mapping[str, int], Mapping[str, int]]] = {}

    # -- structure

    def launch(self, cycle: int = 0) -> None:
        """Make the next layer a launch that waits for this core cycle, 0 <= cycle < 2**30 (see `Program.releases`)."""
        if not 0 <= cycle < 1 << 30:
            raise ValueError(f"launch in cycle {cycle}")
        self._release = cycle + 1

    def begin_layer(self, info: LayerInfo) -> None:
        """Open the next layer. Its load_bytes, store_bytes, vector_cycles and activity are counted here."""
        if self._layer is not None:
            raise ValueError(f"layer {self._layer.name} is still open")
        self._layer = info
        self._releases.append(self._release)
        self._release = 0
        self._layer_tiles = [[] for _ in range(self.n_cores)]
        self._requests = {Op.LOAD: 0, Op.STORE: 0}
        self._vector_cycles = 0
        self._activity = [Counter() for _ in range(self.n_cores)]
        self._operations = [Counter() for _ in range(self.n_cores)]

    def end_layer(self) -> None:
        """Close the layer: its tiles get their places, core by core."""
        if self._layer is None or self._tile is not None:
            raise ValueError("end_layer without an open layer, or with an open tile")
        ranges: list[tuple[int, int]] = []
        for tiles in self._layer_tiles:
            ranges.append((len(self._tiles), len(self._tiles) + len(tiles)))
            self._tiles.extend(tiles)
        self._schedule.append(ranges)
        self._layers.append(
            replace(
                self._layer,
                load_bytes=self._requests[Op.LOAD] * self.request_bytes,
                store_bytes=self._requests[Op.STORE] * self.request_bytes,
                vector_cycles=self._vector_cycles,
                activity=self._core_activities(),
            )
        )
        self._layer = None

    def begin_tile(self, core: int, *, accumulate: bool = False, acc_key: int = 0) -> None:
        """Open the next tile of `core`. accumulate, acc_key: see `TileCol`."""
        if self._layer is None or self._tile is not None:
            raise ValueError("begin_tile without an open layer, or with an open tile")
        if not 0 <= core < self.n_cores:
            raise ValueError(f"core {core} of {self.n_cores}")
        columns = [0] * TILE_COLUMNS
        columns[TileCol.FIRST_ROW] = len(self._rows)
        columns[TileCol.LAYER] = len(self._layers)
        columns[TileCol.ACCUMULATE] = int(accumulate)
        columns[TileCol.ACC_KEY] = acc_key
        self._tile = (core, columns)

    def end_tile(self) -> None:
        """Close the tile. Without instructions it is a tile without work."""
        if self._tile is None:
            raise ValueError("end_tile without an open tile")
        core, columns = self._tile
        columns[TileCol.END_ROW] = len(self._rows)
        self._layer_tiles[core].append(columns)
        self._tile = None

    def skip_tile(self, core: int) -> None:
        """A tile without work: a dispatch slot and one cycle."""
        self.begin_tile(core)
        self.end_tile()

    # -- instructions

    def load(self, dst: int, descriptor: Descriptor, *, acc: bool = False) -> None:
        """Load `descriptor` into entry `dst` (of the accumulator if `acc`)."""
        self.load_many(((dst, descriptor),), acc=acc)

    def store(self, entry: int, descriptor: Descriptor, *, acc: bool = True) -> None:
        """Store entry `entry` (of the accumulator unless told otherwise) to `descriptor`."""
        self.store_many(((entry, descriptor),), acc=acc)

    def load_many(self, items: Iterable[tuple[int, Descriptor]], *, acc: bool = False) -> None:
        """Loads in the given order, (entry, descriptor) each; equally spaced ones of one shape share a row."""
        self._transfers(Op.LOAD, items, acc)

    def store_many(self, items: Iterable[tuple[int, Descriptor]], *, acc: bool = True) -> None:
        """Stores in the given order, (entry, descriptor) each; equally spaced ones of one shape share a row."""
        self._transfers(Op.STORE, items, acc)

    def systolic(
        self,
        *,
        dst: Operand,
        src_a: Operand,
        src_b: Operand,
        counts: tuple[int, int, int] = (1, 1, 1),
        size1: Extent = ONE,
        size2: Extent = ONE,
        preload: Preload = "all",
        first_sums: int = 0,
    ) -> None:
        """A loop nest of matrix multiplications; each streams size1 * size2 rows through the array.

        preload: which of them load new stationary weights first ("first": the one at (loop1, loop2) = (0, 0)).
        first_sums: see `CoreActivity`; of all trips together.
        """
        flag = {"all": Flag.PRELOAD, "first": Flag.PRELOAD_FIRST, "none": Flag(0)}[preload]
        self._compute(Op.SYSTOLIC, flag, dst, src_a, src_b, counts, size1, size2)
        if first_sums:
            self.note({"first_sums": first_sums})

    def vector(
        self,
        *,
        dst: Operand,
        src_a: Operand,
        src_b: Operand | None = None,
        counts: tuple[int, int, int] = (1, 1, 1),
        size1: Extent = ONE,
        size2: Extent = ONE,
        elements: int = 0,
        results: int | None = None,
        operations: Mapping[str, int] | None = None,
    ) -> None:
        """A loop nest of vector-unit operations; each occupies the unit for size1 * size2 cycles (0 allowed).

        elements, results, operations: for `LayerInfo.activity`, of all trips together: elements read of each operand,
        elements written (left out: as many), and operations on single elements. An instruction without duration awaits
        one more operand of one that has, and reads only that; or it stands for one more result, and writes only that.
        """
        self._compute(Op.VECTOR, Flag(0), dst, src_a, src_b or Operand(-1), counts, size1, size2)
        cycles = counts[0] * size1.total(counts[1]) * size2.total(counts[2])
        self._vector_cycles += cycles
        if elements:
            read = [operand for operand in (src_a if cycles else None, src_b) if operand and operand.entry >= 0]
            written = (elements if results is None else results) if cycles or not read else 0
            moved = Counter(_memory(operand, "reads") for operand in read)
            counted = Counter({name: count * elements for name, count in moved.items()})
            counted[_memory(dst, "writes")] += written
            self.note(counted, operations)

    def note(self, moved: Mapping[str, int], operations: Mapping[str, int] | None = None) -> None:
        """Add to the activity of the tile's core what the last instruction does.

        moved: by field of `CoreActivity`; operations: by field of `OpLatency`.
        """
        if self._tile is None or not self._rows:
            raise ValueError("note without an instruction in a tile")
        core, row = self._tile[0], len(self._rows) - 1
        self._noted[row] = moved, operations or {}
        self._activity[core].update(moved)
        self._operations[core].update(operations or {})

    @property
    def rows_written(self) -> int:
        """Number of the next row."""
        return len(self._rows)

    def repeat(self, first: int, end: int) -> None:
        """Write the rows first..end once more: instructions that compute, of an earlier tile of the open layer."""
        rows = self._rows[first:end]
        if self._tile is None or any(row[Col.OP] in (Op.LOAD, Op.STORE) for row in rows):
            raise ValueError("only instructions that compute can be repeated, inside a tile")
        for number, row in enumerate(rows, start=first):
            self._rows.append(row)
            if number in self._noted:
                self.note(*self._noted[number])
        self._vector_cycles += sum(_vector_cycles(row) for row in rows if row[Col.OP] == Op.VECTOR)

    def _core_activities(self) -> tuple[CoreActivity, ...]:
        if not any(self._activity) and not any(self._operations):
            return ()
        return tuple(
            CoreActivity(tuple(sorted(operations.items())), **moved)
            for moved, operations in zip(self._activity, self._operations, strict=True)
        )

    # -- result

    def build(self, warnings: Sequence[str] = ()) -> Program:
        """The finished program."""
        if self._layer is not None:
            raise ValueError(f"layer {self._layer.name} is still open")
        return Program(
            name=self.name,
            rows=np.asarray(self._rows, np.int32).reshape(-1, ROW_COLUMNS),
            tiles=np.asarray(self._tiles, np.int32).reshape(-1, TILE_COLUMNS),
            schedule=np.asarray(self._schedule, np.int32).reshape(-1, self.n_cores, 2),
            pattern=np.asarray(self._pattern, np.int32),
            layers=tuple(self._layers),
            spad_entries=self._entries[False],
            acc_entries=self._entries[True],
            request_bytes=self.request_bytes,
            warnings=tuple(warnings),
            releases=np.asarray(self._releases if any(self._releases) else (), np.int32),
        )

    # -- rows

    def _transfers(self, op: Op, items: Iterable[tuple[int, Descriptor]], acc: bool) -> None:
        for run in _fold(items):
            shape = run.descriptor
            columns = {
                Col.COUNT1: run.outer,
                Col.COUNT2: run.inner,
                Col.DST_STEP1: run.outer_step[0],
                Col.DST_STEP2: run.inner_step[0],
                Col.FIRST_BLOCK: shape.first_block,
                Col.BLOCK_STEP1: run.outer_step[1],
                Col.BLOCK_STEP2: run.inner_step[1],
                Col.REQUESTS: shape.requests,
                Col.REQUESTS_LAST: run.last_requests,
                Col.PERIOD_REQUESTS: shape.period_requests,
                Col.PERIOD_PITCH_BLOCKS: shape.period_pitch_blocks,
                Col.PATTERN_START: self._pattern_index(shape.pattern),
            }
            steps = (0, run.outer_step[0], run.inner_step[0])
            self._row(
                op, Flag.DST_ACC if acc else Flag(0), Operand(run.dst, steps, acc), (1, run.outer, run.inner), columns
            )
            self._requests[op] += run.outer * Extent(shape.requests, run.last_requests).total(run.inner)

    def _compute(
        self,
        op: Op,
        flags: Flag,
        dst: Operand,
        src_a: Operand,
        src_b: Operand,
        counts: tuple[int, int, int],
        size1: Extent,
        size2: Extent,
    ) -> None:
        columns: dict[Col, int] = {
            Col.COUNT0: counts[0],
            Col.COUNT1: counts[1],
            Col.COUNT2: counts[2],
            Col.SIZE1: size1.size,
            Col.SIZE1_LAST: size1.final,
            Col.SIZE2: size2.size,
            Col.SIZE2_LAST: size2.final,
        }
        for operand, first, flag in (
            (dst, Col.DST, Flag.DST_ACC),
            (src_a, Col.SRC_A, Flag.SRC_A_ACC),
            (src_b, Col.SRC_B, Flag.SRC_B_ACC),
        ):
            flags |= flag if operand.acc else Flag(0)
            for offset, value in enumerate((operand.entry, *operand.steps)):
                columns[Col(first + offset)] = value
            if first is not Col.DST:
                self._note_entries(operand, counts)
        self._row(op, flags, dst, counts, columns)

    def _row(self, op: Op, flags: Flag, dst: Operand, counts: tuple[int, int, int], columns: dict[Col, int]) -> None:
        if self._tile is None:
            raise ValueError(f"{op.name} outside a tile")
        if min(counts) < 1:
            raise ValueError(f"{op.name} with trip counts {counts}")
        if dst.entry < 0:
            raise ValueError(f"{op.name} without a destination")
        row = [0] * ROW_COLUMNS
        row[Col.OP], row[Col.FLAGS] = int(op), int(flags)
        row[Col.COUNT0] = row[Col.COUNT1] = row[Col.COUNT2] = 1
        row[Col.DST] = dst.entry
        for column, value in columns.items():
            if abs(value) > INT32_MAX:
                raise ValueError(f"{op.name}: {column.name} = {value} does not fit 32 bits")
            row[column] = value
        self._note_entries(dst, counts)
        self._rows.append(row)

    def _note_entries(self, operand: Operand, counts: tuple[int, int, int]) -> None:
        self._entries[operand.acc] = max(self._entries[operand.acc], operand.highest(counts) + 1)

    def _pattern_index(self, pattern: tuple[int, ...] | None) -> int:
        if pattern is None:
            return -1
        if pattern not in self._pattern_start:
            self._pattern_start[pattern] = len(self._pattern)
            self._pattern.extend(pattern)
        return self._pattern_start[pattern]


def _memory(operand: Operand, way: str) -> str:
    """Field of `CoreActivity` that counts reading or writing an operand."""
    return f"{'acc' if operand.acc else 'spad'}_{way}"


def _vector_cycles(row: list[int]) -> int:
    first = Extent(row[Col.SIZE1], row[Col.SIZE1_LAST]).total(row[Col.COUNT1])
    return row[Col.COUNT0] * first * Extent(row[Col.SIZE2], row[Col.SIZE2_LAST]).total(row[Col.COUNT2])


# --------------------------------------------------------------------------------------------------------------
# Reading programs back
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One primitive instruction.

    size: streamed rows (SYSTOLIC) or cycles (VECTOR); 0 for transfers.
    sources: (entry, in accumulator) of the operands that exist.
    blocks: int64[n], absolute block numbers in request order (LOAD, STORE); empty otherwise.
    """

    op: Op
    dst: int
    dst_acc: bool
    sources: tuple[tuple[int, bool], ...] = ()
    size: int = 0
    preload: bool = False
    blocks: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class Tile:
    """One tile and its place; `instructions` in issue order."""

    index: int
    layer: int
    core: int
    accumulate: bool
    acc_key: int
    instructions: list[Instruction]


def expand(program: Program) -> Iterator[Tile]:
    """All tiles with their instructions spelled out: layer by layer, core by core, in execution order."""
    for layer in range(program.n_layers):
        for core in range(program.n_cores):
            first, end = (int(bound) for bound in program.schedule[layer, core])
            for index in range(first, end):
                tile = program.tiles[index]
                yield Tile(
                    index=index,
                    layer=layer,
                    core=core,
                    accumulate=bool(tile[TileCol.ACCUMULATE]),
                    acc_key=int(tile[TileCol.ACC_KEY]),
                    instructions=expand_tile(program, index),
                )


def expand_tile(program: Program, tile: int) -> list[Instruction]:
    """The primitive instructions of tile number `tile`, in issue order."""
    first, end = (int(program.tiles[tile, column]) for column in (TileCol.FIRST_ROW, TileCol.END_ROW))
    instructions: list[Instruction] = []
    for row in program.rows[first:end].tolist():
        op = Op(row[Col.OP])
        one = _expand_transfer if op in (Op.LOAD, Op.STORE) else _expand_compute
        counts = row[Col.COUNT0], row[Col.COUNT1], row[Col.COUNT2]
        instructions.extend(one(program, op, row, trip) for trip in product(*map(range, counts)))
    return instructions


def _entry(row: list[int], first: Col, trip: tuple[int, ...]) -> int:
    return row[first] + sum(row[first + 1 + axis] * index for axis, index in enumerate(trip))


def _expand_transfer(program: Program, op: Op, row: list[int], trip: tuple[int, ...]) -> Instruction:
    last = trip[2] == row[Col.COUNT2] - 1
    start, period = row[Col.PATTERN_START], row[Col.PERIOD_REQUESTS]
    descriptor = Descriptor(
        first_block=row[Col.FIRST_BLOCK] + trip[1] * row[Col.BLOCK_STEP1] + trip[2] * row[Col.BLOCK_STEP2],
        requests=row[Col.REQUESTS_LAST if last else Col.REQUESTS],
        period_requests=period,
        period_pitch_blocks=row[Col.PERIOD_PITCH_BLOCKS],
        pattern=None if start < 0 else tuple(program.pattern[start : start + period].tolist()),
    )
    in_acc = bool(row[Col.FLAGS] & Flag.DST_ACC)
    return Instruction(op, _entry(row, Col.DST, trip), in_acc, blocks=descriptor.blocks())


def _expand_compute(program: Program, op: Op, row: list[int], trip: tuple[int, ...]) -> Instruction:
    flags = row[Col.FLAGS]
    size1 = row[Col.SIZE1_LAST if trip[1] == row[Col.COUNT1] - 1 else Col.SIZE1]
    size2 = row[Col.SIZE2_LAST if trip[2] == row[Col.COUNT2] - 1 else Col.SIZE2]
    preload = bool(flags & Flag.PRELOAD) or (bool(flags & Flag.PRELOAD_FIRST) and trip[1:] == (0, 0))
    return Instruction(
        op,
        _entry(row, Col.DST, trip),
        bool(flags & Flag.DST_ACC),
        sources=tuple(
            (_entry(row, column, trip), bool(flags & flag))
            for column, flag in ((Col.SRC_A, Flag.SRC_A_ACC), (Col.SRC_B, Flag.SRC_B_ACC))
            if row[column] >= 0
        ),
        size=size1 * size2,
        preload=preload,
    )
