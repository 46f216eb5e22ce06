"""Operations of the gradients of elementwise operators, for each element of the result; OPERATORS.md has the text.

Each is dy times the derivative, with what the forward pass kept: the input x or the result y, whichever makes the
derivative cheaper. A selection counts as an addition, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

UNARY_GRADIENTS: dict[str, tuple[Literal["x", "y"], Mapping[str, int]]] = {
    "Relu": ("y", {"add": 1}),
    "ThresholdedRelu": ("y", {"add": 1}),
    "Clip": ("x", {"add": 2}),
    "LeakyRelu": ("y", {"add": 1, "mul": 1}),
    "Elu": ("y", {"add": 2, "mul": 1}),
    "Sigmoid": ("y", {"add": 1, "mul": 2}),
    "HardSigmoid": ("y", {"add": 2, "mul": 1}),
    "HardSwish": ("x", {"mac": 1, "add": 2, "mul": 1}),
    "Tanh": ("y", {"mac": 1, "mul": 1}),
    "Gelu": ("x", {"gelu": 1, "exp": 1, "mul": 3, "mac": 1}),
    "QuickGelu": ("x", {"exp": 1, "add": 2, "div": 1, "mac": 1, "mul": 3}),
    "Swish": ("x", {"exp": 1, "add": 2, "div": 1, "mac": 1, "mul": 2}),
    "Softplus": ("x", {"exp": 1, "add": 1, "div": 1, "mul": 1}),
    "Softsign": ("x", {"add": 2, "mul": 2, "div": 1}),
    "Erf": ("x", {"mul": 3, "exp": 1}),
    "Exp": ("y", {"mul": 1}),
    "Log": ("x", {"div": 1}),
    "Neg": ("y", {"add": 1}),
    "Abs": ("x", {"add": 1}),
    "Reciprocal": ("y", {"mul": 3}),
    "Sqrt": ("y", {"div": 1, "mul": 1}),
    "Sin": ("x", {"mac": 8, "mul": 1}),
    "Cos": ("x", {"mac": 8, "mul": 1}),
}
"""By forward operator: what it keeps, and the operations of its gradient.

Gelu: the normal distribution function (a gelu), its density (exp, 2 mul), x density + function (mac), dy times that.
Swish, QuickGelu: s = sigmoid(x), dy (s + y (1 - s)).
"""

ELEMENTWISE: dict[str, Mapping[str, int]] = {f"{op}Grad": cost for op, (_, cost) in UNARY_GRADIENTS.items()}
"""By kind: two computed operands of one shape."""
