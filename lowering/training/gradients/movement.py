"""Operators that move data: their gradients move it back."""

from __future__ import annotations

from lowering.context import axis_of
from lowering.ir import Node, Tensor
from lowering.training.graph import Role
from lowering.training.tape import Gradients, Tape, gradient_of, sum_to


def view(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same memory in the input's shape, where that is possible."""
    dy, x = gradient_of(node, gradients), node.input(0)
    tape.add(x, tape.emit("ViewGrad", (dy, x), (x.shape,), Role.GRAD_INPUT, "dX")[0])


def transpose(tape: Tape, node: Node, gradients: Gradients) -> None:
    """The inverse permutation."""
    dy, x = gradient_of(node, gradients), node.input(0)
    perm = node.ints("perm", tuple(reversed(range(len(x.shape)))))
    inverse = tuple(perm.index(axis) for axis in range(len(perm)))
    tape.add(x, tape.emit("Transpose", (dy,), (x.shape,), Role.GRAD_INPUT, "dX", perm=inverse)[0])


def expand(tape: Tape, node: Node, gradients: Gradients) -> None:
    """What was repeated is summed."""
    tape.add(node.input(0), sum_to(tape, gradient_of(node, gradients), node.input(0), label="dX"))


def concat(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Split into the parts."""
    dy = gradient_of(node, gradients)
    parts = tuple(tensor for tensor in node.inputs if tensor is not None)
    axis = axis_of(node, 0, len(dy.shape))
    shapes = tuple(tensor.shape for tensor in parts)
    found = tape.emit("Split", (dy,), shapes, Role.GRAD_INPUT, "dX", axis=axis)
    for tensor, gradient in zip(parts, found, strict=True):
        if tape.needs(tensor):
            tape.add(tensor, gradient)


def split(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Put the gradients of the parts side by side; a part that nobody trains through is zero."""
    x = node.input(0)
    parts = tuple(
        gradient or Tensor(f"{output.name} (no gradient)", output.shape, constant=True)
        for output, gradient in zip(node.outputs, gradients, strict=True)
    )
    axis = axis_of(node, 0, len(x.shape))
    tape.add(x, tape.emit("Concat", parts, (x.shape,), Role.GRAD_INPUT, "dX", axis=axis)[0])


def slice_(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Slice, Pad with zeros: the gradient with zeros around it, or cut out; read once and written once."""
    dy, x = gradient_of(node, gradients), node.input(0)
    tape.add(x, tape.emit("SliceGrad", (dy,), (x.shape,), Role.GRAD_INPUT, "dX")[0])


def resize(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Resize, Upsample: every result gives its gradient back to the samples that it was made of."""
    dy, x = gradient_of(node, gradients), node.input(0)
    attributes = {**node.attributes, "mode": node.text("mode", "nearest")}
    tape.add(x, tape.emit("ResizeGrad", (dy,), (x.shape,), Role.GRAD_INPUT, "dX", **attributes)[0])


def rotary(tape: Tape, node: Node, gradients: Gradients) -> None:
    """RotaryEmbedding: the rotation by the opposite angle, the same work."""
    dy = gradient_of(node, gradients)
    inputs = (dy, *node.inputs[1:])
    attributes = {**node.attributes, "inverse": 1}
    found = tape.emit(node.op, inputs, (node.input(0).shape,), Role.GRAD_INPUT, "dX", **attributes)
    tape.add(node.input(0), found[0])


def gather(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Gather (embeddings): a table of zeros to whose rows the gradients are added."""
    dy, table, indices = gradient_of(node, gradients), node.input(0), node.input(1)
    role = Role.GRAD_WEIGHT if table.constant else Role.GRAD_INPUT
    axis = axis_of(node, 0, len(table.shape))
    tape.add(table, tape.emit("GatherGrad", (dy, indices), (table.shape,), role, "dtable", axis=axis)[0])
