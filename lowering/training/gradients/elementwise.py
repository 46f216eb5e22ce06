"""Activations and elementwise arithmetic, with broadcasting."""

from __future__ import annotations

from lowering.context import unsupported
from lowering.ir import Node, Tensor
from lowering.training.costs import UNARY_GRADIENTS
from lowering.training.graph import Role
from lowering.training.tape import Gradients, Tape, gradient_of, sum_to


def unary(tape: Tape, node: Node, gradients: Gradients) -> None:
    """An activation: its gradient reads the incoming one and what the forward pass kept."""
    dy, x = gradient_of(node, gradients), node.input(0)
    kept, _ = UNARY_GRADIENTS[node.op]
    if node.op == "Neg":
        tape.add(x, tape.emit("Neg", (dy,), (x.shape,), Role.GRAD_INPUT, "dX")[0])
        return
    given = tape.saved(x if kept == "x" else node.outputs[0])
    tape.add(x, tape.emit(f"{node.op}Grad", (dy, given), (x.shape,), Role.GRAD_INPUT, "dX", **node.attributes)[0])


def addition(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Add, Sum, Sub: the gradient itself, negated for what is subtracted."""
    dy = gradient_of(node, gradients)
    for index, tensor in enumerate(_operands(node)):
        if not tape.needs(tensor):
            continue
        gradient = sum_to(tape, dy, tensor, label=f"d{index}")
        if node.op == "Sub" and index == 1:
            gradient = tape.emit("Neg", (gradient,), (tensor.shape,), Role.GRAD_INPUT, "negated")[0]
        tape.add(tensor, gradient)


def multiplication(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Mul: the gradient times the other operand."""
    dy = gradient_of(node, gradients)
    left, right = _operands(node)
    for index, (tensor, other) in enumerate(((left, right), (right, left))):
        if tape.needs(tensor):
            tape.add(tensor, sum_to(tape, dy, tensor, _kept(tape, other), f"d{index}"))


def division(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Div: dx = dy / b; db = -dx y."""
    dy = gradient_of(node, gradients)
    left, right = _operands(node)
    scaled = tape.emit("Div", (dy, _kept(tape, right)), (dy.shape,), Role.GRAD_INPUT, "d0")[0]
    if tape.needs(left):
        tape.add(left, sum_to(tape, scaled, left, label="d0 sum"))
    if tape.needs(right):
        negated = tape.emit("Neg", (scaled,), (dy.shape,), Role.GRAD_INPUT, "negated")[0]
        tape.add(right, sum_to(tape, negated, right, tape.saved(node.outputs[0]), "d1"))


def power(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Pow with a constant exponent p: dy p x^(p - 1)."""
    dy, x, exponent = gradient_of(node, gradients), node.input(0), node.input(1)
    if exponent.values is None or exponent.elements != 1:
        raise unsupported(node, "training through a power whose exponent is not one constant is not modelled")
    p, slope = exponent.values[0], tape.saved(x)
    if p != 2.0:
        lower = Tensor(f"{node.name} (exponent - 1)", (), constant=True, values=(p - 1,))
        slope = tape.emit("Pow", (slope, lower), (x.shape,), Role.GRAD_INPUT, "power")[0]
    factor = Tensor(f"{node.name} (exponent)", (), constant=True, values=(p,))
    slope = tape.emit("Mul", (slope, factor), (x.shape,), Role.GRAD_INPUT, "slope")[0]
    tape.add(x, tape.emit("Mul", (dy, slope), (x.shape,), Role.GRAD_INPUT, "dX")[0])


def selection(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Where: the gradient where the condition chooses the operand, zero elsewhere."""
    dy, condition = gradient_of(node, gradients), node.input(0)
    zero = Tensor(f"{node.name} (zero)", (), constant=True, values=(0.0,))
    for index in (1, 2):
        tensor = node.input(index)
        if tape.needs(tensor):
            chosen = (condition, dy, zero) if index == 1 else (condition, zero, dy)
            kept = tape.emit("Where", chosen, (dy.shape,), Role.GRAD_INPUT, f"d{index}")[0]
            tape.add(tensor, sum_to(tape, kept, tensor, label=f"d{index} sum"))


def slopes(tape: Tape, node: Node, gradients: Gradients) -> None:
    """PRelu: dx = dy or dy slope; the gradient of the slopes is the sum of dy min(x, 0) over what shares them."""
    dy, x, slope = gradient_of(node, gradients), node.input(0), node.input(1)
    saved = tape.saved(x)
    if tape.needs(x):
        inputs = (dy, saved, _kept(tape, slope))
        tape.add(x, tape.emit("PReluGrad", inputs, (x.shape,), Role.GRAD_INPUT, "dX")[0])
    if tape.needs(slope):
        zero = Tensor(f"{node.name} (zero)", (), constant=True, values=(0.0,))
        negative = tape.emit("Min", (saved, zero), (x.shape,), Role.GRAD_WEIGHT, "negative part")[0]
        tape.add(slope, sum_to(tape, dy, slope, negative, "dslope"))


def mean(tape: Tape, node: Node, gradients: Gradients) -> None:
    """ReduceMean, ReduceSum: the gradient, repeated along the axes."""
    dy, x = gradient_of(node, gradients), node.input(0)
    tape.add(x, tape.emit("ExpandGrad", (dy,), (x.shape,), Role.GRAD_INPUT, "dX")[0])


def _operands(node: Node) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in node.inputs if tensor is not None)


def _kept(tape: Tape, tensor: Tensor) -> Tensor:
    return tensor if tensor.constant else tape.saved(tensor)
