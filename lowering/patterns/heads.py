"""Splitting and merging of heads: (batch, length, heads * width) <-> (batch, heads, length, width)."""

from __future__ import annotations

import numpy as np
import onnx_ir
from onnx_ir import Node, Value

from lowering.patterns.algebra import Builder, integer, ints, like, producer, shape

_SWAP = (0, 2, 1, 3)


def merged_heads(value: Value) -> Value | None:
    """The (batch, length, heads * width) that `value` (batch, heads, length, width) is a view of; None if it is not."""
    positions = producer(value, "Transpose")
    if positions is None or ints(positions, "perm") != _SWAP:
        return None
    split = producer(positions.inputs[0], "Reshape")
    source = split.inputs[0] if split is not None else None
    sizes = shape(value)
    if sizes is None or shape(source) != (sizes[0], sizes[2], sizes[1] * sizes[3]):
        return None
    return source


def split_heads(op: Builder, merged: Value, heads: int, target: Value) -> Value:
    """(batch, heads, length, width) of a merged value, with the shape of `target`."""
    batch, length, width = shape(merged) or (0, 0, 0)
    split = op.Reshape(merged, sizes_value(op, (batch, length, heads, width // heads)))
    return op.Transpose(like(split, (batch, length, heads, width // heads), target), perm=list(_SWAP))


def sizes_value(op: Builder, sizes: tuple[int, ...]) -> Value:
    """A constant with the target shape of a Reshape."""
    value = op.Constant(value=onnx_ir.tensor(np.array(sizes, np.int64)))
    value.shape, value.type = onnx_ir.Shape([len(sizes)]), onnx_ir.TensorType(onnx_ir.DataType.INT64)
    return value


def four_dimensional(value: Value, batch: int | None = None) -> Value:
    """`value`, or the (batch, heads, length, width) that a (batch * heads, length, width) is a view of."""
    node = producer(value, "Reshape")
    sizes, whole = shape(value), shape(node.inputs[0]) if node is not None else None
    if node is None or sizes is None or whole is None or len(sizes) != 3 or len(whole) != 4:
        return value
    is_view = whole[0] * whole[1] == sizes[0] and whole[2:] == sizes[1:]
    return node.inputs[0] or value if is_view and batch in (None, whole[0]) else value


def shared_heads(value: Value) -> Value:
    """The keys or values of all groups where `value` repeats each for the heads of its group; else `value` itself.

    Exporters write (batch, groups, 1, length, width), expanded along the third dimension, and merge the heads.
    """
    merge = producer(value, "Reshape")
    repeat = producer(merge.inputs[0], "Expand", "Tile", "Concat") if merge is not None else None
    whole, sizes = (shape(repeat.outputs[0]) if repeat is not None else None), shape(value)
    if repeat is None or whole is None or sizes is None or len(whole) != 5 or len(sizes) != 4:
        return value
    source = _ungrouped(repeat)
    groups = (whole[0], whole[1], *whole[3:])
    merged = (whole[0], whole[1] * whole[2], *whole[3:])
    return source if source is not None and sizes == merged and shape(source) == groups else value


def _ungrouped(repeat: Node) -> Value | None:
    """What a node repeats along a dimension of size one that was put in."""
    single = repeat.inputs[0]
    sizes = shape(single)
    if sizes is None or len(sizes) != 5 or sizes[2] != 1:
        return None
    if repeat.op_type == "Concat" and (integer(repeat, "axis", 0) != 2 or len(set(repeat.inputs)) != 1):
        return None
    node = producer(single, "Unsqueeze", "Reshape")
    return node.inputs[0] if node is not None else None


def untransposed(value: Value) -> tuple[Value, bool] | None:
    """(keys, whether heads come first) where `value` is the transpose of keys; None when it is none.

    Heads first: (batch, heads, length, width); otherwise (batch, length, heads, width).
    """
    node = producer(value, "Transpose")
    if node is not None and node.inputs[0] is not None:
        perm = ints(node, "perm")
        if perm in ((0, 1, 3, 2), (0, 2, 1)):
            return node.inputs[0], True
        return (node.inputs[0], False) if perm == (0, 2, 3, 1) else None
    outer = producer(value, "Reshape")
    inner = producer(outer.inputs[0], "Transpose") if outer is not None else None
    if inner is None or ints(inner, "perm") != (0, 2, 1) or inner.inputs[0] is None:
        return None
    keys = four_dimensional(inner.inputs[0])
    sizes, found = shape(value), shape(keys)
    matches = sizes is not None and found is not None and found == (*sizes[:-2], sizes[-1], sizes[-2])
    return (keys, True) if matches else None
