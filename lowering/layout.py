"""How tensors lie in DRAM, and which memory blocks a piece of one touches.

One rule for every activation: a tensor is a list of *pixels* (rows of a matrix), each holding the elements of the
innermost physical dimension next to each other, at a constant pitch. Images are channels-last (NHWC): a pixel is
the channels of one position. The pitch is the pixel's bytes rounded up to whole requests, so that pixels start on
request boundaries; a pixel smaller than a request takes the next power of two bytes instead (three channels of two
bytes lie 8 bytes apart), so that none straddles a boundary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowering.emit import Descriptor

Order = tuple[int, ...]
"""Logical dimensions from the outermost physical one to the innermost."""


def row_major(rank: int) -> Order:
    """The order in which ONNX writes tensors."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Batch, spatial dimensions, channels: for tensors whose logical order is batch, channels, spatial."""
    return (0, *range(2, rank), 1) if rank > 2 else row_major(rank)


def same_order(shape: Sequence[int], first: Order, second: Order) -> bool:
    """Whether two orders put the elements of `shape` in the same sequence (dimensions of size 1 do not matter)."""
    return [d for d in first if shape[d] != 1] == [d for d in second if shape[d] != 1]


def pixel_pitch(elements: int, element_bytes: int, request_bytes: int) -> int:
    """Bytes from one pixel to the next; see the module's rule."""
    size = max(1, elements) * element_bytes
    if size >= request_bytes:
        return math.ceil(size / request_bytes) * request_bytes
    return 1 << (size - 1).bit_length()


@dataclass(frozen=True)
class Layout:
    """One tensor in DRAM.

    base_byte: address of the first element. physical: sizes in physical order, outermost first (at least one).
    pitch_bytes: from one pixel to the next. request_bytes: size of a memory block.
    """

    base_byte: int
    physical: tuple[int, ...]
    element_bytes: int
    pitch_bytes: int
    request_bytes: int

    @staticmethod
    def of(shape: Sequence[int], order: Order, element_bytes: int, request_bytes: int, base_byte: int = 0) -> Layout:
        """The layout of a tensor of logical `shape`, stored in `order`."""
        physical = tuple(shape[d] for d in order) or (1,)
        return Layout(
            base_byte, physical, element_bytes, pixel_pitch(physical[-1], element_bytes, request_bytes), request_bytes
        )

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return math.prod(self.physical[:-1])

    @property
    def channels(self) -> int:
        """Elements of one pixel."""
        return self.physical[-1]

    @property
    def total_bytes(self) -> int:
        """Bytes of the tensor with its padding."""
        return self.pixels * self.pitch_bytes

    def region(
        self, first_pixel: int, levels: Sequence[tuple[int, int]], first_channel: int, channels: int
    ) -> Descriptor:
        """The blocks of a strided set of pixels.

        levels: (count, stride in pixels) of the loops over pixels, outermost first; counts >= 1.
        first_channel, channels: which elements of each pixel.
        """
        whole = channels == self.channels
        run = 1
        outer: list[tuple[int, int]] = []
        for count, stride in reversed([level for level in levels if level[0] > 1]):
            # Whole pixels in a row are one run: the gaps between them are smaller than a block.
            if whole and not outer and stride == run:
                run *= count
            else:
                outer.insert(0, (count, stride * self.pitch_bytes))
        start = self.base_byte + first_pixel * self.pitch_bytes + first_channel * self.element_bytes
        segment = (run - 1) * self.pitch_bytes + channels * self.element_bytes
        if not outer:
            return Descriptor.contiguous(start, segment, self.request_bytes)
        return Descriptor.from_segments(start, outer, segment, self.request_bytes)

    def span(self, first_pixel: int, pixels: int) -> Descriptor:
        """The blocks of whole consecutive pixels."""
        return self.region(first_pixel, ((pixels, 1),), 0, self.channels)
