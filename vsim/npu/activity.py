"""What the layers of a cycle-level run did, for `vsim.energy`: simulated traffic, and closed forms of the program.

Simulated are the cycles and the DRAM requests. What happens on the chip follows from the instructions, whatever their
timing. The rules, for a core whose array is H rows high and W columns wide and whose operands have p bytes:

1. An access moves a whole row of a memory, as wide as the array: the scratchpads and accumulators of the public design
   that the passes are modelled on are addressed so (Gemmini, github.com/ucb-bar/gemmini, README, "Memory Addressing
   Scheme": a row is DIM elements, input elements in the scratchpad, sums in the accumulators). A pass that fills the
   array in part moves as much as a full one.
2. Each streamed row of a pass reads H operands, each preload H x W weights (it shifts in H rows, `lowering.program`).
3. Each streamed row writes W sums of 4 bytes, and reads the W sums that it adds to. The results that begin a sum
   (`lowering.program.CoreActivity`) read nothing.
4. The vector unit reads its operands and writes its results once for each instruction, once more for each further pass
   over a row that a statistic was taken of; `CoreActivity` counts elements. Elements have p bytes in the scratchpad,
   4 in the accumulators. What lies between the operations of one instruction stays in registers, which are not counted.
5. A load writes its memory requests to a memory, a store reads them; from the accumulators it reads 4 bytes for each p
   that it stores.

Where `CoreActivity` is missing (the formulas of `lowering.onnxim`), every pass reads the sums that it adds to, and each
cycle of the vector unit is an addition in every lane that reads its operands and writes its result: upper bounds for
traffic, a lower one for exponentials and divisions.

A memory costs what the table says of its whole capacity, as if it were one piece: banks of large memories take less.
Not counted: registers and wires of the array, the NoC, instruction issue, refresh and idle DRAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwconfigs import HwConfig
from hwconfigs.schema import CoreConfig
from lowering.mapping import ACCUMULATOR_BYTES
from lowering.operators import Cost, add_costs, times
from lowering.program import Col, CoreActivity, Flag, Op, Program, TileCol
from vsim.energy import Activity, Arithmetic, Memory

IntArray = NDArray[np.int64]

SUM_BITS = 8 * ACCUMULATOR_BYTES
"""Width of sums, and of what the vector unit computes with."""

GELU = {"mul": 5, "mac": 1, "add": 3, "exp": 1, "div": 1}
"""Operations of gelu by its tanh form, x/2 (1 + tanh(a (x + b x^3))), with tanh as in `lowering.operators`."""


def arithmetic_of(hw: HwConfig) -> Arithmetic:
    """Operands of one byte are integers, wider ones floating-point numbers."""
    return "integer" if hw.precision_bytes == 1 else "float"


def program_activity(hw: HwConfig, program: Program) -> Activity:
    """What each layer of a program does on the chip: arrays over the layers; no cycles and no DRAM traffic."""
    cores = tuple(hw.core(index) for index in range(hw.cores.count))
    moved = _Instructions.of(program)
    bits = [_core_bits(moved, program, index, core, hw.precision_bytes) for index, core in enumerate(cores)]
    operations = [_operations(moved, program, layer, cores, hw.precision_bytes) for layer in range(program.n_layers)]

    def count(*kinds: str) -> IntArray:
        return np.array([sum(found.get(kind, 0) for kind in kinds) for found in operations], np.int64)

    spads = [core.spad_kib for core in cores]
    accs = [core.acc_kib for core in cores]
    return Activity(
        cycles=np.zeros(program.n_layers),
        macs=np.array([layer.macs for layer in program.layers], np.float64),
        operand_bits=8 * hw.precision_bytes,
        sum_bits=SUM_BITS,
        arithmetic=arithmetic_of(hw),
        simple_operations=count("add", "mac", "scalar_add"),
        multiplications=count("mul", "mac", "scalar_mul"),
        divides=count("div"),
        exps=count("exp"),
        rsqrts=count("scalar_sqrt"),
        vector_bits=SUM_BITS,
        memories={
            "spad": _by_capacity(spads, [spad for spad, _ in bits]),
            "acc": _by_capacity(accs, [acc for _, acc in bits]),
        },
        dram_standard=hw.dram.standard,
        memory_kib=sum(spads) + sum(accs),
    )


def _by_capacity(kib: Sequence[int], bits: Sequence[IntArray]) -> tuple[Memory, ...]:
    return tuple(
        Memory(sum(own for own, size in zip(bits, kib, strict=True) if size == capacity), capacity)
        for capacity in sorted(set(kib))
    )


@dataclass(frozen=True)
class _Instructions:
    """Sums over the instructions of each (layer, core), by what they do: int64[layers, cores] each.

    Suffixes say which memory. streamed: rows of passes, by where they are read; summed: by where their sums go.
    preloads: by where the weights are. Transfers in bytes. read, written: cycles of the vector unit for each operand.
    """

    columns: dict[str, IntArray]

    @staticmethod
    def of(program: Program) -> _Instructions:
        rows = program.rows.astype(np.int64)
        op, flags = rows[:, Col.OP], rows[:, Col.FLAGS]
        outer = rows[:, Col.COUNT0] * rows[:, Col.COUNT1]
        trips = outer * rows[:, Col.COUNT2]
        sizes = _total(rows, Col.COUNT1, Col.SIZE1) * _total(rows, Col.COUNT2, Col.SIZE2) * rows[:, Col.COUNT0]
        requests = outer * ((rows[:, Col.COUNT2] - 1) * rows[:, Col.REQUESTS] + rows[:, Col.REQUESTS_LAST])
        preloads = np.where(flags & Flag.PRELOAD, trips, np.where(flags & Flag.PRELOAD_FIRST, rows[:, Col.COUNT0], 0))
        columns: dict[str, IntArray] = {"cycles": np.where(op == Op.VECTOR, sizes, 0)}
        for name, amount, kind, flag, operand in (
            ("streamed", sizes, Op.SYSTOLIC, Flag.SRC_A_ACC, Col.SRC_A),
            ("summed", sizes, Op.SYSTOLIC, Flag.DST_ACC, Col.DST),
            ("preloads", preloads, Op.SYSTOLIC, Flag.SRC_B_ACC, Col.SRC_B),
            ("loaded", requests * program.request_bytes, Op.LOAD, Flag.DST_ACC, Col.DST),
            ("stored", requests * program.request_bytes, Op.STORE, Flag.DST_ACC, Col.DST),
            ("read_a", sizes, Op.VECTOR, Flag.SRC_A_ACC, Col.SRC_A),
            ("read_b", sizes, Op.VECTOR, Flag.SRC_B_ACC, Col.SRC_B),
            ("written", sizes, Op.VECTOR, Flag.DST_ACC, Col.DST),
        ):
            there = (op == kind) & (rows[:, operand] >= 0)
            in_acc = (flags & flag) != 0
            columns[f"{name}_acc"] = np.where(there & in_acc, amount, 0)
            columns[f"{name}_spad"] = np.where(there & ~in_acc, amount, 0)
        return _Instructions({name: _by_layer_and_core(program, column) for name, column in columns.items()})

    def of_core(self, name: str, core: int) -> IntArray:
        """One sum of one core: int64[layers]."""
        return self.columns[name][:, core]


def _total(rows: IntArray, count: Col, size: Col) -> IntArray:
    """Sum of a size over the trips of its loop; the size of the last trip is in the next column."""
    return (rows[:, count] - 1) * rows[:, size] + rows[:, size + 1]


def _by_layer_and_core(program: Program, of_rows: IntArray) -> IntArray:
    """Sums over the rows of all tiles of each (layer, core)."""
    upto_row = np.concatenate([[0], np.cumsum(of_rows)])
    tiles = program.tiles
    of_tiles = upto_row[tiles[:, TileCol.END_ROW]] - upto_row[tiles[:, TileCol.FIRST_ROW]]
    upto_tile = np.concatenate([[0], np.cumsum(of_tiles)])
    return upto_tile[program.schedule[..., 1]] - upto_tile[program.schedule[..., 0]]


def _core_bits(
    moved: _Instructions, program: Program, index: int, core: CoreConfig, operand_bytes: int
) -> tuple[IntArray, IntArray]:
    """Bits that each layer moves in and out of a core's scratchpad, and of its accumulators."""

    def total(name: str) -> IntArray:
        return moved.of_core(name, index)

    counted = [_activity(program, layer, index) for layer in range(program.n_layers)]

    def elements(memory: str) -> IntArray:
        own = [
            getattr(found, f"{memory}_reads") + getattr(found, f"{memory}_writes") if found else 0 for found in counted
        ]
        lanes = core.vector_bits // (8 * operand_bytes)
        cycles = total(f"read_a_{memory}") + total(f"read_b_{memory}") + total(f"written_{memory}")
        return np.where([found is None for found in counted], cycles * lanes, own)

    first_sums = np.array([found.first_sums if found else 0 for found in counted], np.int64)
    weights = core.rows * core.cols
    operands = {
        memory: core.rows * total(f"streamed_{memory}") + weights * total(f"preloads_{memory}")
        for memory in ("spad", "acc")
    }
    # Sums that a program keeps in the scratchpad have the width of operands.
    spad = operands["spad"] + 2 * core.cols * total("summed_spad") + elements("spad")
    sums = 2 * core.cols * total("summed_acc") - first_sums + elements("acc")
    spad_bytes = operand_bytes * spad + total("loaded_spad") + total("stored_spad")
    acc_bytes = operand_bytes * operands["acc"] + ACCUMULATOR_BYTES * sums + total("loaded_acc")
    acc_bytes += total("stored_acc") * ACCUMULATOR_BYTES // operand_bytes
    return 8 * spad_bytes, 8 * acc_bytes


def _operations(
    moved: _Instructions, program: Program, layer: int, cores: Sequence[CoreConfig], operand_bytes: int
) -> Cost:
    """Operations of a layer on single elements by kind, all cores together."""
    found: Cost = {}
    for index, core in enumerate(cores):
        own = _activity(program, layer, index)
        cycles = int(moved.of_core("cycles", index)[layer])
        uncounted = {"add": cycles * (core.vector_bits // (8 * operand_bytes))}
        found = add_costs(found, dict(own.operations) if own else uncounted)
    return add_costs(
        {kind: count for kind, count in found.items() if kind != "gelu"}, times(GELU, found.get("gelu", 0))
    )


def _activity(program: Program, layer: int, core: int) -> CoreActivity | None:
    counted = program.layers[layer].activity
    return counted[core] if counted else None
