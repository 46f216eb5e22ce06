"""Normalisations and Softmax."""

from __future__ import annotations

from lowering.context import axis_of
from lowering.ir import Node, Tensor
from lowering.training.graph import Role
from lowering.training.tape import Gradients, Tape, gradient_of


def batch_norm(tape: Tape, node: Node, gradients: Gradients) -> None:
    """BatchNormTraining: one operator reads gradient and input, sums both per channel, and writes all gradients.

    dx = scale / deviation * (dy - mean(dy) - xhat mean(dy xhat)): Ioffe and Szegedy, ICML 2015, section 3.
    """
    dy = gradient_of(node, gradients)
    x, scale, shift = (node.input(index) for index in range(3))
    mean, inverse = node.outputs[1], node.outputs[2]
    inputs = (dy, tape.saved(x), scale, tape.saved(mean), tape.saved(inverse))
    shapes = (x.shape, scale.shape, shift.shape)
    found = tape.emit("BatchNormGrad", inputs, shapes, Role.GRAD_INPUT, "grad")
    for tensor, gradient in zip((x, scale, shift), found, strict=True):
        if tape.needs(tensor):
            tape.add(tensor, gradient)


def layer_norm(tape: Tape, node: Node, gradients: Gradients) -> None:
    """LayerNormalization, RMSNormalization: the input row by row; scale and shift are sums over all rows."""
    dy = gradient_of(node, gradients)
    x, scale, shift = node.input(0), node.input(1), node.optional_input(2)
    axis = axis_of(node, -1, len(x.shape))
    simplified = int(node.op != "LayerNormalization")
    saved = tape.saved(x)
    if tape.needs(x):
        attributes = {"axis": axis, "simplified": simplified}
        found = tape.emit("LayerNormGrad", (dy, saved, scale), (x.shape,), Role.GRAD_INPUT, "dX", **attributes)
        tape.add(x, found[0])
    trained = tuple(tensor for tensor in (scale, shift) if tensor is not None and tape.needs(tensor))
    if trained:
        shapes = tuple(tensor.shape for tensor in trained)
        found = tape.emit("LayerNormWeightGrad", (dy, saved), shapes, Role.GRAD_WEIGHT, "dscale", axis=axis)
        for tensor, gradient in zip(trained, found, strict=True):
            tape.add(tensor, gradient)


def local_response(tape: Tape, node: Node, gradients: Gradients) -> None:
    """LRN: gradient, input and result of the neighbouring channels, as in cuDNN's backward pass."""
    dy, x = gradient_of(node, gradients), node.input(0)
    inputs = (dy, tape.saved(x), tape.saved(node.outputs[0]))
    tape.add(x, tape.emit("LRNGrad", inputs, (x.shape,), Role.GRAD_INPUT, "dX", **node.attributes)[0])


def softmax(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Softmax: dx = y (dy - sum(dy y)) along the axis."""
    dy, x = gradient_of(node, gradients), node.input(0)
    tape.add(x, softmax_gradient(tape, dy, tape.saved(node.outputs[0]), softmax_axes(tape, node)))


def softmax_axes(tape: Tape, node: Node) -> tuple[int, ...]:
    """Before opset 13 the axes from `axis` on are one flattened axis; its default was 1."""
    rank = len(node.input(0).shape)
    flattened = tape.opset < 13
    axis = node.int("axis", 1 if flattened else -1) % rank
    return tuple(range(axis, rank)) if flattened else (axis,)


def softmax_gradient(tape: Tape, dy: Tensor, y: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The operator itself."""
    return tape.emit("SoftmaxGrad", (dy, y), (y.shape,), Role.GRAD_INPUT, "dX", axes=axes)[0]
