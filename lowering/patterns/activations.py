"""GELU in its erf and tanh forms, and Swish (SiLU): x times a function of x."""

from __future__ import annotations

import math
from typing import Any

from onnx_ir import Value
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase

from lowering.patterns.algebra import Builder, close, plus_one, producer, product, scaled

_CUBIC = 0.044715


class Activation(RewriteRuleClassBase):
    """A product with erf, tanh or the logistic function of one of its factors."""

    def __init__(self) -> None:
        super().__init__(remove_nodes=False)

    def pattern(self, op: Builder, a: Any, b: Any) -> Any:
        """The root: the last multiplication."""
        return op.Mul(a, b, _outputs=["y"])

    def rewrite(self, op: Builder, y: Value, **_: Value) -> Value | None:
        """Gelu or Swish of x; None where the factors are others."""
        for factor in product(y).powers:
            if (x := _erf_argument(factor)) is not None and _is_product(y, 0.5, x, factor):
                return op.Gelu(x, approximate="none")
            if (x := _tanh_argument(factor)) is not None and _is_product(y, 0.5, x, factor):
                return op.Gelu(x, approximate="tanh")
            sigmoid = producer(factor, "Sigmoid")
            if sigmoid is not None and sigmoid.inputs[0] is not None:
                alpha, x = scaled(sigmoid.inputs[0])
                if _is_product(y, 1.0, x, factor):
                    return op.Swish(x, alpha=alpha)
        return None


def _is_product(y: Value, coefficient: float, x: Value, factor: Value) -> bool:
    """Whether y = coefficient * x * factor."""
    found = product(y, x)
    return close(found.coefficient, coefficient) and found.powers == {x: 1, factor: 1}


def _erf_argument(factor: Value) -> Value | None:
    """The x where factor = 1 + erf(x / sqrt(2))."""
    erf = producer(plus_one(factor), "Erf")
    if erf is None or erf.inputs[0] is None:
        return None
    scale, x = scaled(erf.inputs[0])
    return x if close(scale, math.sqrt(0.5)) else None


def _tanh_argument(factor: Value) -> Value | None:
    """The x where factor = 1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)), or with x (1 + 0.044715 x^2) in brackets."""
    tanh = producer(plus_one(factor), "Tanh")
    if tanh is None or tanh.inputs[0] is None:
        return None
    scale, inner = scaled(tanh.inputs[0])
    node = producer(inner, "Add")
    if close(scale, math.sqrt(2 / math.pi)) and node is not None and None not in node.inputs:
        for x, cube in (node.inputs, node.inputs[::-1]):
            if x is not None and cube is not None and _is_power(cube, x, 3):
                return x
    whole = product(tanh.inputs[0])
    for bracket in whole.powers:
        square = plus_one(bracket)
        others = [value for value in whole.powers if value is not bracket]
        if square is not None and len(others) == 1 and _is_power(square, others[0], 2):
            return others[0] if close(whole.coefficient, math.sqrt(2 / math.pi)) else None
    return None


def _is_power(value: Value, x: Value, exponent: int) -> bool:
    """Whether value = 0.044715 * x ** exponent."""
    found = product(value, x)
    return close(found.coefficient, _CUBIC) and found.powers == {x: exponent}


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [Activation.rule()]
