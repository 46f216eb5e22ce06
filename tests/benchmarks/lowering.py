"""How long lowering takes: a graph of 1,000 nodes, residual blocks of ever new widths, from file to program."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import TensorProto, helper

from hwconfigs import load_hw
from lowering import lower

NODES = 1000
PER_BLOCK = 8
PRESET = "npu-server-128x128x4"
ALLOWED_SECONDS = 5.0
"""Bar of the project, on two CPU cores."""


def residual_network(nodes: int = NODES) -> onnx.ModelProto:
    """Blocks of Conv 1x1, BatchNormalization, Relu, Conv 3x3, BatchNormalization, Relu, Conv 1x1, Add.

    The inner width differs from block to block, so that no two have the same shapes.
    """
    channels, size = 64, 14
    graph_nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def weight(name: str, *dims: int) -> str:
        weights.append(TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT))
        return name

    def conv(x: str, name: str, inputs: int, outputs: int, kernel: int) -> str:
        pads = [kernel // 2] * 4
        w = weight(f"{name}_w", outputs, inputs, kernel, kernel)
        graph_nodes.append(helper.make_node("Conv", [x, w], [name], name, kernel_shape=[kernel] * 2, pads=pads))
        return name

    def normalised(x: str, outputs: int) -> str:
        constants = [weight(f"{x}_{what}", outputs) for what in ("scale", "shift", "mean", "variance")]
        graph_nodes.append(helper.make_node("BatchNormalization", [x, *constants], [f"{x}_bn"], f"{x}_bn"))
        graph_nodes.append(helper.make_node("Relu", [f"{x}_bn"], [f"{x}_relu"], f"{x}_relu"))
        return f"{x}_relu"

    x = "x"
    for block in range(nodes // PER_BLOCK):
        width = 16 + block
        inner = normalised(conv(x, f"b{block}_a", channels, width, 1), width)
        inner = normalised(conv(inner, f"b{block}_b", width, width, 3), width)
        out = conv(inner, f"b{block}_c", width, channels, 1)
        graph_nodes.append(helper.make_node("Add", [out, x], [f"b{block}_y"], f"b{block}_y"))
        x = f"b{block}_y"
    image = [1, channels, size, size]
    graph = helper.make_graph(
        graph_nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, image)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def measure() -> dict[str, Any]:
    """Nodes, layers and tiles of the program, and the seconds from the file to it."""
    model = residual_network()
    for tensor in model.graph.initializer:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "residual.onnx"
        onnx.save(model, path)
        start, start_cpu = time.perf_counter(), time.process_time()
        program = lower(path, load_hw(PRESET))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "nodes": len(model.graph.node),
        "layers": program.n_layers,
        "tiles": len(program.tiles),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "allowed_seconds": ALLOWED_SECONDS,
    }


def line(figures: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"lowering     {figures['nodes']:,} nodes, {figures['layers']:,} layers, {figures['tiles']:,} tiles: "
        f"{figures['seconds']} s, {figures['cpu_seconds']} s of them at work (bar: {figures['allowed_seconds']:g} s)"
    )
