"""What limits a layer: the least time that each resource of the chip needs for it, and the roofs of the chip.

The one place that says what "bound" means in tables and figures. Every resource alone, never stalled, would need

* ``compute``  the busiest core's array, for the passes that it streams (`lowering.systolic_rules`; preloads that hide
  behind no pass, and the drain of tiles where the core has one, included);
* ``vector``   the busiest core's vector unit, for its operations;
* ``dram``     all channels, for the layer's bytes at the peak of the data bus (bursts back to back, no refresh);
* ``noc``      the busiest core's ports, one request for each port and NoC cycle, or the ports of the channels, one
  request for each channel and NoC cycle, whichever takes longer;
* ``dispatch`` the busiest core's issue, one instruction a cycle, one cycle for placing each tile.

The largest of these names the layer's bound, ties in the order above; its ratio to the simulated cycles is how much of
the layer that resource explains. The rest are waits that no single resource accounts for: latencies, loads and stores
that nothing overlaps, row conflicts, refresh, unequal shares of memory time. All times are core cycles.

A layer is over when its tiles are; its last stores drain under the next one. Counted to the layer that made them, they
can lift ``dram`` and ``noc`` of a short layer above its cycles.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwconfigs import HwConfig
from hwconfigs.dram_table import Command, Level
from hwconfigs.schema import CoreConfig
from lowering.program import Col, Flag, Op, Program, TileCol
from lowering.systolic_rules import MIN_PASS_ROWS

RESOURCES = ("compute", "vector", "dram", "noc", "dispatch")
"""Names of the bounds, in the order in which ties are decided."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LayerWork:
    """What each layer asks of each core: int64[layers, cores], in cycles, instructions and requests."""

    systolic_cycles: IntArray
    vector_cycles: IntArray
    instructions: IntArray
    requests: IntArray


@dataclass(frozen=True)
class Roofs:
    """Peaks of a chip per core cycle. macs: all arrays full. dram_bytes, noc_bytes: as the bounds count them."""

    macs: float
    dram_bytes: float
    noc_bytes: float


@dataclass(frozen=True)
class LayerBounds:
    """Least core cycles of each layer by resource: float64[layers] each, keys as in `RESOURCES`.

    work: what they follow from.
    """

    cycles: dict[str, FloatArray]
    work: LayerWork

    def name(self, layer: int) -> str | None:
        """The resource that bounds a layer; None when the layer asks for nothing."""
        best = max(RESOURCES, key=lambda resource: self.cycles[resource][layer])
        return best if self.cycles[best][layer] > 0 else None

    @property
    def total_cycles(self) -> float:
        """Least core cycles of all layers one after the other, each bound by its own resource."""
        return float(sum(np.max([self.cycles[resource] for resource in RESOURCES], axis=0)))

    def imbalance(self, layer: int) -> float:
        """Largest share of a core over the mean share, of array time (of vector time where there is none); >= 1."""
        systolic = self.work.systolic_cycles[layer]
        cycles = systolic if systolic.any() else self.work.vector_cycles[layer]
        return float(cycles.max() / cycles.mean()) if cycles.any() else 1.0


def bounds_of(hw: HwConfig, program: Program) -> LayerBounds:
    """The bounds of every layer of a program on a chip that it was lowered for."""
    work = _work_of(program, tuple(hw.core(index) for index in range(hw.cores.count)))
    per_noc_cycle = hw.clocks.core_mhz / hw.clocks.noc_mhz
    total = work.requests.sum(axis=1)
    ports = min(hw.noc.ports_per_core, hw.dram.channels)
    noc = np.maximum(work.requests.max(axis=1, initial=0) / ports, total / hw.dram.channels)
    cycles = {
        "compute": work.systolic_cycles.max(axis=1, initial=0).astype(float),
        "vector": work.vector_cycles.max(axis=1, initial=0).astype(float),
        "dram": total * program.request_bytes / dram_peak_bytes_per_cycle(hw),
        "noc": noc * per_noc_cycle,
        "dispatch": work.instructions.max(axis=1, initial=0).astype(float),
    }
    return LayerBounds(cycles, work)


def roofs_of(hw: HwConfig) -> Roofs:
    """The peaks of a chip."""
    cores = [hw.core(index) for index in range(hw.cores.count)]
    ports = min(hw.cores.count * min(hw.noc.ports_per_core, hw.dram.channels), hw.dram.channels)
    return Roofs(
        macs=float(sum(core.rows * core.cols for core in cores)),
        dram_bytes=dram_peak_bytes_per_cycle(hw),
        noc_bytes=ports * hw.dram.request_bytes * hw.clocks.noc_mhz / hw.clocks.core_mhz,
    )


def dram_peak_bytes_per_cycle(hw: HwConfig) -> float:
    """Peak of the data bus of all channels in bytes per core cycle: one access after the other, no refresh.

    The "simple" memory answers one request a channel and DRAM cycle.
    """
    cycles_per_access = 1.0
    if hw.dram.is_table:
        table = hw.dram.table()
        distance = table.constraint_table()
        of_channel = distance[Level.CHANNEL][Command.RD][Command.RD]
        of_rank = distance[Level.RANK][Command.RD][Command.RD]
        cycles_per_access = max(1.0, of_channel, of_rank / table.organisation.ranks)
    per_dram_cycle = hw.dram.channels * hw.dram.request_bytes / cycles_per_access
    return per_dram_cycle * hw.clocks.dram_mhz / hw.clocks.core_mhz


# -- counting the program's tables

_known: dict[tuple[int, tuple[CoreConfig, ...]], LayerWork] = {}
"""Work by program (its identity) and cores: the points of a sweep share programs. Entries go with their program."""


def _work_of(program: Program, cores: tuple[CoreConfig, ...]) -> LayerWork:
    key = (id(program), cores)
    if key not in _known:
        _known[key] = layer_work(program, cores)
        weakref.finalize(program, _known.pop, key, None)
    return _known[key]


def layer_work(program: Program, cores: tuple[CoreConfig, ...]) -> LayerWork:
    """Count the tables of a program, row by row; `cores` are those of the chip, in order."""
    heights = sorted({core.rows for core in cores})
    rows = program.rows.astype(np.int64)
    memory = (rows[:, Col.OP] == Op.LOAD) | (rows[:, Col.OP] == Op.STORE)
    outer = rows[:, Col.COUNT0] * rows[:, Col.COUNT1]
    requests = outer * ((rows[:, Col.COUNT2] - 1) * rows[:, Col.REQUESTS] + rows[:, Col.REQUESTS_LAST])
    trips = outer * rows[:, Col.COUNT2]
    vector = np.where(rows[:, Col.OP] == Op.VECTOR, _sum_of_sizes(rows), 0)
    systolic = [np.where(rows[:, Col.OP] == Op.SYSTOLIC, _pass_cycles(rows, height), 0) for height in heights]
    columns = np.stack([vector, trips, np.where(memory, requests, 0), *systolic], axis=1)
    sums = np.concatenate([np.zeros((1, columns.shape[1]), np.int64), np.cumsum(columns, axis=0)])
    tiles = program.tiles
    of_tile = sums[tiles[:, TileCol.END_ROW]] - sums[tiles[:, TileCol.FIRST_ROW]]
    of_tile[:, 1] += 1
    # Where tiles do not follow one another in the array, each adds what its burst takes beyond its passes.
    bursts = [
        np.where(of_tile[:, 3 + heights.index(core.rows)] > 0, _burst_cycles(program, rows, core), 0) for core in cores
    ]
    upto = np.concatenate([np.zeros((1, of_tile.shape[1]), np.int64), np.cumsum(of_tile, axis=0)])
    first, end = program.schedule[..., 0], program.schedule[..., 1]
    counted = upto[end] - upto[first]
    array = np.stack(
        [counted[:, index, 3 + heights.index(core.rows)] for index, core in enumerate(cores)], axis=1
    ) + np.stack([_sum_between(bursts[index], first[:, index], end[:, index]) for index in range(len(cores))], axis=1)
    return LayerWork(array, counted[..., 0], counted[..., 1], counted[..., 2])


def _sum_between(values: IntArray, first: NDArray[np.int32], end: NDArray[np.int32]) -> IntArray:
    upto = np.concatenate([[0], np.cumsum(values)])
    return upto[end] - upto[first]


def _parts(rows: IntArray) -> list[tuple[IntArray, IntArray]]:
    """(trips, size) of the four kinds of trips of a compute row: inside and last of loop 1, of loop 2."""
    trips1 = (rows[:, Col.COUNT1] - 1, np.ones_like(rows[:, 0]))
    trips2 = (rows[:, Col.COUNT2] - 1, np.ones_like(rows[:, 0]))
    sizes1, sizes2 = (Col.SIZE1, Col.SIZE1_LAST), (Col.SIZE2, Col.SIZE2_LAST)
    return [
        (rows[:, Col.COUNT0] * trips1[i] * trips2[j], rows[:, sizes1[i]] * rows[:, sizes2[j]])
        for i in range(2)
        for j in range(2)
    ]


def _sum_of_sizes(rows: IntArray) -> IntArray:
    return sum((trips * size for trips, size in _parts(rows)), start=np.zeros(len(rows), np.int64))


def _pass_cycles(rows: IntArray, height: int) -> IntArray:
    """Array cycles of each row's passes: a pass before a preload takes at least `height` cycles, rules 2 and 3."""
    every = (rows[:, Col.FLAGS] & Flag.PRELOAD) != 0
    least = np.where(every, max(height, MIN_PASS_ROWS), MIN_PASS_ROWS)
    passes = sum((trips * np.maximum(size, least) for trips, size in _parts(rows)), start=np.zeros(len(rows), np.int64))
    return passes + np.where(_preloads_first(rows), rows[:, Col.COUNT0] * _exposed(rows, height), 0)


def _preloads_first(rows: IntArray) -> NDArray[np.bool_]:
    return (rows[:, Col.FLAGS] & Flag.PRELOAD_FIRST) != 0


def _exposed(rows: IntArray, height: int) -> IntArray:
    """Cycles by which a preload stretches the last pass of a weight block."""
    last = np.maximum(rows[:, Col.SIZE1_LAST] * rows[:, Col.SIZE2_LAST], MIN_PASS_ROWS)
    return np.maximum(height - last, 0)


def _burst_cycles(program: Program, rows: IntArray, core: CoreConfig) -> IntArray:
    """Of every tile, the first preload and the skew of its last pass, less the stretch that no preload follows."""
    if not core.drains_between_tiles:
        return np.zeros(len(program.tiles), np.int64)
    end = program.tiles[:, TileCol.END_ROW]
    exposed = np.where(rows[:, Col.OP] == Op.SYSTOLIC, _exposed(rows, core.rows), 0)
    latest = np.maximum.accumulate(np.where(rows[:, Col.OP] == Op.SYSTOLIC, np.arange(len(rows)), -1))
    of_last = exposed[np.maximum(latest[np.maximum(end - 1, 0)], 0)]
    return 2 * core.rows + core.cols - 2 - of_last
