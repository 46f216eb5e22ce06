"""Attention: traffic, products and cycles against closed forms, coverage of caches and results, and a simulated run."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwconfigs import load_hw
from hwconfigs.schema import CoreConfig
from lowering import MappingError, ModelError, Program
from lowering.attention_node import attention_shape
from lowering.attention_tiling import AttentionShape, Tiling, choose_tiling, tile_bytes
from lowering.chip import Chip
from lowering.context import UnsupportedError
from lowering.emit import expand
from lowering.ir import Graph, Node, Tensor
from lowering.mapping import ranges
from lowering.network import lower_graph
from lowering.program import Op
from vsim.api import SimPoint, simulate

REQUEST = 32
ELEMENT = 2


def make_chip(side: int = 8, spad_kib: int = 32, acc_kib: int = 16, n_cores: int = 2) -> Chip:
    core = CoreConfig(rows=side, cols=side, spad_kib=spad_kib, acc_kib=acc_kib, vector_bits=2048)
    return Chip((core,) * n_cores, ELEMENT, REQUEST)


def make_graph(
    batch: int,
    kv_heads: int,
    group: int,
    q_len: int,
    past: int,
    new: int,
    head: int,
    v_head: int,
    *,
    present: bool = True,
    merged: bool = True,
    mask: tuple[int, ...] = (),
    **attributes: Any,
) -> Graph:
    heads = kv_heads * group

    def form(name: str, count: int, length: int, width: int) -> Tensor:
        shape = (batch, length, count * width) if merged else (batch, count, length, width)
        return Tensor(name, shape)

    inputs: list[Tensor | None] = [form("q", heads, q_len, head), form("k", kv_heads, new, head)]
    inputs += [form("v", kv_heads, new, v_head), Tensor("mask", mask) if mask else None]
    if past:
        inputs += [Tensor("pk", (batch, kv_heads, past, head)), Tensor("pv", (batch, kv_heads, past, v_head))]
    outputs = [form("y", heads, q_len, v_head)]
    if present:
        outputs += [Tensor("present_k", (batch, kv_heads, past + new, head))]
        outputs += [Tensor("present_v", (batch, kv_heads, past + new, v_head))]
    counts = {"q_num_heads": heads, "kv_num_heads": kv_heads}
    node = Node("attention", "Attention", tuple(inputs), tuple(outputs), {**counts, **attributes})
    return Graph("g", 23, tuple(t for t in inputs if t is not None), tuple(outputs), (node,))


def blocks(program: Program, op: Op) -> Counter[int]:
    """How often each memory block is transferred."""
    found: Counter[int] = Counter()
    for tile in expand(program):
        for instruction in tile.instructions:
            if instruction.op is op:
                found.update(instruction.blocks.tolist())
    return found


def query_tiles(shape: AttentionShape, tiling: Tiling) -> list[tuple[int, int]]:
    """(rows, keys) of all chains, keys counted from the definition of the mask, query by query."""
    tiles: list[tuple[int, int]] = []
    for _, heads in ranges(shape.group, tiling.heads, 1, False):
        for first, rows in ranges(shape.q_len, tiling.rows, 1, False):
            own = [shape.past_len + query for query in range(first, first + rows)]
            seen = {
                key
                for key in range(shape.kv_len)
                if not shape.causal or any(key <= at and (not shape.window or key > at - shape.window) for at in own)
            }
            tiles.append((heads * rows, len(seen)))
    return tiles * shape.batch * shape.kv_heads


cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "kv_heads": st.integers(1, 3),
        "group": st.integers(1, 4),
        "q_len": st.integers(1, 40),
        "past": st.integers(0, 60),
        "head": st.sampled_from([16, 32, 64]),
        "v_head": st.sampled_from([16, 32]),
        "merged": st.booleans(),
        "present": st.booleans(),
        "is_causal": st.integers(0, 1),
        "window": st.sampled_from([0, 0, 5, 20]),
    }
)
chips = st.builds(
    make_chip,
    side=st.sampled_from([4, 8, 16]),
    spad_kib=st.sampled_from([16, 64]),
    acc_kib=st.sampled_from([8, 32]),
    n_cores=st.integers(1, 3),
)


@settings(max_examples=60, deadline=None)
@given(case=cases, chip=chips)
def test_bytes_products_and_cycles_equal_their_closed_forms(case: dict[str, Any], chip: Chip) -> None:
    graph = make_graph(new=case["q_len"], **case)
    shape = attention_shape(graph.nodes[0])
    tiling = choose_tiling(shape, chip)
    program = lower_graph(graph, chip)
    (layer,) = program.layers
    tiles = query_tiles(shape, tiling)
    width = shape.head + shape.v_head
    queries = shape.batch * shape.q_heads * shape.q_len
    appended = shape.batch * shape.kv_heads * shape.new_len * width * ELEMENT if case["present"] else 0
    assert layer.macs == sum(rows * keys for rows, keys in tiles) * width
    assert layer.load_bytes == queries * shape.head * ELEMENT + sum(keys for _, keys in tiles) * width * ELEMENT
    assert layer.store_bytes == queries * shape.v_head * ELEMENT + appended
    written = blocks(program, Op.STORE)
    assert set(written.values()) == {1}
    assert len(written) * REQUEST == layer.store_bytes
    instructions = [item for tile in expand(program) for item in tile.instructions]
    assert layer.vector_cycles == sum(item.size for item in instructions if item.op is Op.VECTOR)
    needed = tile_bytes(shape, tiling, ELEMENT)
    assert needed.scratchpad <= chip.spad_bytes
    assert needed.accumulators <= chip.acc_bytes


@pytest.mark.parametrize(("preset", "context"), [("npu-server-128x128x4", 4096), ("npu-mobile-8x8", 512)])
@pytest.mark.parametrize(("batch", "kv_heads", "group"), [(1, 8, 4), (2, 1, 8), (2, 4, 1)])
def test_decoding_reads_every_key_and_value_once(
    preset: str, context: int, batch: int, kv_heads: int, group: int
) -> None:
    """The heads of a group share what they read, and the new row is written once."""
    graph = make_graph(batch, kv_heads, group, 1, context - 1, 1, 128, 128, is_causal=1)
    chip = Chip.of(load_hw(preset))
    program = lower_graph(graph, chip)
    (layer,) = program.layers
    row = 128 * chip.element_bytes
    groups = batch * kv_heads
    assert layer.load_bytes == groups * context * 2 * row + groups * group * row
    assert layer.store_bytes == groups * 2 * row + groups * group * row
    assert set(blocks(program, Op.LOAD).values()) == {1}
    assert layer.macs == groups * group * context * 256


def test_causal_tiles_without_any_key_are_skipped() -> None:
    chip = Chip.of(load_hw("npu-server-128x128x4"))
    (full,) = lower_graph(make_graph(1, 8, 4, 2048, 0, 2048, 128, 128), chip).layers
    (causal,) = lower_graph(make_graph(1, 8, 4, 2048, 0, 2048, 128, 128, is_causal=1), chip).layers
    pairs = 2048 * 2049 // 2 * 32
    assert full.macs == 2048 * 2048 * 32 * 256
    assert pairs * 256 <= causal.macs < 0.6 * full.macs
    assert causal.load_bytes < 0.7 * full.load_bytes


def test_a_window_bounds_what_decoding_reads() -> None:
    graph = make_graph(1, 8, 4, 1, 4095, 1, 128, 128, is_causal=1, window=1024)
    (layer,) = lower_graph(graph, Chip.of(load_hw("npu-server-128x128x4"))).layers
    assert layer.load_bytes == 8 * 1024 * 512 + 32 * 256


@pytest.mark.parametrize(
    ("mask", "elements"),
    [((64, 64), 2 * 64 * 64), ((2, 1, 64, 64), 2 * 64 * 64), ((1, 4, 64, 64), 2 * 4 * 64 * 64), ((1, 1), 0)],
)
def test_masks_are_traffic(mask: tuple[int, ...], elements: int) -> None:
    """Each of two sequences reads its own; heads of one group share a mask; one tile holds all queries here."""
    chip = make_chip(16, 512, 256, 1)
    masked, plain = (
        lower_graph(make_graph(2, 1, 4, 64, 0, 64, 32, 32, mask=shape), chip).layers[0] for shape in (mask, ())
    )
    assert masked.load_bytes - plain.load_bytes == elements * ELEMENT
    assert (masked.vector_cycles > plain.vector_cycles) == bool(elements)


def test_a_computed_cache_is_copied_before_it_grows() -> None:
    graph = make_graph(1, 2, 2, 4, 28, 4, 16, 16)
    node = graph.nodes[0]
    old = node.inputs[4]
    assert old is not None
    source = Tensor("old", old.shape)
    scaled = Node("scale", "Relu", (source,), (old,))
    inputs = (source, *(tensor for tensor in graph.inputs if tensor is not old))
    program = lower_graph(Graph("g", 23, inputs, graph.outputs, (scaled, node)), make_chip())
    assert [layer.op for layer in program.layers] == ["Relu", "Concat", "Attention"]
    assert program.layers[1].store_bytes == old.elements * ELEMENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_num_heads": 5}, "q_num_heads"),
        ({"kv_num_heads": 4}, "K is"),
        ({"q_num_heads": 1}, "K is"),
    ],
)
def test_contradicting_shapes_are_one_clear_error(change: dict[str, int], message: str) -> None:
    graph = make_graph(1, 2, 2, 8, 8, 8, 16, 16, **change)
    with pytest.raises(ModelError, match=message):
        lower_graph(graph, make_chip())


def test_a_mask_must_broadcast() -> None:
    with pytest.raises(ModelError, match="does not broadcast"):
        lower_graph(make_graph(1, 2, 2, 8, 0, 8, 16, 16, mask=(7, 8)), make_chip())


def test_raw_scores_are_refused() -> None:
    node = make_graph(1, 2, 2, 8, 0, 8, 16, 16).nodes[0]
    outputs = (*node.outputs, Tensor("scores", (1, 4, 8, 8)))
    graph = Graph("g", 23, (), (), (Node(node.name, node.op, node.inputs, outputs, node.attributes),))
    with pytest.raises(UnsupportedError, match="raw scores"):
        lower_graph(graph, make_chip())


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(MappingError, match=r"attention \(Attention\): the smallest tile needs"):
        lower_graph(make_graph(1, 1, 1, 64, 0, 64, 1024, 1024), make_chip(16, 8, 2))


def test_the_array_is_busy_for_both_products() -> None:
    """256 queries and keys of width 64 on an 8x8 array: two products of 256 x 256 x 64, 64 products a cycle."""
    (layer,) = lower_graph(make_graph(1, 1, 1, 256, 0, 256, 64, 64), make_chip(8, 64, 64, 1)).layers
    assert layer.systolic_cycles == 2 * 256 * 256 * 64 // 64
    assert math.isclose(layer.macs / layer.systolic_cycles, 64)


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [("npu-server-128x128x4", (1, 4, 2, 64, 64, 64, 64, 64)), ("npu-mobile-8x8", (1, 1, 2, 16, 48, 16, 32, 32))],
)
def test_attention_runs_to_its_end(preset: str, sizes: tuple[int, int, int, int, int, int, int, int]) -> None:
    hw = load_hw(preset)
    program = lower_graph(make_graph(*sizes, is_causal=1), Chip.of(hw))
    (result,) = simulate([SimPoint(hw, program)])
    assert result.status == "ok"
    assert result.dram["read_bytes"] == program.layers[0].load_bytes
    assert result.dram["write_bytes"] == program.layers[0].store_bytes
    assert result.cycles > program.layers[0].systolic_cycles / hw.cores.count
