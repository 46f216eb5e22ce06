"""What a gradient rule may ask for: operators to add, saved tensors, and where gradients go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lowering.context import UnsupportedError
from lowering.ir import Attribute, Node, Tensor
from lowering.training.graph import Role


class Tape(Protocol):
    """The backward pass while it is being written."""

    opset: int

    def emit(
        self,
        op: str,
        inputs: tuple[Tensor | None, ...],
        shapes: tuple[tuple[int, ...], ...],
        role: Role,
        label: str = "",
        **attributes: Attribute,
    ) -> tuple[Tensor, ...]:
        """Add an operator; returns its outputs, of the given shapes. label: tells it from its siblings in its name."""
        ...

    def saved(self, tensor: Tensor) -> Tensor:
        """A tensor of the forward pass: as it was saved, or computed again."""
        ...

    def needs(self, tensor: Tensor | None) -> bool:
        """Whether a gradient of the tensor is of use: something that is trained lies behind it, or it is trained."""
        ...

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        """Add to the gradient of `tensor`; that of a parameter is followed by its update once it is complete."""
        ...


Gradients = tuple[Tensor | None, ...]
"""The gradient of each output of a node; None where nothing that is trained reads it."""

Rule = Callable[[Tape, Node, Gradients], None]
"""Writes the backward pass of one operator."""


def gradient_of(node: Node, gradients: Gradients) -> Tensor:
    """The gradient of the first output. Raises UnsupportedError when only a further output is trained through."""
    if gradients[0] is None:
        raise UnsupportedError(f"node {node.name} ({node.op}): training through its second output is not modelled")
    return gradients[0]


def sum_to(tape: Tape, gradient: Tensor, target: Tensor, other: Tensor | None = None, label: str = "") -> Tensor:
    """The gradient of an operand that was broadcast: summed over the dimensions that it lacks, times `other`."""
    shape = gradient.shape
    missing = len(shape) - len(target.shape)
    padded = (1,) * missing + target.shape
    axes = tuple(a for a, (size, full) in enumerate(zip(padded, shape, strict=True)) if a < missing or size != full)
    role = Role.GRAD_WEIGHT if target.constant else Role.GRAD_INPUT
    if not axes and other is None:
        return gradient
    if not axes:
        return tape.emit("Mul", (gradient, other), (target.shape,), role, label)[0]
    inputs = (gradient,) if other is None else (gradient, other)
    return tape.emit("ReduceGrad", inputs, (target.shape,), role, label, axes=axes)[0]
