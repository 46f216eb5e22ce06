"""What a constant mask says: exporters write causal masks as arithmetic on ranges, too large to be folded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_ir import Node, Value

from lowering.patterns.algebra import constant, shape

MOST_ELEMENTS = 1 << 24
"""Larger masks are not evaluated."""
_MOST_NODES = 200
_HIDDEN = -1e4
"""Added values up to this hide a key: exporters write -10,000, the smallest number of a type, or minus infinity."""


@dataclass
class Masks:
    """The masks of one graph; layers share them, so each is evaluated once."""

    known: dict[Value, tuple[bool, int] | None] = field(default_factory=dict)

    def band(self, value: Value, queries: int, keys: int) -> tuple[bool, int] | None:
        """(causal, window) that a constant mask of queries x keys says; None when it has to be read."""
        if value not in self.known:
            shown = _shown(value)
            self.known[value] = band(shown) if shown is not None and shown.shape == (queries, keys) else None
        return self.known[value]


def _shown(value: Value) -> NDArray[np.bool_] | None:
    """bool[queries, keys]: the keys that a constant mask shows; None when it is not constant or differs by head."""
    sizes = shape(value)
    if sizes is None or len(sizes) < 2 or int(np.prod(sizes)) > MOST_ELEMENTS:
        return None
    found = evaluate(value)
    if found is None or found.shape != sizes:
        return None
    matrices = found.reshape(-1, *found.shape[-2:])
    if not (matrices == matrices[0]).all():
        return None
    matrix = matrices[0]
    if matrix.dtype == np.bool_:
        return matrix
    shown = matrix > _HIDDEN
    return shown if not matrix[shown].any() else None


def evaluate(value: Value) -> NDArray[np.generic] | None:
    """The value of a constant expression over the small constants of the file; None when it depends on more."""
    known = constant(value)
    if known is not None:
        return known
    nodes: list[Node] = []
    leaves: dict[str, Value] = {}
    queue, seen = [value], {value}
    while queue:
        item = queue.pop()
        node = item.producer()
        if constant(item) is not None and item.name is not None:
            leaves[item.name] = item
        elif node is None or len(nodes) >= _MOST_NODES or node.domain not in ("", "ai.onnx"):
            return None
        elif node not in nodes:
            nodes.append(node)
            fresh = {source for source in node.inputs if source is not None} - seen
            seen |= fresh
            queue += fresh
    return _run(value, nodes, leaves)


def _run(value: Value, nodes: list[Node], leaves: dict[str, Value]) -> NDArray[np.generic] | None:
    """Execute the nodes, as they lie in their graph, with ONNX's reference implementation."""
    owner = nodes[0].graph
    if owner is None or value.name is None:
        return None
    wanted = set(nodes)
    protos = [onnx_ir.serde.serialize_node(node) for node in owner if node in wanted]
    tensors = [numpy_helper.from_array(np.asarray(constant(leaf)), name) for name, leaf in leaves.items()]
    result = helper.make_empty_tensor_value_info(value.name)
    graph = helper.make_graph(protos, "mask", [], [result], tensors)
    opset = helper.make_opsetid("", owner.opset_imports.get("", 1))
    try:
        with np.errstate(all="ignore"):
            (found,) = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset])).run(None, {})
    except Exception:  # the reference implementation lacks some operators; the mask is then read from memory
        return None
    return found if isinstance(found, np.ndarray) else None


def band(shown: NDArray[np.bool_]) -> tuple[bool, int] | None:
    """(causal, window) of a mask, as in `lowering.attention`; None when it is neither full nor a band.

    With more keys than queries, the keys before the first query's own are the past.
    """
    if shown.all():
        return False, 0
    queries, keys = shown.shape
    own = np.arange(queries)[:, None] + max(0, keys - queries)
    key = np.arange(keys)[None, :]
    causal = key <= own
    if np.array_equal(shown, causal):
        return True, 0
    window = int(shown[-1].sum())
    return (True, window) if window and np.array_equal(shown, causal & (key > own - window)) else None
