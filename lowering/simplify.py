"""Graph clean-up before fusion: operators that do nothing at inference disappear."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lowering.ir import Graph, Node, Tensor

NO_OPERATION = frozenset({"Identity", "Dropout", "Cast", "CastLike"})
"""Outputs are input 0. Casts are here because every tensor of the model has the chip's one precision."""


def simplify(graph: Graph) -> Graph:
    """Drop operators without work and move zero padding in front of a convolution into it."""
    renamed: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(renamed.get(t.name, t) if t is not None else None for t in node.inputs)
        node = replace(node, inputs=inputs)
        if _does_nothing(node):
            renamed[node.outputs[0].name] = node.input(0)
        else:
            nodes.append(node)
    outputs = tuple(renamed.get(t.name, t) for t in graph.outputs)
    return _merge_pads(replace(graph, nodes=tuple(nodes), outputs=outputs))


SMALL_ELEMENTS = 1024
"""Integer tensors up to this many elements are shapes, axes and indices rather than data."""


def is_bookkeeping(node: Node) -> bool:
    """Whether a node computes with shapes and indices only, which a host does beside the accelerator, at no cost."""
    if node.op in ("Shape", "Size"):
        return True
    tensors = [tensor for tensor in (*node.inputs, *node.outputs) if tensor is not None and tensor.name]
    return all(tensor.integer and tensor.elements <= SMALL_ELEMENTS for tensor in tensors)


def consumers(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """The nodes that read each tensor, by its name; a node that reads it twice is listed twice."""
    uses: dict[str, list[Node]] = {}
    for node in nodes:
        for tensor in node.inputs:
            if tensor is not None:
                uses.setdefault(tensor.name, []).append(node)
    return uses


def _does_nothing(node: Node) -> bool:
    if node.op in NO_OPERATION:
        return True
    if node.op == "Pad":
        pads = _pads(node)
        return pads is not None and not any(pads)
    if node.op in ("Reshape", "Expand", "Transpose"):
        same = node.input(0).shape == node.outputs[0].shape
        return same and (node.op != "Transpose" or list(node.ints("perm")) == sorted(node.ints("perm")))
    return node.op in ("Concat", "Sum", "Max", "Min") and len(node.inputs) == 1


def _pads(node: Node) -> tuple[int, ...] | None:
    """Pad amounts of all dimensions, begins then ends; None when they are not known."""
    if "pads" in node.attributes:
        return node.ints("pads")
    amounts = node.optional_input(1)
    if amounts is None or amounts.values is None:
        return None
    values = tuple(int(value) for value in amounts.values)
    axes = node.optional_input(3)
    if axes is None:
        return values
    rank, listed = len(node.input(0).shape), axes.values or ()
    full = [0] * (2 * rank)
    for index, axis in enumerate(listed):
        full[int(axis) % rank] = values[index]
        full[int(axis) % rank + rank] = values[index + len(listed)]
    return tuple(full)


def _merge_pads(graph: Graph) -> Graph:
    uses = consumers(graph.nodes)
    kept_names = {t.name for t in graph.outputs}
    padded: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        pads = _pads(node) if node.op == "Pad" else None
        if pads is not None and node.outputs[0].name not in kept_names and _is_zero_border(node, pads):
            users = uses.get(node.outputs[0].name, [])
            if users and all(user.op == "Conv" and user.text("auto_pad", "NOTSET") == "NOTSET" for user in users):
                rank = len(pads) // 2
                padded[node.outputs[0].name] = (node.input(0), (*pads[2:rank], *pads[rank + 2 :]))
                continue
        source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else ""
        if source in padded:
            tensor, border = padded[source]
            own = node.ints("pads") or (0,) * len(border)
            merged = tuple(a + b for a, b in zip(own, border, strict=True))
            node = replace(node, inputs=(tensor, *node.inputs[1:]), attributes={**node.attributes, "pads": merged})
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _is_zero_border(node: Node, pads: tuple[int, ...]) -> bool:
    """Whether the Pad adds zeros around the spatial dimensions only."""
    rank = len(pads) // 2
    value = node.optional_input(2)
    zero = value is None or (value.values is not None and not any(value.values))
    spatial_only = not any((*pads[:2], *pads[rank : rank + 2])) and min(pads) >= 0
    return node.text("mode", "constant") == "constant" and zero and spatial_only and not node.attributes.get("value", 0)
