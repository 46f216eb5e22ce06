"""Arithmetic over configuration keys, for the derived keys of a sweep. No other Python can be reached from it."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hwconfigs.errors import UserError

Scalar = bool | int | float | str
Number = int | float

_MAX_POWER_BITS = 256
"""Larger integers than this are no hardware parameter, and computing them could take for ever."""

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "log2": math.log2,
}


class ExpressionError(UserError):
    """An expression that is not arithmetic over known keys, or has no finite value."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression. Operators ``+ - * / // % **``, functions min, max, abs, round, floor, ceil, sqrt, log2."""

    text: str
    tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Parse an expression such as ``2 * dram.channels``; `ExpressionError` when it is not plain arithmetic."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"'{text}' is not an arithmetic expression") from error
        _check(tree, text)
        return cls(text, tree)

    def evaluate(self, lookup: Callable[[str], Scalar]) -> Number:
        """Return the value, `lookup` giving that of each dotted key. Whole numbers come back as int."""
        try:
            value = _evaluate(self.tree, lookup)
        except (ArithmeticError, ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise ExpressionError(f"'{self.text}' has no value: {error}") from error
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ExpressionError(f"'{self.text}' is not finite")
            return int(value) if value.is_integer() else value
        return value


def _dotted_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        parent = _dotted_name(node.value)
        return f"{parent}.{node.attr}" if parent else None
    return None


def _check(node: ast.expr, text: str) -> None:
    """Raise unless `node` and all below it is arithmetic."""
    operands: list[ast.expr] = []
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            pass
        case ast.Name() | ast.Attribute() if _dotted_name(node):
            pass
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            operands = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY or isinstance(op, ast.Pow):
            operands = [left, right]
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in _FUNCTIONS:
            operands = arguments
        case _:
            part = ast.get_source_segment(text.strip(), node) or text
            raise ExpressionError(
                f"'{part}' in '{text}' is not supported; use numbers, keys, + - * / // % ** and {', '.join(_FUNCTIONS)}"
            )
    for operand in operands:
        _check(operand, text)


def _evaluate(node: ast.expr, lookup: Callable[[str], Scalar]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_evaluate(operand, lookup))
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _evaluate(left, lookup), _evaluate(right, lookup)
            return _power(a, b) if isinstance(op, ast.Pow) else _BINARY[type(op)](a, b)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_evaluate(argument, lookup) for argument in arguments))
    key = _dotted_name(node) or ""
    value = lookup(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(f"'{key}' is {value!r}, not a number")
    return value


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) * math.log2(max(abs(base), 2)) > _MAX_POWER_BITS:
        raise ExpressionError(f"{base} ** {exponent} is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ExpressionError(f"{base} ** {exponent} is not a real number")
    return result
