"""Tiling of one matrix layer: what a layer computes, the sizes of a tile, and cutting a layer by them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from hwconfigs.errors import UserError

ACCUMULATOR_BYTES = 4
"""Bytes of one partial sum."""


class MappingError(UserError):
    """A tiling that cannot be used: unreadable, or too large for the core."""


@dataclass(frozen=True)
class MatmulShape:
    """What one matrix layer computes, as a convolution; a matrix product is one image of 1 x rows pixels.

    images x groups x (in_channels -> out_channels per group); pads are those at the top and at the left.
    diagonal: several groups share an array pass, as blocks on its diagonal (grouped convolutions with few
    channels per group); then a tile's input channels follow from its output channels.
    """

    images: int
    groups: int
    in_channels: int
    out_channels: int
    in_rows: int
    in_cols: int
    out_rows: int
    out_cols: int
    kernel_rows: int = 1
    kernel_cols: int = 1
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    diagonal: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates, products with padding zeros included."""
        outputs = self.images * self.groups * self.out_channels * self.out_rows * self.out_cols
        return outputs * self.in_channels * self.kernel_rows * self.kernel_cols

    @property
    def tile_groups(self) -> int:
        """Groups that are tiled together."""
        return self.groups if self.diagonal else 1

    @property
    def tile_out_channels(self) -> int:
        """Output channels over which tiles are cut: of one group, or of all groups when `diagonal`."""
        return self.out_channels * self.tile_groups


@dataclass(frozen=True)
class Mapping:
    """Inner (per tile) sizes: images N, input channels C, output channels M, kernel rows S and columns R,
    output rows P and columns Q.

    exact: cut exactly these sizes and leave the remainder to the last tile (as a mapping file means it);
    otherwise the tiles of a dimension differ by at most one granule.
    origin: file and line that it was read from, for errors; empty when it was chosen.
    """

    N: int = 1
    C: int = 1
    M: int = 1
    S: int = 1
    R: int = 1
    P: int = 1
    Q: int = 1
    exact: bool = False
    origin: str = field(default="", compare=False)


LETTERS = ("N", "C", "M", "P", "Q", "S", "R")
"""In the order in which mapping files state them."""
_TOKEN = re.compile(r"([A-Z])(\d+)[XY]?")


def parse_mapping(line: str) -> Mapping:
    """Read a line such as `[T] N1 C64 M64 - [O] ... - [I] N1 C64 M8 P15 Q17 S3 R3`; the `[I]` sizes count.

    A matrix product writes its rows as N (there are no P and Q). Letters that are missing mean 1.
    Raises MappingError when there is no `[I]` section, or an unknown or zero size.
    """
    section = re.search(r"\[I\]([^-\[]*)", line)
    if section is None:
        raise MappingError(f"mapping {line.strip()!r}: no [I] section with the inner sizes")
    sizes: dict[str, int] = {}
    for token in section.group(1).split():
        match = _TOKEN.fullmatch(token)
        if match is None or match.group(1) not in LETTERS or int(match.group(2)) < 1:
            raise MappingError(f"mapping {line.strip()!r}: {token!r} is no size; valid letters: {' '.join(LETTERS)}")
        sizes[match.group(1)] = int(match.group(2))
    mapping = replace(Mapping(exact=True), **sizes)
    if "P" not in sizes and "Q" not in sizes:
        return replace(mapping, N=1, Q=mapping.N)
    return mapping


def diagonal_groups(in_channels: int, out_channels: int, groups: int, array_rows: int, array_cols: int) -> int:
    """How many groups of a grouped convolution fit one array pass as blocks on its diagonal."""
    return max(1, min(array_rows // in_channels, array_cols // out_channels, groups))


def kernel_positions(shape: MatmulShape, array_rows: int) -> int:
    """Kernel positions whose channels share one array pass when the channels alone leave most rows empty.

    This is the multi-tile scheme of channel-first implicit im2col (Zhou et al., IISWC 2021, measured on TPUs).
    """
    return max(1, array_rows // shape.in_channels) if not shape.diagonal else 1


def ranges(total: int, size: int, granule: int, exact: bool) -> list[tuple[int, int]]:
    """Cut 0..total into (start, length) pieces of at most about `size`.

    exact: all pieces but the last are `size` long. Otherwise lengths are multiples of `granule` (but for the last)
    and as equal as possible.
    """
    if exact:
        return [(start, min(size, total - start)) for start in range(0, total, size)]
    granules = math.ceil(total / granule)
    parts = math.ceil(granules / max(1, size // granule))
    edges = [granules * part // parts * granule for part in range(parts)] + [total]
    return [(edges[i], edges[i + 1] - edges[i]) for i in range(parts)]
