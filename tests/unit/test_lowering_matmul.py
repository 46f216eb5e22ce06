"""Convolutions and matrix products: traffic, coverage, completeness and capacity, against a plain enumeration."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwconfigs.schema import CoreConfig
from lowering.address_space import AddressSpace
from lowering.array_timing import group_rows, tile_cycles
from lowering.chip import Chip
from lowering.emit import ProgramBuilder, expand
from lowering.layout import Layout
from lowering.mapping import Mapping, MappingError, MatmulShape, parse_mapping
from lowering.matmul import MatmulLayer, Plan, emit_matmul, input_lines, plan_matmul
from lowering.program import Op, Program
from lowering.systolic_rules import conv_passes, conv_stream_axis, pass_occupancy, tile_busy_cycles

REQUEST = 32


def make_chip(
    side: int = 8, spad_kib: int = 64, acc_kib: int = 16, n_cores: int = 4, element: int = 2, drains: bool = False
) -> Chip:
    core = CoreConfig(
        rows=side, cols=side, spad_kib=spad_kib, acc_kib=acc_kib, vector_bits=2048, drains_between_tiles=drains
    )
    return Chip((core,) * n_cores, element, REQUEST)


def make_layer(
    shape: MatmulShape, chip: Chip, *, bias: bool = False, relu: bool = False
) -> tuple[MatmulLayer, AddressSpace]:
    space = AddressSpace()

    def place(dims: tuple[int, ...]) -> Layout:
        layout = Layout.of(dims, (0, 1, 2, 3), chip.element_bytes, REQUEST)
        return Layout.of(dims, (0, 1, 2, 3), chip.element_bytes, REQUEST, space.allocate(layout.total_bytes))

    x = place((shape.images, shape.in_rows, shape.in_cols, shape.in_channels * shape.groups))
    y = place((shape.images, shape.out_rows, shape.out_cols, shape.out_channels * shape.groups))
    layer = MatmulLayer("layer", "Conv", shape, x, y, bias=bias, epilogue={"add": 1} if relu else {})
    return layer, space


def build(layer: MatmulLayer, space: AddressSpace, chip: Chip, mapping: Mapping | None = None) -> tuple[Program, Plan]:
    plan = plan_matmul(layer, chip, mapping)
    builder = ProgramBuilder("test", chip.n_cores, REQUEST)
    emit_matmul(builder, plan, chip, space)
    return builder.build(), plan


def conv_shape(
    channels: int,
    outputs: int,
    size: int,
    kernel: int = 1,
    stride: int = 1,
    pad: int = 0,
    dilation: int = 1,
    images: int = 1,
    groups: int = 1,
    diagonal: bool = False,
) -> MatmulShape:
    out = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    return MatmulShape(
        images=images,
        groups=groups,
        in_channels=channels // groups,
        out_channels=outputs // groups,
        in_rows=size,
        in_cols=size,
        out_rows=out,
        out_cols=out,
        kernel_rows=kernel,
        kernel_cols=kernel,
        stride=(stride, stride),
        dilation=(dilation, dilation),
        pads=(pad, pad),
        diagonal=diagonal,
    )


shapes = st.builds(
    conv_shape,
    channels=st.sampled_from([1, 3, 16, 20, 40]),
    outputs=st.sampled_from([4, 16, 24, 50]),
    size=st.integers(7, 18),
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    dilation=st.integers(1, 2).filter(lambda d: d),
    images=st.integers(1, 2),
).filter(lambda shape: shape.out_rows > 0)

chips = st.builds(
    make_chip,
    side=st.sampled_from([4, 8, 16]),
    spad_kib=st.sampled_from([16, 64]),
    acc_kib=st.sampled_from([4, 16]),
    n_cores=st.integers(1, 5),
    element=st.sampled_from([1, 2, 4]),
)


def stored_blocks(program: Program) -> Counter[int]:
    blocks: Counter[int] = Counter()
    for tile in expand(program):
        for instruction in tile.instructions:
            if instruction.op is Op.STORE:
                blocks.update(instruction.blocks.tolist())
    return blocks


@given(shape=shapes, chip=chips)
def test_traffic_in_the_report_is_the_traffic_of_the_program(shape: MatmulShape, chip: Chip) -> None:
    layer, space = make_layer(shape, chip, bias=True)
    program, _ = build(layer, space, chip)
    requests = dict.fromkeys(Op, 0)
    for tile in expand(program):
        for instruction in tile.instructions:
            requests[instruction.op] += len(instruction.blocks)
    info = program.layers[0]
    assert info.load_bytes == requests[Op.LOAD] * REQUEST
    assert info.store_bytes == requests[Op.STORE] * REQUEST


@given(shape=shapes, chip=chips)
def test_every_output_block_is_stored(shape: MatmulShape, chip: Chip) -> None:
    """All blocks of the output and none outside; once each where a pixel fills whole blocks."""
    layer, space = make_layer(shape, chip)
    program, _ = build(layer, space, chip)
    y = layer.y
    expected = set(range(y.base_byte // REQUEST, -(-(y.base_byte + y.total_bytes) // REQUEST)))
    blocks = stored_blocks(program)
    assert set(blocks) == expected
    if y.pitch_bytes % REQUEST == 0:
        assert set(blocks.values()) == {1}


@given(shape=shapes, chip=chips)
def test_outputs_partition_over_the_chains(shape: MatmulShape, chip: Chip) -> None:
    layer, _ = make_layer(shape, chip)
    plan = plan_matmul(layer, chip)
    counts = np.zeros((shape.images, shape.groups, shape.out_rows, shape.out_cols, shape.out_channels), int)
    for tile in (tile for tiles in plan.cores for tile in tiles):
        cut = [slice(start, start + length) for start, length in (tile.images, tile.rows, tile.cols, tile.channels)]
        counts[cut[0], tile.group, cut[1], cut[2], cut[3]] += 1
    assert (counts == 1).all()


def plain_window(layer: MatmulLayer, plan: Plan) -> Counter[int]:
    """Blocks that the input loads must touch, tile by tile: pixel by pixel, with nothing but the convolution's rule."""
    shape, x = layer.shape, layer.x
    needed: Counter[int] = Counter()
    for tile in (tile for tiles in plan.cores for tile in tiles):
        for step in plan.steps[0]:
            blocks: set[int] = set()
            for image in range(tile.images[0], sum(tile.images)):
                for axis_rows in range(tile.rows[0], sum(tile.rows)):
                    for s in range(step.kernel_rows[0], sum(step.kernel_rows)):
                        h = axis_rows * shape.stride[0] - shape.pads[0] + s * shape.dilation[0]
                        if not 0 <= h < shape.in_rows:
                            continue
                        for q in range(tile.cols[0], sum(tile.cols)):
                            for r in range(step.kernel_cols[0], sum(step.kernel_cols)):
                                w = q * shape.stride[1] - shape.pads[1] + r * shape.dilation[1]
                                if not 0 <= w < shape.in_cols:
                                    continue
                                pixel = (image * shape.in_rows + h) * shape.in_cols + w
                                first = x.base_byte + pixel * x.pitch_bytes + step.channels[0] * x.element_bytes
                                last = first + step.channels[1] * x.element_bytes - 1
                                blocks.update(range(first // REQUEST, last // REQUEST + 1))
            needed.update(blocks)
    return needed


@given(shape=shapes, chip=chips)
def test_input_loads_cover_every_pixel_that_is_read(shape: MatmulShape, chip: Chip) -> None:
    """At least every needed block of every tile; exactly those where the window has no holes."""
    layer, space = make_layer(shape, chip)
    program, plan = build(layer, space, chip)
    x_end = -(-(layer.x.base_byte + layer.x.total_bytes) // REQUEST)
    loaded: Counter[int] = Counter()
    for tile in expand(program):
        for instruction in tile.instructions:
            if instruction.op is Op.LOAD and instruction.dst == 0 and not instruction.dst_acc:
                assert instruction.blocks.max() < x_end
                loaded.update(set(instruction.blocks.tolist()))
    needed = plain_window(layer, plan)
    assert not needed - loaded
    dense = shape.dilation == (1, 1) and shape.stride == (1, 1)
    if dense:
        assert loaded == needed


@given(shape=shapes, chip=chips)
def test_products_of_the_instructions_are_the_layer_s(shape: MatmulShape, chip: Chip) -> None:
    """Streamed pixels, times weights along the reduction, times output channels, over all tiles: the layer's MACs."""
    layer, space = make_layer(shape, chip)
    program, plan = build(layer, space, chip)
    chain_of = iter([tile for tiles in plan.cores for tile in tiles for _ in plan.steps[0]])
    step_of = iter([step for tiles in plan.cores for _ in tiles for step in plan.steps[0]])
    total = 0
    for tile in expand(program):
        out, step = next(chain_of), next(step_of)
        passes = [instruction for instruction in tile.instructions if instruction.op is Op.SYSTOLIC]
        blocks = sum(instruction.preload for instruction in passes)
        streamed = sum(instruction.size for instruction in passes)
        assert streamed == blocks * out.pixels
        total += out.pixels * out.channels[1] * step.channels[1] * step.kernel_rows[1] * step.kernel_cols[1]
        assert tile.accumulate == (step is not plan.steps[0][0])
    assert total == program.layers[0].macs == shape.macs


@given(shape=shapes, chip=chips)
def test_weights_are_loaded_whole_by_every_chain(shape: MatmulShape, chip: Chip) -> None:
    """A chain's weight loads hold all weights of its outputs, and no block twice."""
    layer, space = make_layer(shape, chip)
    program, plan = build(layer, space, chip)
    tiles = iter(list(expand(program)))
    per_output = shape.in_channels * shape.kernel_rows * shape.kernel_cols * chip.element_bytes
    for out in (tile for core in plan.cores for tile in core):
        blocks: list[int] = []
        for _ in plan.steps[0]:
            for instruction in next(tiles).instructions:
                if instruction.op is Op.LOAD and instruction.dst >= 1:
                    blocks.extend(instruction.blocks.tolist())
        assert len(blocks) == len(set(blocks))
        assert len(blocks) * REQUEST >= out.channels[1] * per_output


def test_cores_take_turns_in_the_weights_they_read_at_the_same_time() -> None:
    """Block k of every core's first tile lies beside block k of the others'; together they leave no gap."""
    chip = make_chip(side=64, spad_kib=4096, acc_kib=1024)
    layer, space = make_layer(MatmulShape(1, 1, 1024, 1024, 1, 1, 1, 1), chip)
    program, plan = build(layer, space, chip)
    tiles, ends = list(expand(program)), accumulate(len(chains) * len(plan.steps[0]) for chains in plan.cores)
    loads = [
        [load.blocks.tolist() for load in tiles[first].instructions if load.op is Op.LOAD and load.dst >= 1]
        for first in [0, *ends][:4]
    ]
    assert min(map(len, loads)) > 1
    block = 64 * 64 * chip.element_bytes // REQUEST
    for turn, neighbours in enumerate(zip(*loads, strict=True)):
        start = loads[0][0][0] + turn * 4 * block
        assert list(chain.from_iterable(neighbours)) == list(range(start, start + 4 * block))


@given(shape=shapes, chip=chips)
def test_tiles_respect_the_memories_and_use_what_they_load(shape: MatmulShape, chip: Chip) -> None:
    layer, space = make_layer(shape, chip, bias=True, relu=True)
    program, plan = build(layer, space, chip)
    assert program.spad_entries <= 512
    assert program.acc_entries <= 512
    mapping = plan.parts[0].mapping
    assert chip.acc_bytes >= mapping.N * mapping.P * mapping.Q * mapping.M * 4
    waiting: dict[tuple[int, int], set[tuple[int, bool]]] = {}
    for tile in expand(program):
        loads = [(i.dst, i.dst_acc) for i in tile.instructions if i.op is Op.LOAD]
        assert len(loads) == len(set(loads)), "every load has an entry of its own"
        read = {source for i in tile.instructions if i.op in (Op.SYSTOLIC, Op.VECTOR) for source in i.sources}
        # What lies in the accumulators may be read by a later tile of the chain, what lies in the scratchpad may not.
        left = waiting.setdefault((tile.core, tile.acc_key), set())
        left |= set(loads)
        left -= read
        assert all(in_acc for _, in_acc in left)
    assert not any(waiting.values())


@given(
    channels=st.sampled_from([8, 24, 32]),
    per_group=st.sampled_from([1, 2, 4]),
    chip=chips,
    kernel=st.sampled_from([1, 3]),
)
def test_grouped_convolutions_cover_their_outputs(channels: int, per_group: int, chip: Chip, kernel: int) -> None:
    for diagonal in (False, True):
        shape = conv_shape(channels, channels * 2, 9, kernel, pad=kernel // 2, groups=channels // per_group)
        if diagonal and (2 * per_group > chip.array_rows or 4 * per_group > chip.array_cols):
            continue
        shape = conv_shape(
            channels, channels * 2, 9, kernel, pad=kernel // 2, groups=channels // per_group, diagonal=diagonal
        )
        layer, space = make_layer(shape, chip)
        program, _ = build(layer, space, chip)
        y = layer.y
        assert set(stored_blocks(program)) == set(
            range(y.base_byte // REQUEST, -(-(y.base_byte + y.total_bytes) // REQUEST))
        )


@given(size=st.integers(40, 400), chip=chips)
def test_work_is_balanced_over_the_cores(size: int, chip: Chip) -> None:
    shape = MatmulShape(1, 1, 64, 96, 1, size, 1, size)
    layer, _ = make_layer(shape, chip)
    plan = plan_matmul(layer, chip)
    outputs = [sum(tile.pixels * tile.channels[1] for tile in tiles) for tiles in plan.cores]
    assert min(outputs) > 0
    assert max(outputs) <= 2 * sum(outputs) / len(outputs)


@given(
    start=st.integers(0, 9),
    length=st.integers(1, 9),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    pad=st.integers(0, 4),
    size=st.integers(1, 30),
)
def test_input_lines_are_those_that_outputs_read(
    start: int, length: int, kernel: int, stride: int, dilation: int, pad: int, size: int
) -> None:
    read = {
        out * stride - pad + k * dilation
        for out in range(start, start + length)
        for k in range(kernel)
        if 0 <= out * stride - pad + k * dilation < size
    }
    lines = input_lines((start, length), (0, kernel), stride, dilation, pad, size)
    loaded = {lines.first + index * lines.step for index in range(lines.count)}
    assert read <= loaded
    assert all(0 <= line < size for line in loaded)
    if kernel == 1:
        assert loaded == read


def test_a_tile_that_cannot_fit_names_the_layer_and_the_bytes() -> None:
    chip = make_chip(side=128, spad_kib=1, acc_kib=1)
    layer, _ = make_layer(conv_shape(512, 512, 14, 3, pad=1), chip)
    with pytest.raises(MappingError, match=r"layer layer \(Conv\): .* \d+ bytes .*cores\."):
        plan_matmul(layer, chip)


def test_a_forced_mapping_that_does_not_fit_is_refused() -> None:
    chip = make_chip(side=8, n_cores=1)
    layer, space = make_layer(conv_shape(64, 64, 28, 3, pad=1), chip)
    with pytest.raises(MappingError, match="use a smaller mapping"):
        build(layer, space, chip, Mapping(C=64, M=64, S=3, R=3, P=28, Q=28, exact=True))


def test_mapping_lines() -> None:
    conv = parse_mapping("[T] N1 C64 M64 P56 Q56 S3 R3 - [O] N1 C1 M8 P4 Q4 S1 R1 - [I] N1 C64 M8 P15 Q17 S3 R3")
    assert conv == Mapping(N=1, C=64, M=8, S=3, R=3, P=15, Q=17, exact=True)
    assert parse_mapping("[T] N512 C768 M512 - [O] N13 C2 M13 - [I] N40 C384 M40") == Mapping(
        C=384, M=40, Q=40, exact=True
    )
    for bad in ("N1 C2", "[I] N1 X3", "[I] N0"):
        with pytest.raises(MappingError):
            parse_mapping(bad)


@given(
    blocks=st.integers(1, 5),
    images=st.integers(1, 2),
    rows=st.integers(1, 20),
    cols=st.integers(1, 20),
    side=st.sampled_from([4, 8, 16]),
)
def test_closed_forms_of_the_array_are_the_sum_over_passes(
    blocks: int, images: int, rows: int, cols: int, side: int
) -> None:
    passes = conv_passes(rows, cols, conv_stream_axis(rows, cols), side) * images
    core = make_chip(side=side).cores[0]
    groups = group_rows(images, rows, cols, (rows, cols), side)
    assert groups.streamed == sum(passes)
    every = sum(pass_occupancy(size, False, side) for size in passes[:-1]) + pass_occupancy(passes[-1], True, side)
    assert tile_cycles(blocks, groups, core) == blocks * every
    draining = make_chip(side=side, drains=True).cores[0]
    assert tile_cycles(blocks, groups, draining) == tile_busy_cycles(blocks, passes, side, side)


RTL_FILE = Path(__file__).parent.parent / "data" / "gemmini_rtl.json"


def rtl_layer(case: dict[str, str], chip: Chip) -> tuple[MatmulLayer, AddressSpace]:
    total = {t[0]: int(t[1:]) for t in re.findall(r"[A-Z]\d+", case["mapping"].split("[O]")[0])}
    if "P" not in total:
        return make_layer(MatmulShape(1, 1, total["C"], total["M"], 1, total["N"], 1, total["N"]), chip)
    first = "Conv1" in case["case"] and "layer1" not in case["case"]
    stride = 2 if first or "downsample" in case["case"] else 1
    shape = conv_shape(total["C"], total["M"], total["P"] * stride, total["S"], stride, total["S"] // 2)
    return make_layer(shape, chip, bias=True)


@pytest.mark.skipif(not RTL_FILE.is_file(), reason=f"{RTL_FILE} is missing")
def test_array_cycles_with_given_mappings_are_those_of_gemmini() -> None:
    errors = []
    for case in json.loads(RTL_FILE.read_text())["cases"]:
        spad = 64 if " P" not in case["mapping"] else 96
        chip = make_chip(side=8, spad_kib=spad, n_cores=1, element=1, drains=True)
        layer, space = rtl_layer(case, chip)
        program, _ = build(layer, space, chip, parse_mapping(case["mapping"]))
        errors.append(abs(program.layers[0].systolic_cycles / case["gemmini_rtl_cycles"] - 1))
    assert len(errors) == 24
    assert sum(errors) / len(errors) < 0.015
    assert max(errors) < 0.05
