"""The search for tile sizes: candidates ranked in closed form, the best few tried at cycle level side by side.

Lane 0 is the network with the tile sizes that lowering takes by itself, lane k with the k-th best of every layer,
priced at the chip's own memory bandwidth instead of the nominal one. Layers run one after the other, so each lane tries
one candidate of every layer at once, in its place in the network; what is best for a layer is read from its own cycles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hwconfigs import HwConfig
from hwconfigs.errors import UserError
from lowering import LoadedModel, MappingTable, Program, lower
from lowering.mapping_file import MappingEntry, parse_entry
from lowering.mapping_table import shortest
from lowering.parts import Heuristic
from vsim.api import Progress, SimPoint, SimResult, simulate
from vsim.bounds import roofs_of


@dataclass(frozen=True)
class LayerChoice:
    """One matrix layer. cycles: of every candidate, that of lowering first; chosen: index of the best."""

    name: str
    op: str
    cycles: tuple[int, ...]
    chosen: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class SearchResult:
    """What a search found. default_cycles, cycles: of the whole network before and after, both simulated.

    entries: the lines of a mapping file with the choice.
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
    results = _simulated(hw, programs, on_progress)
    layers = _choose(programs, results)
    entries = shortest([line for layer in layers for line in layer.lines])
    chosen = lower(model, hw, batch=batch, dims=dims, mapping=MappingTable("the search's choice", entries))
    [result] = _simulated(hw, [chosen], on_progress)
    return SearchResult(layers, results[0].cycles, result.cycles, entries)


def _simulated(
    hw: HwConfig, programs: list[Program], on_progress: Callable[[Progress], None] | None
) -> list[SimResult]:
    points = [SimPoint(hw, program, label=program.name) for program in programs]
    results = simulate(points, on_progress=on_progress)
    for result in results:
        if result.status != "ok":
            raise UserError(f"mapping search: a candidate stopped with status {result.status}")
    return results


def _choose(programs: list[Program], results: list[SimResult]) -> tuple[LayerChoice, ...]:
    """The candidate with the fewest cycles for each layer; layers with the same candidates choose together."""
    alike: dict[tuple[MappingEntry, ...], list[int]] = defaultdict(list)
    for index, layer in enumerate(programs[0].layers):
        if layer.mapping:
            lines = [line for program in programs for line in program.layers[index].mapping]
            alike[tuple(replace(parse_entry(line), layer=None) for line in lines)].append(index)
    best: dict[int, int] = {}
    for members in alike.values():
        totals = [sum(_cycles(result, index) for index in members) for result in results]
        best |= dict.fromkeys(members, totals.index(min(totals)))
    return tuple(
        LayerChoice(
            programs[0].layers[index].name,
            programs[0].layers[index].op,
            tuple(_cycles(result, index) for result in results),
            chosen,
            programs[chosen].layers[index].mapping,
        )
        for index, chosen in sorted(best.items())
    )


def _cycles(result: SimResult, layer: int) -> int:
    row = result.layers[layer]
    return row["finish_cycle"] - row["start_cycle"]
