"""Integer arithmetic over named values, as used by the timing tables: ``"nCL + nBL + 2 - nCWL"``.

Evaluated on the syntax tree; nothing but whole numbers, names, ``+ - * //``, ``min`` and ``max`` is understood.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache

from hwconfigs.errors import ConfigError, nearest

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max}


def evaluate(expression: str | int, values: Mapping[str, int]) -> int:
    """The whole number that ``expression`` denotes when its names have the given ``values``.

    Raises `ConfigError`, naming the expression, for unknown names and for anything that is not integer arithmetic.
    """
    if isinstance(expression, int):
        return expression
    try:
        return _evaluate(_parsed(expression), values, expression)
    except ZeroDivisionError:
        raise ConfigError(f"division by zero in the expression {expression!r}") from None


@lru_cache(maxsize=1024)
def _parsed(expression: str) -> ast.expr:
    """The syntax tree; a sweep evaluates the same few expressions for every one of its points."""
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise ConfigError(f"cannot read the expression {expression!r}") from None


def _evaluate(node: ast.expr, values: Mapping[str, int], source: str) -> int:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name):
            if name not in values:
                raise ConfigError(f"unknown name {name!r} in the expression {source!r}{nearest(name, values)}")
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, values, source)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_evaluate(left, values, source), _evaluate(right, values, source))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and len(args) >= 2:
            return _FUNCTIONS[name](*(_evaluate(arg, values, source) for arg in args))
    raise ConfigError(f"only whole numbers, names, + - * //, min and max are allowed in the expression {source!r}")
