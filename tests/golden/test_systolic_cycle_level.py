"""The corrected closed form against the cycle-level model with a memory that nothing contends for.

Both have one 64x64 array with 8-bit operands and results, memories that hold most layers in one tile, and 2 KiB of DRAM
bandwidth a cycle. The cycle-level model cuts layers by its own mapper.
"""

from __future__ import annotations

from hwconfigs.schema import HwConfig
from hwconfigs.systolic_schema import load_systolic
from lowering.chip import Chip
from lowering.ir import Graph
from lowering.models import load_model
from lowering.network import lower_graph
from lowering.onnx_reader import read_graph
from vsim.api import SimPoint, simulate
from vsim.systolic.bridge import bridge
from vsim.systolic.designs import stack
from vsim.systolic.evaluate import evaluate
from vsim.systolic.layers import MatrixLayer

SIDE = 64
BYTES_PER_CYCLE = 32 * 64
WIDE_BITS = 1 << 18

CHIP = HwConfig.from_data(
    {
        "name": "uncontended",
        "clocks": {"core_mhz": 1000, "noc_mhz": 1000, "dram_mhz": 1000},
        "precision_bytes": 1,
        "cores": {"count": 1, "rows": SIDE, "cols": SIDE, "spad_kib": 8192, "acc_kib": 8192, "vector_bits": 8 * SIDE},
        "dma": {"outstanding_requests": 4096, "descriptors_per_cycle": 32},
        "dram": {
            "standard": "simple",
            "channels": 32,
            "request_bytes": 64,
            "latency_cycles": 1,
            "read_queue": 512,
            "write_queue": 512,
        },
        "noc": {"latency_cycles": 1, "ports_per_core": 32},
    }
)
DESIGN = load_systolic("simdit-inference-09").with_overrides(
    {
        "array.rows": SIDE,
        "array.cols": SIDE,
        "array.spare_weights": True,
        "precision.activation_bits": 8,
        "precision.weight_bits": 8,
        "precision.output_bits": 8,
        "buffers.weight_kib": 4096,
        "buffers.ifmap_kib": 4096,
        "buffers.ofmap_kib": 8192,
        "buffers.bias_kib": 64,
        "ports.weight_bits_per_cycle": WIDE_BITS,
        "ports.ifmap_bits_per_cycle": WIDE_BITS,
        "ports.ofmap_bits_per_cycle": WIDE_BITS,
        "dram_bits_per_cycle": 8 * BYTES_PER_CYCLE,
    }
)


def convolutions() -> list[Graph]:
    """Every different convolution of ResNet-50, each a graph."""
    graph = read_graph(load_model("onnx:light_resnet50"), 1)
    different = {}
    for node in graph.nodes:
        if node.op == "Conv":
            different.setdefault((node.input(0).shape, node.input(1).shape, node.ints("strides")), node)
    return [Graph(node.name, graph.opset, (node.input(0),), node.outputs, (node,)) for node in different.values()]


def _differences(graphs: list[Graph]) -> list[float]:
    """Closed form over cycle level, less one."""
    results = simulate([SimPoint(CHIP, lower_graph(graph, Chip.of(CHIP))) for graph in graphs])
    layers = []
    for graph in graphs:
        [layer] = bridge(graph).layers
        assert isinstance(layer, MatrixLayer)
        layers.append(layer)
    cost = evaluate(layers, stack([DESIGN])).matrix
    closed = (cost.compute_cycles + cost.stall_cycles)[:, 0]
    return [float(found) / result.cycles - 1 for found, result in zip(closed, results, strict=True)]


def test_small_layers_within_five_percent():
    graphs = convolutions()
    few = [graphs[index] for index in (1, 3, 7)]
    assert max(map(abs, _differences(few))) < 0.05


def test_every_layer_within_five_percent():
    differences = _differences(convolutions())
    assert len(differences) >= 20
    assert max(map(abs, differences)) < 0.05
    assert sum(map(abs, differences)) / len(differences) < 0.02
