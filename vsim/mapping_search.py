"""The search for tile sizes: candidates ranked in closed form, the best few tried at cycle level side by side.

Candidate 0 of every layer is what lowering takes by itself, candidate k the k-th best when priced at the chip's own
memory bandwidth instead of the nominal one. Each candidate of each layer is a lane that runs this layer alone, until
its last store is acknowledged; layers with the same candidates share their lanes. The network with the best of all
layers then runs beside the network as lowering has it: in a network, stores of a layer drain under the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from hwconfigs import HwConfig
from hwconfigs.errors import UserError
from lowering import LoadedModel, MappingTable, Program, lower
from lowering.mapping_file import MappingEntry, format_entry, parse_entry
from lowering.mapping_table import shortest
from lowering.parts import Heuristic
from lowering.program import TileCol
from vsim.api import Progress, SimPoint, simulate
from vsim.bounds import roofs_of


@dataclass(frozen=True)
class LayerChoice:
    """One matrix layer. cycles: of every candidate alone, that of lowering first; chosen: index of the best."""

    name: str
    op: str
    cycles: tuple[int, ...]
    chosen: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class SearchResult:
    """What a search found. default_cycles, cycles: of the whole network before and after, both simulated.

    entries: the lines of a mapping file with the choice; that of lowering where it gains nothing on the whole network.
    """

    layers: tuple[LayerChoice, ...]
    default_cycles: int
    cycles: int
    entries: tuple[MappingEntry, ...]


def search_mapping(
    model: LoadedModel | str,
    hw: HwConfig,
    count: int,
    *,
    batch: int = 1,
    dims: Mapping[str, int] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Try the `count` best candidates of every matrix layer. Raises UserError when a lane does not end well."""
    roofs = roofs_of(hw)
    bandwidth = min(roofs.dram_bytes, roofs.noc_bytes)
    choosers = [Heuristic(), *(Heuristic(rank, bandwidth) for rank in range(count))]
    programs = [lower(model, hw, batch=batch, dims=dims, mapping=chooser) for chooser in choosers]
    layers = _choose(hw, programs, on_progress)
    entries = shortest(line for layer in layers for line in layer.lines)
    chosen = lower(model, hw, batch=batch, dims=dims, mapping=MappingTable("the search's choice", entries))
    before, after = _cycles(hw, [programs[0], chosen], on_progress)
    if after < before:
        return SearchResult(layers, before, after, entries)
    own = [layer.mapping for layer in programs[0].layers if layer.mapping]
    kept = tuple(replace(item, chosen=0, lines=lines) for item, lines in zip(layers, own, strict=True))
    return SearchResult(kept, before, before, shortest(line for layer in kept for line in layer.lines))


def _cycles(hw: HwConfig, programs: list[Program], on_progress: Callable[[Progress], None] | None) -> tuple[int, ...]:
    """Cycles of every program; equal objects are one lane."""
    distinct = list({id(program): program for program in programs}.values())
    results = simulate([SimPoint(hw, program) for program in distinct], on_progress=on_progress)
    for result in results:
        if result.status != "ok":
            raise UserError(f"mapping search: a candidate stopped with status {result.status}")
    cycles = {id(program): result.cycles for program, result in zip(distinct, results, strict=True)}
    return tuple(cycles[id(program)] for program in programs)


def _choose(
    hw: HwConfig, programs: list[Program], on_progress: Callable[[Progress], None] | None
) -> tuple[LayerChoice, ...]:
    """The candidate with the fewest cycles for each layer."""
    matrix = [index for index, layer in enumerate(programs[0].layers) if layer.mapping]
    lanes: dict[tuple[object, ...], Program] = {}
    lanes_of: dict[int, list[Program]] = defaultdict(list)
    for index in matrix:
        for program in programs:
            lane = only_layer(program, index)
            info = replace(lane.layers[0], name="", mapping=_unnamed(lane.layers[0].mapping), notes=())
            lanes_of[index].append(lanes.setdefault((info, lane.rows.shape, lane.tiles.shape), lane))
    tried = [lane for index in matrix for lane in lanes_of[index]]
    cycles = np.array(_cycles(hw, tried, on_progress)).reshape(len(matrix), len(programs))
    choices = []
    for index, row in zip(matrix, cycles.tolist(), strict=True):
        best = row.index(min(row))
        layer = programs[best].layers[index]
        choices.append(LayerChoice(layer.name, layer.op, tuple(row), best, layer.mapping))
    return tuple(choices)


def _unnamed(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(format_entry(replace(parse_entry(line), layer=None)) for line in lines)


def only_layer(program: Program, layer: int) -> Program:
    """The program of one layer of a program, as if it were the whole workload."""
    ranges = program.schedule[layer]
    first, end = int(ranges[:, 0].min()), int(ranges[:, 1].max())
    tiles = program.tiles[first:end].copy()
    first_row, end_row = int(tiles[:, TileCol.FIRST_ROW].min()), int(tiles[:, TileCol.END_ROW].max())
    tiles[:, [TileCol.FIRST_ROW, TileCol.END_ROW]] -= first_row
    tiles[:, TileCol.LAYER] = 0
    return replace(
        program,
        rows=program.rows[first_row:end_row],
        tiles=tiles,
        schedule=ranges[None] - first,
        layers=(program.layers[layer],),
    )
