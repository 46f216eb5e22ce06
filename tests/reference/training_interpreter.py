"""Runs a training graph with numbers: every operator as its definition in `lowering.training.graph` says.

Written for the tests, from ONNX's definitions and the equations of the gradients; it shares no code with lowering. The
forward operators are a differentiable function, so that `jax.vjp` of them says what the backward operators must give.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lowering.ir import Node, Tensor
from lowering.training.graph import Operator

Values = dict[str, Array]
Rule = Callable[[Node, Sequence[Array]], Sequence[Array] | Array]

EPSILON = 1e-5


def run(operators: Sequence[Operator], values: Mapping[str, Array]) -> Values:
    """All operators in order; `values`: inputs and constants by name."""
    known = dict(values)
    for operator in operators:
        node = operator.node
        given = [read(known, tensor) if tensor is not None else jnp.zeros(0) for tensor in node.inputs]
        found = RULES[node.op](node, given)
        results = found if isinstance(found, tuple | list) else (found,)
        for tensor, value in zip(node.outputs, results, strict=False):
            assert value.shape == tensor.shape, f"{node.name} ({node.op}): {value.shape}, the graph says {tensor.shape}"
            known[tensor.name] = value
    return known


def read(known: Mapping[str, Array], tensor: Tensor) -> Array:
    """A tensor's value; "(turned)" weights are those of a convolution as its input gradient reads them."""
    if tensor.name in known:
        return known[tensor.name]
    if tensor.values is not None:
        kind = np.int32 if tensor.integer else np.float32
        return jnp.asarray(np.array(tensor.values, kind).reshape(tensor.shape))
    if tensor.name.endswith(" (turned)"):
        weights = known[tensor.name.removesuffix(" (turned)")]
        groups = tensor.shape[0] // weights.shape[1]
        split = weights.reshape(groups, -1, *weights.shape[1:])
        return jnp.flip(jnp.swapaxes(split, 1, 2).reshape(tensor.shape), tuple(range(2, weights.ndim)))
    raise KeyError(tensor.name)


# -- convolutions


def _window(node: Node, spatial: int) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]:
    ones = (1,) * spatial
    pads = node.ints("pads", (0,) * 2 * spatial)
    both = pads if len(pads) == 2 * spatial else (*pads, *pads)
    return (
        node.ints("strides", ones),
        node.ints("dilations", ones),
        list(zip(both[:spatial], both[spatial:], strict=True)),
    )


def _conv(node: Node, given: Sequence[Array]) -> Array:
    x, weights = given[0], given[1]
    stride, dilation, pads = _window(node, x.ndim - 2)
    y = lax.conv_general_dilated(
        x, weights, stride, pads, rhs_dilation=dilation, feature_group_count=node.int("group", 1)
    )
    return y if len(given) < 3 else y + given[2].reshape(1, -1, *(1,) * (x.ndim - 2))


def _conv_transpose(node: Node, given: Sequence[Array]) -> Array:
    """The convolution of the input, dilated by the stride, with the turned kernel, cut to the result's size."""
    x, weights = given[0], given[1]
    spatial, groups = x.ndim - 2, node.int("group", 1)
    stride, dilation, pads = _window(node, spatial)
    split = weights.reshape(groups, -1, *weights.shape[1:])
    turned = jnp.flip(jnp.swapaxes(split, 1, 2), tuple(range(3, split.ndim)))
    turned = turned.reshape(-1, weights.shape[0] // groups, *weights.shape[2:])
    extents = [d * (k - 1) for d, k in zip(dilation, weights.shape[2:], strict=True)]
    sizes = zip(node.outputs[0].shape[2:], x.shape[2:], stride, extents, pads, strict=True)
    padding = [(e - pad[0], full - (n - 1) * s - 1 + pad[0]) for full, n, s, e, pad in sizes]
    y = lax.conv_general_dilated(
        x, turned, (1,) * spatial, padding, lhs_dilation=stride, rhs_dilation=dilation, feature_group_count=groups
    )
    return y if len(given) < 3 else y + given[2].reshape(1, -1, *(1,) * spatial)


def _conv_weight_grad(node: Node, given: Sequence[Array]) -> Array:
    """For every kernel position: the inputs that it sees, times the gradients, summed over images and pixels."""
    x, dy = map(np.asarray, given)
    spatial, groups, target = x.ndim - 2, node.int("group", 1), node.outputs[0].shape
    stride, dilation, _ = _window(node, spatial)
    stride, dilation, pads = stride[-spatial:], dilation[-spatial:], node.ints("pads")[-spatial:]
    room = max(target[2:]) * max(dilation)
    padded = np.pad(x, ((0, 0), (0, 0), *((pad, room) for pad in pads)))
    result = np.zeros(target, np.float32)
    gradients = dy.reshape(x.shape[0], groups, target[0] // groups, -1)
    for position in np.ndindex(*target[2:]):
        seen = tuple(
            slice(k * d, k * d + (size - 1) * s + 1, s)
            for k, d, size, s in zip(position, dilation, dy.shape[2:], stride, strict=True)
        )
        patch = padded[(slice(None), slice(None), *seen)].reshape(x.shape[0], groups, target[1], -1)
        part = np.einsum("ngcp,ngop->goc", patch, gradients)
        result[(slice(None), slice(None), *position)] = part.reshape(target[:2])
    return jnp.asarray(result)


# -- products


def _matmul(node: Node, given: Sequence[Array]) -> Array:
    right = jnp.swapaxes(given[1], -1, -2) if node.int("right_transposed", 0) else given[1]
    return given[0] @ right


def _gemm(node: Node, given: Sequence[Array]) -> Array:
    y = given[0] @ (given[1].T if node.int("transB", 0) else given[1])
    return y if len(given) < 3 else y + given[2]


def _matmul_weight_grad(node: Node, given: Sequence[Array]) -> Array:
    x, dy = given
    if len(node.outputs[0].shape) == 2:
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return jnp.swapaxes(x, -1, -2) @ dy


# -- normalisations


def _per_channel(x: Array, value: Array) -> Array:
    return value.reshape(1, -1, *(1,) * (x.ndim - 2))


def _batch_norm(node: Node, given: Sequence[Array]) -> Sequence[Array]:
    x, scale, shift, running_mean, running_variance = given
    axes = (0, *range(2, x.ndim))
    mean, variance = x.mean(axes), x.var(axes)
    inverse = 1 / jnp.sqrt(variance + EPSILON)
    y = (x - _per_channel(x, mean)) * _per_channel(x, inverse * scale) + _per_channel(x, shift)
    return y, mean, inverse, 0.9 * running_mean + 0.1 * mean, 0.9 * running_variance + 0.1 * variance


def _batch_norm_again(node: Node, given: Sequence[Array]) -> Array:
    x, scale, shift, mean, inverse = given
    return (x - _per_channel(x, mean)) * _per_channel(x, inverse * scale) + _per_channel(x, shift)


def _batch_norm_grad(node: Node, given: Sequence[Array]) -> Sequence[Array]:
    dy, x, scale, mean, inverse = given
    axes = (0, *range(2, x.ndim))
    hat = (x - _per_channel(x, mean)) * _per_channel(x, inverse)
    shift, product = dy.sum(axes), (dy * hat).sum(axes)
    count = x.size // x.shape[1]
    dx = dy - _per_channel(x, shift) / count - hat * _per_channel(x, product) / count
    return dx * _per_channel(x, scale * inverse), product, shift


def _layer_norm(node: Node, given: Sequence[Array]) -> Array:
    y = _normalised(given[0], node.int("axis", -1), node.op != "LayerNormalization") * given[1]
    return y if len(given) < 3 else y + given[2]


def _normalised(x: Array, axis: int, simplified: bool) -> Array:
    axes = tuple(range(axis % x.ndim, x.ndim))
    centred = x if simplified else x - x.mean(axes, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(axes, keepdims=True) + EPSILON)


def _layer_norm_grad(node: Node, given: Sequence[Array]) -> Array:
    dy, x, scale = given
    simplified = bool(node.int("simplified", 0))
    axes = tuple(range(node.int("axis", -1), x.ndim))
    hat, g = _normalised(x, axes[0], simplified), dy * scale
    centred = x if simplified else x - x.mean(axes, keepdims=True)
    inverse = 1 / jnp.sqrt((centred**2).mean(axes, keepdims=True) + EPSILON)
    mean = 0.0 if simplified else g.mean(axes, keepdims=True)
    return inverse * (g - mean - hat * (g * hat).mean(axes, keepdims=True))


def _layer_norm_weight_grad(node: Node, given: Sequence[Array]) -> Sequence[Array]:
    dy, x = given
    axis = node.int("axis", -1)
    simplified = len(node.outputs) == 1
    axes = tuple(range(axis))
    return (dy * _normalised(x, axis, simplified)).sum(axes), dy.sum(axes)


def _softmax_grad(node: Node, given: Sequence[Array]) -> Array:
    dy, y = given
    return y * (dy - (dy * y).sum(node.ints("axes"), keepdims=True))


def _lrn_sums(node: Node, terms: Array, *, turned: bool = False) -> Array:
    """Sums of the terms of each channel's window; turned: of the channels in whose windows each channel lies."""
    size = node.int("size", 1)
    before = (size - 1) // 2
    reach = (size - 1 - before, before) if turned else (before, size - 1 - before)
    none = [(0, 0)] * (terms.ndim - 2)
    return lax.reduce_window(
        terms, 0.0, lax.add, (1, size, *(1,) * (terms.ndim - 2)), (1,) * terms.ndim, [(0, 0), reach, *none]
    )


def _lrn_base(node: Node, x: Array) -> Array:
    return node.number("bias", 1.0) + node.number("alpha", 1e-4) / node.int("size", 1) * _lrn_sums(node, x * x)


def _lrn(node: Node, given: Sequence[Array]) -> Array:
    (x,) = given
    return x / _lrn_base(node, x) ** node.number("beta", 0.75)


def _lrn_grad(node: Node, given: Sequence[Array]) -> Array:
    """Each y changes with its own x, and through the sums with every x of its window."""
    dy, x, y = given
    alpha, beta, base = node.number("alpha", 1e-4), node.number("beta", 0.75), _lrn_base(node, x)
    through_sums = _lrn_sums(node, dy * y / base, turned=True)
    return dy / base**beta - 2 * alpha * beta / node.int("size", 1) * x * through_sums


# -- pools


def _pool_pads(node: Node) -> list[tuple[int, int]]:
    pads = node.ints("pads", (0, 0, 0, 0))
    return [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]


def _max_pool(node: Node, given: Sequence[Array]) -> Array:
    (x,) = given
    sizes = (1, 1, *node.ints("kernel_shape")), (1, 1, *node.ints("strides", (1, 1)))
    return lax.reduce_window(x, -jnp.inf, lax.max, *sizes, _pool_pads(node))


def _average_pool(node: Node, given: Sequence[Array]) -> Array:
    (x,) = given
    kernel = node.ints("kernel_shape", x.shape[2:])
    sizes = (1, 1, *kernel), (1, 1, *node.ints("strides", (1, 1)))
    return lax.reduce_window(x, 0.0, lax.add, *sizes, _pool_pads(node)) / math.prod(kernel)


def _pool_grad(forward: Callable[[Node, Sequence[Array]], Array]) -> Rule:
    """The definition: the transpose of the pool's derivative at x (of an average: anywhere)."""

    def rule(node: Node, given: Sequence[Array]) -> Array:
        x = given[1] if len(given) > 1 else jnp.zeros(node.outputs[0].shape)
        (dx,) = jax.vjp(lambda value: forward(node, (value,)), x)[1](given[0])
        return dx

    return rule


# -- elementwise, data movement


def _gelu_slope(x: Array) -> Array:
    density = jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return (1 + lax.erf(x / math.sqrt(2))) / 2 + x * density


def _swish_slope(x: Array) -> Array:
    s = jax.nn.sigmoid(x)
    return s + x * s * (1 - s)


FORWARD: dict[str, Callable[[Array], Array]] = {
    "Relu": jax.nn.relu,
    "Sigmoid": jax.nn.sigmoid,
    "Tanh": jnp.tanh,
    "Gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "Swish": jax.nn.silu,
    "Exp": jnp.exp,
    "Sqrt": jnp.sqrt,
    "Neg": jnp.negative,
    "Log": jnp.log,
    "Reciprocal": lambda x: 1 / x,
    "Erf": lax.erf,
    "Softplus": jax.nn.softplus,
}

SLOPES: dict[str, Callable[[Array], Array]] = {
    "Relu": lambda y: (y > 0).astype(y.dtype),
    "Sigmoid": lambda y: y * (1 - y),
    "Tanh": lambda y: 1 - y * y,
    "Gelu": _gelu_slope,
    "Swish": _swish_slope,
    "Exp": lambda y: y,
    "Sqrt": lambda y: 0.5 / y,
    "Log": lambda x: 1 / x,
    "Reciprocal": lambda y: -y * y,
    "Erf": lambda x: 2 / math.sqrt(math.pi) * jnp.exp(-x * x),
    "Softplus": jax.nn.sigmoid,
}
"""The derivative as a function of what the gradient's second operand is."""


def _unary(op: str) -> Rule:
    return lambda node, given: FORWARD[op](given[0])


def _unary_grad(op: str) -> Rule:
    return lambda node, given: given[0] * SLOPES[op](given[1])


def _reduce_grad(node: Node, given: Sequence[Array]) -> Array:
    product = given[0] if len(given) == 1 else given[0] * given[1]
    return product.sum(node.ints("axes")).reshape(node.outputs[0].shape)


def _expand_grad(node: Node, given: Sequence[Array]) -> Array:
    target = node.outputs[0].shape
    scale = given[0].size / math.prod(target)
    return jnp.broadcast_to(given[0].reshape(_with_ones(given[0].shape, target)), target) * scale


def _with_ones(shape: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == len(target) else (*shape, *(1,) * (len(target) - len(shape)))


def _split(node: Node, given: Sequence[Array]) -> Sequence[Array]:
    axis = node.int("axis", 0)
    edges = np.cumsum([tensor.shape[axis] for tensor in node.outputs])[:-1]
    return jnp.split(given[0], edges.tolist(), axis)


def _slice_grad(node: Node, given: Sequence[Array]) -> Array:
    """Slices of the tests begin at the first element."""
    pads = [(0, full - size) for size, full in zip(given[0].shape, node.outputs[0].shape, strict=True)]
    return jnp.pad(given[0], pads)


def _slice(node: Node, given: Sequence[Array]) -> Array:
    return given[0][tuple(slice(size) for size in node.outputs[0].shape)]


def _samples(node: Node, old: int, new: int) -> list[list[tuple[int, float]]]:
    """Of each of `new` results along an axis of `old` elements: (element, weight) of its samples."""
    transform = node.text("coordinate_transformation_mode", "half_pixel")
    samples = []
    for place in range(new):
        x = {
            "half_pixel": (place + 0.5) * old / new - 0.5,
            "asymmetric": place * old / new,
            "align_corners": place * (old - 1) / max(1, new - 1),
        }[transform]
        if node.text("mode", "nearest") == "nearest":
            rounded = {"round_prefer_floor": math.ceil(x - 0.5), "floor": math.floor(x)}
            parts = [(rounded[node.text("nearest_mode", "round_prefer_floor")], 1.0)]
        else:
            parts = [(math.floor(x), 1 - x % 1), (math.floor(x) + 1, x % 1)]
        samples.append([(min(max(index, 0), old - 1), weight) for index, weight in parts])
    return samples


def _resize(node: Node, given: Sequence[Array]) -> Array:
    """Axis by axis, a weighted sum of samples."""
    y = given[0]
    for axis, new in enumerate(node.outputs[0].shape):
        rows = [
            sum(weight * jnp.take(y, index, axis) for index, weight in parts)
            for parts in _samples(node, y.shape[axis], new)
        ]
        y = jnp.stack([jnp.asarray(row) for row in rows], axis) if new != y.shape[axis] else y
    return y


def _resize_grad(node: Node, given: Sequence[Array]) -> Array:
    """Every result gives each of its samples its weight's part of the gradient."""
    dy, target = np.asarray(given[0]), node.outputs[0].shape
    axes = [
        _samples(node, old, new) if old != new else [[(index, 1.0)] for index in range(new)]
        for old, new in zip(target, dy.shape, strict=True)
    ]
    dx = np.zeros(target, np.float32)
    for place in np.ndindex(*dy.shape):
        for parts in itertools.product(*(samples[index] for samples, index in zip(axes, place, strict=True))):
            dx[tuple(index for index, _ in parts)] += dy[place] * math.prod(weight for _, weight in parts)
    return jnp.asarray(dx)


def _rotary(node: Node, given: Sequence[Array]) -> Array:
    """Halves (x, y) of a head as x + iy times cos + i sin; inverse: times cos - i sin. Caches of (batch, row, half)."""
    x, cos, sin = given[:3]
    sin = -sin if node.int("inverse", 0) else sin
    heads = _heads_first(x, node.int("num_heads", 0))
    cos, sin = cos[:, None], sin[:, None]
    width = 2 * cos.shape[-1]
    left, right, rest = heads[..., : width // 2], heads[..., width // 2 : width], heads[..., width:]
    turned = jnp.concatenate([cos * left - sin * right, sin * left + cos * right, rest], -1)
    return turned if x.ndim == 4 else jnp.swapaxes(turned, 1, 2).reshape(x.shape)


def _prelu_grad(node: Node, given: Sequence[Array]) -> Array:
    dy, x, slopes = given
    return jnp.where(x > 0, dy, dy * slopes)


def _leaky_relu(node: Node, given: Sequence[Array]) -> Array:
    return jnp.where(given[0] > 0, given[0], node.number("alpha", 0.01) * given[0])


def _leaky_relu_grad(node: Node, given: Sequence[Array]) -> Array:
    return jnp.where(given[1] > 0, given[0], node.number("alpha", 0.01) * given[0])


def _gather_grad(node: Node, given: Sequence[Array]) -> Array:
    dy, indices = given
    axis = node.int("axis", 0)
    place = (slice(None),) * axis
    return jnp.zeros(node.outputs[0].shape).at[(*place, indices)].add(dy)


def _attention(node: Node, given: Sequence[Array]) -> Array:
    q, k, v = (
        _heads_first(x, node.int(key, 0)) for x, key in zip(given, ("q_num_heads", *("kv_num_heads",) * 2), strict=True)
    )
    group = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, group, 1) for x in (k, v))
    scores = q @ jnp.swapaxes(k, -1, -2)
    if node.int("is_causal", 0):
        hidden = jnp.triu(jnp.full(scores.shape[-2:], -jnp.inf), 1)
        scores = scores + hidden
    y = jax.nn.softmax(scores) @ v
    return y if given[0].ndim == 4 else jnp.swapaxes(y, 1, 2).reshape(node.outputs[0].shape)


def _heads_first(x: Array, heads: int) -> Array:
    return x if x.ndim == 4 else jnp.swapaxes(x.reshape(*x.shape[:2], heads, -1), 1, 2)


def _causal(node: Node, given: Sequence[Array]) -> Array:
    """Rows are the positions of the heads of one group, one head after another."""
    (scores,) = given
    rows, keys = scores.shape[-2:]
    hidden = np.arange(keys)[None, :] > (np.arange(rows) % keys)[:, None]
    return jnp.where(hidden, -jnp.inf, scores)


def _cross_entropy(node: Node, given: Sequence[Array]) -> Sequence[Array]:
    logits, labels = given
    axis = node.int("axis", -1)
    sums = jax.nn.logsumexp(logits, axis)
    chosen = jnp.take_along_axis(logits, jnp.expand_dims(labels, axis), axis).squeeze(axis)
    return (sums - chosen).mean().reshape(1), sums


def _cross_entropy_grad(node: Node, given: Sequence[Array]) -> Array:
    logits, labels, sums = given
    axis = node.int("axis", -1)
    chosen = jnp.moveaxis(jax.nn.one_hot(labels, logits.shape[axis]), -1, axis)
    return (jnp.exp(logits - jnp.expand_dims(sums, axis)) - chosen) / labels.size


RATE, MOMENTUM, BETA1, BETA2 = 0.1, 0.9, 0.9, 0.999


def _sgd(node: Node, given: Sequence[Array]) -> Array:
    return given[0] - RATE * given[1]


RULES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "ConvWeightGrad": _conv_weight_grad,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "MatMulWeightGrad": _matmul_weight_grad,
    "BatchNormTraining": _batch_norm,
    "BatchNormalization": _batch_norm_again,
    "BatchNormGrad": _batch_norm_grad,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "LayerNormGrad": _layer_norm_grad,
    "LayerNormWeightGrad": _layer_norm_weight_grad,
    "Softmax": lambda node, given: jax.nn.softmax(given[0], node.int("axis", -1)),
    "SoftmaxGrad": _softmax_grad,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _average_pool,
    "MaxPoolGrad": _pool_grad(_max_pool),
    "AveragePoolGrad": _pool_grad(_average_pool),
    "Add": lambda node, given: given[0] + given[1],
    "Sum": lambda node, given: given[0] + given[1],
    "Sub": lambda node, given: given[0] - given[1],
    "Mul": lambda node, given: given[0] * given[1],
    "Div": lambda node, given: given[0] / given[1],
    "Pow": lambda node, given: given[0] ** given[1],
    "ReduceMean": lambda node, given: given[0].mean(-1, keepdims=True),
    "ReduceGrad": _reduce_grad,
    "ExpandGrad": _expand_grad,
    "Reshape": lambda node, given: given[0].reshape(node.outputs[0].shape),
    "Flatten": lambda node, given: given[0].reshape(node.outputs[0].shape),
    "ViewGrad": lambda node, given: given[0].reshape(node.outputs[0].shape),
    "Transpose": lambda node, given: jnp.transpose(given[0], node.ints("perm")),
    "Concat": lambda node, given: jnp.concatenate(given, node.int("axis", 0)),
    "Split": _split,
    "Where": lambda node, given: jnp.where(given[0], given[1], given[2]),
    "PRelu": lambda node, given: jnp.where(given[0] > 0, given[0], given[0] * given[1]),
    "PReluGrad": _prelu_grad,
    "LeakyRelu": _leaky_relu,
    "LeakyReluGrad": _leaky_relu_grad,
    "Min": lambda node, given: jnp.minimum(given[0], given[1]),
    "Greater": lambda node, given: given[0] > given[1],
    "LRN": _lrn,
    "LRNGrad": _lrn_grad,
    "Resize": _resize,
    "ResizeGrad": _resize_grad,
    "RotaryEmbedding": _rotary,
    "Slice": _slice,
    "SliceGrad": _slice_grad,
    "Gather": lambda node, given: jnp.take(given[0], given[1], node.int("axis", 0)),
    "GatherGrad": _gather_grad,
    "Attention": _attention,
    "Trilu": _causal,
    "CrossEntropyLoss": _cross_entropy,
    "CrossEntropyGrad": _cross_entropy_grad,
    "Sgd": _sgd,
    **{op: _unary(op) for op in FORWARD},
    **{f"{op}Grad": _unary_grad(op) for op in SLOPES},
}
