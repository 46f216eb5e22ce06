"""Operators of ONNX Runtime's blocked image layout as the ONNX operators that they stand for.

ONNX Runtime's optimiser (level 99) rewrites convolutional networks for CPUs into its domain com.microsoft.nchwc:
channels in blocks, weights reordered, activations and sums fused, the layout changed at both ends. The work is that of
the plain operators, and the layout is the CPU's own business. Source: ONNX Runtime, core/optimizer/nchwc_transformer.cc
and core/graph/contrib_ops/nchwc_schema_defs.cc.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

DOMAIN = "com.microsoft.nchwc"
_FUSED = "com.microsoft"
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
_CHANNELS_FIRST, _CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_CHANNEL_AXIS = 1


def plain_layout(model: onnx.ModelProto) -> None:
    """Rewrite the operators of the domain, in place; one that is not known here (Upsample) stays."""
    graph = model.graph
    if all(node.domain != DOMAIN for node in graph.node):
        return
    nodes = [plain for node in graph.node for plain in _plain(node, graph)]
    del graph.node[:]
    graph.node.extend(nodes)
    if all(item.domain != _FUSED for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_FUSED, 1))


def _plain(node: NodeProto, graph: onnx.GraphProto) -> Iterator[NodeProto]:
    last = any(item.name == "channels_last" and item.i for item in node.attribute)
    if node.domain != DOMAIN:
        yield node
    elif node.op_type == "Conv":
        yield _renamed(node, "FusedConv", _FUSED)
    elif node.op_type in _POOLS:
        yield _renamed(node, node.op_type, "")
    elif node.op_type == "ReorderInput":
        yield _reordered(node, node.input[0], node.output[0], _CHANNELS_FIRST if last else None)
    elif node.op_type == "ReorderOutput":
        channels = f"{node.output[0]} (real channels)"
        yield _cut(node, graph, channels)
        yield _reordered(node, channels, node.output[0], _CHANNELS_LAST if last else None)
    else:
        yield node


def _renamed(node: NodeProto, op: str, domain: str) -> NodeProto:
    renamed = NodeProto()
    renamed.CopyFrom(node)
    renamed.op_type, renamed.domain = op, domain
    return renamed


def _reordered(node: NodeProto, source: str, target: str, perm: tuple[int, ...] | None) -> NodeProto:
    """Only a change of blocking, or of the dimensions' order besides."""
    if perm is None:
        return helper.make_node("Identity", [source], [target], node.name)
    return helper.make_node("Transpose", [source], [target], node.name, perm=perm)


def _cut(node: NodeProto, graph: onnx.GraphProto, target: str) -> NodeProto:
    """Blocks are whole; what is behind the last channel is cut off."""
    channels = next((item.i for item in node.attribute if item.name == "channels"), np.iinfo(np.int64).max)
    names = [f"{target}: {part}" for part in ("starts", "ends", "axes")]
    for name, value in zip(names, (0, channels, _CHANNEL_AXIS), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    return helper.make_node("Slice", [node.input[0], *names], [target], f"{node.name} (channels)")
