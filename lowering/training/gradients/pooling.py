"""Pools."""

from __future__ import annotations

from lowering.ir import Node
from lowering.training.graph import Role
from lowering.training.tape import Gradients, Tape, gradient_of


def max_pool(tape: Tape, node: Node, gradients: Gradients) -> None:
    """The gradient goes to the elements of the input that equal the result, as cuDNN's backward pooling finds them."""
    dy, x = gradient_of(node, gradients), node.input(0)
    inputs = (dy, tape.saved(x), tape.saved(node.outputs[0]))
    attributes = {**node.attributes, "kernel_shape": _kernel(node)}
    tape.add(x, tape.emit("MaxPoolGrad", inputs, (x.shape,), Role.GRAD_INPUT, "dX", **attributes)[0])


def average_pool(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Every element of a window gets its share; nothing of the forward pass is needed."""
    dy, x = gradient_of(node, gradients), node.input(0)
    attributes = {**node.attributes, "kernel_shape": _kernel(node)}
    tape.add(x, tape.emit("AveragePoolGrad", (dy,), (x.shape,), Role.GRAD_INPUT, "dX", **attributes)[0])


def _kernel(node: Node) -> tuple[int, ...]:
    return node.input(0).shape[2:] if node.op.startswith("Global") else node.ints("kernel_shape")
