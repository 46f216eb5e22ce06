"""Lowering equals ONNXim's: mappings, tiles, and every load, multiplication and store with its address."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
from onnx import TensorProto, helper

from hwconfigs.errors import UserError
from lowering.emit import expand
from lowering.onnxim import lower_onnxim
from lowering.onnxim.mapping import gemm_mapping
from lowering.onnxim.tiling import Loops
from lowering.program import Op, Program
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS, ROWS, Case, load_cases, read_events

SERVER, MOBILE = CONFIGURATIONS["server"], CONFIGURATIONS["mobile_c4"]

# event log -> the case whose configuration and model it ran; None: the graph is built here
EVENT_LOGS = {
    "E1_matmul_64": "E1_matmul_64",
    "E1_matmul_128": "E1_matmul_128",
    "T_matmul_256": "T_matmul_256",
    "T_matmul_128_768_768": "T_matmul_128_768_768",
    "V_dramsimple_lat10_matmul_512_768_768": "V_dramsimple_lat10_matmul_512_768_768",
    "V_cores4_matmul_512_768_768": "V_array128_matmul_512_768_768",
    "T_matmul_100_300_700": None,
    "E1_conv_n1_c16_h8_m16_k3_s1": "E1_conv_n1_c16_h8_m16_k3_s1",
    "E1_conv_n1_c64_h14_m64_k3_s1": "E1_conv_n1_c64_h14_m64_k3_s1",
    "T_conv_n1_c16_h8_m16_k3_s1": "T_conv_n1_c16_h8_m16_k3_s1",
    "T_conv_n1_c64_h14_m64_k3_s1": "T_conv_n1_c64_h14_m64_k3_s1",
    "V_dramsimple_lat10_conv_n1_c64_h14_m64_k3_s1": "T_conv_n1_c64_h14_m64_k3_s1",
    "E1_bert_tiny_seq32": "E1_bert_tiny_seq32",
}
MOST_CPU_SECONDS = 3.0
CLASSES = {Op.LOAD: "LD", Op.STORE: "ST", Op.SYSTOLIC: "EX", Op.VECTOR: "VX"}


def lower_case(case: Case, tmp_path) -> Program:
    return lower_onnxim(case.model_path, case.hw(tmp_path), batch=case.batch, dims=case.dims)


def per_core_sequences(program: Program) -> dict[tuple[int, str], list[tuple[int, ...]]]:
    """(core, class) -> what each instruction does, in issue order.

    (requests, first address) of transfers, (streamed rows,) of multiplications, (cycles,) of vector operations.
    """
    sequences = defaultdict(list)
    for tile in expand(program):
        for instruction in tile.instructions:
            blocks = instruction.blocks
            what = (len(blocks), int(blocks[0]) * program.request_bytes) if len(blocks) else (instruction.size,)
            sequences[tile.core, CLASSES[instruction.op]].append(what)
    return dict(sequences)


def in_any_order(sequences: dict[tuple[int, str], list]) -> dict[tuple[int, str], list]:
    """Vector operations of two resident tiles may enter in either order."""
    return {key: sorted(values) if key[1] == "VX" else values for key, values in sequences.items()}


@pytest.mark.parametrize("log", EVENT_LOGS)
def test_instruction_sequences(shared, tmp_path, log):
    name = EVENT_LOGS[log]
    if name is None:
        program = lower_onnxim(models.mm(100, 300, 700), SERVER)
    else:
        program = lower_case(load_cases(shared)[name], tmp_path)
    logged = defaultdict(list)
    tiles = defaultdict(list)
    for event in read_events(shared / "reference" / "onnxim" / "events" / f"{log}.txt.gz"):
        if event.kind in ("LD", "ST"):
            logged[event.core, event.kind].append((event.details["n"], event.details["a"]))
        elif event.kind == "EX":
            logged[event.core, event.kind].append((event.details["cs"],))
        elif event.kind == "VX":
            logged[event.core, event.kind].append((event.details["fin"] - event.details["start"],))
        elif event.kind == "T+":
            tiles[event.core].append((event.details["inst"], bool(event.details["acc"])))
    assert in_any_order(per_core_sequences(program)) == in_any_order(dict(logged))
    ours = defaultdict(list)
    for tile in expand(program):
        ours[tile.core].append((len(tile.instructions), tile.accumulate))
    assert ours == tiles


def test_mappings(shared, tmp_path):
    pattern = re.compile(r"GEMM: Total N:(\d+) C:(\d+) M:(\d+), Outer .*, Inner N:(\d+) C:(\d+) M:(\d+)")
    compared = 0
    for case in load_cases(shared).values():
        lines = {match.groups() for line in case.data["mappings"] or () if (match := pattern.match(line))}
        if not lines or case.data["config"]["icnt_type"] != "simple" or case.data["config"]["dram_type"] == "ramulator":
            continue
        hw = case.hw(tmp_path)
        for n, k, m, inner_n, inner_k, inner_m in (map(int, line) for line in lines):
            mapping = gemm_mapping(hw, n, m, k)
            assert (mapping.n, mapping.k, mapping.m) == (inner_n, inner_k, inner_m), case.name
            compared += 1
    assert compared > 50


def test_convolution_mappings(shared, tmp_path):
    """Tile sizes of the convolutions in recorded cases, from the models with their strides and paddings.

    Whole networks on small arrays are left out: to lower one takes ten seconds.
    """
    pattern = re.compile(r"Conv: .*\[I\] (.*)")
    compared = 0
    for case in load_cases(shared).values():
        recorded = {Loops(**_sizes(match[1])) for line in case.data["mappings"] if (match := pattern.match(line))}
        config = case.data["config"]
        modelled = config["icnt_type"] == "simple" and config["dram_type"] != "ramulator"
        if recorded and modelled and case.data["cpu_s"] < MOST_CPU_SECONDS:
            layers = [layer for layer in lower_case(case, tmp_path).layers if layer.op in ("Conv", "FusedConv")]
            assert {layer.notes for layer in layers} == {(f"tile {tile}",) for tile in recorded}, case.name
            compared += len(layers)
    assert compared > 80


def _sizes(text: str) -> dict[str, int]:
    return {token[0].lower(): int(token[1:]) for token in text.split()}


@pytest.mark.parametrize("row", [pytest.param(row, id=str(row)) for row in ROWS if sum(row.row_states)])
def test_number_of_requests(row):
    """Every request is one row state; on DDR4 refreshes count as misses too."""
    program = lower_onnxim(row.model, row.hw)
    requests = sum(layer.load_bytes + layer.store_bytes for layer in program.layers) // program.request_bytes
    refreshes = sum(row.row_states) - requests
    interval_cycles = 6240 * 1000 / 400
    expected = 0 if row.configuration == "server" else 2 * int(row.total / interval_cycles)
    assert refreshes == expected


@pytest.mark.parametrize(
    "model",
    [models.mm(100, 300, 200), models.mlp(64, 128, 256, 100), models.mm(64, 64, 256)],
    ids=lambda m: m.graph.name,
)
def test_runs_where_the_original_divides_by_zero(model):
    program = lower_onnxim(model, SERVER)
    assert sum(layer.macs for layer in program.layers) > 0
    assert program.n_layers == len(model.graph.node)


def test_one_block_tiles_where_the_memories_are_small():
    hw = SERVER.with_overrides({"cores.spad_kib": 256, "cores.acc_kib": 64})
    mapping = gemm_mapping(hw, 512, 768, 768)
    assert (mapping.n, mapping.m, mapping.k) == (128, 128, 256)


def test_relu_is_free_and_cores_rotate():
    program = lower_onnxim(models.mlp(64, 128, 256, 100), MOBILE)
    tiles = list(expand(program))
    assert [len(tile.instructions) for tile in tiles if tile.layer == 1] == [0]
    stores = {
        layer: [
            (t.instructions[-1].blocks[0], t.core)
            for t in tiles
            if t.layer == layer and t.instructions[-1].op is Op.STORE
        ]
        for layer in (0, 2)
    }
    # The first output tile is the one that stores to the lowest addresses.
    assert {layer: min(of_layer)[1] for layer, of_layer in stores.items()} == {0: 1, 2: 3}
    assert program.layers[1].macs == 0


def test_flatten_is_free_and_shapes_the_next_layer():
    model = models.mm(64, 784, 64)
    model.graph.node.insert(0, helper.make_node("Flatten", ["image"], ["X"], "flatten"))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28]))
    program = lower_onnxim(model, MOBILE, batch=64)
    assert [(layer.op, layer.macs) for layer in program.layers] == [("Flatten", 0), ("MatMul", 64 * 784 * 64)]


def test_partial_sums_keep_their_accumulator_entries():
    program = lower_onnxim(models.mm(64, 1024, 64), MOBILE)
    tiles = list(expand(program))
    assert any(tile.accumulate for tile in tiles)
    for tile in tiles:
        written = {i.dst for i in tile.instructions if i.op is Op.SYSTOLIC}
        stored = {i.dst for i in tile.instructions if i.op is Op.STORE}
        assert written and stored in (set(), written)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"cores.spad_kib": 32}, "does not fit"),
        ({"cores.cols": 64}, "square systolic array"),
        ({"cores.rows": 96, "cores.cols": 96}, "power of two"),
    ],
)
def test_impossible_hardware_is_named(override, message):
    with pytest.raises(UserError, match=message):
        lower_onnxim(models.mm(128, 128, 128), SERVER.with_overrides(override))


def test_uncovered_graphs_are_named(tmp_path):
    model = models.mm(8, 8, 8)
    model.graph.node[0].op_type = "Conv"
    with pytest.raises(UserError, match=r"node mm \(Conv\): --compat onnxim expects a 4-D image and 4-D weights"):
        lower_onnxim(model, SERVER)
    model = models.conv(8, 8, 3, 1, 1, 8)
    model.graph.node[0].attribute.append(helper.make_attribute("group", 8))
    with pytest.raises(UserError, match="ONNXim cannot run grouped convolutions"):
        lower_onnxim(model, SERVER)
    model = models.mm(8, 8, 8)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "seq"
    with pytest.raises(UserError, match="dimension seq is open"):
        lower_onnxim(model, SERVER)
    text = tmp_path / "model.onnx"
    text.write_text("not a protocol buffer")
    with pytest.raises(UserError, match="not an ONNX file"):
        lower_onnxim(text, SERVER)
