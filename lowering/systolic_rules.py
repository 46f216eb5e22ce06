"""How a weight-stationary array streams an output tile: the timing rules of the default mode, in one place.

Source: the public RTL of Gemmini (github.com/ucb-bar/gemmini: ``ExecuteController``, ``LoopConv``, ``LoopMatmul``,
``MeshWithDelays``), read for its behaviour, and its cycle counts in ``tests/data/gemmini_rtl.json``. No rule carries a
fitted constant.

Vocabulary. A *weight block* is the part of the weights that the array holds at a time: at most ``array_rows`` input
channels by ``array_cols`` output channels (for a convolution, of one kernel position). A *pass* streams activation rows
(GEMM rows, or output pixels of a convolution) through one weight block; it is one SYSTOLIC instruction. The array holds
one spare set of weights, so loading the next block (a *preload*, ``array_rows`` cycles) can hide behind a pass.

The rules.

1. A pass holds at most ``array_rows`` rows, and a convolution's pass never crosses the end of a line of output
   pixels: the address of its activations is a start and a stride (`split_line`, `conv_passes`).
2. A pass occupies the array for at least `MIN_PASS_ROWS` cycles (`pass_occupancy`).
3. A preload hides behind the pass just before it and behind no other: the controller fuses exactly one pass with one
   preload. That pass then occupies the array for at least ``array_rows`` cycles (`pass_occupancy`).
4. Weights are loaded once per weight block of a tile: all passes of the tile that use it run back to back.
5. A tile is a burst of its own: its first preload hides behind nothing, and the array empties before it
   (`first_pass_start`, `tile_busy_cycles`).

Rules 1 to 4 can be read in the RTL. Rule 5 is an inference: a tile is one loop command, whose generator starts from
idle after its predecessor's has ended, and with rules 1 to 4 alone the eleven convolutions take about 21 cycles a tile
more than predicted. The rule has nothing to tune and adds 22 on an 8 x 8 array: the preload (8) and the array's skew
(14), less what the unfused last pass saves. It was chosen among a few such variants after seeing those residuals, and
its cost on larger arrays is extrapolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

StreamAxis = Literal["rows", "cols"]

MIN_PASS_ROWS = 4
"""Least cycles of a pass. Two writes to one accumulator address must be this far apart for the first to be readable."""


def split_line(length: int, array_rows: int) -> tuple[int, ...]:
    """Rows of each pass over one line of ``length`` >= 1 rows: full passes of ``array_rows``, then the remainder.

    A 17-pixel line on an array of 8 rows is (8, 8, 1), which occupies the array for 8 + 8 + `MIN_PASS_ROWS` cycles.
    """
    full, rest = divmod(length, array_rows)
    return (array_rows,) * full + ((rest,) if rest else ())


def gemm_passes(n_rows: int, array_rows: int) -> tuple[int, ...]:
    """Rows of each pass over one weight block of a GEMM tile with ``n_rows`` >= 1 activation rows: one long line."""
    return split_line(n_rows, array_rows)


def conv_stream_axis(tile_rows: int, tile_cols: int) -> StreamAxis:
    """Direction in which the passes of a convolution walk over its output tile: along the longer side.

    ``tile_rows``, ``tile_cols``: output pixels of a whole tile (one clipped at the border keeps the axis of the whole
    ones). "cols", also for square tiles: a line is a row of the image, its pixels differ in the column. Gemmini streams
    along image rows, and its tiler grows a tile in that direction as far as it fits, so for its tiles this is the
    longer side, whichever letter (P or Q) a mapping file gives it.
    """
    return "cols" if tile_cols >= tile_rows else "rows"


def conv_passes(out_rows: int, out_cols: int, axis: StreamAxis, array_rows: int) -> tuple[int, ...]:
    """Rows (pixels) of each pass over one weight block of a convolution tile of ``out_rows`` x ``out_cols`` pixels.

    ``axis``: from `conv_stream_axis` of the unclipped tile. For a batch of images repeat the result per image.
    """
    lines, length = (out_rows, out_cols) if axis == "cols" else (out_cols, out_rows)
    return split_line(length, array_rows) * lines


def pass_occupancy(rows: int, preload_follows: bool, array_rows: int) -> int:
    """Cycles from the start of a pass to the earliest start of the next one.

    ``rows``: streamed rows, >= 1. ``preload_follows``: the next pass, queued in time, needs new weights; they shift in
    during this pass, one array row a cycle.
    """
    occupancy = max(rows, MIN_PASS_ROWS)
    return max(occupancy, array_rows) if preload_follows else occupancy


def next_pass_start(now: int, prev_start: int, prev_rows: int, preload: bool, array_rows: int) -> int:
    """Cycle at which a pass accepted in cycle ``now`` starts to stream behind a pass of its own tile.

    ``prev_start``, ``prev_rows``: the pass accepted before it. ``preload``: the pass needs new weights. The registers
    of the spare weights are free from ``prev_start`` on (then the previous pass took their content over) and loading
    takes ``array_rows`` cycles. So a preload accepted by ``prev_start`` gives
    ``prev_start + pass_occupancy(prev_rows, True, array_rows)``; a later one is hidden in part or not at all.
    """
    array_free = prev_start + pass_occupancy(prev_rows, False, array_rows)
    operands_in = max(now, prev_start) + array_rows if preload else now
    return max(array_free, operands_in)


def first_pass_start(now: int, array_rows: int) -> int:
    """Start cycle of the first pass of a tile that an empty array accepts in cycle ``now``: after its preload."""
    return now + array_rows


def pass_finish(start: int, rows: int, array_rows: int, array_cols: int) -> int:
    """Cycle at which the last result of a pass is in the accumulator: skewed entry and exit, then row after row."""
    return start + array_rows + array_cols - 2 + pass_occupancy(rows, False, array_rows)


def tile_busy_cycles(weight_blocks: int, passes: Sequence[int], array_rows: int, array_cols: int) -> int:
    """Cycles in which the array has a preload or a pass in flight, for one tile whose operands are all present.

    ``weight_blocks`` >= 1: weight blocks of the tile. ``passes``: rows of the passes over each of them. From the first
    cycle of the first preload to `pass_finish` of the last pass, without gaps.
    """
    block = sum(pass_occupancy(rows, False, array_rows) for rows in passes)
    last = passes[-1]
    exposed = pass_occupancy(last, True, array_rows) - pass_occupancy(last, False, array_rows)
    streaming = weight_blocks * block + (weight_blocks - 1) * exposed
    return array_rows + streaming + array_rows + array_cols - 2
