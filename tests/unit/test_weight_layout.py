"""Streams of weights: no two transfers overlap, and long streams keep to banks of their own."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwconfigs import load_hw
from lowering.address_space import AddressSpace
from lowering.chip import OpenRows
from lowering.weight_layout import place_streams

SERVER = OpenRows(span_bytes=1 << 17, banks=4, hashed=True)
"""128 KiB: 16 channels, 2 pseudo-channels, 4 bank groups and 32 accesses of 32 bytes."""


def test_rows_of_the_presets() -> None:
    assert OpenRows.of(load_hw("npu-server-128x128x4").dram) == SERVER
    assert OpenRows.of(load_hw("npu-server-128x128x4").with_overrides({"dram.channels": 8}).dram) == OpenRows(
        1 << 16, 4, True
    )
    simple = load_hw("npu-server-128x128x4").with_overrides({"dram.standard": "simple"})
    assert OpenRows.of(simple.dram) is None


rows = st.one_of(st.none(), st.builds(OpenRows, st.sampled_from([256, 1024]), st.sampled_from([2, 4]), st.booleans()))
transfers = st.lists(st.integers(1, 12).map(lambda units: units * 32), min_size=1, max_size=20).map(tuple)


@given(streams=st.lists(transfers, min_size=1, max_size=9), rows=rows, used=st.integers(0, 3000))
def test_transfers_do_not_overlap_and_lie_in_what_was_allocated(
    streams: list[tuple[int, ...]], rows: OpenRows | None, used: int
) -> None:
    space = AddressSpace()
    begin = used and space.allocate(used) + used
    places = place_streams(space, streams, rows)
    assert [len(place) for place in places] == [len(sizes) for sizes in streams]
    spans = sorted(
        (address, address + size)
        for place, sizes in zip(places, streams, strict=True)
        for address, size in zip(place, sizes, strict=True)
    )
    assert begin <= spans[0][0] and spans[-1][1] <= space.next_byte
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize("hashed", [False, True])
def test_long_streams_have_a_bank_each(hashed: bool) -> None:
    """Whatever the drift: the bank that the controller makes of an address is the stream's own."""
    rows = OpenRows(1024, 4, hashed)
    space = AddressSpace()
    space.allocate(5000)
    places = place_streams(space, [(512,) * 12] * 4, rows)

    def bank(address: int) -> int:
        field, row = address // 1024 % 4, address // 4096
        return field ^ (row & 3) if hashed else field

    assert [{bank(address) for address in place} for place in places] == [{0}, {1}, {2}, {3}]
