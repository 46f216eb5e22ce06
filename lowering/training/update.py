"""Optimiser updates: one operator for each parameter, in place.

========  =========================================================================  ==================
kind      for each element                                                           state
========  =========================================================================  ==================
Sgd       w -= r g                                                                   none
Momentum  v = m v + g; w -= r v (Sutskever et al., ICML 2013)                        v
Adam      m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= r m / (sqrt(v) + e)   m, v
          (Kingma and Ba, ICLR 2015, algorithm 1; bias corrections fold into r)
========  =========================================================================  ==================

State has the chip's one precision, as every tensor has: float32 copies of weights (mixed precision) are not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping

from lowering.ir import Node, Tensor

KINDS = {"sgd": "Sgd", "momentum": "Momentum", "adam": "Adam"}
"""Operator by optimiser."""

COSTS: dict[str, Mapping[str, int]] = {
    "Sgd": {"mac": 1},
    "Momentum": {"mac": 2},
    "Adam": {"mul": 3, "mac": 3, "scalar_sqrt": 1, "add": 1, "div": 1},
}
"""Vector operations for each element."""

_STATES = {"Sgd": (), "Momentum": ("velocity",), "Adam": ("first moment", "second moment")}


def update_node(optimizer: str, parameter: Tensor, gradient: Tensor) -> Node:
    """The update of one parameter; outputs are the new parameter and the new states."""
    kind = KINDS[optimizer]
    states = tuple(Tensor(f"{parameter.name} ({name})", parameter.shape, constant=True) for name in _STATES[kind])
    outputs = tuple(Tensor(f"{tensor.name} (updated)", parameter.shape) for tensor in (parameter, *states))
    return Node(f"{parameter.name} (update)", kind, (parameter, gradient, *states), outputs)
