"""Geometry of convolutions and pools, from ONNX attributes."""

from __future__ import annotations

import math

from lowering.chip import Chip
from lowering.context import UnsupportedError
from lowering.ir import Node
from lowering.layout import Layout
from lowering.mapping import MatmulShape
from lowering.operators import Cost
from lowering.vector_layers import Identity, PoolLayer

Pair = tuple[int, int]


def convolution_shape(node: Node, chip: Chip, *, pack: bool = True, flatten: bool = True) -> MatmulShape:
    """What a Conv node (1-D or 2-D) computes.

    pack: let groups with few channels share array passes. flatten: treat a 1x1 convolution that moves pixel by pixel
    as the matrix product that it is.
    """
    weights = node.input(1).shape
    groups = node.int("group", 1)
    in_channels, out_channels = weights[1], weights[0] // groups
    kernel = _pair(weights[2:], 1, node)
    in_size, out_size = _image(node.input(0).shape, node), _image(node.outputs[0].shape, node)
    stride, dilation, pads = _window_attributes(node, kernel, in_size, out_size)
    images = node.input(0).shape[0]
    if flatten and kernel == (1, 1) and stride == (1, 1) and in_size == out_size and groups == 1:
        pixels = images * in_size[0] * in_size[1]
        return MatmulShape(1, 1, in_channels, out_channels, 1, pixels, 1, pixels)
    fits = min(chip.array_rows // in_channels, chip.array_cols // out_channels) >= 2
    return MatmulShape(
        images=images,
        groups=groups,
        in_channels=in_channels,
        out_channels=out_channels,
        in_rows=in_size[0],
        in_cols=in_size[1],
        out_rows=out_size[0],
        out_cols=out_size[1],
        kernel_rows=kernel[0],
        kernel_cols=kernel[1],
        stride=stride,
        dilation=dilation,
        pads=pads,
        diagonal=pack and groups > 1 and fits,
    )


def pool_layer(node: Node, x: Layout, y: Layout) -> PoolLayer:
    """What a pooling node computes; a global pool is one window as large as the image."""
    in_size, out_size = _image(node.input(0).shape, node), _image(node.outputs[0].shape, node)
    is_global = node.op.startswith("Global")
    kernel = in_size if is_global else _pair(node.ints("kernel_shape"), 1, node)
    stride, dilation, pads = ((1, 1), (1, 1), (0, 0))
    if not is_global:
        stride, dilation, pads = _window_attributes(node, kernel, in_size, out_size)
    average = "Average" in node.op
    per_output: Cost = {"mul": 1} if average else {}
    return PoolLayer(
        Identity(node.name, node.op),
        x,
        y,
        images=node.input(0).shape[0],
        in_size=in_size,
        out_size=out_size,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        pads=pads,
        per_input={"add": 1},
        per_output=per_output,
    )


def window_attributes(node: Node) -> tuple[Pair, Pair, Pair]:
    """Strides, dilations, and the pads at the top and at the left, of a Conv node."""
    sizes = _image(node.input(0).shape, node), _image(node.outputs[0].shape, node)
    return _window_attributes(node, _pair(node.input(1).shape[2:], 1, node), *sizes)


def _image(shape: tuple[int, ...], node: Node) -> Pair:
    """Rows and columns of a tensor in (images, channels, spatial dimensions) order."""
    return _pair(shape[2:], 1, node)


def _pair(sizes: tuple[int, ...], default: int, node: Node) -> Pair:
    """Two spatial sizes; a 1-D operator has one row."""
    if len(sizes) == 2:
        return sizes
    if len(sizes) == 1:
        return default, sizes[0]
    raise UnsupportedError(
        f"node {node.name}: {node.op} over {len(sizes)} spatial dimensions is not modelled; 1 and 2 are"
    )


def _window_attributes(node: Node, kernel: Pair, in_size: Pair, out_size: Pair) -> tuple[Pair, Pair, Pair]:
    """Strides, dilations, and the pads at the top and at the left."""
    spatial = len(node.input(0).shape) - 2
    stride = _pair(node.ints("strides", (1,) * spatial), 1, node)
    dilation = _pair(node.ints("dilations", (1,) * spatial), 1, node)
    automatic = node.text("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID"):
        pads = node.ints("pads", (0,) * (2 * spatial)) if automatic == "NOTSET" else (0,) * (2 * spatial)
        return stride, dilation, _pair(pads[:spatial], 0, node)
    total = [max(0, (out_size[i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - in_size[i]) for i in range(2)]
    rounded = math.ceil if automatic == "SAME_LOWER" else math.floor
    return stride, dilation, (rounded(total[0] / 2), rounded(total[1] / 2))
