"""Products and parameters of every graph at hand against counts that share no code with lowering."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from hwconfigs import load_hw
from lowering import LoadedModel, light_models, load_model, lower, read_graph
from lowering.models import resolve
from tests.conftest import DATA
from tests.one_node import loaded

SERVER = load_hw("npu-server-128x128x4")
SHARED = Path("/work/shared/models")
COUNTS: dict[str, Any] = json.loads((DATA / "onnx_tool_counts.json").read_text())["models"]
DIMS = {
    "bert_base_torchscript": {"seq": 128},
    "t5_small_encoder_torchscript": {"seq": 128},
    "ppocr_v2_cls": {"x.2": 48, "x.3": 192},
    "ppocr_v4_det": {"p2o.DynamicDimension.1": 256, "p2o.DynamicDimension.2": 256},
}
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def source(name: str) -> str:
    path = SHARED / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    return str(path)


def closed_form(model: LoadedModel, name: str) -> int:
    """Products of the operators that the tool counts by another definition (see the data's provenance)."""
    nodes = read_graph(model, 1, DIMS.get(name, {})).nodes
    total = 0
    for node in nodes:
        if node.op == "LSTM":
            steps, batch, _ = node.input(0).shape
            total += steps * batch * (node.input(1).elements + node.input(2).elements)
        elif node.op == "ConvTranspose":
            # Unpadded, stride equal to the kernel: each input meets every kernel position of every output channel.
            assert node.ints("strides") == node.input(1).shape[2:] and not any(node.ints("pads"))
            total += math.prod(node.input(0).shape[2:]) * node.input(1).elements
    return total


def from_profiler(name: str) -> int:
    """The tool's MACs of matrix operators; bias additions, which it counts as MACs, are taken out by their number."""
    counts = COUNTS[name]
    return sum(counts[op]["macs"] - counts[op]["biased_outputs"] for op in ("Conv", "Gemm", "MatMul") if op in counts)


@pytest.mark.parametrize("name", [name for name in COUNTS if not name.startswith("light_")])
def test_macs_equal_the_profilers(name: str) -> None:
    """Equal, not close."""
    model = load_model(source(name))
    program = lower(model, SERVER, dims=DIMS.get(name, {}))
    assert not program.warnings
    assert sum(layer.macs for layer in program.layers) == from_profiler(name) + closed_form(model, name)


@pytest.mark.parametrize("name", [name for name in COUNTS if not name.startswith("light_")])
def test_parameters_equal_the_files(name: str) -> None:
    """Every float initializer or Constant that a node reads, once, straight from the protobuf."""
    proto = onnx.load(resolve(source(name)), load_external_data=False)
    used = {item for node in proto.graph.node for item in node.input}
    stored = {item.name: item for item in proto.graph.initializer}
    for node in proto.graph.node:
        stored.update((node.output[0], a.t) for a in node.attribute if node.op_type == "Constant" and a.name == "value")
    counted = sum(math.prod(item.dims) for n, item in stored.items() if n in used and item.data_type in FLOATS)
    # Recognised patterns turn scalar constants (a scale, the root of 2) into attributes; the file has them as tensors.
    graph = read_graph(load_model(source(name)), 1, DIMS.get(name, {}), patterns=False)
    assert graph.parameters == counted


@pytest.mark.parametrize("name", light_models())
def test_macs_of_light_graphs_equal_the_profilers(name: str) -> None:
    """The golden runs' MACs; `test_light_networks` compares lowering with these."""
    goldens = json.loads((DATA / "light_networks.json").read_text())["networks"]
    assert goldens[name.removeprefix("light_")]["macs"] == from_profiler(name)


def test_a_thousand_nodes_are_lowered() -> None:
    """250 blocks of convolution, normalisation, activation and addition; `make bench` says in what time."""
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def weight(name: str, *dims: int) -> str:
        weights.append(TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT))
        weights[-1].data_location = TensorProto.EXTERNAL
        entry = weights[-1].external_data.add()
        entry.key, entry.value = "location", "absent.bin"
        return name

    last = "x"
    for block in range(250):
        names = [f"{kind}{block}" for kind in ("conv", "norm", "relu", "add")]
        scales = [weight(f"s{block}", 32), weight(f"b{block}", 32)]
        nodes += [
            helper.make_node("Conv", [last, weight(f"w{block}", 32, 32, 3, 3)], names[:1], names[0], pads=[1] * 4),
            helper.make_node("InstanceNormalization", [names[0], *scales], names[1:2], names[1]),
            helper.make_node("Relu", [names[1]], names[2:3], names[2]),
            helper.make_node("Add", [names[2], last], names[3:], names[3]),
        ]
        last = names[3]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 28, 28])
    result = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    model = loaded(helper.make_graph(nodes, "deep", [image], [result], weights))
    program = lower(model, SERVER)
    assert len(nodes) == 1000
    assert program.n_layers == 750
