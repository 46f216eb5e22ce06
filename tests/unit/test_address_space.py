"""Tensors never share a memory block, and lie where the recorded runs have them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowering.address_space import AddressSpace


@given(st.lists(st.integers(0, 5000), max_size=20))
def test_tensors_are_aligned_and_apart(sizes):
    space = AddressSpace()
    end = -1
    for size in sizes:
        address = space.allocate(size)
        assert address % 256 == 0
        assert address > end
        end = address + size


def test_addresses_of_a_recorded_run():
    """Matrix product 256x256x256, two bytes an element: weights, inputs (16 times their size), outputs."""
    space = AddressSpace()
    matrix = 256 * 256 * 2
    assert [space.allocate(matrix), space.allocate(16 * matrix), space.allocate(matrix)] == [0, 0x20100, 0x220200]
