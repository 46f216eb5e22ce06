"""Rotary embedding: x * cos + rotate_half(x) * sin (Su et al., 2021, in the half-split form of most exports)."""

from __future__ import annotations

from typing import Any

from onnx_ir import Value
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase

from lowering.patterns.algebra import Builder, constant, integer, like, producer, shape
from lowering.patterns.heads import merged_heads, split_heads


class Rotary(RewriteRuleClassBase):
    """The sum of two products."""

    def __init__(self) -> None:
        super().__init__(remove_nodes=False)

    def pattern(self, op: Builder, a: Any, b: Any) -> Any:
        """The root: the addition."""
        return op.Add(a, b, _outputs=["y"])

    def rewrite(self, op: Builder, a: Value, b: Value, y: Value) -> Value | None:
        """RotaryEmbedding, before the heads are split where they are; None where the terms are others."""
        for plain, rotated in ((a, b), (b, a)):
            found = _arguments(plain, rotated)
            if found is None:
                continue
            x, cos, sin = found
            sizes = shape(x)
            if sizes is None or len(sizes) != 4:
                return None
            batch, heads, length, width = sizes
            source = merged_heads(x)
            if source is None:
                return op.RotaryEmbedding(x, cos, sin, interleaved=0)
            result = op.RotaryEmbedding(source, cos, sin, interleaved=0, num_heads=heads)
            return split_heads(op, like(result, (batch, length, heads * width), y), heads, y)
        return None


def _arguments(plain: Value, rotated: Value) -> tuple[Value, Value, Value] | None:
    """(x, cos, sin) where plain = x * cos and rotated = rotate_half(x) * sin."""
    first, second = producer(plain, "Mul"), producer(rotated, "Mul")
    if first is None or second is None or None in first.inputs or None in second.inputs:
        return None
    for half, sin in (second.inputs, second.inputs[::-1]):
        x = _rotated(half)
        if x is None or sin is None:
            continue
        for operand, cos in (first.inputs, first.inputs[::-1]):
            if operand is x and cos is not None:
                return x, cos, sin
    return None


def _rotated(value: Value | None) -> Value | None:
    """The x where value = concat(-(second half of x), first half of x)."""
    node = producer(value, "Concat")
    sizes = shape(value)
    if node is None or sizes is None or len(node.inputs) != 2 or integer(node, "axis", 0) not in (-1, len(sizes) - 1):
        return None
    negated = producer(node.inputs[0], "Neg")
    upper = _half(negated.inputs[0], True) if negated is not None else None
    lower = _half(node.inputs[1], False)
    return lower if lower is not None and lower is upper and shape(lower) == sizes else None


def _half(value: Value | None, second: bool) -> Value | None:
    """The x where value is its first or second half along the last dimension."""
    node = producer(value, "Slice", "Split")
    x = node.inputs[0] if node is not None else None
    whole, part = shape(x), shape(value)
    if node is None or whole is None or part is None or part != (*whole[:-1], whole[-1] // 2):
        return None
    if node.op_type == "Split":
        return x if len(node.outputs) == 2 and node.outputs[int(second)] is value else None
    start = constant(node.inputs[1])
    begins = int(start.ravel()[-1]) % whole[-1] if start is not None else None
    return x if begins == (whole[-1] // 2 if second else 0) else None


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [Rotary.rule()]
