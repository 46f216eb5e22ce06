"""LayerNorm and RMSNorm: x, centred or not, over the root of its mean square, times a weight for each channel."""

from __future__ import annotations

from typing import Any

from onnx_ir import Value
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase

from lowering.patterns.algebra import Builder, close, producer, product, scalar, shape, split_scalar


class Normalisation(RewriteRuleClassBase):
    """A product of x, the reciprocal of its root mean square over the last dimension, and a weight."""

    def __init__(self) -> None:
        super().__init__(remove_nodes=False)

    def pattern(self, op: Builder, a: Any, b: Any) -> Any:
        """The root: the last multiplication."""
        return op.Mul(a, b, _outputs=["y"])

    def rewrite(self, op: Builder, y: Value, **_: Value) -> Value | None:
        """LayerNormalization where x is centred first, else RMSNormalization; None where the factors are others."""
        for factor, power in product(y).powers.items():
            found = _root_mean_square(factor, power)
            if found is None:
                continue
            x, epsilon = found
            whole = product(y, x)
            weights = [value for value in whole.powers if value not in (x, factor)]
            normal = whole.powers[x] == 1 and close(whole.coefficient, 1.0)
            sizes = shape(x)
            if len(weights) != 1 or not normal or not sizes or shape(weights[0]) != sizes[-1:]:
                continue
            centred = _centred(x)
            if centred is not None:
                return op.LayerNormalization(centred, weights[0], axis=-1, epsilon=epsilon)
            return op.RMSNormalization(x, weights[0], axis=-1, epsilon=epsilon)
        return None


class Shift(RewriteRuleClassBase):
    """The bias that a LayerNormalization without one is followed by."""

    def __init__(self) -> None:
        super().__init__(remove_nodes=False)

    def pattern(self, op: Builder, a: Any, b: Any) -> Any:
        """The root: the addition."""
        return op.Add(a, b)

    def rewrite(self, op: Builder, a: Value, b: Value) -> Value | None:
        """LayerNormalization with the bias."""
        for result, bias in ((a, b), (b, a)):
            node = producer(result, "LayerNormalization")
            sizes = shape(result)
            if node is not None and len(node.inputs) == 2 and sizes and shape(bias) == sizes[-1:]:
                return op.LayerNormalization(*node.inputs, bias, **node.attributes)
        return None


def _root_mean_square(factor: Value, power: int) -> tuple[Value, float] | None:
    """(x, epsilon) where factor ** power = 1 / sqrt(mean(x ** 2) + epsilon)."""
    root = producer(factor, "Sqrt") if power == -1 else producer(factor, "Pow") if power == 1 else None
    if root is None or (root.op_type == "Pow" and not close(scalar(root.inputs[1]), -0.5)):
        return None
    total = producer(root.inputs[0], "Add")
    parts = split_scalar(total) if total is not None else None
    mean = producer(parts[1], "ReduceMean") if parts is not None else None
    if parts is None or mean is None or mean.inputs[0] is None:
        return None
    square = product(mean.inputs[0], *_bases(mean.inputs[0]))
    bases = list(square.powers.items())
    if len(bases) != 1 or bases[0][1] != 2 or not close(square.coefficient, 1.0):
        return None
    x = bases[0][0]
    sizes = shape(x)
    return (x, parts[0]) if sizes and shape(mean.outputs[0]) == (*sizes[:-1], 1) else None


def _bases(value: Value) -> tuple[Value, ...]:
    """What a square is the square of, so that it is not multiplied out itself."""
    node = producer(value, "Pow", "Mul")
    return tuple(item for item in node.inputs if item is not None) if node is not None else ()


def _centred(value: Value) -> Value | None:
    """The x where value = x - mean(x)."""
    node = producer(value, "Sub")
    mean = producer(node.inputs[1], "ReduceMean") if node is not None else None
    return node.inputs[0] if node is not None and mean is not None and mean.inputs[0] is node.inputs[0] else None


def rules() -> list[RewriteRule]:
    """The rules of this module, in the order in which they apply."""
    return [Normalisation.rule(), Shift.rule()]
