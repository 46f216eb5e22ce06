"""The layer list of SimDIT's training graphs (`systolic.md` 1.6), from a training iteration of a convolutional network.

Each row is ``{"op": ..., "dims": {...}, "params": {...}}`` as in `reference/simdit/resnet50_training_graph.json`. Rows
that SimDIT's model takes for free (transposes, flattening, loss, nine of the ten parts of a batch normalisation's
gradient) have no dims; they are there because the width of a result depends on the row that follows (1.9, 9).

With `faults`, the list has what the published graph does wrong:

1. The gradient of the first layer's input is computed, as a full correlation, though nothing needs it (1.6).
2. A strided convolution's gradients are convolutions with a gradient that is dilated by zeros: the kernel of dW has
   (O - 1) s + 1 lines, and dX skips none of them (1.6; 1.9, 5).
3. dW of a strided convolution is not cropped to the kernel: I + 2 p - G + 1 lines, 2 for 1x1 and 4 for 3x3 (1.6). Only
   the first layer's is.
4. Updates and the bias' sum are of padded sizes: 1,000 classes become 1,024 (1.6), and, not in the text but in the
   graph, the first layer's 3 channels become 32.

Without, dX of a strided convolution has `input_dilation` and dW `kernel_dilation` (XLA's lhs and rhs dilation):
positions between are no work; its kernel has the O lines of the gradient and its output the K lines of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lowering.context import UnsupportedError
from lowering.ir import Node
from lowering.training.graph import Operator, Role, TrainingGraph

Row = dict[str, Any]

BATCH_NORM_GRADIENT = (
    *("batchnorm_grad_inv_std", "batchnorm_grad_xhat", "batchnorm_grad_dbeta", "batchnorm_grad_dgamma"),
    *("batchnorm_grad_dgamma_mul_xhat", "batchnorm_grad_gamma_inv_std", "batchnorm_grad_scaled_gy"),
    *("batchnorm_grad_dx_rhs", "batchnorm_grad_dx"),
)
"""What follows `batchnorm_grad_x_mu`; only that one has dims."""

PADDED_CHANNELS, PADDED_CLASSES = 32, 1024
"""Multiples that fault 4 pads to: input channels of a convolution's update, classes of the head."""


def simdit_layers(training: TrainingGraph, *, faults: bool = False) -> list[Row]:
    """The rows, in order. Raises UnsupportedError for an operator that SimDIT has no layer for."""
    rows: list[Row] = []
    of = _Of(faults, {o.name: o.node for o in training.operators}, frozenset(t.name for t in training.inputs))
    for operator in training.operators:
        convert = _CONVERTERS.get((operator.role, operator.kind)) or _CONVERTERS.get((None, operator.kind))
        if convert is None:
            raise UnsupportedError(f"operator {operator.name} ({operator.kind}): SimDIT has no such layer")
        rows += convert(operator, of)
    return rows


@dataclass(frozen=True)
class _Of:
    """What a conversion asks of the whole graph: its nodes by name, the names of its inputs."""

    faults: bool
    nodes: Mapping[str, Node]
    inputs: frozenset[str]

    def padded(self, size: int, multiple: int) -> int:
        """Fault 4."""
        return -(-size // multiple) * multiple if self.faults else size


_Convert = Callable[[Operator, _Of], list[Row]]


def _row(op: str, params: dict[str, int] | None = None, **dims: int) -> Row:
    return {"op": op, "dims": dims, "params": params or {}}


def _image(op: str, shape: tuple[int, ...]) -> Row:
    return _row(op, N=shape[0], C=shape[1], H=shape[2], W=shape[3])


# -- convolutions


def _convolution(operator: Operator, of: _Of) -> list[Row]:
    node = operator.node
    (oc, ic, kh, kw), (n, _, oh, ow) = node.input(1).shape, node.outputs[0].shape
    return [_row("conv", {"stride": _stride(node)}, OC=oc, N=n, IC=ic, KH=kh, KW=kw, OH=oh, OW=ow)]


def _stride(node: Node) -> int:
    return node.ints("strides", (1,))[0]


def _between_transposes(row: Row) -> list[Row]:
    return [_row("tensor_transpose4d"), row, _row("tensor_transpose4d")]


def _input_gradient(operator: Operator, of: _Of) -> list[Row]:
    """Of stride 1 (an ordinary convolution) or of a larger one (a transposed one)."""
    node = operator.node
    (n, oc, _, _), (_, ic, height, width) = node.input(0).shape, node.outputs[0].shape
    kh, kw = node.input(1).shape[2:]
    stride = _stride(node)
    params = {"stride": 1} if of.faults or stride == 1 else {"stride": 1, "input_dilation": stride}
    return _between_transposes(_row("conv", params, OC=ic, N=n, IC=oc, KH=kh, KW=kw, OH=height, OW=width))


def _first_input_gradient(node: Node) -> list[Row]:
    """Fault 1, from the same layer's weight gradient: every position at which gradient and kernel meet."""
    n, oc, *sizes = node.input(1).shape
    _, ic, *kernel = node.outputs[0].shape
    oh, ow = ((size - 1) * _stride(node) + k for size, k in zip(sizes, kernel, strict=True))
    row = _row("conv", {"stride": 1}, OC=ic, N=n, IC=oc, KH=kernel[0], KW=kernel[1], OH=oh, OW=ow)
    return _between_transposes(row)


def _weight_gradient(operator: Operator, of: _Of) -> list[Row]:
    node = operator.node
    (n, ic, *image), (_, oc, *gradient) = node.input(0).shape, node.input(1).shape
    kernel, stride, pads = node.outputs[0].shape[2:], _stride(node), node.ints("pads")
    is_first = node.input(0).name in of.inputs
    params = {"stride": 1}
    if of.faults:
        gradient = [(size - 1) * stride + 1 for size in gradient]
        whole = [size + 2 * pad - extent + 1 for size, pad, extent in zip(image, pads, gradient, strict=True)]
        kernel = kernel if is_first else tuple(whole)
    elif stride > 1:
        params["kernel_dilation"] = stride
    row = _row("conv", params, OC=oc, N=ic, IC=n, KH=gradient[0], KW=gradient[1], OH=kernel[0], OW=kernel[1])
    before = _first_input_gradient(node) if of.faults and is_first else []
    return [*before, *_between_transposes(row)]


# -- the head


def _gemm(operator: Operator, of: _Of) -> list[Row]:
    """P columns, N of the reduction, M rows."""
    node = operator.node
    m, n = node.input(0).shape
    name = "gemm" if operator.role is Role.FORWARD else "gemm_no_bias"
    return [_row(name, P=node.outputs[0].shape[1], N=n, M=m)]


def _gemm_weights(operator: Operator, of: _Of) -> list[Row]:
    """M input features, P output features: the operands change places where the weights are transposed."""
    first, second = operator.node.input(0).shape, operator.node.input(1).shape
    if of.nodes[operator.forward].int("transB", 0):
        first, second = second, first
    return [_row("gemm_no_bias", P=second[1], N=first[0], M=first[1])]


def _reduce_sum(operator: Operator, of: _Of) -> list[Row]:
    n, c = operator.node.input(0).shape
    return [_row("reduce_sum", N=n, C=of.padded(c, PADDED_CLASSES))]


def _update(operator: Operator, of: _Of) -> list[Row]:
    shape, forward = operator.node.input(0).shape, of.nodes[operator.forward]
    if len(shape) == 4:
        n, c, h, w = shape
        return [_row("sgd4d", N=n, C=of.padded(c, PADDED_CHANNELS), H=h, W=w)]
    if len(shape) == 2:
        c, n = shape if forward.int("transB", 0) else shape[::-1]
        return [_row("sgd2d", N=n, C=of.padded(c, PADDED_CLASSES))]
    return [_row("sgd1d", C=of.padded(shape[0], PADDED_CLASSES) if forward.op == "Gemm" else shape[0])]


# -- everything else


def _batch_norm(operator: Operator, of: _Of) -> list[Row]:
    n, c, h, w = operator.node.input(0).shape
    return [_row(op, C=c, N=n, H=h, W=w) for op in ("mean_var", "batch_norm")]


def _batch_norm_gradient(operator: Operator, of: _Of) -> list[Row]:
    n, c, h, w = operator.node.input(0).shape
    return [_row("batchnorm_grad_x_mu", C=c, N=n, H=h, W=w), *map(_row, BATCH_NORM_GRADIENT)]


def _elementwise(op: str) -> _Convert:
    return lambda operator, of: [_image(op, operator.node.outputs[0].shape)]


def _free(op: str) -> _Convert:
    return lambda operator, of: [_row(op)]


def _max_pool(op: str, result: int) -> _Convert:
    """result: which tensor has the size of the pool's result, an output (-1) or an input."""

    def convert(operator: Operator, of: _Of) -> list[Row]:
        node = operator.node
        n, c, oh, ow = (node.outputs[0] if result < 0 else node.input(result)).shape
        kh, kw = node.ints("kernel_shape")
        sx, sy = node.ints("strides", (1, 1))
        return [_row(op, {"sx": sx, "sy": sy}, N=n, C=c, KH=kh, KW=kw, OH=oh, OW=ow)]

    return convert


def _average_pool(op: str, backward: bool) -> _Convert:
    def convert(operator: Operator, of: _Of) -> list[Row]:
        ends = operator.node.input(0).shape, operator.node.outputs[0].shape
        (n, c, ih, iw), (_, _, oh, ow) = reversed(ends) if backward else ends
        if (oh, ow) != (1, 1):
            raise UnsupportedError(f"operator {operator.name}: SimDIT's graphs have global average pools only")
        return [_row(op, N=n, C=c, IH=ih, IW=iw, OH=oh, OW=ow)]

    return convert


_CONVERTERS: dict[tuple[Role | None, str], _Convert] = {
    (Role.FORWARD, "Conv"): _convolution,
    (Role.GRAD_INPUT, "Conv"): _input_gradient,
    (Role.GRAD_INPUT, "ConvTranspose"): _input_gradient,
    (None, "ConvWeightGrad"): _weight_gradient,
    (None, "BatchNormTraining"): _batch_norm,
    (None, "BatchNormGrad"): _batch_norm_gradient,
    (None, "Relu"): _elementwise("relu"),
    (None, "ReluGrad"): _elementwise("relu_grad"),
    (None, "Add"): _elementwise("elem_add"),
    (None, "Sum"): _elementwise("elem_add"),
    (None, "MaxPool"): _max_pool("max_pool", -1),
    (None, "MaxPoolGrad"): _max_pool("max_pool_grad", 0),
    (None, "AveragePool"): _average_pool("global_avg_pool", False),
    (None, "GlobalAveragePool"): _average_pool("global_avg_pool", False),
    (None, "AveragePoolGrad"): _average_pool("global_average_pool_grad", True),
    (None, "Reshape"): _free("coarse_flatten"),
    (None, "Flatten"): _free("coarse_flatten"),
    (None, "ViewGrad"): _free("flatten_grad"),
    (None, "Gemm"): _gemm,
    (None, "MatMulWeightGrad"): _gemm_weights,
    (None, "ReduceGrad"): _reduce_sum,
    (None, "CrossEntropyLoss"): _free("cross_entropy_loss"),
    (None, "CrossEntropyGrad"): _free("cross_entropy_loss_grad"),
    (None, "Sgd"): _update,
}
"""By role, where the role decides, and kind."""
