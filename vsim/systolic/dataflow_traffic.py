"""DRAM reads of SCALE-Sim's bandwidth-estimating mode (CALC): the demand stream of an operand, and what of it is new.

An operand's buffer remembers every address since it was last emptied; it is emptied whenever it has taken in half of
its size (in a hundred sets, of which fifty are remembered). A read is an address that is not remembered. This needs the
order of the stream, so it is counted on the stream and not in closed form (specs/systolic.md section 2.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwconfigs.errors import UserError

_SETS, _REMEMBERED_SETS = 100, 50
_NOTHING = -1
"""Where a window reaches beyond the picture, or a processing element has nothing to do."""
_FIRST_BLOCK = 1 << 16

Addresses = NDArray[np.int64]


@dataclass(frozen=True)
class Convolution:
    """Picture and filter of a layer that runs as a matrix product; its windows share addresses."""

    height: int
    width: int
    kernel_height: int
    kernel_width: int
    channels: int
    filters: int
    stride: int

    @property
    def out_height(self) -> int:
        """Windows from top to bottom; the last may reach beyond the picture, as in SCALE-Sim."""
        return -(-(self.height - self.kernel_height + self.stride) // self.stride)

    @property
    def out_width(self) -> int:
        """Windows from left to right."""
        return -(-(self.width - self.kernel_width + self.stride) // self.stride)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """M, N, K of the product."""
        return (
            self.out_height * self.out_width,
            self.filters,
            self.kernel_height * self.kernel_width * self.channels,
        )

    def input_addresses(self) -> Addresses:
        """Address of every element of the M x K input matrix, -1 beyond the picture."""
        rows, columns = np.divmod(np.arange(self.out_height * self.out_width), self.out_width)
        kernel_rows, rest = np.divmod(np.arange(self.sizes[2]), self.kernel_width * self.channels)
        kernel_columns, channels = np.divmod(rest, self.channels)
        y = rows[:, None] * self.stride + kernel_rows
        x = columns[:, None] * self.stride + kernel_columns
        inside = (y < self.height) & (x < self.width)
        return np.where(inside, (y * self.width + x) * self.channels + channels, _NOTHING)


def remembered_words(buffer_kib: int) -> int:
    """Addresses that a buffer takes in before it is emptied."""
    return _REMEMBERED_SETS * (buffer_kib * 1024 // _SETS)


def dram_reads(
    inputs: Addresses, weights: Addresses, dataflow: str, array: tuple[int, int], ifmap_kib: int, filter_kib: int
) -> tuple[int, int]:
    """Words of input and of weights that are read from DRAM.

    ``inputs`` M x K and ``weights`` K x N hold an address each; ``array`` is (rows, columns). Raises `UserError` for a
    buffer below 1 KiB.
    """
    if min(ifmap_kib, filter_kib) < 1:
        raise UserError(f"buffers of {ifmap_kib} and {filter_kib} KiB: at least 1 is needed")
    rows, cols = array
    if dataflow == "os":
        streams = (
            _streamed(inputs.T, rows, rounds=-(-weights.shape[1] // cols), operand_outer=False),
            _streamed(weights, cols, rounds=-(-inputs.shape[0] // rows), operand_outer=True),
        )
    elif dataflow == "ws":
        streams = (
            _streamed(inputs, rows, rounds=-(-weights.shape[1] // cols), operand_outer=False),
            _held(weights, rows, cols),
        )
    else:
        streams = (
            _held(inputs.T, rows, cols),
            _streamed(weights.T, rows, rounds=-(-inputs.shape[0] // cols), operand_outer=False),
        )
    words = [
        _reads(np.concatenate(list(stream)), remembered_words(kib))
        for stream, kib in zip(streams, (ifmap_kib, filter_kib), strict=True)
    ]
    return words[0], words[1]


def _streamed(matrix: Addresses, side: int, *, rounds: int, operand_outer: bool) -> Iterator[Addresses]:
    """A matrix (time x lanes) that streams in from a side of the array: each lane a cycle behind the one before.

    It is cut into folds of ``side`` lanes; all of them pass ``rounds`` times in turn, or each so often in a row.
    """
    folds = [_skewed(matrix[:, start : start + side]) for start in range(0, matrix.shape[1], side)]
    if operand_outer:
        for fold in folds:
            yield from [fold] * rounds
    else:
        yield from folds * rounds


def _skewed(fold: Addresses) -> Addresses:
    """What the lanes ask for cycle by cycle, in the order of the lanes."""
    steps, lanes = fold.shape
    skewed = np.full((lanes, steps + lanes - 1), _NOTHING)
    for lane in range(lanes):
        skewed[lane, lane : lane + steps] = fold[:, lane]
    demanded = skewed.T.ravel()
    return demanded[demanded != _NOTHING]


def _held(matrix: Addresses, rows: int, cols: int) -> Iterator[Addresses]:
    """A matrix that is loaded fold by fold, a row a cycle, and stays."""
    for left in range(0, matrix.shape[1], cols):
        for top in range(0, matrix.shape[0], rows):
            # The row that goes furthest enters first.
            demanded = matrix[top : top + rows, left : left + cols][::-1].ravel()
            yield demanded[demanded != _NOTHING]


def _reads(stream: Addresses, remembered: int) -> int:
    """Addresses of ``stream`` that are new to a memory which forgets all whenever it holds ``remembered``."""
    order = np.argsort(stream, kind="stable")
    last_seen = np.full(len(stream), -1)
    again = stream[order[1:]] == stream[order[:-1]]
    last_seen[order[1:][again]] = order[:-1][again]
    start, reads = 0, 0
    while start < len(stream):
        block, found, position = _FIRST_BLOCK, 0, start
        while position < len(stream):
            new = np.flatnonzero(last_seen[position : position + block] < start)
            if found + len(new) >= remembered:
                position += new[remembered - found - 1] + 1
                found = remembered
                break
            found += len(new)
            position += block
            block *= 2
        reads += found
        start = position
    return reads
