"""Convolution: the gradient of the input is a convolution of the gradient with the turned weights, that of the weights
a correlation of input and gradient.

For a stride s the gradient of the input is a transposed convolution: `lowering.resampling` computes it phase by phase,
without a product with an inserted zero. For stride 1 it is an ordinary convolution with the kernel turned by 180
degrees, input and output channels exchanged, and paddings dilation * (kernel - 1) - pad.
"""

from __future__ import annotations

from dataclasses import replace

from lowering.context import unsupported
from lowering.convolution import window_attributes
from lowering.ir import Attribute, Node, Tensor
from lowering.training.graph import Role
from lowering.training.tape import Gradients, Tape, gradient_of


def convolution(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Conv, 1-D and 2-D, grouped or not."""
    dy = gradient_of(node, gradients)
    x, weights, bias = node.input(0), node.input(1), node.optional_input(2)
    if not weights.constant:
        raise unsupported(node, "training through a convolution whose kernel is computed is not modelled")
    if tape.needs(x):
        tape.add(x, _of_input(tape, node, dy))
    if tape.needs(weights):
        stride, dilation, pads = window_attributes(node)
        dw = tape.emit(
            "ConvWeightGrad", (tape.saved(x), dy), (weights.shape,), Role.GRAD_WEIGHT, "dW",
            strides=stride, dilations=dilation, pads=pads, group=node.int("group", 1),
        )  # fmt: skip
        tape.add(weights, dw[0])
    if bias is not None and tape.needs(bias):
        axes = (0, *range(2, len(dy.shape)))
        tape.add(bias, tape.emit("ReduceGrad", (dy,), (bias.shape,), Role.GRAD_WEIGHT, "dbias", axes=axes)[0])


def transposed_convolution(tape: Tape, node: Node, gradients: Gradients) -> None:
    """ConvTranspose: the same with input and gradient exchanged; the gradient of its input is a strided convolution."""
    dy = gradient_of(node, gradients)
    x, weights, bias = node.input(0), node.input(1), node.optional_input(2)
    spatial, groups = len(x.shape) - 2, node.int("group", 1)
    if not weights.constant or node.text("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        raise unsupported(node, "training is modelled for constant weights and given pads only")
    pads = node.ints("pads", (0,) * 2 * spatial)
    window: dict[str, Attribute] = {
        "strides": node.ints("strides", (1,) * spatial),
        "dilations": node.ints("dilations", (1,) * spatial),
        "group": groups,
    }
    if tape.needs(x):
        attributes = {**window, "kernel_shape": weights.shape[2:], "pads": pads}
        tape.add(x, tape.emit("Conv", (dy, weights), (x.shape,), Role.GRAD_INPUT, "dX", **attributes)[0])
    if tape.needs(weights):
        inputs, attributes = (dy, tape.saved(x)), {**window, "pads": pads[:spatial]}
        dw = tape.emit("ConvWeightGrad", inputs, (weights.shape,), Role.GRAD_WEIGHT, "dW", **attributes)
        tape.add(weights, dw[0])
    if bias is not None and tape.needs(bias):
        axes = (0, *range(2, len(dy.shape)))
        tape.add(bias, tape.emit("ReduceGrad", (dy,), (bias.shape,), Role.GRAD_WEIGHT, "dbias", axes=axes)[0])


def _of_input(tape: Tape, node: Node, dy: Tensor) -> Tensor:
    x, weights = node.input(0), node.input(1)
    spatial, groups = len(x.shape) - 2, node.int("group", 1)
    stride, dilation, pads = window_attributes(node)
    stride, dilation, pads = stride[-spatial:], dilation[-spatial:], pads[-spatial:]
    kernel = weights.shape[2:]
    turned_pads = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel, pads, strict=True))
    if max(stride) == 1 and min(turned_pads) >= 0:
        columns = x.shape[1], weights.shape[0] // groups
        turned = replace(weights, name=f"{weights.name} (turned)", shape=(*columns, *kernel), values=None)
        extents = zip(x.shape[2:], dy.shape[2:], dilation, kernel, turned_pads, strict=True)
        ends = tuple(size + d * (k - 1) - given - begin for size, given, d, k, begin in extents)
        return tape.emit(
            "Conv", (dy, turned), (x.shape,), Role.GRAD_INPUT, "dX",
            kernel_shape=kernel, dilations=dilation, strides=stride, group=groups, pads=(*turned_pads, *ends),
        )[0]  # fmt: skip
    return tape.emit(
        "ConvTranspose", (dy, weights), (x.shape,), Role.GRAD_INPUT, "dX",
        kernel_shape=kernel, dilations=dilation, strides=stride, group=groups, pads=(*pads, *pads),
    )[0]  # fmt: skip
