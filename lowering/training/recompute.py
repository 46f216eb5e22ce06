"""Which activations the forward pass leaves to the backward pass; all others that it needs are computed again.

* "none": every activation that a gradient reads is kept.
* "cheap": results of matrix operators and of attention are kept; normalisations, activations and data movement between
  them run again (selective recomputation: Korthikanti et al., MLSys 2023; here for every kind of network).
* "segments": at points where a single tensor carries everything to the rest of the network, every k-th is kept, k being
  the square root of their number (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

Statistics of batch normalisation are always kept: they are small, and a second run of the forward pass would count them
into the running ones twice.
"""

from __future__ import annotations

import math

from lowering.ir import Graph
from lowering.operators import MATRIX


def kept_tensors(graph: Graph, recompute: str) -> frozenset[str]:
    """Names of the activations that may be read as they are in the backward pass."""
    kept = {tensor.name for tensor in graph.inputs}
    for node in graph.nodes:
        if recompute == "none" or (recompute == "cheap" and (node.op in MATRIX or node.op == "Attention")):
            kept.update(tensor.name for tensor in node.outputs)
        kept.update(tensor.name for tensor in node.outputs if tensor.integer)
        if node.op == "BatchNormTraining":
            kept.update(tensor.name for tensor in node.outputs[1:])
    if recompute == "segments":
        points = bottlenecks(graph)
        step = max(1, round(math.sqrt(len(points))))
        kept.update(points[step - 1 :: step])
    return frozenset(kept)


def bottlenecks(graph: Graph) -> list[str]:
    """The activations that alone are needed by everything after them, in order."""
    last_use = {t.name: index for index, node in enumerate(graph.nodes) for t in node.inputs if t is not None}
    live: set[str] = set()
    found: list[str] = []
    for index, node in enumerate(graph.nodes):
        live.update(t.name for t in node.outputs if not t.constant and last_use.get(t.name, -1) > index)
        live = {name for name in live if last_use[name] > index}
        if live == {node.outputs[0].name}:
            found.append(node.outputs[0].name)
    return found
