"""Operators that change nothing about the work: they would hide patterns."""

from __future__ import annotations

from typing import Any

from onnx_ir import Value
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase, pattern

from lowering.patterns.algebra import Builder, shape


class SameReshape(RewriteRuleClassBase):
    """Reshape to the shape that the input has."""

    def pattern(self, op: Builder, x: Any) -> Any:
        """The root."""
        return op.Reshape(x, pattern.ANY_VALUE, _outputs=["y"])

    def rewrite(self, op: Builder, x: Value, y: Value) -> Value | None:
        """Nothing."""
        return op.Identity(x) if shape(x) is not None and shape(x) == shape(y) else None


class FloatCast(RewriteRuleClassBase):
    """Cast between floating-point types: all tensors have the chip's one precision."""

    def pattern(self, op: Builder, x: Any) -> Any:
        """The root."""
        return op.Cast(x, _outputs=["y"])

    def rewrite(self, op: Builder, x: Value, y: Value) -> Value | None:
        """Nothing."""
        both = (
            x.dtype is not None and y.dtype is not None and x.dtype.is_floating_point() and y.dtype.is_floating_point()
        )
        return op.Identity(x) if both else None


class Dropout(RewriteRuleClassBase):
    """Dropout, which does nothing at inference."""

    def pattern(self, op: Builder, x: Any) -> Any:
        """The root."""
        return op.Dropout(x, _allow_other_inputs=True)

    def rewrite(self, op: Builder, x: Value) -> Value | None:
        """Nothing."""
        return op.Identity(x)


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [SameReshape.rule(), FloatCast.rule(), Dropout.rule()]
