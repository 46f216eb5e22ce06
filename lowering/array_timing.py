"""How the rows of a matrix tile are grouped into systolic instructions, and how long each occupies the array.

The grouping is Gemmini's: a convolution's output rows are streamed one by one, and at most as many rows at a time
as the array has (`LoopConv` and `LoopMatmul` step through the output in blocks of DIM). One instruction streams
one such group against one block of stationary weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowering.emit import Extent

MIN_STREAM_ROWS = 4
"""An instruction occupies the array for at least this many cycles (Gemmini's mesh; `onnxim.md` 2.5)."""


@dataclass(frozen=True)
class RowGroups:
    """One pass over a tile's output: `rows` image rows of `columns` groups each.

    size: streamed rows (pixels) of a group; the last group of an image row may be shorter.
    """

    rows: int
    columns: int
    size: Extent

    @property
    def streamed(self) -> int:
        """Pixels streamed by one pass."""
        return self.rows * self.size.total(self.columns)


def group_rows(image_rows: int, row_pixels: int, array_rows: int) -> RowGroups:
    """Groups of an output tile of `image_rows` rows (over all its images) of `row_pixels` pixels each.

    A matrix multiplication is one image row of as many pixels as the matrix has rows.
    """
    columns = math.ceil(row_pixels / array_rows)
    size = min(row_pixels, array_rows)
    return RowGroups(image_rows, columns, Extent(size, row_pixels - (columns - 1) * size))


def pass_cycles(groups: RowGroups, array_rows: int) -> int:
    """Array cycles of one pass: weights are loaded with its first group, which then takes at least `array_rows`."""
    full, last = max(groups.size.size, MIN_STREAM_ROWS), max(groups.size.final, MIN_STREAM_ROWS)
    total = groups.rows * ((groups.columns - 1) * full + last)
    first = full if groups.columns > 1 else last
    return total - first + max(first, array_rows)
