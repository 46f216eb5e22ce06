"""Reading values of an onnx_ir graph: constants, shapes, products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import Node, Value

Builder = Any
"""What a rule writes patterns and replacements with: its methods are the operators, whatever their names."""

RELATIVE_TOLERANCE = 1e-3
"""For constants such as the square root of 2: files hold them in half precision too."""


def constant(value: Value | None) -> NDArray[np.generic] | None:
    """The elements of a constant that the file holds; None for anything else."""
    if value is None or value.const_value is None:
        return None
    try:
        return value.const_value.numpy()
    except (FileNotFoundError, ValueError, TypeError):  # stored elsewhere, or without data
        return None


def scalar(value: Value | None) -> float | None:
    """The number that a constant of one element holds."""
    found = constant(value)
    return float(found.item()) if found is not None and found.size == 1 and found.dtype.kind in "fiub" else None


def close(value: float | None, expected: float) -> bool:
    """Whether a number is the expected one, within the precision of files."""
    return value is not None and abs(value - expected) <= RELATIVE_TOLERANCE * abs(expected)


def shape(value: Value | None) -> tuple[int, ...] | None:
    """Static shape, or None."""
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(int(dim) for dim in value.shape if isinstance(dim, int))


def shapes(*values: Value | None) -> list[tuple[int, ...]] | None:
    """Static shapes of several values; None unless all are known."""
    found = [shape(value) for value in values]
    return [item for item in found if item is not None] if None not in found else None


def producer(value: Value | None, *ops: str) -> Node | None:
    """The node that computes `value`, when it is one of the operators `ops` of ONNX's own domain."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain in ("", "ai.onnx") and node.op_type in ops else None


def computed(node: Node) -> list[Value]:
    """The inputs of a node that are there."""
    return [value for value in node.inputs if value is not None]


def ints(node: Node, name: str) -> tuple[int, ...]:
    """An attribute that is a list of integers; empty without one."""
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute is not None else ()


def integer(node: Node, name: str, default: int) -> int:
    """An attribute that is an integer."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def like(value: Value, sizes: Sequence[int], original: Value) -> Value:
    """Give a new value its shape, and the type of `original`."""
    value.shape = onnx_ir.Shape(list(sizes))
    value.type = original.type
    return value


def split_scalar(node: Node) -> tuple[float, Value] | None:
    """The number and the other operand of a Mul, Add or Max with a constant of one element."""
    if len(node.inputs) != 2:
        return None
    left, right = node.inputs
    for number, other in ((scalar(left), right), (scalar(right), left)):
        if number is not None and other is not None:
            return number, other
    return None


def scaled(value: Value) -> tuple[float, Value]:
    """(c, x) with value = c * x, as far as the multiplications and divisions by numbers go."""
    factor = 1.0
    while (node := producer(value, "Mul", "Div")) is not None:
        if node.op_type == "Mul":
            parts = split_scalar(node)
            if parts is None:
                break
            factor, value = factor * parts[0], parts[1]
        else:
            number, other = scalar(node.inputs[1]), node.inputs[0]
            if not number or other is None:
                break
            factor, value = factor / number, other
    return factor, value


@dataclass
class Product:
    """coefficient * product of value ** exponent."""

    coefficient: float = 1.0
    powers: Counter[Value] = field(default_factory=Counter)


def product(value: Value, *whole: Value) -> Product:
    """`value` multiplied out: Mul, Div, Reciprocal, Neg and whole powers; values in `whole` are left as they are."""
    result = Product()
    _multiply(result, value, 1, whole)
    return result


def _multiply(result: Product, value: Value, exponent: int, whole: tuple[Value, ...]) -> None:
    number = scalar(value)
    node = producer(value, "Mul", "Div", "Reciprocal", "Neg", "Pow") if value not in whole else None
    if number is not None and number != 0:
        result.coefficient *= number**exponent
    elif node is None or any(item is None for item in node.inputs):
        result.powers[value] += exponent
    elif node.op_type == "Pow":
        base, power = node.inputs[0], scalar(node.inputs[1])
        if base is not None and power is not None and power == int(power):
            _multiply(result, base, exponent * int(power), whole)
        else:
            result.powers[value] += exponent
    else:
        result.coefficient *= -1.0 if node.op_type == "Neg" else 1.0
        signs = {"Mul": (1, 1), "Div": (1, -1), "Reciprocal": (-1,), "Neg": (1,)}[node.op_type]
        for item, sign in zip(computed(node), signs, strict=True):
            _multiply(result, item, exponent * sign, whole)


def plus_one(value: Value) -> Value | None:
    """The x where value = x + 1."""
    node = producer(value, "Add")
    parts = split_scalar(node) if node is not None else None
    return parts[1] if parts is not None and close(parts[0], 1.0) else None
