"""The program: what one workload does on one chip, as fixed-shape integer tables.

Lowering writes it, the cycle-level model (`vsim.npu`) executes it. Three tables, all int32:

* ``rows``  - run-length-encoded instructions: one row is up to three nested loops of one instruction;
* ``tiles`` - a half-open range of rows each, plus the layer it belongs to;
* ``schedule`` - for every (layer, core) the half-open range of tiles that core executes, in order.

Addresses are never stored one by one. A load or store row describes its requests by a *period*:
request ``i`` touches the memory block (of ``request_bytes`` bytes)

    block(i) = first_block + (i // period_requests) * period_pitch_blocks + pattern[i % period_requests]

where ``pattern`` is a slice of the program's pattern table, or the identity when ``pattern_start`` is -1.
A contiguous run has period 1 and pitch 1; rows of a matrix have one row a period; rows whose pitch is no
multiple of the block have as many rows a period as it takes for the alignment to repeat.

Scratchpad and accumulator regions are named by small *entry* numbers, one number space per memory and per
tile. An entry is *valid* when all its requests have arrived and all its writers have retired; instructions
wait for the validity of their sources, as the hardware's scoreboard does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]


class Op(IntEnum):
    """Instruction classes of the core. `SYSTOLIC` streams rows through the array, `VECTOR` occupies the vector unit."""

    LOAD = 0
    STORE = 1
    SYSTOLIC = 2
    VECTOR = 3


class Flag(IntFlag):
    """Bits of the `FLAGS` column."""

    DST_ACC = 1
    """The destination (LOAD, SYSTOLIC, VECTOR) or the stored region (STORE) is in the accumulator."""
    SRC_A_ACC = 2
    SRC_B_ACC = 4
    PRELOAD = 8
    """Every instruction of the row loads new stationary weights first (SYSTOLIC only)."""
    PRELOAD_FIRST = 16
    """Only the instruction at (loop1, loop2) = (0, 0) loads new weights; the others reuse them (SYSTOLIC only)."""


class Col(IntEnum):
    """Columns of ``rows``. LOAD and STORE share the columns from `FIRST_BLOCK` on with the others' operand columns."""

    OP = 0
    FLAGS = 1
    COUNT0 = 2
    """Trip counts of the three loops, outermost first; each >= 1. LOAD and STORE use loops 1 and 2 only."""
    COUNT1 = 3
    COUNT2 = 4
    DST = 5
    """Entry written (LOAD, SYSTOLIC, VECTOR) or stored (STORE), at loop indices (0, 0, 0)."""
    DST_STEP0 = 6
    DST_STEP1 = 7
    DST_STEP2 = 8
    # SYSTOLIC and VECTOR
    SRC_A = 9
    """Source entries; -1 when there is none."""
    SRC_A_STEP0 = 10
    SRC_A_STEP1 = 11
    SRC_A_STEP2 = 12
    SRC_B = 13
    SRC_B_STEP0 = 14
    SRC_B_STEP1 = 15
    SRC_B_STEP2 = 16
    SIZE1 = 17
    """SYSTOLIC: streamed rows = size1 * size2; VECTOR: cycles = size1 * size2.

    Sizes 1 and 2 go with loops 1 and 2; the LAST variants hold in the last trip of their loop.
    """
    SIZE1_LAST = 18
    SIZE2 = 19
    SIZE2_LAST = 20
    # LOAD and STORE
    FIRST_BLOCK = 9
    BLOCK_STEP1 = 10
    BLOCK_STEP2 = 11
    REQUESTS = 12
    """Requests per instruction, >= 1; REQUESTS_LAST in the last trip of loop 2."""
    REQUESTS_LAST = 13
    PERIOD_REQUESTS = 14
    PERIOD_PITCH_BLOCKS = 15
    PATTERN_START = 16
    """First index into ``pattern``; -1 stands for the identity 0, 1, 2, ..."""


ROW_COLUMNS = 21


class TileCol(IntEnum):
    """Columns of ``tiles``."""

    FIRST_ROW = 0
    END_ROW = 1
    """FIRST_ROW == END_ROW: a tile without work; it takes its dispatch slot and one cycle."""
    LAYER = 2
    ACCUMULATE = 3
    """1: continues the partial sums of the tile placed before it on the same core, and keeps its accumulator half.

    That tile must be of the same layer and have the same ACC_KEY.
    """
    ACC_KEY = 4


TILE_COLUMNS = 5


@dataclass(frozen=True)
class CoreActivity:
    """What one core does in a layer beyond what its instructions say. All are numbers of elements.

    operations: of the vector unit on single elements, by field of `OpLatency`.
    spad_reads, spad_writes, acc_reads, acc_writes: what the vector unit reads and writes.
    first_sums: results of the array that begin a sum; all others are added to what the accumulators hold.
    """

    operations: tuple[tuple[str, int], ...] = ()
    spad_reads: int = 0
    spad_writes: int = 0
    acc_reads: int = 0
    acc_writes: int = 0
    first_sums: int = 0


@dataclass(frozen=True)
class LayerInfo:
    """What a report says of a layer besides its simulated cycles. All byte and MAC counts are of the whole layer.

    load_bytes, store_bytes: DRAM traffic of the tiling, whole requests (closed form, not simulated).
    systolic_cycles: sum over the layer's SYSTOLIC instructions of the array cycles they occupy, all cores together.
    mapping: of a matrix layer, its tile sizes as lines of a mapping file (`lowering.mapping_file`).
    activity: of each core, in order; empty where it was not counted (the formulas of `lowering.onnxim`).
    """

    name: str
    op: str
    macs: int = 0
    load_bytes: int = 0
    store_bytes: int = 0
    systolic_cycles: int = 0
    vector_cycles: int = 0
    notes: tuple[str, ...] = ()
    mapping: tuple[str, ...] = ()
    activity: tuple[CoreActivity, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """Equal units of a network (decoder layers, blocks of an LLM's head), of which the program holds the first only.

    units: (first, end) of the program layers of each unit in it, in order and one behind the other; the names of unit i
    begin with `prefix` and i, and go on with a dot if at all. total: units of the whole network.
    """

    prefix: str
    units: tuple[tuple[int, int], ...]
    total: int


@dataclass(frozen=True)
class Program:
    """One workload lowered for one chip.

    rows: int32[n_rows, ROW_COLUMNS]; tiles: int32[n_tiles, TILE_COLUMNS];
    schedule: int32[n_layers, n_cores, 2], tile ranges [first, end); layers run one after the other in this order.
    releases: int32[n_layers], or empty when no layer waits. 0: the layer starts in the core tick in which the one
    before it ends, as seen from each core. c + 1: a launch; it starts in a later core tick, for all cores alike, and
    not before core cycle c.
    pattern: int32[n_pattern], block offsets used by rows with PATTERN_START >= 0.
    spad_entries, acc_entries: entries per tile and half that the program needs (max over tiles).
    repeats: what results are extrapolated over, in order; empty: the program is the whole workload.
    consumers, unbound: of a tenant's program (`lowering.mix`), empty otherwise. There the schedule has a list for every
    core that the tenant may use, and layers start as soon as those are done whose results they read: consumers are the
    layers that wait for each layer, in the order in which they start when several become ready at once. unbound: of
    each layer, whether its lists go round the cores tile by tile over all layers and tenants; the lists of other layers
    move on by one core with every layer that starts on the chip.
    """

    name: str
    rows: IntArray
    tiles: IntArray
    schedule: IntArray
    pattern: IntArray
    layers: tuple[LayerInfo, ...]
    spad_entries: int
    acc_entries: int
    request_bytes: int = 32
    warnings: tuple[str, ...] = field(default=())
    repeats: tuple[Repeat, ...] = ()
    releases: IntArray = field(default_factory=lambda: np.zeros(0, np.int32))
    consumers: tuple[tuple[int, ...], ...] = ()
    unbound: tuple[bool, ...] = ()

    @property
    def n_cores(self) -> int:
        """Cores that the schedule covers."""
        return int(self.schedule.shape[1])

    @property
    def n_layers(self) -> int:
        """Layers, executed one after the other."""
        return len(self.layers)
