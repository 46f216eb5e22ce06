"""Loop extents of a layer and of its tiles, and files that give them (`onnxim.md` section 5.4)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lowering import mapping_file
from lowering.mapping import Mapping, MappingError
from lowering.mapping_file import MappingEntry


class Loops(NamedTuple):
    """Extents of the seven loops of a convolution, each >= 1; a matrix product has n rows, m columns, depth c.

    n: images, c: input channels, m: output channels, s and r: kernel rows and columns, q and p: output rows and
    columns (ONNXim's letters; q runs along the height).
    """

    n: int
    c: int
    m: int
    s: int = 1
    r: int = 1
    q: int = 1
    p: int = 1

    def tiles(self, inner: Loops) -> Loops:
        """How many tiles of extents `inner` cover these extents, loop by loop."""
        return Loops(*(-(-total // size) for total, size in zip(self, inner, strict=True)))

    def __str__(self) -> str:
        return " ".join(f"{name.upper()}{size}" for name, size in self._asdict().items())


def read_mapping_file(path: Path) -> dict[Loops, Loops]:
    """Tile extents by layer extents, of a file in the form that `lowering.mapping_file` explains.

    Raises MappingError for a line of another form, and for tiles that do not cover their layer.
    """
    return tile_table(mapping_file.read_mapping_file(path))


def tile_table(entries: Iterable[MappingEntry]) -> dict[Loops, Loops]:
    """Tile extents by layer extents; of lines for the same layer the last one holds, as in the original.

    Raises MappingError for tiles that do not cover their layer.
    """
    table: dict[Loops, Loops] = {}
    for entry in entries:
        layer, tile, tiles = (_loops(sizes) for sizes in (entry.onnxim_total, entry.inner, entry.outer))
        for name, needed in layer.tiles(tile)._asdict().items():
            if getattr(tiles, name) < needed:
                product = (
                    f" (ONNXim multiplies the total N{entry.total.N} by the inner N{tile.n})" if name == "n" else ""
                )
                raise MappingError(
                    f"{entry.origin}: {getattr(tiles, name)} tiles of {name.upper()}{getattr(tile, name)} do not cover "
                    f"{name.upper()}{getattr(layer, name)}{product}"
                )
        table[layer] = tile
    return table


def _loops(sizes: Mapping) -> Loops:
    return Loops(*(getattr(sizes, name.upper()) for name in Loops._fields))
