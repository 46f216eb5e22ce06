"""Tile sizes from a mapping file: which of its lines is for which layer, and the lines that describe a plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lowering.mapping import LETTERS, Mapping, MappingError, MatmulShape
from lowering.mapping_file import MappingEntry, check_cover, counts, format_entry, parse_entry, read_mapping_file
from lowering.parts import AXES, Axis, CoreKind, Part, part_shape, totals, whole


@dataclass(frozen=True)
class MappingTable:
    """The lines of a mapping file. origin: the file, for errors."""

    origin: str
    entries: tuple[MappingEntry, ...]

    @staticmethod
    def read(path: Path | str) -> MappingTable:
        """Read a file. Raises MappingError as `read_mapping_file` does."""
        return MappingTable(str(path), read_mapping_file(path))

    def is_exact(self, layer: str, shape: MatmulShape) -> bool:
        """Whether the layer's line is a plain one, ``[I]``."""
        own = [entry for entry in self.entries if entry.layer == layer]
        if own:
            return own[0].inner.exact
        total = file_totals(shape)
        return any(entry.inner.exact and entry.total == total for entry in self.entries if entry.layer is None)

    def parts(self, layer: str, shape: MatmulShape, kinds: Sequence[CoreKind]) -> tuple[Part, ...]:
        """The parts that the layer's lines describe: those with its name, else the last one of its sizes.

        Raises MappingError when no line is for the layer, or its lines do not cover it.
        """
        cores = tuple(core for kind in kinds for core in kind.cores)
        total = file_totals(shape)
        own = [entry for entry in self.entries if entry.layer == layer and entry.cores is not None]
        if not own:
            own = [entry for entry in self.entries if entry.layer == layer and entry.total == total][-1:]
        if not own:
            own = [entry for entry in self.entries if entry.layer is None and entry.total == total][-1:]
        if not own:
            raise MappingError(
                f"{self.origin} has no line for it, {_sizes(total)}; `vsim map` writes a file with all lines"
            )
        for entry in own:
            check_cover(entry)
        if own[0].cores is None:
            return (whole(shape, cores, tile_sizes(own[0].inner, shape)),)
        return _parts(own, shape, cores)


def _parts(entries: Sequence[MappingEntry], shape: MatmulShape, cores: tuple[int, ...]) -> tuple[Part, ...]:
    """Lines for single cores: equal to the layer in all sizes but one, in which they add up to it."""
    where = entries[0].origin
    axis: Axis | None = next((axis for axis in AXES if _add_up(_alike(entries, shape, axis), shape, axis)), None)
    if axis is None:
        raise MappingError(
            f"{where}: the [T] of its lines for single cores are no parts of {_sizes(file_totals(shape))}; "
            "they must equal it in all sizes but one, and add up to that one"
        )
    used = _alike(entries, shape, axis)
    named = [core for entry in used for core in entry.cores or ()]
    if len(named) != len(set(named)) or not set(named) <= set(cores):
        raise MappingError(f"{where}: its lines must name different cores, each of 0 to {max(cores)} at most once")
    if len({entry.inner.exact for entry in used}) > 1:
        raise MappingError(f"{where}: the lines of one layer are all [I] or all [I:even]")
    parts: list[Part] = []
    start = 0
    for entry in used:
        length = _length(entry, shape, axis)
        parts.append(Part(tuple(entry.cores or ()), tile_sizes(entry.inner, shape), axis, start, length))
        start += length
    return tuple(parts)


def _alike(entries: Sequence[MappingEntry], shape: MatmulShape, axis: Axis) -> list[MappingEntry]:
    """The lines that can be parts of the layer along `axis`; layers of one name may differ in their sizes."""
    lengths = [_length(entry, shape, axis) for entry in entries]
    return [
        entry
        for entry, length in zip(entries, lengths, strict=True)
        if length % _step(shape, axis) == 0 and entry.total == file_totals(part_shape(shape, axis, length))
    ]


def _add_up(entries: Sequence[MappingEntry], shape: MatmulShape, axis: Axis) -> bool:
    return sum(_length(entry, shape, axis) for entry in entries) == totals(shape)[axis]


def _length(entry: MappingEntry, shape: MatmulShape, axis: Axis) -> int:
    return getattr(tile_sizes(entry.total, shape), axis)


def _step(shape: MatmulShape, axis: Axis) -> int:
    """Outputs that cannot be torn apart: the channels of a group, where groups share array passes."""
    return shape.out_channels if shape.diagonal and axis == "M" else 1


# -- a layer's sizes as a file states them


def file_totals(shape: MatmulShape) -> Mapping:
    """The `[T]` sizes of a layer. C and M are of one group, M of all groups where they share array passes."""
    sizes = Mapping(
        N=shape.images,
        C=shape.in_channels,
        M=shape.tile_out_channels,
        S=shape.kernel_rows,
        R=shape.kernel_cols,
        P=shape.out_rows,
        Q=shape.out_cols,
    )
    return file_sizes(sizes, shape)


def file_sizes(sizes: Mapping, shape: MatmulShape) -> Mapping:
    """Sizes as a file states them: the rows of a matrix product are N."""
    return replace(sizes, N=sizes.Q, Q=1) if _is_product(shape) else sizes


def tile_sizes(sizes: Mapping, shape: MatmulShape) -> Mapping:
    """The inverse of `file_sizes`."""
    return replace(sizes, N=1, Q=sizes.N) if _is_product(shape) else sizes


def _is_product(shape: MatmulShape) -> bool:
    kernel = shape.kernel_rows == shape.kernel_cols == 1
    return kernel and shape.images == shape.in_rows == shape.out_rows == 1


def lines_of(layer: str, shape: MatmulShape, parts: Sequence[Part], n_cores: int) -> tuple[str, ...]:
    """The lines of a mapping file that describe the parts of a layer on a chip of `n_cores`."""
    lines = []
    for part in parts:
        total = file_totals(part_shape(shape, part.axis, part.length))
        inner = file_sizes(part.mapping, shape)
        cores = part.cores if len(part.cores) < n_cores else None
        lines.append(format_entry(MappingEntry(total, counts(total, inner), inner, layer=layer, cores=cores)))
    return tuple(lines)


def shortest(lines: Iterable[str]) -> tuple[MappingEntry, ...]:
    """The fewest entries that mean the same: layers of one size that are cut alike share a line without name."""
    entries = [parse_entry(line) for line in lines]
    by_total: dict[tuple[Mapping, bool], list[MappingEntry]] = defaultdict(list)
    for entry in entries:
        by_total[entry.total, entry.inner.exact].append(entry)
    kept: dict[MappingEntry, None] = {}
    for entry in entries:
        alike = by_total[entry.total, entry.inner.exact]
        common = all(other.inner == entry.inner and other.cores is None for other in alike)
        kept[replace(entry, layer=None) if common else entry] = None
    return tuple(kept)


def _sizes(sizes: Mapping) -> str:
    shown = [letter for letter in LETTERS if letter in "NCM" or getattr(sizes, letter) > 1]
    return " ".join(f"{letter}{getattr(sizes, letter)}" for letter in shown)
