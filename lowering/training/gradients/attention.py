"""Scaled dot-product attention: the probabilities are computed again, then the gradients of its two products.

    P = softmax(scale Q K^T + mask)    dV = P^T dY    dP = dY V^T    dS = P (dP - sum(dP P))    dQ = dS K    dK = dS^T Q

(Dao et al., NeurIPS 2022, appendix B.2.) Heads of a group are rows of one product, as in the forward layer. Unlike
there, scores pass through DRAM, and products with keys that a causal mask hides are computed.
"""

from __future__ import annotations

from lowering.attention_node import attention_shape
from lowering.attention_tiling import AttentionShape
from lowering.context import unsupported
from lowering.ir import Node, Tensor
from lowering.training.gradients.normalisation import softmax_gradient
from lowering.training.graph import Role
from lowering.training.tape import Gradients, Tape, gradient_of

_HEADS_FIRST = (0, 2, 1, 3)


def attention(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Attention without a cache, without a soft cap; the mask is not trained."""
    shape = attention_shape(node)
    if shape.past_len or shape.softcap:
        raise unsupported(node, "training attention with a cache or a soft cap is not modelled")
    batch, kv, rows = shape.batch, shape.kv_heads, shape.group * shape.q_len
    q, k, v = (node.input(index) for index in range(3))
    queries = _rows(tape, tape.saved(q), shape.q_heads, (batch, kv, rows, shape.head), "Q", Role.RECOMPUTE)
    keys = _rows(tape, tape.saved(k), kv, (batch, kv, shape.kv_len, shape.head), "K", Role.RECOMPUTE)
    values = _rows(tape, tape.saved(v), kv, (batch, kv, shape.kv_len, shape.v_head), "V", Role.RECOMPUTE)
    dy = _rows(tape, gradient_of(node, gradients), shape.q_heads, (batch, kv, rows, shape.v_head), "dY")
    scores = (batch, kv, rows, shape.kv_len)
    s = tape.emit("MatMul", (queries, keys), (scores,), Role.RECOMPUTE, "S", right_transposed=1)[0]
    if shape.causal or shape.mask:
        s = _masked(tape, node, shape, s)
    p = tape.emit("Softmax", (s,), (scores,), Role.RECOMPUTE, "P", axis=3)[0]
    dv = tape.emit("MatMulWeightGrad", (p, dy), (values.shape,), Role.GRAD_INPUT, "dV heads")[0]
    dp = tape.emit("MatMul", (dy, values), (scores,), Role.GRAD_INPUT, "dP", right_transposed=1)[0]
    ds = softmax_gradient(tape, dp, p, (3,))
    dq = tape.emit("MatMul", (ds, keys), (queries.shape,), Role.GRAD_INPUT, "dQ heads")[0]
    dk = tape.emit("MatMulWeightGrad", (ds, queries), (keys.shape,), Role.GRAD_INPUT, "dK heads")[0]
    for tensor, gradient, heads, label in ((q, dq, shape.q_heads, "dQ"), (k, dk, kv, "dK"), (v, dv, kv, "dV")):
        if tape.needs(tensor):
            tape.add(tensor, _merged(tape, gradient, tensor, heads, label))


def _masked(tape: Tape, node: Node, shape: AttentionShape, scores: Tensor) -> Tensor:
    """Add the mask; one that is the same for all heads of a group is read for each. A causal one is computed."""
    mask = node.optional_input(3) if shape.mask else None
    if mask is None:
        return tape.emit("Trilu", (scores,), (scores.shape,), Role.RECOMPUTE, "causal", upper=0)[0]
    return tape.emit("Add", (scores, mask), (scores.shape,), Role.RECOMPUTE, "masked")[0]


def _rows(
    tape: Tape, tensor: Tensor, heads: int, target: tuple[int, ...], label: str, role: Role = Role.GRAD_INPUT
) -> Tensor:
    """The rows of every key/value head, heads first: (batch, kv_heads, group * length, width)."""
    if len(tensor.shape) == 3:
        batch, length, width = tensor.shape
        tensor = _reshape(tape, tensor, (batch, length, heads, width // heads), role, f"{label} split")
        shape = tuple(tensor.shape[axis] for axis in _HEADS_FIRST)
        tensor = tape.emit("Transpose", (tensor,), (shape,), role, f"{label} by heads", perm=_HEADS_FIRST)[0]
    return _reshape(tape, tensor, target, role, f"{label} by groups")


def _merged(tape: Tape, gradient: Tensor, target: Tensor, heads: int, label: str) -> Tensor:
    """The inverse of `_rows`."""
    role = Role.GRAD_INPUT
    if len(target.shape) == 4:
        return _reshape(tape, gradient, target.shape, role, label)
    batch, length, width = target.shape
    gradient = _reshape(tape, gradient, (batch, heads, length, width // heads), role, f"{label} by heads")
    shape = tuple(gradient.shape[axis] for axis in _HEADS_FIRST)
    gradient = tape.emit("Transpose", (gradient,), (shape,), role, f"{label} by positions", perm=_HEADS_FIRST)[0]
    return _reshape(tape, gradient, target.shape, role, label)


def _reshape(tape: Tape, tensor: Tensor, shape: tuple[int, ...], role: Role, label: str) -> Tensor:
    if tensor.shape == shape:
        return tensor
    target = Tensor(f"{label} shape", (len(shape),), constant=True, values=tuple(map(float, shape)), integer=True)
    return tape.emit("Reshape", (tensor, target), (shape,), role, label)[0]
