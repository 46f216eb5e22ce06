"""Shapes of results as ONNXim computes them (`onnxim.md` section 11): images are channels-last, unknown operators
have the shape of their first input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from hwconfigs.errors import UserError

Shape = tuple[int, ...]
CONV_OPS = frozenset({"Conv", "FusedConv"})
GEMM_OPS = frozenset({"Gemm", "FusedGemm"})
MATMUL_OPS = frozenset({"MatMul"})
ROW_OPS = frozenset({"SkipLayerNormalization", "BiasGelu", "FastGelu"})


SINGLE_RESULT_OPS = (
    CONV_OPS | GEMM_OPS | MATMUL_OPS | {"Attention", "BiasGelu", "FastGelu", "Cast", "Flatten", "MaxPool"}
) | {"AveragePool", "AdaptiveAveragePool", "GlobalAveragePool"}
"""Operators of which the original knows the first result only, and places no others."""


def output_shape(name: str, op: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    """Shape of every result of a node; name: of the node, for messages.
    Raises UserError for shapes and attributes that the original does not take.
    """
    rule = _RULES.get(op)
    return inputs[0] if rule is None else rule(f"node {name} ({op})", attributes, inputs)


def _matrix_product(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape], transposed: bool) -> Shape:
    _expect(node, len(inputs) >= 2, "two operands", f"{len(inputs)}")
    first, weight = inputs[:2]
    if len(weight) != 2 or len(first) not in (2, 3):
        raise UserError(
            f"{node}: --compat onnxim multiplies [N,K] or [B,S,K] by a matrix, not {list(first)} by {list(weight)}"
        )
    depth = first[-1]
    if depth not in weight:
        raise UserError(f"{node}: shapes {list(first)} and {list(weight)} do not match")
    columns = weight[1] if weight[0] == depth and not transposed else prod(weight) // depth
    return (*first[:-1], columns)


def _matmul(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    return _matrix_product(node, attributes, inputs, transposed=False)


def _gemm(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    return _matrix_product(node, attributes, inputs, transposed=True)


def _conv(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    _expect(node, len(inputs) >= 2, "an image and weights", f"{len(inputs)} operands")
    image, weight = inputs[:2]
    _expect(node, len(image) == len(weight) == 4, "a 4-D image and 4-D weights", f"{list(image)} and {list(weight)}")
    if attributes.get("group", 1) != 1:
        raise UserError(f"{node}: group = {attributes['group']}; ONNXim cannot run grouped convolutions")
    if "pool" in attributes:
        raise UserError(f"{node}: --compat onnxim does not cover convolutions with fused pooling")
    _expect(node, image[3] == weight[1], f"an image of {weight[1]} channels, channels last", f"{list(image)}")
    strides, dilations, pads = (tuple(attributes.get(key, default)) for key, default in _WINDOW.items())
    size = [
        (image[1 + axis] + pads[axis] + pads[axis + 2] - dilations[axis] * (weight[2 + axis] - 1) - 1) // strides[axis]
        + 1
        for axis in range(2)
    ]
    _expect(node, min(size) > 0, "a kernel inside the padded image", f"{list(weight[2:])} on {list(image[1:3])}")
    return (image[0], size[0], size[1], weight[0])


_WINDOW = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}


def _pool(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    """Rounded up, so that a window that leaves the image gives a result too."""
    image = _image(node, inputs)
    kernel = tuple(attributes.get("kernel_shape", ()))
    _expect(node, len(kernel) == 2, "a 2-D kernel_shape", f"{list(kernel)}")
    strides, _, pads = (tuple(attributes.get(key, default)) for key, default in _WINDOW.items())
    rows, columns = (
        -(-(image[1 + axis] + pads[axis] + pads[axis + 2] - (kernel[axis] - 1)) // strides[axis]) for axis in range(2)
    )
    return (image[0], rows, columns, image[3])


def _average_pool(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    """Padding is ignored."""
    image = _image(node, inputs)
    kernel, strides = tuple(attributes.get("kernel_shape", ())), tuple(attributes.get("strides", (1, 1)))
    _expect(node, len(kernel) == 2, "a 2-D kernel_shape", f"{list(kernel)}")
    rows, columns = ((image[1 + axis] - kernel[axis]) // strides[axis] + 1 for axis in range(2))
    return (image[0], rows, columns, image[3])


def _global_pool(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    image = _image(node, inputs)
    return (image[0], 1, 1, image[3])


def _image(node: str, inputs: Sequence[Shape]) -> Shape:
    _expect(node, len(inputs[0]) == 4, "a 4-D image", f"{list(inputs[0])}")
    return inputs[0]


def _flatten(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    axis = attributes.get("axis", 1)
    return (prod(inputs[0][:axis]), prod(inputs[0][axis:]))


def _embed(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    """The third input that is given stands for the word embedding, whichever it is."""
    good = len(inputs) > 2 and len(inputs[0]) == 2 and len(inputs[2]) == 2
    _expect(node, good, "ids [B,S] and, as third input, an embedding [V,D]", f"{[list(shape) for shape in inputs]}")
    return (*inputs[0], inputs[2][1])


def _attention(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    good = len(inputs) >= 3 and len(inputs[0]) == 3 and len(inputs[1]) == 2 and inputs[1][0] == inputs[0][2]
    _expect(node, good, "an input [B,S,D], a weight [D,3D] and a bias", f"{[list(shape) for shape in inputs]}")
    heads = attributes.get("num_heads", 0)
    _expect(node, heads > 0 and inputs[1][0] % heads == 0, "num_heads that divides D", f"{heads}")
    return (*inputs[0][:2], inputs[1][0])


def _rows(node: str, attributes: Mapping[str, Any], inputs: Sequence[Shape]) -> Shape:
    _expect(
        node, len(inputs) >= 2 and len(inputs[0]) == 3, "an input [B,S,D] and a second operand", f"{list(inputs[0])}"
    )
    return inputs[0]


def _expect(node: str, good: bool, wanted: str, given: str) -> None:
    if not good:
        raise UserError(f"{node}: --compat onnxim expects {wanted}, not {given}")


_RULES: Mapping[str, Callable[[str, Mapping[str, Any], Sequence[Shape]], Shape]] = {
    **dict.fromkeys(MATMUL_OPS, _matmul),
    **dict.fromkeys(GEMM_OPS, _gemm),
    **dict.fromkeys(CONV_OPS, _conv),
    **dict.fromkeys(ROW_OPS, _rows),
    "MaxPool": _pool,
    "AveragePool": _average_pool,
    "AdaptiveAveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "Flatten": _flatten,
    "EmbedLayerNormalization": _embed,
    "Attention": _attention,
}
