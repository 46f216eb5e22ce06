"""Where constant weights that several cores read at the same time lie in DRAM.

Each core reads its own weights from front to back, and the cores do not keep step for long. Two cores that are in
different rows of one bank close each other's row with every access, so streams are kept apart:

* Long ones (a whole span of open rows or more, see `lowering.chip.OpenRows`) have a bank of every bank group to
  themselves, as page colouring does for threads (Liu et al., "A Software Memory Partition Approach for Eliminating
  Bank-level Interference in Multicore Systems", PACT 2012): span by span, core after core.
* Short ones take turns transfer by transfer, so that cores which start together read neighbouring addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from lowering.address_space import AddressSpace
from lowering.chip import OpenRows

Sizes = tuple[int, ...]


def place_streams(space: AddressSpace, streams: Sequence[Sizes], rows: OpenRows | None) -> list[tuple[int, ...]]:
    """First addresses of all transfers of all streams, which are read at the same time.

    streams: bytes of the transfers of each, in the order of reading. rows: of the DRAM; None: not known.
    """
    if rows is not None and len(streams) > 1:
        longest_transfer = max(max(sizes) for sizes in streams)
        if longest_transfer <= rows.span_bytes <= min(map(sum, streams)):
            return _in_banks_of_their_own(space, streams, rows)
    return _in_turns(space, streams)


def _in_turns(space: AddressSpace, streams: Sequence[Sizes]) -> list[tuple[int, ...]]:
    address = space.allocate(sum(map(sum, streams)))
    places: list[list[int]] = [[] for _ in streams]
    for turn in zip_longest(*streams, fillvalue=0):
        for place, size in zip(places, turn, strict=True):
            if size:
                place.append(address)
            address += size
    return [tuple(place) for place in places]


def _in_banks_of_their_own(space: AddressSpace, streams: Sequence[Sizes], rows: OpenRows) -> list[tuple[int, ...]]:
    """With more streams than banks, those that share a bank take turns in its rows."""
    banks, row_bytes = rows.banks, rows.span_bytes * rows.banks
    sharers = -(-len(streams) // banks)
    cuts = [_cut(sizes, rows.span_bytes) for sizes in streams]
    spans = max(cut[-1][0] for cut in cuts) + 1
    # A row more than is needed, so that the first one can begin at the beginning of a row.
    first_row = -(-space.allocate((spans * sharers + 1) * row_bytes) // row_bytes)
    places = []
    for stream, cut in enumerate(cuts):
        sharer, bank = divmod(stream, banks)
        place = []
        for number, within in cut:
            row = first_row + number * sharers + sharer
            place.append(row * row_bytes + rows.bank_field(bank, row) * rows.span_bytes + within)
        places.append(tuple(place))
    return places


def _cut(sizes: Sizes, span_bytes: int) -> list[tuple[int, int]]:
    """(number of the span, offset in it) of every transfer; none crosses the end of a span."""
    cut, number, offset = [], 0, 0
    for size in sizes:
        if offset + size > span_bytes:
            number, offset = number + 1, 0
        cut.append((number, offset))
        offset += size
    return cut
