"""Every switch of a fault of ONNXim moves what it should, by as much as a count or closed form says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwconfigs.errors import UserError
from hwconfigs.load import load_hw
from hwconfigs.schema import HwConfig
from lowering.emit import ProgramBuilder, Tile, expand
from lowering.onnxim import lower_onnxim
from lowering.onnxim.attention import Attention, emit_attention
from lowering.onnxim.faults import FAULTS, IN_DEFAULT, NONE, SWITCHES, Fault, Place
from lowering.onnxim.hardware import repaired_hw, repaired_overrides
from lowering.onnxim.language import Iteration, LanguageModel, Part, lower_language
from lowering.onnxim.vector_time import VectorUnit
from lowering.program import LayerInfo, Op, Program, TileCol
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS, SMALL_LLAMA
from vsim.npu.compile import ProgramNeeds, params_of, shape_of

SERVER, MOBILE = CONFIGURATIONS["server"], CONFIGURATIONS["mobile_c4"]
VECTOR_BYTES = 65536 // 8
"""Bytes that a vector unit of the server chip takes a cycle."""


def lowered(model: onnx.ModelProto, *faults: Fault, hw: HwConfig = SERVER) -> Program:
    return lower_onnxim(model, hw, repaired=frozenset(faults))


def requests(tile: Tile, op: Op, first_entry: int = 0) -> int:
    return sum(len(i.blocks) for i in tile.instructions if i.op is op and i.dst >= first_entry)


def layer(program: Program, name: str) -> LayerInfo:
    [found] = [item for item in program.layers if item.name == name]
    return found


def test_every_fault_is_described_and_has_a_switch_or_a_reason():
    assert list(FAULTS) == [f"Q{number}" for number in range(1, 22)]
    assert all(text.behaviour and text.repair for text in FAULTS.values())
    without = {fault.value for fault, text in FAULTS.items() if text.place is Place.NOWHERE}
    assert without == {"Q3", "Q18", "Q19", "Q20", "Q21"}
    assert set(SWITCHES) - IN_DEFAULT == {Fault.Q11}


def test_the_empty_set_repairs_nothing():
    for model in (models.transformer_block(64, 128, 2, 256), models.conv(8, 16, 3, 2, 1, 16), models.mm(128, 128, 128)):
        plain, none = lower_onnxim(model, MOBILE), lower_onnxim(model, MOBILE, repaired=NONE)
        assert plain.layers == none.layers
        for table in ("rows", "tiles", "schedule", "pattern"):
            np.testing.assert_array_equal(getattr(plain, table), getattr(none, table))


@pytest.mark.parametrize(("faults", "of_weights"), [((), 36), ((Fault.Q1,), 2304)])
def test_q1_every_output_channel_loads_its_weights(faults, of_weights):
    """64 x 64 x 3 x 3 weights of 2 bytes are 2304 requests; the original loads those of one output channel."""
    tiles = list(expand(lowered(models.conv(64, 64, 3, 1, 1, 14), *faults)))
    assert {requests(tile, Op.LOAD, first_entry=1) for tile in tiles} == {of_weights}


def test_q1_repaired_weights_fit_small_tiles():
    program = lowered(models.conv(120, 120, 1, 2, 0, 8), Fault.Q1, hw=MOBILE)
    half = MOBILE.core(0).spad_kib * 1024 // 2
    loads = [requests(tile, Op.LOAD) * 32 for tile in expand(program)]
    assert max(loads) <= half
    window = sum(len(i.blocks) for tile in expand(program) for i in tile.instructions if i.op is Op.LOAD and i.dst == 0)
    assert sum(loads) == 120 * 120 * 2 + window * 32


@pytest.mark.parametrize(("faults", "pixels"), [((), 14 * 14), ((Fault.Q2,), 28 * 28)])
def test_q2_the_whole_window_is_loaded(faults, pixels):
    """A 3 x 3 kernel of stride 2 touches every pixel of 28 x 28; the original loads every second each way."""
    [tile] = [tile for tile in expand(lowered(models.conv(64, 64, 3, 2, 1, 28), *faults)) if tile.instructions]
    assert len(tile.instructions[0].blocks) == pixels * 64 * 2 // 32


def test_q2_a_single_kernel_line_skips_what_it_does_not_touch():
    tiles = [tile for tile in expand(lowered(models.conv(64, 64, 1, 2, 0, 28), Fault.Q2)) if tile.instructions]
    blocks = np.unique(np.concatenate([tile.instructions[0].blocks for tile in tiles]))
    assert len(blocks) == 14 * 14 * 64 * 2 // 32


@pytest.mark.parametrize(("faults", "busy"), [((), 1), ((Fault.Q4,), 4)])
def test_q4_square_products_use_all_cores(faults, busy):
    program = lowered(models.mm(512, 512, 512), *faults)
    macs = Counter()
    for tile in expand(program):
        macs[tile.core] += sum(i.size for i in tile.instructions if i.op is Op.SYSTOLIC) * 128 * 128
    assert len(macs) == busy
    assert max(macs.values()) == 512**3 // busy
    assert program.layers[0].macs == 512**3


def test_q5_a_norm_takes_time_and_reads_its_constants():
    model = models.transformer_block(64, 128, 2, 256)
    name = next(node.name for node in model.graph.node if node.op_type == "SkipLayerNormalization")
    faulty, right = (layer(lowered(model, *faults), name) for faults in ((), (Fault.Q5,)))
    unit = VectorUnit(SERVER.core(0))
    tiles, tokens = 8, 8  # at least two tiles a core
    assert faulty.vector_cycles == tiles * 5
    rows_bytes = tokens * 128 * 2
    reductions = 2 * unit.adder_tree(256, tokens)
    scaling = 5 * -(-rows_bytes // VECTOR_BYTES)
    assert right.vector_cycles == tiles * (reductions + 3 * tokens + scaling + -(-rows_bytes // VECTOR_BYTES))
    constants = len(next(node for node in model.graph.node if node.name == name).input) - 2
    assert right.load_bytes - faulty.load_bytes == tiles * constants * 128 * 2
    assert right.store_bytes == faulty.store_bytes


def test_q6_one_projection_and_the_true_products():
    model = models.transformer_block(64, 128, 2, 256)
    faulty, right = lowered(model), lowered(model, Fault.Q6)
    projections = [next(i for i in p.layers if i.op == "QkvProjection") for p in (faulty, right)]
    assert [item.macs for item in projections] == [2 * 64 * 128 * 384, 64 * 128 * 384]
    [index] = [i for i, item in enumerate(right.layers) if item.op == "Attention"]
    # A head of 64 features and 64 queries and keys: one block of weights for each product, 64 rows streamed.
    sizes = [i.size for tile in expand(right) if tile.layer == index for i in tile.instructions if i.op is Op.SYSTOLIC]
    assert sizes == [64, 64] * 2
    loads = [
        frozenset(b for i in tile.instructions if i.op is Op.LOAD for b in i.blocks.tolist())
        for tile in expand(right)
        if tile.layer == index
    ]
    assert [len(blocks) for blocks in loads] == [3 * 64 * 64 * 2 // 32] * 2
    assert not loads[0] & loads[1]


def test_q6_a_cache_is_read_with_the_new_keys():
    builder = ProgramBuilder("a", 4, 32)
    attention = Attention("a", 1, 2, 64, 1, 128, q=0, k=0, v=0, y=1 << 20, projections=1 << 16, past=1 << 18)
    emit_attention(builder, SERVER, attention, "Attention", lambda: 0, frozenset({Fault.Q6}))
    [of_layer] = builder.build().layers
    line = 64 * 2
    assert of_layer.load_bytes == 2 * (2 * 128 + 1) * line
    assert of_layer.store_bytes == 2 * line


@pytest.mark.parametrize(("fault", "field"), [(Fault.Q7, "ordered_chains"), (Fault.Q8, "exposed_preload")])
def test_q7_and_q8_set_a_parameter_of_the_core(fault, field):
    values = [int(getattr(_params(faults), field)) for faults in (NONE, frozenset({fault}))]
    assert values == [0, 1]


def _params(faults: frozenset[Fault], hw: HwConfig = SERVER):
    return params_of(repaired_hw(hw, faults), compat=True, max_cycles=None, idle_skip=True, repaired=faults)


def test_q8_weights_are_loaded_once_a_tile():
    """512 x 512 x 512 on one core is one tile of 4 x 4 blocks of weights and 4 blocks of rows."""
    for faults, preloads in ((), 64), ((Fault.Q8,), 16):
        [tile] = [tile for tile in expand(lowered(models.mm(512, 512, 512), *faults)) if tile.instructions]
        passes = [i for i in tile.instructions if i.op is Op.SYSTOLIC]
        assert (len(passes), sum(i.preload for i in passes)) == (64, preloads)
        assert Counter((i.dst, i.sources) for i in passes) == Counter(
            {(n * 4 + m, ((n, False), (4 + m, False))): 4 for n in range(4) for m in range(4)}
        )


def test_q9_memory_refreshes_and_moves_whole_bursts():
    assert int(_params(NONE).dram.refresh_interval) > int(_params(frozenset({Fault.Q9})).dram.refresh_interval) < 5000
    ddr4 = repaired_hw(MOBILE, frozenset({Fault.Q9}))
    assert (ddr4.dram.request_bytes, ddr4.clocks.dram_mhz) == (64, 800)
    both = [lower_onnxim(models.mm(64, 64, 64), hw).layers[0].load_bytes for hw in (MOBILE, ddr4)]
    assert both[0] == both[1]
    assert repaired_overrides(load_hw("npu-server-128x128x4"), frozenset({Fault.Q9, Fault.Q10})) == {}


def test_q10_row_hits_go_first():
    assert [int(_params(faults).dram.hit_first) for faults in (NONE, frozenset({Fault.Q10}))] == [0, 1]


def test_q16_queues_are_those_of_the_default_mode():
    needs, fault = ProgramNeeds(5000, 200, 8, 1), frozenset({Fault.Q16})
    assert shape_of(SERVER, needs, compat=True, repaired=fault) == shape_of(SERVER, needs, compat=False)
    default = params_of(SERVER, compat=False, max_cycles=None, idle_skip=True)
    repaired = _params(fault)
    assert int(repaired.wrapper_capacity) == int(default.wrapper_capacity) < int(_params(NONE).wrapper_capacity)
    assert int(repaired.dram.read_capacity) == SERVER.dram.read_queue


def test_q12_relu_and_pooling_cost_something():
    program = lowered(models.mlp(64, 128, 256, 100), Fault.Q12)
    relu = layer(program, "relu")
    assert (relu.load_bytes, relu.store_bytes) == (64 * 256 * 2, 64 * 256 * 2)
    assert relu.vector_cycles == 8  # tiles, each of less than a vector
    assert layer(lowered(models.mlp(64, 128, 256, 100)), "relu").load_bytes == 0


def test_q12_bias_residual_and_activation_of_a_convolution():
    model = models.conv(64, 64, 3, 1, 1, 14)
    node = model.graph.node[0]
    node.op_type, node.domain = "FusedConv", "com.microsoft"
    node.input.extend(["bias", "Z"])
    node.attribute.append(helper.make_attribute("activation", "Relu"))
    model.graph.initializer.append(TensorProto(name="bias", dims=[64], data_type=TensorProto.FLOAT))
    # The channels are last in the shapes that ONNXim computes.
    model.graph.initializer.append(TensorProto(name="Z", dims=[1, 14, 14, 64], data_type=TensorProto.FLOAT))
    faulty, right = lowered(model).layers[0], lowered(model, Fault.Q12).layers[0]
    tiles = len([tile for tile in expand(lowered(model)) if tile.instructions])
    assert right.load_bytes - faulty.load_bytes == 14 * 14 * 64 * 2 + tiles * 64 * 2
    assert right.vector_cycles == tiles * 2 * -(-14 * 14 * 64 * 2 // tiles // VECTOR_BYTES)
    assert faulty.vector_cycles == 0


def test_q13_scores_take_four_bytes():
    """Half of 64 KiB of accumulators holds the scores of 64 queries with 256 keys at 2 bytes, of 32 at 4."""
    hw = SERVER.with_overrides({"cores.acc_kib": 64})
    attention = Attention("a", 1, 1, 64, 64, 256, q=0, k=0, v=0, y=0)
    tiles = {}
    for faults in (NONE, frozenset({Fault.Q13})):
        builder = ProgramBuilder("a", 4, 32)
        emit_attention(builder, hw, attention, "Attention", lambda: 0, faults)
        tiles[faults] = len(builder.build().tiles)
    assert list(tiles.values()) == [1, 2]


LONG = LanguageModel("long", "relu", 4, 2, 256, 256, 1000, 1 << 14, 1, 1, False, 1)
"""Two query heads a key head, 64 features each."""


def test_q14_keys_go_on_from_tile_to_tile():
    """8,192 keys exceed the accumulators' half of 16 KiB by steps; the original starts over and stores nothing."""
    hw = SERVER.with_overrides({"cores.acc_kib": 16, "cores.rows": 16, "cores.cols": 16})
    run = [Iteration(0, (0,), (Part(0, 1, 8191),))]
    with pytest.raises(UserError, match="stores nothing"):
        lower_language(LONG, run, hw)
    program = lower_language(LONG, run, hw, frozenset({Fault.Q14}))
    [index] = [i for i, item in enumerate(program.layers) if item.op == "Attention"]
    tiles = [tile for tile in expand(program) if tile.layer == index]
    keys = np.concatenate([tile.instructions[0].blocks for tile in tiles])
    assert len(tiles) == 2 * 2
    assert len(np.unique(keys)) == len(keys) == 8192 * 2 * 64 * 2 // 32
    assert [tile.accumulate for tile in tiles] == [False, True] * 2
    assert program.layers[index].store_bytes == 256 * 2


def test_q14_products_do_not_wait_for_each_other():
    run = [Iteration(0, (0,), (Part(0, 32, 0),))]
    for faults, in_place in (NONE, True), (frozenset({Fault.Q14}), False):
        program = lower_language(SMALL_LLAMA, run, SERVER, faults)
        [index] = [i for i, item in enumerate(program.layers) if item.name == "layer0.attn.Attention.0"]
        passes = [
            i for tile in expand(program) if tile.layer == index for i in tile.instructions if i.op is Op.SYSTOLIC
        ]
        assert any((i.dst, True) in i.sources for i in passes) is in_place


def test_q15_a_gated_model_stores_half_and_has_no_biases():
    run = [Iteration(0, (0,), (Part(0, 32, 0),))]
    faulty, right = (lower_language(SMALL_LLAMA, run, SERVER, f) for f in (NONE, frozenset({Fault.Q15})))
    activations = [layer(program, "layer0.ffn.act") for program in (faulty, right)]
    assert [item.store_bytes for item in activations] == [32 * 1536 * 2, 32 * 768 * 2]
    projections = [layer(program, "layer0.attn.QKVgen") for program in (faulty, right)]
    assert projections[0].load_bytes - projections[1].load_bytes == 1024 * 2


def test_q12_the_cache_is_written():
    run = [Iteration(0, (0,), (Part(0, 32, 0),))]
    append = layer(lower_language(SMALL_LLAMA, run, SERVER, frozenset({Fault.Q12})), "layer0.attn.KVccat")
    assert (append.load_bytes, append.store_bytes) == (32 * 1024 * 2, 32 * 1024 * 2)


def test_q17_stride_and_padding_choose_their_own_tiles():
    """Two convolutions with the same loops: 1 x 1 without padding and stride 2 reads a quarter of the pixels."""
    hw = MOBILE.with_overrides({"cores.spad_kib": 32})
    nodes, weights, inputs = [], [], []
    for name, stride, size in (("a", 1, 16), ("b", 2, 32)):
        nodes.append(
            helper.make_node(
                "Conv", [f"x{name}", f"w{name}"], [f"y{name}"], name, kernel_shape=[3, 3], strides=[stride, stride],
                pads=[1, 1, 1, 1],
            )
        )  # fmt: skip
        weights.append(TensorProto(name=f"w{name}", dims=[64, 64, 3, 3], data_type=TensorProto.FLOAT))
        inputs.append(helper.make_tensor_value_info(f"x{name}", TensorProto.FLOAT, [1, size, size, 64]))
    graph = helper.make_graph(
        nodes, "two", inputs, [helper.make_tensor_value_info("yb", TensorProto.FLOAT, [1, 16, 16, 64])], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    notes = {faults: [item.notes for item in lowered(model, *faults, hw=hw).layers] for faults in ((), (Fault.Q17,))}
    assert notes[()][0] == notes[()][1] == notes[(Fault.Q17,)][0] != notes[(Fault.Q17,)][1]


def test_repairs_together_keep_the_work():
    model = models.transformer_block(64, 128, 2, 256)
    program = lower_onnxim(model, SERVER, repaired=IN_DEFAULT)
    plain = lower_onnxim(model, SERVER)
    repeated = 64 * 128 * 384
    assert sum(item.macs for item in plain.layers) - sum(item.macs for item in program.layers) == repeated
    assert [item.name for item in plain.layers] == [item.name for item in program.layers]
    assert int(program.tiles[:, TileCol.LAYER].max()) == program.n_layers - 1
