"""Descriptors cover exactly the touched blocks, and folding into rows never changes the instruction sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder, expand, expand_tile
from lowering.program import LayerInfo, Op, Program

REQUEST_BYTES = 32

levels = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 300)), min_size=1, max_size=3)


def touched_blocks(base: int, nest: list[tuple[int, int]], segment: int) -> list[int]:
    """Every byte of every segment, one by one."""
    starts = [base]
    for count, pitch in nest:
        starts = [start + i * pitch for start in starts for i in range(count)]
    return sorted({byte // REQUEST_BYTES for start in starts for byte in range(start, start + segment)})


def one_tile(write) -> Program:
    builder = ProgramBuilder("test", 1, REQUEST_BYTES)
    builder.begin_layer(LayerInfo("layer", "Test"))
    builder.begin_tile(0)
    write(builder)
    builder.end_tile()
    builder.end_layer()
    return builder.build()


@given(st.integers(0, 5000), levels, st.integers(1, 200))
def test_descriptor_lists_the_touched_blocks_once_each_in_order(base, nest, segment):
    descriptor = Descriptor.from_segments(base, nest, segment, REQUEST_BYTES)
    assert descriptor.blocks().tolist() == touched_blocks(base, nest, segment)


@given(st.integers(0, 5000), st.integers(1, 40), st.integers(0, 300), st.integers(1, 300))
def test_rows_are_a_one_level_nest(base, n_rows, pitch, row_bytes):
    descriptor = Descriptor.from_rows(base, n_rows, pitch, row_bytes, REQUEST_BYTES)
    assert descriptor.blocks().tolist() == touched_blocks(base, [(n_rows, pitch)], row_bytes)


@given(st.sets(st.integers(0, 400), min_size=1, max_size=60))
def test_any_block_set_has_a_periodic_form(blocks):
    ordered = np.array(sorted(blocks))
    descriptor = Descriptor.from_blocks(ordered)
    assert descriptor.blocks().tolist() == ordered.tolist()
    assert descriptor.period_requests <= len(ordered)


def test_aligned_rows_need_no_pattern_and_unaligned_ones_a_short_one():
    assert Descriptor.from_rows(0, 100, 1024, 256, REQUEST_BYTES).pattern is None
    unaligned = Descriptor.from_rows(0, 100, 600, 100, REQUEST_BYTES)  # the alignment repeats every 4 rows
    assert unaligned.pattern is not None
    assert len(unaligned.pattern) == unaligned.blocks().searchsorted(4 * 600 // REQUEST_BYTES)


transfer_lists = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.builds(
            lambda block, rows, pitch: Descriptor.from_rows(block * REQUEST_BYTES, rows, pitch, 40, REQUEST_BYTES),
            st.integers(0, 8).map(lambda k: 16 * k),
            st.integers(1, 3),
            st.sampled_from([40, 64, 100]),
        ),
    ),
    min_size=1,
    max_size=24,
)


@given(transfer_lists, st.booleans())
def test_folding_keeps_every_transfer(items, acc):
    program = one_tile(lambda builder: builder.load_many(items, acc=acc))
    expanded = expand_tile(program, 0)
    assert [(i.op, i.dst, i.dst_acc, i.blocks.tolist()) for i in expanded] == [
        (Op.LOAD, dst, acc, descriptor.blocks().tolist()) for dst, descriptor in items
    ]
    assert program.layers[0].load_bytes == REQUEST_BYTES * sum(d.requests for _, d in items)


def test_a_grid_of_stores_with_a_shorter_last_column_is_one_row():
    pitch = 640 * 2
    items = [
        (n * 3 + m, Descriptor.from_rows(n * 128 * pitch + m * 256, 128 if n < 4 else 40, pitch, 256, REQUEST_BYTES))
        for m in range(3)
        for n in range(5)
    ]
    program = one_tile(lambda builder: builder.store_many(items))
    assert len(program.rows) == 1
    assert [i.dst for i in expand_tile(program, 0)] == [dst for dst, _ in items]
    assert program.acc_entries == 15


@given(*[st.integers(1, 4)] * 3, st.integers(1, 9), st.integers(0, 9), st.sampled_from(["all", "first", "none"]))
def test_a_loop_nest_expands_in_order(n0, n1, n2, size, last, preload):
    program = one_tile(
        lambda builder: builder.systolic(
            dst=Operand(1, (2, 0, 1), acc=True),
            src_a=Operand(0, (0, 1, 0)),
            src_b=Operand(5, (1, 0, 0), acc=True),
            counts=(n0, n1, n2),
            size1=Extent(size, last),
            size2=Extent(3),
            preload=preload,
        )
    )
    expected = [
        (
            1 + 2 * i + k,
            ((j, False), (5 + i, True)),
            3 * (last if j == n1 - 1 else size),
            preload == "all" or (preload == "first" and j == k == 0),
        )
        for i in range(n0)
        for j in range(n1)
        for k in range(n2)
    ]
    assert [(i.dst, i.sources, i.size, i.preload) for i in expand_tile(program, 0)] == expected
    assert program.spad_entries == n1
    assert program.acc_entries == max(1 + 2 * (n0 - 1) + n2, 5 + n0)


def test_tiles_keep_their_order_on_every_core():
    builder = ProgramBuilder("test", 2, REQUEST_BYTES)
    for layer in range(2):
        builder.begin_layer(LayerInfo(f"layer{layer}", "Test"))
        for number in range(5):
            builder.begin_tile((number + layer) % 2, accumulate=number > 1, acc_key=number)
            builder.vector(dst=Operand(0), src_a=Operand(0), size1=Extent(number))
            builder.end_tile()
        builder.end_layer()
    program = builder.build()
    assert [(t.layer, t.core, t.acc_key, t.accumulate) for t in expand(program)] == [
        (layer, core, number, number > 1)
        for layer in range(2)
        for core in range(2)
        for number in range(5)
        if (number + layer) % 2 == core
    ]
    assert [layer.vector_cycles for layer in program.layers] == [10, 10]


def test_equal_patterns_are_stored_once():
    items = [(0, Descriptor.from_rows(base, 8, 100, 40, REQUEST_BYTES)) for base in (0, 6400, 9600, 32000)]
    program = one_tile(lambda builder: [builder.load(dst, d) for dst, d in items])
    assert len(program.pattern) == items[0][1].period_requests
    assert len(set(program.rows[:, -5].tolist())) == 1


def test_repeated_rows_compute_the_same_and_count_again():
    def write(builder: ProgramBuilder) -> None:
        builder.load(0, Descriptor(0, 1))
        first = builder.rows_written
        builder.vector(dst=Operand(1), src_a=Operand(0), counts=(1, 2, 3), size1=Extent(4, 1), size2=Extent(2))
        builder.repeat(first, builder.rows_written)
        with pytest.raises(ValueError, match="only instructions that compute"):
            builder.repeat(0, 1)

    program = one_tile(write)
    instructions = expand_tile(program, 0)
    assert [item.size for item in instructions[1:7]] == [item.size for item in instructions[7:]]
    assert program.layers[0].vector_cycles == sum(item.size for item in instructions)
