"""Layers of a training iteration: what they compute, read and write."""

from __future__ import annotations

import math
from collections import Counter

import onnx
import pytest
from onnx import TensorProto, helper

from hwconfigs.load import load_hw
from hwconfigs.schema import HwConfig
from lowering import LoadedModel, Program, TrainingOptions, lower, read_graph
from lowering.emit import expand
from lowering.program import Op
from lowering.training.derive import derive
from tests.models import resnet18
from tests.one_node import loaded, one_node
from tests.unit.test_training_gradients import CONVOLUTIONS, MODELS, convolutions

MOBILE, SERVER = load_hw("npu-mobile-8x8"), load_hw("npu-server-128x128x4")
ELEMENT = 2


def cnn(channels: int = 16, size: int = 12, classes: int = 10) -> LoadedModel:
    """Conv, BatchNormalization, Relu, MaxPool, strided Conv with bias, Relu, GlobalAveragePool, Gemm."""

    def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs.split(), [output], output, **attributes)

    nodes = [
        node("Conv", "X W1", "c1", kernel_shape=[3, 3], pads=[1] * 4),
        node("BatchNormalization", "c1 s1 b1 m1 v1", "n1"),
        node("Relu", "n1", "r1"),
        node("MaxPool", "r1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p1 W2 b2", "c2", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("Relu", "c2", "r2"),
        node("GlobalAveragePool", "r2", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f W3 b3", "Y", transB=1),
    ]
    shapes = {
        "W1": (channels, 3, 3, 3), "W2": (2 * channels, channels, 3, 3), "W3": (classes, 2 * channels),
        "b2": (2 * channels,), "b3": (classes,), **dict.fromkeys(("s1", "b1", "m1", "v1"), (channels,)),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT) for name, shape in shapes.items()],
    )
    return loaded(graph, 17)


def blocks(program: Program, layer: str, op: Op) -> Counter[int]:
    """How often each memory block is loaded or stored by the layers of a name."""
    found = Counter[int]()
    for tile in expand(program):
        if program.layers[tile.layer].name == layer:
            for instruction in tile.instructions:
                if instruction.op is op:
                    found.update(instruction.blocks.tolist())
    return found


def train(model: LoadedModel, hw: str = "npu-mobile-8x8", batch: int = 1, **options: object) -> Program:
    return lower(model, load_hw(hw), batch=batch, training=TrainingOptions(**options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("hw", ["npu-mobile-8x8", "npu-mobile-8x8x4", "npu-server-128x128x4"])
@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_the_program_are_those_of_the_graph(hw: str, batch: int) -> None:
    model = cnn()
    training = derive(read_graph(model, batch))
    assert sum(layer.macs for layer in train(model, hw, batch).layers) == training.macs()


@pytest.mark.parametrize("hw", ["npu-mobile-8x8", "npu-mobile-8x8x4", "npu-server-128x128x4"])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "attributes"),
    [
        (16, 64, 3, {"pads": [1] * 4}),
        (64, 160, 1, {}),
        (48, 64, 1, {"strides": [2, 2]}),
        (64, 64, 3, {"pads": [1] * 4, "group": 64, "strides": [2, 2]}),
        (32, 64, 5, {"pads": [2] * 4, "group": 4}),
    ],
)
def test_weight_gradient_is_written_once_from_all_of_both_operands(
    hw: str, channels: int, filters: int, kernel: int, attributes: dict[str, object]
) -> None:
    groups = int(attributes.get("group", 1))  # pyright: ignore[reportArgumentType]
    weights = ("weight", (filters, channels // groups, kernel, kernel))
    model = one_node("Conv", [2, channels, 14, 14], weights, kernel_shape=[kernel] * 2, **attributes)
    program = train(model, hw, loss="given")
    parts = [layer.name for layer in program.layers if layer.op == "ConvWeightGrad"]
    request = program.request_bytes
    stored = blocks(program, "the_node (dW)", Op.STORE)
    lines = channels // groups * kernel**2 * math.ceil(filters * ELEMENT / request)
    assert set(stored.values()) == {1}
    assert len(stored) == lines
    loaded_blocks = blocks(program, parts[0], Op.LOAD)
    stride = 2 if "strides" in attributes else 1
    out = math.ceil(14 / stride)
    gradient = 2 * out**2 * math.ceil(filters * ELEMENT / request)
    pitch = channels * ELEMENT if channels * ELEMENT < request else math.ceil(channels * ELEMENT / request) * request
    read = 2 * (14 if kernel > 1 else out) ** 2 * pitch // request
    assert len(loaded_blocks) == gradient + read
    [layer] = [layer for layer in program.layers if layer.name == parts[0]]
    assert layer.macs == 2 * out * out * filters * (channels // groups) * kernel**2


def test_weight_gradient_with_few_outputs_is_divided_among_the_cores() -> None:
    """64 x 64 weights are one block of a 128 x 128 array: each core takes a quarter of the pixels, sums are added."""
    model = one_node("Conv", [4, 64, 28, 28], ("weight", (64, 64, 1, 1)), kernel_shape=[1, 1])
    program = train(model, "npu-server-128x128x4", loss="given")
    names = [layer.name for layer in program.layers if layer.op == "ConvWeightGrad"]
    assert names == ["the_node (dW) (4 parts)", "the_node (dW)"]
    cores = {tile.core for tile in expand(program) if program.layers[tile.layer].name == names[0]}
    assert cores == {0, 1, 2, 3}
    partial = blocks(program, names[0], Op.STORE)
    assert partial == blocks(program, names[1], Op.LOAD)
    assert sum(partial.values()) * program.request_bytes == 4 * 64 * 64 * 4


def test_input_gradient_of_a_kernel_smaller_than_its_stride_writes_zeros_between() -> None:
    """Every second row and column of a 1x1 convolution of stride 2 has no gradient: three quarters are zeros."""
    weights = {"W1": (32, 8, 1, 1), "W2": (32, 32, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["X", "W1"], ["h"], "first", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["h", "W2"], ["Y"], "second", kernel_shape=[1, 1], strides=[2, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "strided",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 8, 10, 10])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT) for name, dims in weights.items()],
    )
    program = train(loaded(graph), loss="given")
    names = [layer.name for layer in program.layers if layer.op == "ConvTranspose"]
    assert len(names) == 2
    computed, zeros = (blocks(program, name, Op.STORE) for name in names)
    assert len(computed) == 25
    assert len(zeros) == 75
    assert not computed.keys() & zeros.keys()
    assert set((computed + zeros).values()) == {1}
    assert not blocks(program, names[1], Op.LOAD)
    assert program.layers[[layer.name for layer in program.layers].index(names[0])].macs == 25 * 32 * 32


@pytest.mark.parametrize(("optimizer", "reads", "writes"), [("sgd", 2, 1), ("momentum", 3, 2), ("adam", 4, 3)])
def test_updates_read_and_write_their_state_in_place(optimizer: str, reads: int, writes: int) -> None:
    model = one_node("MatMul", [8, 64], ("weight", [64, 96]))
    program = train(model, optimizer=optimizer, loss="given")
    loads, stores = (blocks(program, "in1 (update)", op) for op in (Op.LOAD, Op.STORE))
    tensor = 64 * math.ceil(96 * ELEMENT / program.request_bytes)
    assert set(loads.values()) == set(stores.values()) == {1}
    assert (len(loads), len(stores)) == (reads * tensor, writes * tensor)
    assert stores.keys() <= loads.keys()


def test_batch_norm_gradient_reads_two_tensors_and_writes_one() -> None:
    """In tiles that hold whole channels everything is read once; a batch that does not fit is read twice."""
    program = train(cnn(channels=32, size=8), "npu-server-128x128x4")
    tensor = 64 * 32 * ELEMENT
    [layer] = [layer for layer in program.layers if layer.op == "BatchNormGrad"]
    loads, stores = (blocks(program, layer.name, op) for op in (Op.LOAD, Op.STORE))
    assert len(loads) * program.request_bytes == 2 * tensor + 3 * 32 * ELEMENT
    assert len(stores) * program.request_bytes == tensor + 2 * 32 * ELEMENT
    assert set(stores.values()) == {1}
    assert sum(count == 1 for count in loads.values()) * program.request_bytes >= 2 * tensor
    split = [layer for layer in train(cnn(channels=32, size=40), batch=2).layers if layer.op == "BatchNormGrad"]
    assert [layer.name.split(" (")[-1] for layer in split] == ["statistics)", "combined statistics)", "grad)"]
    large = 2 * 1600 * 32 * ELEMENT
    assert split[0].load_bytes == 2 * large
    assert 2 * large < split[2].load_bytes < 2.2 * large


def test_table_of_an_embedding_is_cleared_and_its_rows_are_written() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["T", "ids"], ["a"], "rows", axis=0),
            helper.make_node("MatMul", ["a", "W"], ["Y"], "head"),
        ],
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, (4,))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [
            TensorProto(name="T", dims=(100, 64), data_type=TensorProto.FLOAT),
            TensorProto(name="W", dims=(64, 8), data_type=TensorProto.FLOAT),
        ],
    )
    program = train(loaded(graph))
    row = 64 * ELEMENT // program.request_bytes
    cleared = blocks(program, "rows (dtable) (zeros)", Op.STORE)
    written = blocks(program, "rows (dtable)", Op.STORE)
    assert len(cleared) == 100 * row
    assert len(written) == 4 * row
    assert written.keys() <= cleared.keys()
    assert sum(blocks(program, "T (update)", Op.LOAD).values()) == 2 * 100 * row


@pytest.mark.parametrize("hw", [MOBILE, SERVER], ids=lambda hw: hw.name)
@pytest.mark.parametrize("name", MODELS)
def test_every_backward_operator_is_lowered(name: str, hw: HwConfig) -> None:
    """Products as in the graph; every parameter is updated by a layer that reads it and its gradient."""
    model = MODELS[name]()
    program = lower(model, hw, training=TrainingOptions(loss="given"))
    training = derive(read_graph(model), TrainingOptions(loss="given"))
    assert not program.warnings
    hidden = sum(o.macs for o in training.operators if o.kind == "Attention" and o.node.int("is_causal", 0))
    macs = sum(layer.macs for layer in program.layers if not (hidden and layer.op == "Attention"))
    assert macs == training.macs() - hidden
    updates = [layer for layer in program.layers if layer.op == "Sgd"]
    assert [layer.name for layer in updates] == [f"{tensor.name} (update)" for tensor in training.parameters]
    assert all(layer.load_bytes == 2 * layer.store_bytes for layer in updates)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_is_lowered(name: str) -> None:
    program = train(convolutions(name), loss="given")
    images = [layer for layer in program.layers if layer.name.startswith("Conv.Y (dX)")]
    size, channels = CONVOLUTIONS[name][:2]
    written = Counter[int]()
    for layer in dict.fromkeys(layer.name for layer in images):
        written += blocks(program, layer, Op.STORE)
    assert len(written) == math.ceil(2 * size * size * channels * ELEMENT / program.request_bytes)
    weights = {layer.name: layer.macs for layer in program.layers if layer.op == "ConvWeightGrad"}
    forward = {layer.name: layer.macs for layer in program.layers if layer.op == "Conv"}
    assert weights["Conv.Y (dW)"] == forward["Conv.Y"]
    assert weights["Conv.h (dW)"] == forward["Conv.h"]


def test_recomputation_is_paid_for() -> None:
    model = loaded(resnet18().graph, 13)
    plain, again = (train(model, "npu-server-128x128x4", recompute=name) for name in ("none", "segments"))
    training = derive(read_graph(model), TrainingOptions(recompute="segments"))
    macs = [sum(layer.macs for layer in program.layers) for program in (plain, again)]
    assert macs[1] - macs[0] == sum(operator.macs for operator in training.operators if "(again)" in operator.name) > 0


def test_learned_slopes_read_gradient_input_and_slopes() -> None:
    """The gradient of x reads dy, x and 64 slopes; that of the slopes reads dy again, with the negative part of x."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["X", "W"], ["h"], "conv", kernel_shape=[1, 1]),
            helper.make_node("PRelu", ["h", "S"], ["Y"], "prelu"),
        ],
        "slopes",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 32, 8, 8])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [
            TensorProto(name="W", dims=(64, 32, 1, 1), data_type=TensorProto.FLOAT),
            TensorProto(name="S", dims=(64, 1, 1), data_type=TensorProto.FLOAT),
        ],
    )
    program = train(loaded(graph), loss="given")
    tensor, slopes = 64 * 64 * ELEMENT // program.request_bytes, 64 * ELEMENT // program.request_bytes
    reads = blocks(program, "prelu (dX)", Op.LOAD)
    assert len(reads) == 2 * tensor + slopes
    assert sum(count == 1 for count in reads.values()) >= 2 * tensor
    assert len(blocks(program, "prelu (dX)", Op.STORE)) == tensor
    assert len(blocks(program, "prelu (negative part)", Op.STORE)) == tensor
    assert len(blocks(program, "prelu (dslope)", Op.LOAD)) == 2 * tensor
