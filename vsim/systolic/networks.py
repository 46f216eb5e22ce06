"""The networks of SimDIT's published runs as lists of layers: ResNet-18 and -50, inference and one training iteration.

The lists are SimDIT's, in its order and with what its graphs leave out or repeat (specs/systolic.md section 1.6): a
gradient is as large as the zero-dilated convolution that yields it, and what costs nothing is still a neighbour.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from hwconfigs.errors import UserError
from vsim.systolic.layers import Layer, MatrixLayer, VectorLayer
from vsim.systolic.operators import FREE_OPERATORS, OPERATORS

Entry = Layer | str
"""A layer, or the name of an operator that costs nothing."""

MATRIX_OPERATORS = ("conv", "conv_bias", "gemm", "gemm_no_bias")
FUSED_PAIRS = {
    "conv": {"relu", "elem_add", "mean_var", "sgd4d"},
    "gemm": {"sgd2d"},
}
"""Which neighbours SimDIT fuses: the output of the first stays on the chip as an operand of the second."""

_CLASSES = 1000
_PARAMETER_UNIT = 32
"""Channels of a weight update come in multiples of this."""
_NORM_GRAD_PARTS = (
    "inv_std",
    "xhat",
    "dbeta",
    "dgamma",
    "dgamma_mul_xhat",
    "gamma_inv_std",
    "scaled_gy",
    "dx_rhs",
    "dx",
)


def linked(entries: Sequence[Entry], *, fusion: bool) -> list[Layer]:
    """The layers of ``entries``, told what their neighbours are: who feeds a matrix layer, who is fused.

    An operator that costs nothing stands between the two where widths are concerned, and not where fusion is.
    """
    layers: list[Layer] = []
    for entry, follower in zip(entries, [*entries[1:], ""], strict=True):
        if isinstance(entry, VectorLayer):
            layers.append(replace(entry, feeds_matrix=isinstance(follower, MatrixLayer)))
        elif isinstance(entry, MatrixLayer):
            layers.append(entry)
    if not fusion:
        return layers
    pairs = [_fuses(first.operator, second.operator) for first, second in itertools.pairwise(layers)]
    return [
        replace(layer, fused=to_next if isinstance(layer, MatrixLayer) else from_last)
        for layer, from_last, to_next in zip(layers, [False, *pairs], [*pairs, False], strict=True)
    ]


def _fuses(producer: str, consumer: str) -> bool:
    return producer in MATRIX_OPERATORS and consumer in FUSED_PAIRS[producer.split("_")[0]]


def network(name: str, phase: str, *, batch: int, fusion: bool = False) -> list[Layer]:
    """Layers of a published network.

    ``name``: ResNet18 or ResNet50; ``phase``: Inference or Training; ``batch`` from 1. Raises `UserError` otherwise.
    """
    depths = {"ResNet18": 18, "ResNet50": 50}
    phases = {"Inference": _inference, "Training": _training}
    if name not in depths:
        raise UserError(f"network {name!r} is not known; valid: {', '.join(depths)}")
    if phase not in phases:
        raise UserError(f"phase {phase!r} is not known; valid: {', '.join(phases)}")
    return linked(phases[phase](depths[name], batch), fusion=fusion)


class _Conv(NamedTuple):
    """A forward convolution; ``size`` and ``in_size`` are sides of the square maps."""

    out_channels: int
    in_channels: int
    kernel: int
    stride: int
    size: int
    in_size: int


@dataclass(frozen=True)
class _Block:
    """A residual block: its convolutions one after the other, and the one on the shortcut."""

    path: tuple[_Conv, ...]
    projection: _Conv | None

    @property
    def last(self) -> _Conv:
        return self.path[-1]


_STEM = _Conv(64, 3, 7, 2, 112, 224)


def _blocks(depth: int) -> list[_Block]:
    counts, expansion = ((2, 2, 2, 2), 1) if depth == 18 else ((3, 4, 6, 3), 4)
    blocks: list[_Block] = []
    channels, size = 64, 56
    for stage, count in enumerate(counts):
        width = 64 << stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            out_size, out_channels = size // stride, width * expansion
            if expansion == 1:
                path = (
                    _Conv(width, channels, 3, stride, out_size, size),
                    _Conv(width, width, 3, 1, out_size, out_size),
                )
            else:
                path = (
                    _Conv(width, channels, 1, 1, size, size),
                    _Conv(width, width, 3, stride, out_size, size),
                    _Conv(out_channels, width, 1, 1, out_size, out_size),
                )
            changed = channels != out_channels or stride > 1
            projection = _Conv(out_channels, channels, 1, stride, out_size, size) if changed else None
            blocks.append(_Block(path, projection))
            channels, size = out_channels, out_size
    return blocks


def _inference(depth: int, batch: int) -> list[Entry]:
    blocks = _blocks(depth)

    def conv(shape: _Conv) -> list[Entry]:
        return [_conv_layer("conv_bias", shape, batch)]

    return [*_forward(blocks, batch, conv), "coarse_flatten", _gemm("gemm", _CLASSES, _features(blocks), batch)]


def _training(depth: int, batch: int) -> list[Entry]:
    blocks = _blocks(depth)

    def conv(shape: _Conv) -> list[Entry]:
        channels, size = shape.out_channels, shape.size
        return [
            _conv_layer("conv", shape, batch),
            _map("mean_var", channels, size, batch),
            _map("batch_norm", channels, size, batch),
        ]

    features = _features(blocks)
    last_size = blocks[-1].last.size
    padded_classes = _padded(_CLASSES)
    entries: list[Entry] = [
        *_forward(blocks, batch, conv),
        "coarse_flatten",
        _gemm("gemm", _CLASSES, features, batch),
        "cross_entropy_loss",
        "cross_entropy_loss_grad",
        _gemm("gemm_no_bias", features, _CLASSES, batch),
        _gemm("gemm_no_bias", _CLASSES, batch, features),
        VectorLayer("sgd2d", "sgd2d", 1, 1, padded_classes, features),
        VectorLayer("reduce_sum", "reduce_sum", 1, 1, padded_classes, batch),
        VectorLayer("sgd1d", "sgd1d", 1, 1, padded_classes, 1),
        "flatten_grad",
        VectorLayer("global_average_pool_grad", "global_average_pool_grad", 1, 1, features, batch, kernel=last_size),
    ]
    for block in reversed(blocks):
        entries.append(_map("relu_grad", block.last.out_channels, block.last.size, batch))
        if block.projection:
            entries += _gradients(block.projection, batch)
        for position in reversed(range(len(block.path))):
            entries += _gradients(block.path[position], batch)
            if position:
                before = block.path[position - 1]
                entries.append(_map("relu_grad", before.out_channels, before.size, batch))
        entries.append(_map("elem_add", block.path[0].in_channels, block.path[0].in_size, batch))
    entries.append(_max_pool("max_pool_grad", batch))
    entries.append(_map("relu_grad", _STEM.out_channels, _STEM.size, batch))
    return entries + _gradients(_STEM, batch)


def _forward(blocks: Sequence[_Block], batch: int, conv: Any) -> list[Entry]:
    """Convolutions (with what ``conv`` puts behind each), activations, residual additions and both poolings."""
    entries: list[Entry] = [
        *conv(_STEM),
        _map("relu", _STEM.out_channels, _STEM.size, batch),
        _max_pool("max_pool", batch),
    ]
    for block in blocks:
        for shape in block.path[:-1]:
            entries += [*conv(shape), _map("relu", shape.out_channels, shape.size, batch)]
        entries += conv(block.last)
        if block.projection:
            entries += conv(block.projection)
        entries.append(_map("elem_add", block.last.out_channels, block.last.size, batch))
        entries.append(_map("relu", block.last.out_channels, block.last.size, batch))
    size = blocks[-1].last.size
    pool = VectorLayer("global_avg_pool", "global_avg_pool", 1, 1, _features(blocks), batch, kernel=size)
    return [*entries, pool]


def _gradients(shape: _Conv, batch: int) -> list[Entry]:
    """Backward of a convolution and its normalisation, and the update of their parameters."""
    padding = shape.kernel // 2
    dilated = (shape.size - 1) * shape.stride + 1
    weights_size = shape.in_size + 2 * padding - dilated + 1
    if shape is _STEM:
        # The gradient of the padded picture, 2 x 111 + 7 wide, and a weight gradient that is cropped.
        inputs, weights_size = dilated + shape.kernel - 1, shape.kernel
    else:
        inputs = shape.in_size
    parameters = VectorLayer("sgd1d", "sgd1d", 1, 1, shape.out_channels, 1)
    return [
        _map("batchnorm_grad_x_mu", shape.out_channels, shape.size, batch),
        *(f"batchnorm_grad_{part}" for part in _NORM_GRAD_PARTS),
        parameters,
        parameters,
        "tensor_transpose4d",
        replace(
            _square_conv(shape.in_channels, shape.out_channels, shape.kernel, inputs, batch),
            useful_input=1 / shape.stride**2,
        ),
        "tensor_transpose4d",
        "tensor_transpose4d",
        replace(
            _square_conv(shape.out_channels, batch, dilated, weights_size, shape.in_channels),
            useful_kernel=(shape.size / dilated) ** 2,
        ),
        "tensor_transpose4d",
        VectorLayer("sgd4d", "sgd4d", shape.kernel, shape.kernel, _padded(shape.in_channels), shape.out_channels),
    ]


def _features(blocks: Sequence[_Block]) -> int:
    return blocks[-1].last.out_channels


def _padded(channels: int) -> int:
    return -(-channels // _PARAMETER_UNIT) * _PARAMETER_UNIT


def _conv_layer(operator: str, shape: _Conv, batch: int) -> MatrixLayer:
    return MatrixLayer(
        operator,
        operator,
        shape.size,
        shape.size,
        shape.out_channels,
        shape.in_channels,
        shape.kernel,
        shape.stride,
        batch,
    )


def _square_conv(out_channels: int, in_channels: int, kernel: int, size: int, batch: int) -> MatrixLayer:
    return MatrixLayer("conv", "conv", size, size, out_channels, in_channels, kernel, 1, batch)


def _gemm(operator: str, out_features: int, in_features: int, rows: int) -> MatrixLayer:
    return MatrixLayer(operator, operator, 1, 1, out_features, in_features, 1, 1, rows)


def _map(operator: str, channels: int, size: int, batch: int) -> VectorLayer:
    return VectorLayer(operator, operator, size, size, channels, batch)


def _max_pool(operator: str, batch: int) -> VectorLayer:
    return VectorLayer(operator, operator, 56, 56, 64, batch, kernel=3, stride=2)


def from_graph(entries: Iterable[Mapping[str, Any]], *, batch: int, fusion: bool = False) -> list[Layer]:
    """Layers of a graph in SimDIT's operators: ``{"op": ..., "dims": {...}, "params": {...}}`` each, at batch 1.

    Whatever carries the batch is 1 in the graph and becomes ``batch``. Raises `UserError` that names the entry.
    """
    return linked([_graph_entry(entry, index, batch) for index, entry in enumerate(entries)], fusion=fusion)


def _graph_entry(entry: Mapping[str, Any], index: int, batch: int) -> Entry:
    try:
        operator, dims, params = str(entry["op"]), entry["dims"], entry.get("params", {})
        if operator in FREE_OPERATORS:
            return operator
        if operator in MATRIX_OPERATORS:
            return _graph_matrix(operator, dims, params, batch)
        if operator in OPERATORS:
            return _graph_vector(operator, dims, params, batch)
    except KeyError as error:
        raise UserError(f"entry {index} of the graph: key {error} is missing") from None
    raise UserError(f"entry {index} of the graph: operator {operator!r} is unknown")


def _graph_matrix(operator: str, dims: Mapping[str, int], params: Mapping[str, int], batch: int) -> MatrixLayer:
    if operator.startswith("gemm"):
        # The gradient of the weights sums over the batch: there it is the inner dimension.
        inner, rows = (dims["N"], batch) if dims["M"] == 1 else (batch, dims["M"])
        return _gemm(operator, dims["P"], inner, rows)
    of_weights = dims["IC"] == 1 and dims["N"] != 1
    in_channels, images = (batch, dims["N"]) if of_weights else (dims["IC"], batch)
    return MatrixLayer(
        operator, operator, dims["OW"], dims["OH"], dims["OC"], in_channels, dims["KW"], params["stride"], images
    )


def _graph_vector(operator: str, dims: Mapping[str, int], params: Mapping[str, int], batch: int) -> VectorLayer:
    if operator.startswith("sgd"):
        return VectorLayer(operator, operator, dims.get("W", 1), dims.get("H", 1), dims["C"], dims.get("N", 1))
    width, height = dims.get("OW", dims.get("W", 1)), dims.get("OH", dims.get("H", 1))
    kernel = dims.get("KW", dims.get("IW", 1))
    stride = params.get("sx", 1)
    return VectorLayer(operator, operator, width, height, dims["C"], batch, kernel=kernel, stride=stride)
