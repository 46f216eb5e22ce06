"""Loop extents of a layer and of its tiles, and files that give them (`onnxim.md` section 5.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

from lowering.mapping import MappingError


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


_LETTERS = "NCMSRQP"
_TOKEN = re.compile(rf"([{_LETTERS}])([1-9]\d*)[XY]?")


def read_mapping_file(path: Path) -> Mapping[Loops, Loops]:
    """Tile extents by layer extents. One layer a line: `[T] N1 C64 ... - [O] ... - [I] ...`, missing letters mean 1.

    [T]: extents of the layer, [O]: number of tiles, [I]: extents of a tile; several [I] sections multiply.
    Raises MappingError for a line of another form, and for tiles that do not cover their layer.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(f"mapping file {path}: cannot be read") from error
    table: dict[Loops, Loops] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            layer, tile = _read_line(line, f"{path}:{number}")
            table[layer] = tile
    return table


def _read_line(line: str, where: str) -> tuple[Loops, Loops]:
    sections = [section.split() for section in line.split("-")]
    if len(sections) < 3 or any(not section for section in sections):
        raise MappingError(f"{where}: expected three sections, '[T] sizes - [O] sizes - [I] sizes', not {line!r}")
    total, outer, *inner = (_read_sizes(section[1:], where) for section in sections)
    layer = _loops([total])
    tile, tiles = _loops(inner), _loops([outer])
    for name, needed in layer.tiles(tile)._asdict().items():
        if getattr(tiles, name) < needed:
            raise MappingError(
                f"{where}: {getattr(tiles, name)} tiles of {name.upper()}{getattr(tile, name)} do not cover "
                f"{name.upper()}{getattr(layer, name)}"
            )
    return layer, tile


def _read_sizes(tokens: list[str], where: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for token in tokens:
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise MappingError(f"{where}: {token!r} is no size; expected one of {' '.join(_LETTERS)} and a number")
        sizes[match[1]] = int(match[2])
    return sizes


def _loops(sections: list[dict[str, int]]) -> Loops:
    return Loops(**{letter.lower(): prod(section.get(letter, 1) for section in sections) for letter in _LETTERS})
