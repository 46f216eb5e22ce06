"""Matrix products: dA = dY B^T, dB = A^T dY, with the leading dimensions as rows or as a batch.

A MatMul with `right_transposed` reads its right side, which is stored as it is, the other way round.
"""

from __future__ import annotations

from lowering.context import unsupported
from lowering.ir import Node
from lowering.training.graph import Role
from lowering.training.tape import Gradients, Tape, gradient_of, sum_to


def matmul(tape: Tape, node: Node, gradients: Gradients) -> None:
    """MatMul of matrices: with a constant right side, or of a batch of equal size on both sides."""
    dy = gradient_of(node, gradients)
    left, right = node.input(0), node.input(1)
    if min(len(left.shape), len(right.shape)) < 2 or left.constant:
        raise unsupported(node, f"training through a product of {left.shape} and {right.shape} is not modelled")
    shared = len(right.shape) == 2
    if not shared and left.shape[:-2] != right.shape[:-2]:
        raise unsupported(node, f"training through a broadcast batch, {left.shape} and {right.shape}, is not modelled")
    if tape.needs(left):
        given = right if right.constant else tape.saved(right)
        found = tape.emit("MatMul", (dy, given), (left.shape,), Role.GRAD_INPUT, "dA", right_transposed=1)
        tape.add(left, found[0])
    if tape.needs(right):
        role = Role.GRAD_WEIGHT if right.constant else Role.GRAD_INPUT
        tape.add(right, tape.emit("MatMulWeightGrad", (tape.saved(left), dy), (right.shape,), role, "dB")[0])


def gemm(tape: Tape, node: Node, gradients: Gradients) -> None:
    """Gemm without a transposed left side."""
    dy = gradient_of(node, gradients)
    left, right, addend = node.input(0), node.input(1), node.optional_input(2)
    if node.int("transA", 0) or left.constant:
        raise unsupported(node, "training through a Gemm with a constant or a transposed left side is not modelled")
    transposed = node.int("transB", 0)
    if tape.needs(left):
        given = right if right.constant else tape.saved(right)
        attributes = {} if transposed else {"transB": 1}
        tape.add(left, tape.emit("Gemm", (dy, given), (left.shape,), Role.GRAD_INPUT, "dA", **attributes)[0])
    if tape.needs(right):
        pair = (dy, tape.saved(left)) if transposed else (tape.saved(left), dy)
        role = Role.GRAD_WEIGHT if right.constant else Role.GRAD_INPUT
        tape.add(right, tape.emit("MatMulWeightGrad", pair, (right.shape,), role, "dB")[0])
    if addend is not None and tape.needs(addend):
        tape.add(addend, sum_to(tape, dy, addend, label="dbias"))
