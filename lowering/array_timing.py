"""A matrix tile as systolic instructions: how its rows are grouped, and how long the array is busy with it.

The rules are those of `lowering.systolic_rules`; here they take the form of the program's loops, and closed forms that
do not list the passes. One pass is one SYSTOLIC instruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwconfigs.schema import CoreConfig
from lowering.emit import Extent
from lowering.systolic_rules import conv_stream_axis, pass_occupancy


@dataclass(frozen=True)
class RowGroups:
    """The passes over one weight block of a tile: `lines` lines of output pixels, `passes` passes in each.

    size: pixels of a pass; the last one of a line may be shorter.
    """

    lines: int
    passes: int
    size: Extent

    @property
    def streamed(self) -> int:
        """Pixels of all passes."""
        return self.lines * self.size.total(self.passes)


def group_rows(images: int, rows: int, cols: int, nominal: tuple[int, int], array_rows: int) -> RowGroups:
    """Passes over an output tile of `images` x `rows` x `cols` pixels.

    nominal: (rows, columns) of an unclipped tile of the layer; it decides along which side lines run. The rows of a
    matrix product are the columns of a single image row.
    """
    lines, length = (rows, cols) if conv_stream_axis(*nominal) == "cols" else (cols, rows)
    passes = math.ceil(length / array_rows)
    size = min(length, array_rows)
    return RowGroups(images * lines, passes, Extent(size, length - (passes - 1) * size))


def tile_cycles(weight_blocks: int, groups: RowGroups, core: CoreConfig) -> int:
    """Cycles that a tile with these passes over each of its weight blocks occupies the array of `core`.

    Where the core drains between tiles this is `systolic_rules.tile_busy_cycles`: the first preload and the skew of
    the last pass count. Elsewhere tiles follow one another like weight blocks: every preload hides behind the last pass
    before it, which then takes at least `core.rows` cycles.
    """
    full = pass_occupancy(groups.size.size, False, core.rows)
    last = pass_occupancy(groups.size.final, False, core.rows)
    block = groups.lines * ((groups.passes - 1) * full + last)
    exposed = pass_occupancy(groups.size.final, True, core.rows) - last
    burst = 2 * core.rows + core.cols - 2 - exposed if core.drains_between_tiles else 0
    return weight_blocks * (block + exposed) + burst
