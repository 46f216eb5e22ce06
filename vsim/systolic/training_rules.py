"""The operators that only training has (`lowering.training.graph`), as layers of the closed-form model.

A gradient of weights is a convolution of the input with the gradient of the output as its kernel, samples in the place
of channels (spec systolic.md section 1.6), which is not multiplied by the zeros that a stride inserts; of a 1x1 kernel,
or where a map or kernel is no square, a matrix product over all pixels, whose windows are loaded apart. Batch
normalisation has SimDIT's own costs. Approximate, as everywhere in the bridge: normalisations, softmax and losses are a
fixed number of operations for each element, those of `lowering.training.layers`; the gradient of a pool that averages
reads nothing; the gradient of a view is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from lowering.ir import Node, Tensor
from lowering.operators import Cost
from lowering.training.update import COSTS
from vsim.systolic.bridge_layers import product, sides, vector_layer
from vsim.systolic.layers import Layer, MatrixLayer, VectorLayer

Rule = Callable[[Node], list[Layer]]


def _conv_weight_grad(node: Node) -> list[Layer]:
    x, dy, dw = node.input(0), node.input(1), node.outputs[0]
    groups, stride = node.int("group", 1), node.ints("strides", (1,))[-1]
    out_channels, in_channels, *kernel = dw.shape
    images, maps = x.shape[0], dy.shape[2:]
    out_channels //= groups
    if len(kernel) != 2 or kernel[0] != kernel[1] or maps[0] != maps[1] or kernel[0] <= stride:
        rows, pixels = in_channels * math.prod(kernel), images * math.prod(maps)
        gradient = product(node.name, rows, pixels, out_channels, groups)
        return [replace(gradient, operator="gemm (conv weight gradient)")]
    side = (maps[0] - 1) * stride + 1
    layer = MatrixLayer(
        node.name,
        "conv (weight gradient)",
        kernel[1],
        kernel[0],
        out_channels,
        images,
        side,
        1,
        in_channels,
        groups=groups,
        useful_kernel=(maps[0] / side) ** 2,
    )
    return [layer]


def _matmul_weight_grad(node: Node) -> list[Layer]:
    x, dw = node.input(0), node.outputs[0]
    products = math.prod(dw.shape[:-2])
    rows = x.elements // x.shape[-1] // products
    return [product(node.name, dw.shape[-2], rows, dw.shape[-1], products)]


def _channels(node: Node, operator: str, x: Tensor, suffix: str = "") -> Layer:
    spatial = x.shape[2:]
    width, height = sides(spatial) if spatial else (1, 1)
    return VectorLayer(node.name + suffix, operator, width, height, x.shape[1], x.shape[0])


def _batch_norm(node: Node) -> list[Layer]:
    x = node.input(0)
    return [_channels(node, "mean_var", x, " statistics"), _channels(node, "batch_norm", x)]


def _batch_norm_grad(node: Node) -> list[Layer]:
    return [_channels(node, "batchnorm_grad_x_mu", node.input(1))]


def _max_pool_grad(node: Node) -> list[Layer]:
    dy = node.input(0)
    width, height = sides(dy.shape[2:])
    kernel, stride = max(node.ints("kernel_shape")), node.ints("strides", (1,))[0]
    return [VectorLayer(node.name, "max_pool_grad", width, height, dy.shape[1], dy.shape[0], kernel, stride)]


def _of_result(node: Node, *, cost: Cost, loads: int) -> list[Layer]:
    return [vector_layer(node.name, node.op, node.outputs[0], cost, loads)]


def _of_input(node: Node, *, cost: Cost, loads: int) -> list[Layer]:
    return [vector_layer(node.name, node.op, node.input(0), cost, loads, stores=0)]


def _layer_norm_grad(node: Node) -> list[Layer]:
    cost: Cost = {"mul": 4, "mac": 1} if node.int("simplified", 0) else {"add": 4, "mul": 5, "mac": 1}
    return _of_result(node, cost=cost, loads=2)


def _reduce_grad(node: Node) -> list[Layer]:
    other = node.optional_input(1)
    if other is not None and other.shape == node.input(0).shape:
        return _of_input(node, cost={"add": 1, "mul": 1}, loads=2)
    return _of_input(node, cost={"add": 1}, loads=1)


def _update(node: Node) -> list[Layer]:
    parameter, states = node.input(0), len(node.inputs) - 2
    # Over the lanes lie output channels, of which there are many, not the image's three.
    outputs = parameter.shape[0] if parameter.shape else 1
    elements = Tensor(parameter.name, (parameter.elements // outputs, outputs))
    return [vector_layer(node.name, node.op, elements, COSTS[node.op], 2 + states, stores=1 + states)]


def _nothing(node: Node) -> list[Layer]:
    return []


TRAINING_RULES: dict[str, Rule] = {
    "ConvWeightGrad": _conv_weight_grad,
    "MatMulWeightGrad": _matmul_weight_grad,
    "BatchNormTraining": _batch_norm,
    "BatchNormGrad": _batch_norm_grad,
    "LayerNormGrad": _layer_norm_grad,
    "LayerNormWeightGrad": partial(_of_input, cost={"add": 3, "mul": 2}, loads=2),
    "SoftmaxGrad": partial(_of_result, cost={"add": 2, "mul": 2}, loads=2),
    "ReduceGrad": _reduce_grad,
    "CrossEntropyLoss": partial(_of_input, cost={"add": 3, "exp": 1}, loads=1),
    "CrossEntropyGrad": partial(_of_result, cost={"add": 2, "exp": 1, "mul": 1}, loads=1),
    "MeanSquareLoss": partial(_of_input, cost={"add": 2, "mul": 1}, loads=2),
    "MeanSquareGrad": partial(_of_result, cost={"add": 1, "mul": 1}, loads=2),
    "MaxPoolGrad": _max_pool_grad,
    "AveragePoolGrad": partial(_of_result, cost={"mul": 1}, loads=0),
    "PReluGrad": partial(_of_result, cost={"add": 1, "mul": 1}, loads=2),
    "ExpandGrad": partial(_of_result, cost={}, loads=0),
    "SliceGrad": partial(_of_result, cost={}, loads=1),
    "ResizeGrad": partial(_of_result, cost={"add": 1}, loads=1),
    "GatherGrad": partial(_of_input, cost={"add": 1}, loads=2),
    "ViewGrad": _nothing,
    **dict.fromkeys(COSTS, _update),
}
"""By kind of operator."""
