"""Einsum of one operand (a transpose, or a sum) and of two (a batched matrix product)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lowering.context import Handler, Network, unsupported
from lowering.fusion import Group
from lowering.ir import Node, Tensor
from lowering.layout import Layout, row_major
from lowering.mapping import MatmulShape
from lowering.matmul import BatchedOperands, MatmulLayer, emit_matmul, plan_matmul
from lowering.reduction import REDUCTIONS
from lowering.row_layers import RowLayer, Rows, emit_rows
from lowering.streams import Read, StreamLayer, emit_stream
from lowering.vector_layers import Identity


def einsum(network: Network, group: Group) -> None:
    """Labels of both operands and the result are the batch, labels of both operands only the reduction."""
    node = group.head
    terms, result = _parse(node)
    if len(terms) == 1:
        _single(network, node, terms[0], result)
        return
    if len(terms) != 2:
        raise unsupported(node, f"{node.text('equation', '')!r} has {len(terms)} operands; 1 and 2 are modelled")
    left, right = terms
    batch = [label for label in result if label in left and label in right]
    reduced = [label for label in left if label in right and label not in result]
    rows = [label for label in result if label in left and label not in right]
    columns = [label for label in result if label in right and label not in left]
    alone = [label for term in terms for label in term if sum(label in t for t in (*terms, result)) == 1]
    if alone or not reduced:
        what = f"sums over {alone[0]!r} of one operand" if alone else "multiplies without a sum"
        raise unsupported(node, f"{node.text('equation', '')!r} {what}; write it as a reduction or a product")
    _product(network, node, _Roles(left, right, result, batch, rows, reduced, columns))


def _parse(node: Node) -> tuple[list[str], str]:
    equation = node.text("equation", "").replace(" ", "")
    if "." in equation:
        raise unsupported(node, f"{equation!r}: an ellipsis is not modelled; name its dimensions")
    inputs, arrow, result = equation.partition("->")
    terms = inputs.split(",")
    if not arrow:
        labels = sorted(set(inputs) - {","})
        result = "".join(label for label in labels if inputs.count(label) == 1)
    shapes = [tensor.shape for tensor in node.inputs if tensor is not None]
    if [len(term) for term in terms] != [len(shape) for shape in shapes]:
        raise unsupported(node, f"{equation!r} does not fit operands of shapes {shapes}")
    if any(len(set(term)) != len(term) for term in terms):
        raise unsupported(node, f"{equation!r}: diagonals are not modelled")
    return terms, result


def _single(network: Network, node: Node, term: str, result: str) -> None:
    """A transpose, or a sum over the labels that the result lacks."""
    x, target = node.input(0), node.outputs[0]
    reduced = tuple(index for index, label in enumerate(term) if label not in result)
    goal = network.place(target, row_major(len(target.shape))).layout
    identity = Identity(node.name, node.op)
    if not reduced:
        layer = StreamLayer(identity, (Read(network.find(x).layout),), goal, {})
        emit_stream(network.builder, layer, network.chip)
        return
    order = (*(term.index(label) for label in result), *reduced)
    layout = network.in_order(x, order)
    rows = Rows.over(x.shape, order, reduced, 0)
    layer = RowLayer(identity, rows, (layout,), REDUCTIONS["ReduceSum"], (), (goal,))
    emit_rows(network.builder, layer, network.chip, network.space)


@dataclass(frozen=True)
class _Roles:
    """The labels of a two-operand product and what they do in it."""

    left: str
    right: str
    result: str
    batch: list[str]
    rows: list[str]
    reduced: list[str]
    columns: list[str]


def _product(network: Network, node: Node, roles: _Roles) -> None:
    left, right, target = node.input(0), node.input(1), node.outputs[0]
    size = dict(zip(roles.left + roles.right, left.shape + right.shape, strict=True))
    b, m, k, n = (
        math.prod(size[label] for label in labels) for labels in (roles.batch, roles.rows, roles.reduced, roles.columns)
    )
    x = _merged(network, left, roles.left, (roles.batch, roles.rows, roles.reduced), (b * m, k))
    result_order = tuple(roles.result.index(label) for label in (*roles.batch, *roles.rows, *roles.columns))
    y = _as_matrix(network.place(target, result_order).layout, (b * m, n))
    batched = None
    if not right.constant or roles.batch:
        # A right operand with the reduction innermost is read as it lies.
        transposed = roles.right[-1] in roles.reduced
        parts = (roles.columns, roles.reduced) if transposed else (roles.reduced, roles.columns)
        lines, width = (n, k) if transposed else (k, n)
        weights = _merged(network, right, roles.right, (roles.batch, *parts), (b * lines, width))
        pixels = (tuple(range(0, b * size, size)) for size in (m, lines, m))
        batched = BatchedOperands(weights, *pixels, transposed=transposed)
    shape = MatmulShape(1, b if batched else 1, k, n, 1, m, 1, m)
    layer = MatmulLayer(node.name, node.op, shape, x, y, batched)
    emit_matmul(network.builder, plan_matmul(layer, network.chip, network.mapping), network.chip, network.space)


def _merged(
    network: Network, tensor: Tensor, term: str, labels: tuple[list[str], ...], matrix: tuple[int, int]
) -> Layout:
    """An operand with its dimensions in the order of the product, as a matrix."""
    order = tuple(term.index(label) for part in labels for label in part)
    return _as_matrix(network.in_order(tensor, order), matrix)


def _as_matrix(layout: Layout, matrix: tuple[int, int]) -> Layout:
    """The same memory with several dimensions taken together; padding between small pixels is left out."""
    if layout.physical[-1] == matrix[1]:
        return replace(layout, physical=matrix)
    return Layout.of(matrix, (0, 1), layout.element_bytes, layout.request_bytes, layout.base_byte)


HANDLERS: dict[str, Handler] = {"Einsum": einsum}
