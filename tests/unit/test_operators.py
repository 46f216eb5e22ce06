"""Every operator beyond convolutions and products: what it reads, writes and computes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwconfigs import load_hw
from lowering import LoadedModel, MappingError, ModelError, Program, UnsupportedError, lower, read_graph
from lowering.emit import expand
from lowering.program import Op
from tests.one_node import one_node
from vsim.api import SimPoint, simulate

SERVER = load_hw("npu-server-128x128x4")
MOBILE = load_hw("npu-mobile-8x8x4").with_overrides({"dram.standard": "simple", "dram.request_bytes": 32})
ELEMENT, REQUEST = SERVER.precision_bytes, SERVER.dram.request_bytes


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


MS = "com.microsoft"
CASES: dict[str, Callable[[], LoadedModel]] = {
    "LayerNormalization": lambda: one_node("LayerNormalization", [4, 128, 256], ("weight", [256]), ("weight", [256])),
    "LayerNormalization, all results": lambda: one_node(
        "LayerNormalization", [4, 128, 256], ("weight", [256]), outputs=3
    ),
    "RMSNormalization": lambda: one_node("RMSNormalization", [4, 128, 256], ("weight", [256])),
    "GroupNormalization": lambda: one_node(
        "GroupNormalization", [2, 64, 16, 16], ("weight", [64]), ("weight", [64]), num_groups=8
    ),
    "GroupNorm": lambda: one_node(
        "GroupNorm", [2, 16, 16, 64], ("weight", [64]), ("weight", [64]), groups=8, activation=1, domain=MS
    ),
    "InstanceNormalization": lambda: one_node(
        "InstanceNormalization", [2, 64, 16, 16], ("weight", [64]), ("weight", [64])
    ),
    "MeanVarianceNormalization": lambda: one_node("MeanVarianceNormalization", [2, 64, 16, 16]),
    "LpNormalization": lambda: one_node("LpNormalization", [64, 256]),
    "SkipLayerNormalization": lambda: one_node(
        "SkipLayerNormalization", [4, 128, 256], [4, 128, 256], ("weight", [256]), ("weight", [256]), domain=MS
    ),
    "SkipSimplifiedLayerNormalization": lambda: one_node(
        "SkipSimplifiedLayerNormalization", [4, 128, 256], [4, 128, 256], ("weight", [256]), domain=MS
    ),
    "EmbedLayerNormalization": lambda: one_node(
        "EmbedLayerNormalization",
        ("int", [2, 64]),
        None,
        ("weight", [1000, 128]),
        ("weight", [512, 128]),
        None,
        ("weight", [128]),
        ("weight", [128]),
        domain=MS,
    ),
    "EmbedLayerNormalization, sum kept": lambda: one_node(
        "EmbedLayerNormalization",
        ("int", [2, 64]),
        None,
        ("weight", [1000, 128]),
        ("weight", [512, 128]),
        None,
        ("weight", [128]),
        ("weight", [128]),
        ("int", [2, 64]),
        outputs=3,
        domain=MS,
    ),
    "RotaryEmbedding": lambda: one_node(
        "RotaryEmbedding", [2, 8, 128, 64], ("weight", [512, 32]), ("weight", [512, 32]), ("int", [2, 128])
    ),
    "RotaryEmbedding (com.microsoft)": lambda: one_node(
        "RotaryEmbedding", [2, 8, 128, 64], ("int", [2, 128]), ("weight", [512, 32]), ("weight", [512, 32]), domain=MS
    ),
    "BiasGelu": lambda: one_node("BiasGelu", [64, 256], ("weight", [256]), domain=MS),
    "FastGelu": lambda: one_node("FastGelu", [64, 256], domain=MS),
    "QuickGelu": lambda: one_node("QuickGelu", [64, 256], domain=MS),
    "ReduceMean": lambda: one_node("ReduceMean", [4, 128, 256], ints(-1)),
    "ReduceSum, no axes": lambda: one_node("ReduceSum", [4, 128, 256]),
    "ReduceMax": lambda: one_node("ReduceMax", [4, 128, 256], ints(1), keepdims=0),
    "ReduceL2": lambda: one_node("ReduceL2", [2, 64, 32, 32], ints(2, 3)),
    "ReduceLogSumExp": lambda: one_node("ReduceLogSumExp", [64, 256], ints(0)),
    "ArgMax": lambda: one_node("ArgMax", [64, 1000], axis=1),
    "TopK": lambda: one_node("TopK", [64, 1000], ints(5), outputs=2),
    "CumSum": lambda: one_node("CumSum", [64, 256], ints(1)),
    "Hardmax": lambda: one_node("Hardmax", [64, 256]),
    "Gather": lambda: one_node("Gather", ("weight", [1000, 128]), ("int", [2, 64])),
    "Gather, inner axis": lambda: one_node("Gather", [64, 256], ("int", [16]), axis=1),
    "Gather, middle axis": lambda: one_node("Gather", [4, 128, 256], ("int", [16]), axis=1),
    "Gather of one": lambda: one_node("Gather", [4, 128, 256], np.array(0, np.int64), axis=1),
    "GatherElements": lambda: one_node("GatherElements", [64, 256], ("int", [64, 16]), axis=1),
    "GatherND": lambda: one_node("GatherND", [32, 64, 128], ("int", [16, 1])),
    "GatherND, elements": lambda: one_node("GatherND", [32, 64], ("int", [16, 2])),
    "ScatterND": lambda: one_node("ScatterND", [64, 128], ("int", [8, 1]), [8, 128]),
    "ScatterElements": lambda: one_node("ScatterElements", [64, 128], ("int", [8, 128]), [8, 128]),
    "Resize": lambda: one_node("Resize", [1, 32, 16, 16], None, floats(1, 1, 2, 2)),
    "Resize, linear": lambda: one_node("Resize", [1, 32, 16, 16], None, floats(1, 1, 2, 2), mode="linear"),
    "Upsample": lambda: one_node("Upsample", [1, 32, 16, 16], floats(1, 1, 2, 2), opset=9),
    "GridSample": lambda: one_node("GridSample", [1, 32, 16, 16], [1, 8, 8, 2]),
    "Split": lambda: one_node("Split", [64, 384], outputs=3, axis=1, num_outputs=3),
    "Slice": lambda: one_node("Slice", [4, 128, 256], ints(3), ints(99), ints(1), ints(2)),
    "Slice, inner axis": lambda: one_node("Slice", [64, 256], ints(10), ints(100), ints(1)),
    "Slice, backwards": lambda: one_node("Slice", [64, 256], ints(-1), ints(-100), ints(0), ints(-1)),
    "Pad": lambda: one_node("Pad", [1, 32, 16, 16], ints(0, 0, 1, 1, 0, 0, 1, 1), floats(1.0).reshape(())),
    "Pad, cropping": lambda: one_node("Pad", [1, 32, 16, 16], ints(0, 0, -1, -1, 0, 0, -1, -1)),
    "Expand": lambda: one_node("Expand", [1, 1, 256], ints(4, 64, 256)),
    "Tile": lambda: one_node("Tile", [64, 256], ints(2, 3)),
    "DepthToSpace": lambda: one_node("DepthToSpace", [1, 64, 16, 16], blocksize=2),
    "SpaceToDepth": lambda: one_node("SpaceToDepth", [1, 64, 16, 16], blocksize=2),
    "ReverseSequence": lambda: one_node("ReverseSequence", [16, 8, 64], ("int", [8])),
    "Where": lambda: one_node("Where", ("bool", [64, 256]), [64, 256], [64, 256]),
    "Trilu": lambda: one_node("Trilu", [64, 256]),
    "Pow": lambda: one_node("Pow", [64, 256], [64, 256]),
    "Mod": lambda: one_node("Mod", [64, 256], [64, 256], fmod=1),
    "Greater": lambda: one_node("Greater", [64, 256], [64, 256]),
    "And": lambda: one_node("And", ("bool", [64, 256]), ("bool", [64, 256])),
    **{
        op: lambda op=op: one_node(op, [64, 256])
        for op in ("Log", "Sin", "Cos", "Floor", "Ceil", "Round", "IsNaN", "Sign", "Gelu", "Atan", "Softsign")
    },
    "Swish": lambda: one_node("Swish", [64, 256], opset=24),
    "QuantizeLinear": lambda: one_node("QuantizeLinear", [64, 256], floats(0.1).reshape(())),
    "DynamicQuantizeLinear": lambda: one_node("DynamicQuantizeLinear", [64, 256], outputs=3),
    "Einsum, transpose": lambda: one_node("Einsum", [64, 96], equation="ij->ji"),
    "Einsum, sum": lambda: one_node("Einsum", [64, 96], equation="ij->i"),
}
"""One layer (or two of one operator), small enough to be spelled out block by block."""


@pytest.mark.parametrize("name", CASES)
def test_every_operand_is_read_and_every_result_written_once(name: str) -> None:
    """Compulsory traffic: results are written once, block by block; operands are read, but for rows nobody asks for."""
    program = lower(CASES[name](), SERVER)
    graph = read_graph(CASES[name]())
    assert not program.warnings
    loads, stores = traffic(program)
    results = sum(blocks(tensor.shape) for tensor in graph.nodes[0].outputs)
    repeated = [block for block, times in stores.items() if times > 1]
    if not name.startswith("Scatter"):
        assert not repeated
        assert sum(stores.values()) >= results
    assert sum(stores.values()) * REQUEST == sum(layer.store_bytes for layer in program.layers)
    assert sum(loads.values()) * REQUEST == sum(layer.load_bytes for layer in program.layers)
    moving = ("Slice", "Split", "Gather", "Scatter", "Pad, crop")
    if not name.startswith(moving):
        assert all(layer.vector_cycles > 0 for layer in program.layers)
    if not name.startswith((*moving, "Embed", "Rotary")):
        operands = sum(blocks(t.shape) for t in graph.nodes[0].inputs if t is not None and t.elements > 8)
        assert len(loads) >= operands


def blocks(shape: tuple[int, ...]) -> int:
    """Memory blocks of a tensor without any padding."""
    return math.ceil(math.prod(shape) * ELEMENT / REQUEST)


def traffic(program: Program) -> tuple[Counter[int], Counter[int]]:
    """How often each memory block is loaded, and stored, in a whole program."""
    loads, stores = Counter[int](), Counter[int]()
    for tile in expand(program):
        for instruction in tile.instructions:
            if instruction.op in (Op.LOAD, Op.STORE):
                (loads if instruction.op is Op.LOAD else stores).update(instruction.blocks.tolist())
    return loads, stores


# -- closed forms


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), features=st.integers(1, 300), spad=st.sampled_from([16, 64, 1024]))
def test_row_wise_traffic_lies_between_minimum_and_closed_form(rows: int, features: int, spad: int) -> None:
    """LayerNormalization reads its input once, or twice where rows do not fit, and scale and shift for each tile."""
    hw = MOBILE.with_overrides({"cores.spad_kib": spad})
    model = one_node("LayerNormalization", [rows, features, 8], ("weight", [features, 8]), axis=1)
    program = lower(model, hw)
    request = hw.dram.request_bytes
    pitch = (
        8 * hw.precision_bytes if 8 * hw.precision_bytes >= request else 1 << (8 * hw.precision_bytes - 1).bit_length()
    )
    tensor = math.ceil(rows * features * pitch / request) * request
    scale = math.ceil(features * pitch / request) * request
    loaded = sum(layer.load_bytes for layer in program.layers)
    stored = sum(layer.store_bytes for layer in program.layers)
    tiles, passes = len(program.tiles), program.n_layers
    assert tensor + scale <= loaded <= passes * tensor + 2 * tiles * (scale + tiles * request + 2 * request)
    assert tensor <= stored <= tensor + tiles * 3 * request


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    channels=st.sampled_from([3, 16, 40]),
    mode=st.sampled_from(["nearest", "linear"]),
)
def test_resize_traffic(height: int, width: int, channels: int, mode: str) -> None:
    """The result once; the input once, and a line of halo at each side of every tile."""
    model = one_node("Resize", [1, channels, height, width], None, floats(1, 1, 2, 3), mode=mode)
    program = lower(model, MOBILE)
    request = MOBILE.dram.request_bytes
    size = channels * MOBILE.precision_bytes
    pitch = math.ceil(size / request) * request if size >= request else 1 << (size - 1).bit_length()
    image = math.ceil(height * width * pitch / request) * request
    halo = 2 * (math.ceil(width * pitch / request) + 1) * request * len(program.tiles)
    layer = program.layers[0]
    assert image <= layer.load_bytes <= image + halo
    assert layer.store_bytes == math.ceil(6 * height * width * pitch / request) * request


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 3000), tokens=st.integers(1, 200), features=st.sampled_from([8, 64, 100]))
def test_lookups_cost_their_rows(rows: int, tokens: int, features: int) -> None:
    """An embedding reads a row for each token, never more than the table for each tile, and the indices."""
    model = one_node("Gather", ("weight", [rows, features]), ("int", [tokens]))
    program = lower(model, MOBILE)
    request = MOBILE.dram.request_bytes
    size = features * MOBILE.precision_bytes
    row = math.ceil(size / request)
    table = math.ceil(rows * max(row * request if size >= request else 1 << (size - 1).bit_length(), 1) / request)
    tiles = len(program.tiles)
    indices = math.ceil(tokens * MOBILE.precision_bytes / request)
    found = program.layers[0].load_bytes // request
    assert min(tokens * row, table) / tiles <= found <= min(tokens * row, tiles * table) + indices + tiles


def test_a_group_that_does_not_fit_takes_two_passes() -> None:
    small = MOBILE.with_overrides({"cores.spad_kib": 16})
    model = one_node("InstanceNormalization", [1, 8, 128, 128], ("weight", [8]), ("weight", [8]))
    program = lower(model, small)
    names = ["the_node (statistics)", "the_node (combined statistics)", "the_node"]
    assert [layer.name for layer in program.layers] == names
    image = 128 * 128 * 8 * small.precision_bytes
    assert program.layers[0].load_bytes == image
    assert image < program.layers[2].load_bytes < 1.1 * image


def test_contiguous_parts_are_views() -> None:
    """A part of the outermost dimension costs nothing; of an inner one, its bytes."""
    assert lower(one_node("Split", [4, 8, 256], outputs=2, num_outputs=2), SERVER).n_layers == 0
    inner = lower(one_node("Split", [64, 384], outputs=3, axis=1, num_outputs=3), SERVER)
    assert sum(layer.load_bytes for layer in inner.layers) == 64 * 384 * ELEMENT
    assert len(inner.layers) == 3


# -- products in disguise


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        (lambda: one_node("ConvTranspose", [1, 16, 8, 8], ("weight", [16, 8, 2, 2]), strides=[2, 2]), 64 * 16 * 8 * 4),
        (
            lambda: one_node("ConvTranspose", [1, 16, 8, 8], ("weight", [16, 8, 4, 4]), strides=[2, 2], pads=[1] * 4),
            16 * 16 * 16 * 8 * 4,
        ),
        (lambda: one_node("ConvTranspose", [1, 16, 9], ("weight", [16, 8, 3])), 11 * 16 * 8 * 3),
        (
            lambda: one_node(
                "ConvTranspose", [1, 16, 8, 8], ("weight", [16, 8, 3, 3]), strides=[2, 2], pads=[1, 1, 1, 1], group=2
            ),
            # 15 x 15 results; 1, 2, 2 and 4 of the 9 kernel positions reach the four phases.
            (64 * 1 + 2 * 56 * 2 + 49 * 4) * 8 * 8 * 2,
        ),
        (lambda: one_node("Einsum", [2, 64, 32], [2, 48, 32], equation="bik,bjk->bij"), 2 * 64 * 48 * 32),
        (lambda: one_node("Einsum", [2, 64, 32], ("weight", [32, 4, 16]), equation="bsd,dhk->bshk"), 2 * 64 * 32 * 64),
        (lambda: one_node("FusedMatMul", [2, 64, 32], [2, 48, 32], transB=1, domain=MS), 2 * 64 * 48 * 32),
        (lambda: one_node("FusedGemm", [64, 32], ("weight", [32, 48]), activation="Relu", domain=MS), 64 * 48 * 32),
        (
            lambda: one_node(
                "FusedConv", [1, 16, 8, 8], ("weight", [24, 16, 3, 3]), None, [1, 24, 8, 8],
                pads=[1] * 4, activation="Relu", domain=MS,
            ),
            64 * 24 * 16 * 9,
        ),
        (
            lambda: one_node("MatMulInteger", ("uint8", [64, 32]), np.ones((32, 48), np.uint8), None, None),
            64 * 48 * 32,
        ),
        (
            lambda: one_node(
                "QLinearConv", ("uint8", [1, 16, 8, 8]), floats(1).reshape(()), np.array(0, np.uint8),
                np.ones((24, 16, 1, 1), np.uint8), floats(1).reshape(()), np.array(0, np.uint8),
                floats(1).reshape(()), np.array(0, np.uint8),
            ),
            64 * 24 * 16,
        ),
        (lambda: one_node("LSTM", [12, 2, 16], ("weight", [2, 96, 16]), ("weight", [2, 96, 24]), outputs=3,
                          direction="bidirectional", hidden_size=24), 12 * 2 * 2 * 96 * (16 + 24)),
        (lambda: one_node("GRU", [12, 2, 16], ("weight", [1, 72, 16]), ("weight", [1, 72, 24]), outputs=2,
                          hidden_size=24), 12 * 2 * 72 * (16 + 24)),
        (lambda: one_node("GRU", [12, 2, 16], ("weight", [1, 72, 16]), ("weight", [1, 72, 24]), outputs=2,
                          hidden_size=24, linear_before_reset=1), 12 * 2 * 72 * (16 + 24)),
        (lambda: one_node("RNN", [12, 2, 16], ("weight", [1, 24, 16]), ("weight", [1, 24, 24]), outputs=2,
                          hidden_size=24), 12 * 2 * 24 * (16 + 24)),
    ],
)  # fmt: skip
def test_products(model: Callable[[], LoadedModel], macs: int) -> None:
    """Multiplications of operators that are matrix products; none by an inserted zero."""
    program = lower(model(), SERVER)
    assert not program.warnings
    assert sum(layer.macs for layer in program.layers) == macs


def test_transposed_convolution_writes_each_result_once() -> None:
    model = one_node("ConvTranspose", [2, 16, 5, 7], ("weight", [16, 32, 3, 3]), strides=[2, 2], dilations=[1, 1])
    program = lower(model, SERVER)
    _, stores = traffic(program)
    assert set(stores.values()) == {1}
    assert len(stores) == 2 * 11 * 15 * 32 * ELEMENT // REQUEST


def test_the_sum_of_embeddings_is_a_result_of_its_own() -> None:
    """GPT-2 goes on with it beside the normalised rows."""
    _, plain = traffic(lower(CASES["EmbedLayerNormalization"](), SERVER))
    _, both = traffic(lower(CASES["EmbedLayerNormalization, sum kept"](), SERVER))
    result = 2 * 64 * 128 * ELEMENT // REQUEST
    assert len(plain) == result
    assert set(both.values()) == {1}
    # And a block for the second result, the lengths of the sequences.
    assert len(both) == 2 * result + 1


def test_recurrence_reads_the_same_weights_in_every_step() -> None:
    model = one_node("LSTM", [5, 1, 64], ("weight", [1, 256, 64]), ("weight", [1, 256, 64]), hidden_size=64)
    program = lower(model, SERVER)
    products = [index for index, layer in enumerate(program.layers) if layer.macs and "step" in layer.name]
    assert len(products) == 5
    read = [
        {block for tile in expand(program) if tile.layer == index for i in tile.instructions
         if i.op is Op.LOAD and i.dst > 0 for block in i.blocks.tolist()}
        for index in products
    ]  # fmt: skip
    assert read[1] == read[2] == read[3] == read[4]
    assert len(read[1]) == 256 * 64 * ELEMENT // REQUEST


def test_shape_arithmetic_costs_nothing() -> None:
    assert lower(one_node("Shape", [4, 8]), SERVER).n_layers == 0
    assert lower(one_node("Abs", ("int", [4])), SERVER).n_layers == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: one_node("Einsum", [4, 4], equation="ii->i"), "diagonals"),
        (lambda: one_node("Einsum", [4, 8], [8, 4], [4, 4], equation="ij,jk,kl->il"), "3 operands"),
        (lambda: one_node("CumSum", [4, 8], ("int", [])), "computed while the model runs"),
        (lambda: one_node("Conv", [1, 4, 8, 8], ("weight", [4, 3, 1, 1])), "takes? 3"),
        (lambda: one_node("Gemm", [4, 8], ("weight", [9, 4])), "mismatch.* between 9 and 8"),
    ],
)
def test_forms_that_are_not_modelled(model: Callable[[], LoadedModel], message: str) -> None:
    with pytest.raises((UnsupportedError, ModelError), match=message) as caught:
        lower(model(), SERVER)
    assert "one.onnx" in str(caught.value)
    assert "the_node" in str(caught.value)


def test_a_row_that_does_not_fit_is_refused() -> None:
    tiny = MOBILE.with_overrides({"cores.spad_kib": 1})
    with pytest.raises(MappingError, match=r"the_node \(LayerNormalization\).*enlarge cores.spad_kib"):
        lower(one_node("LayerNormalization", [4, 4096], ("weight", [4096])), tiny)


@pytest.mark.slow
def test_every_operator_simulates() -> None:
    """Each case ends, and the machine moves the bytes that lowering says it does."""
    points = [SimPoint(SERVER, lower(case(), SERVER), label=name) for name, case in CASES.items()]
    points = [point for point in points if point.program.n_layers]
    for point, result in zip(points, simulate(points), strict=True):
        assert result.status == "ok", point.label
        for info, layer in zip(point.program.layers, result.layers, strict=True):
            assert (layer["load_bytes"], layer["store_bytes"]) == (info.load_bytes, info.store_bytes), point.label
