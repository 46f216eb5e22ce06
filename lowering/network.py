"""A whole network: graph -> groups -> layers, one after another, with their tensors placed in DRAM."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from hwconfigs.errors import UserError
from lowering.address_space import AddressSpace
from lowering.canonical import canonical
from lowering.chip import Chip
from lowering.context import UnsupportedError
from lowering.convolution import convolution_shape, pool_layer
from lowering.emit import ProgramBuilder
from lowering.fusion import Group, fuse
from lowering.ir import Graph, Node, Tensor
from lowering.layout import Layout, Order, channels_last, row_major, same_order
from lowering.mapping import MatmulShape
from lowering.matmul import BatchedOperands, MatmulLayer, emit_matmul, plan_matmul
from lowering.models import ModelError
from lowering.operator_table import HANDLERS
from lowering.operators import (
    BINARY,
    MATRIX,
    POOLS,
    UNARY,
    VIEWS,
    add_costs,
    elementwise_cost,
    lrn_cost,
)
from lowering.parts import Heuristic, MappingChooser
from lowering.program import Program
from lowering.simplify import consumers, is_bookkeeping, simplify
from lowering.vector_layers import (
    CopyLayer,
    CopyPart,
    ElementwiseLayer,
    Identity,
    PermuteLayer,
    SoftmaxLayer,
    emit_copy,
    emit_elementwise,
    emit_permute,
    emit_pool,
    emit_softmax,
)

ROW_MAJOR_READERS = frozenset(
    {"MatMul", "Gemm", "Einsum", "Reshape", "LayerNormalization", "RMSNormalization", "RotaryEmbedding", "Attention"}
)
"""Operators that want their input as ONNX writes it."""

MALFORMED = (ValueError, IndexError, KeyError, ZeroDivisionError, TypeError, OverflowError, StopIteration)
"""What lowering stumbles over in a node whose shapes or attributes contradict its definition."""

IMAGE_READERS = frozenset({"Conv", "ConvTranspose", "LRN", "Resize", "Upsample", "GridSample"})
"""Operators whose input is an image, channels-last in memory."""


@dataclass(frozen=True)
class Placed:
    """A tensor in DRAM and the order of its dimensions there."""

    order: Order
    layout: Layout


def lower_graph(
    graph: Graph,
    chip: Chip,
    *,
    skip_unknown: bool = False,
    mapping: MappingChooser | None = None,
) -> Program:
    """Lower a graph in default mode.

    mapping: where the tiles of matrix layers come from; None: the cheapest by closed-form price.
    Raises UnsupportedError for an operator that is not modelled (unless skip_unknown), MappingError for a tile that
    cannot fit.
    """
    try:
        clean = simplify(canonical(graph))
        groups = fuse(clean)
    except UserError:
        raise
    except MALFORMED as error:
        raise ModelError(f"the graph is malformed: {' '.join(str(error).split())}") from error
    network = _Network(
        chip,
        ProgramBuilder(graph.name, chip.n_cores, chip.request_bytes),
        skip_unknown,
        mapping or Heuristic(),
        graph.opset,
        frozenset(tensor.name for tensor in clean.inputs),
    )
    for tensor in clean.inputs:
        network.place(tensor, input_order(tensor, clean))
    for group in groups:
        try:
            network.lower(group)
        except UserError:
            raise
        except MALFORMED as error:
            node = group.head
            raise ModelError(
                f"node {node.name} ({node.op}): its inputs {[t.shape for t in node.inputs if t is not None]}, outputs "
                f"{[t.shape for t in node.outputs]} and attributes do not fit together ({' '.join(str(error).split())})"
            ) from error
    return network.builder.build(network.warnings)


@dataclass
class _Network:
    chip: Chip
    builder: ProgramBuilder
    skip_unknown: bool
    mapping: MappingChooser
    opset: int
    inputs: frozenset[str]
    space: AddressSpace = field(default_factory=AddressSpace)
    placed: dict[str, Placed] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    # -- tensors

    def place(self, tensor: Tensor, order: Order) -> Placed:
        """Reserve memory for a tensor that the network computes or is given."""
        layout = Layout.of(tensor.shape, order, self.chip.element_bytes, self.chip.request_bytes)
        layout = replace(layout, base_byte=self.space.allocate(layout.total_bytes))
        self.placed[tensor.name] = Placed(order, layout)
        return self.placed[tensor.name]

    def place_at(self, tensor: Tensor, order: Order, base_byte: int) -> Placed:
        """Let a tensor be memory that is already reserved."""
        layout = Layout.of(tensor.shape, order, self.chip.element_bytes, self.chip.request_bytes, base_byte)
        self.placed[tensor.name] = Placed(order, layout)
        return self.placed[tensor.name]

    def view(self, tensor: Tensor, order: Order, source: Placed) -> bool:
        """Let `tensor` be another view of `source`; False when their paddings differ, so that it cannot be."""
        layout = Layout.of(tensor.shape, order, self.chip.element_bytes, self.chip.request_bytes)
        if layout.total_bytes != source.layout.total_bytes:
            return False
        self.placed[tensor.name] = Placed(order, replace(layout, base_byte=source.layout.base_byte))
        return True

    def find(self, tensor: Tensor) -> Placed:
        """Where a tensor lies; constants get their place when they are first read."""
        if tensor.name not in self.placed:
            if not tensor.constant:
                raise ValueError(f"{tensor.name} is read before it is computed")
            self.place(tensor, row_major(len(tensor.shape)))
        return self.placed[tensor.name]

    def in_order(self, tensor: Tensor, order: Order) -> Layout:
        """The tensor in the wanted order; a layer that rearranges it is added when it lies otherwise."""
        placed = self.find(tensor)
        layout = Layout.of(tensor.shape, order, self.chip.element_bytes, self.chip.request_bytes)
        if same_order(tensor.shape, placed.order, order) and layout.total_bytes == placed.layout.total_bytes:
            return replace(layout, base_byte=placed.layout.base_byte)
        if tensor.constant:
            return self.place(tensor, order).layout
        target = self.place(tensor, order)
        identity = Identity(f"{tensor.name} (layout)", "Transpose", ("rearranged for the next operator",))
        emit_permute(self.builder, PermuteLayer(identity, placed.layout, target.layout), self.chip)
        return target.layout

    # -- operators

    def lower(self, group: Group) -> None:
        """Write the layers of one group and place its result."""
        node = group.head
        if is_bookkeeping(node):
            self._bookkeeping(node)
        elif node.op in HANDLERS:
            HANDLERS[node.op](self, group)
        elif node.op in MATRIX:
            self._matrix(group)
        elif node.op in UNARY or node.op in BINARY or node.op == "BatchNormalization":
            self._elementwise(group)
        elif node.op in POOLS:
            self._pool(node)
        elif node.op in VIEWS:
            self._reshape(node)
        elif node.op == "Transpose":
            self._transpose(node)
        elif node.op == "Concat":
            self._concat(node)
        elif node.op in ("Softmax", "LogSoftmax"):
            self._softmax(node)
        elif node.op == "LRN":
            self._lrn(node)
        else:
            self._unknown(node)

    def _bookkeeping(self, node: Node) -> None:
        """Shape arithmetic that did not fold: done by the host, its results simply exist."""
        for tensor in node.outputs:
            self.place(tensor, row_major(len(tensor.shape)))

    def _unknown(self, node: Node) -> None:
        what = f"node {node.name}: operator {node.op} is not modelled"
        if not self.skip_unknown:
            raise UnsupportedError(f"{what}; --skip-unknown leaves it out of the simulation")
        self.warnings.append(f"{what}, it was skipped")
        for tensor in node.outputs:
            rank = len(tensor.shape)
            source = next((t for t in node.inputs if t is not None and t.name in self.placed), None)
            same_rank = source is not None and len(source.shape) == rank
            order = self.placed[source.name].order if source is not None and same_rank else row_major(rank)
            self.place(tensor, order)

    # matrix layers

    def _matrix(self, group: Group) -> None:
        layer = {"Conv": self._conv, "Gemm": self._gemm, "MatMul": self._matmul}[group.head.op](group)
        emit_matmul(self.builder, plan_matmul(layer, self.chip, self.mapping), self.chip, self.space)

    def _conv(self, group: Group) -> MatmulLayer:
        node = group.head
        source = node.input(0)
        order = channels_last(len(source.shape))
        exact = self.mapping.is_exact(node.name, convolution_shape(node, self.chip, pack=False, flatten=False))
        shape = convolution_shape(node, self.chip, pack=not exact, flatten=not exact)
        return self._finish(group, shape, self.in_order(source, order), order, len(node.inputs) > 2)

    def _gemm(self, group: Group) -> MatmulLayer:
        node = group.head
        left, right = node.input(0), node.input(1)
        rows, reduction = left.shape[::-1] if node.int("transA", 0) else left.shape
        x = self.in_order(left, (1, 0) if node.int("transA", 0) else (0, 1))
        transposed = bool(node.int("transB", 0))
        shape = _product(1, rows, reduction, node.outputs[0].shape[-1])
        batched = None
        if not right.constant:
            batched = BatchedOperands(self.in_order(right, (0, 1)), (0,), (0,), (0,), transposed)
        addend = node.optional_input(2)
        residuals = (addend,) if addend is not None and _is_full(addend, node.outputs[0]) else ()
        return self._finish(group, shape, x, (0, 1), addend is not None and not residuals, batched, residuals)

    def _matmul(self, group: Group) -> MatmulLayer:
        node = group.head
        left, right = node.input(0), node.input(1)
        a, b = _matrix_shape(left.shape, row=True), _matrix_shape(right.shape, row=False)
        transposed = bool(node.int("right_transposed", 0))  # of gradients (`lowering.training`), not of ONNX
        stored_rows = b[-2]
        if transposed:
            b = (*b[:-2], b[-1], b[-2])
        x = self.in_order(left, row_major(len(left.shape)))
        order = row_major(len(node.outputs[0].shape))
        if right.constant and math.prod(b[:-2]) == 1:
            return self._finish(group, _product(1, math.prod(a[:-1]), a[-1], b[-1]), x, order, False)
        lead = _broadcast(a[:-2], b[:-2])
        batch = math.prod(lead)
        weights = self.in_order(right, row_major(len(right.shape)))
        batched = BatchedOperands(
            weights,
            tuple(index * a[-2] for index in _batch_indices(a[:-2], lead)),
            tuple(index * stored_rows for index in _batch_indices(b[:-2], lead)),
            tuple(index * a[-2] for index in range(batch)),
            transposed=transposed or len(right.shape) == 1,
        )
        return self._finish(group, _product(batch, a[-2], a[-1], b[-1]), x, order, False, batched)

    def _finish(
        self,
        group: Group,
        shape: MatmulShape,
        x: Layout,
        order: Order,
        bias: bool,
        batched: BatchedOperands | None = None,
        extra: tuple[Tensor, ...] = (),
    ) -> MatmulLayer:
        """The layer with the group's fused operators and its output placed."""
        folded = [step for step in group.steps if step.folded]
        rest = [step for step in group.steps if not step.folded]
        operands = [*extra, *(tensor for step in rest for tensor in step.operands)]
        residuals = tuple(self.in_order(tensor, order) for tensor in operands)
        y = self.place(group.output, order).layout
        columns = shape.out_channels * (1 if batched is not None else shape.groups)
        if y.channels != columns:
            # A product with a vector: ONNX drops the dimension of size 1.
            matrix = (y.pixels * y.channels // columns, columns)
            y = Layout.of(matrix, (0, 1), y.element_bytes, y.request_bytes, y.base_byte)
        return MatmulLayer(
            name=group.head.name,
            op=group.head.op,
            shape=shape,
            x=x,
            y=y,
            batched=batched,
            bias=bias or bool(folded),
            residuals=residuals,
            epilogue=add_costs(BINARY["Add"] if extra else {}, *(elementwise_cost(step.node) for step in rest)),
            notes=_fused_note(group),
        )

    # vector layers

    def _elementwise(self, group: Group) -> None:
        node, output = group.head, group.output
        computed = [t for t in node.inputs if t is not None and not t.constant]
        if node.op == "BatchNormalization" or node.op in UNARY:
            computed = computed[:1]
        constants = [t for t in node.inputs if t is not None and t.constant and node.op != "Clip"]
        vectors = [t for t in constants if 1 < t.elements <= max(output.shape, default=1)]
        tables = [t for t in constants if t.elements > max(output.shape, default=1)]
        lead = max(computed, key=lambda t: t.elements)
        order = self.find(lead).order if lead.shape == output.shape else row_major(len(output.shape))
        steps = [step for step in group.steps if not step.folded]
        tensors = [*computed, *tables, *(t for s in steps for t in s.operands)]
        # Scale, shift, mean and variance of BatchNormalization become one scale and one shift offline.
        small = 2 * output.shape[1] if node.op == "BatchNormalization" else sum(t.elements for t in vectors)
        small += sum(step.constants for step in steps if step.constants > 1)
        operands = tuple(self._operand(tensor, output, order) for tensor in tensors)
        layer = ElementwiseLayer(
            Identity(node.name, node.op, _fused_note(group)),
            self.place(output, order).layout,
            operands,
            add_costs(elementwise_cost(node), *(elementwise_cost(step.node) for step in steps)),
            small * self.chip.element_bytes,
        )
        emit_elementwise(self.builder, layer, self.chip, self.space)

    def _operand(self, tensor: Tensor, output: Tensor, order: Order) -> Layout:
        """An operand as large as the result lies in the result's order; a broadcast one as it is."""
        return self.in_order(tensor, order) if tensor.shape == output.shape else self.find(tensor).layout

    def _lrn(self, node: Node) -> None:
        source = self.find(node.input(0))
        layer = ElementwiseLayer(
            Identity(node.name, node.op),
            self.place(node.outputs[0], source.order).layout,
            (source.layout,),
            lrn_cost(node.int("size", 1)),
        )
        emit_elementwise(self.builder, layer, self.chip, self.space)

    def _softmax(self, node: Node) -> None:
        tensor = node.input(0)
        source = self.find(tensor)
        rank = len(tensor.shape)
        # Before opset 13 the axes from `axis` on are one flattened axis; its default was 1.
        flattened = self.opset < 13
        axis = node.int("axis", 1 if flattened else -1) % rank
        reduced = tuple(range(axis, rank)) if flattened else (axis,)
        outermost = min(source.order.index(d) for d in reduced)
        layer = SoftmaxLayer(
            Identity(node.name, node.op),
            source.layout,
            self.place(node.outputs[0], source.order).layout,
            math.prod(tensor.shape[d] for d in reduced),
            math.prod(tensor.shape[d] for d in source.order[outermost:-1]),
        )
        emit_softmax(self.builder, layer, self.chip)

    def _pool(self, node: Node) -> None:
        source = node.input(0)
        order = channels_last(len(source.shape))
        x = self.in_order(source, order)
        y = self.place(node.outputs[0], order).layout
        emit_pool(self.builder, pool_layer(node, x, y), self.chip)

    # data movement

    def _reshape(self, node: Node) -> None:
        source, target = node.input(0), node.outputs[0]
        placed = self.find(source)
        order = reshaped_order(source.shape, target.shape, placed.order)
        if order is not None and self.view(target, order, placed):
            return
        goal = self.place(target, row_major(len(target.shape)))
        identity = Identity(node.name, node.op, ("not a view: the data are rearranged",))
        emit_permute(self.builder, PermuteLayer(identity, placed.layout, goal.layout), self.chip)

    def _transpose(self, node: Node) -> None:
        source, target = node.input(0), node.outputs[0]
        placed = self.find(source)
        rank = len(source.shape)
        perm = node.ints("perm", tuple(reversed(range(rank))))
        viewed = tuple(perm.index(d) for d in placed.order)
        for order in (row_major(rank), channels_last(rank)):
            if same_order(target.shape, viewed, order) and self.view(target, order, placed):
                return
        goal = self.place(target, placed.order)
        emit_permute(self.builder, PermuteLayer(Identity(node.name, node.op), placed.layout, goal.layout), self.chip)

    def _concat(self, node: Node) -> None:
        target = node.outputs[0]
        parts = [t for t in node.inputs if t is not None]
        largest = max((t for t in parts if not t.constant), key=lambda t: t.elements)
        order = self.find(largest).order
        axis = order.index(node.int("axis", 0) % len(order))
        goal = self.place(target, order).layout
        layer = CopyLayer(
            Identity(node.name, node.op), goal, _concat_parts([self.in_order(t, order) for t in parts], goal, axis)
        )
        emit_copy(self.builder, layer, self.chip)


def input_order(tensor: Tensor, graph: Graph) -> Order:
    """How a graph input lies in memory: as the first operator that cares about the layout wants it.

    Images are channels-last. When nothing decides, a tensor of rank 4 is taken for an image.
    """
    rank = len(tensor.shape)
    uses = consumers(graph.nodes)
    queue, seen = [tensor], {tensor.name}
    while queue:
        for node in uses.get(queue.pop(0).name, []):
            if rank > 2 and (node.op in IMAGE_READERS or node.op in POOLS):
                return channels_last(rank)
            if node.op in ROW_MAJOR_READERS:
                return row_major(rank)
            fresh = [t for t in node.outputs if len(t.shape) == rank and t.name not in seen]
            seen.update(t.name for t in fresh)
            queue += fresh
    return channels_last(rank) if rank == 4 else row_major(rank)


def _concat_parts(sources: list[Layout], target: Layout, axis: int) -> tuple[CopyPart, ...]:
    """Where each source goes; `axis` is a physical one."""
    outer = math.prod(target.physical[:axis])
    parts: list[CopyPart] = []
    done = 0
    for source in sources:
        if axis == len(target.physical) - 1:
            parts.append(CopyPart(source, 0, source.pixels, 0, target_channel=done))
            done += source.channels
            continue
        run, target_run = math.prod(source.physical[axis:-1]), math.prod(target.physical[axis:-1])
        parts.extend(CopyPart(source, i * run, run, i * target_run + done) for i in range(outer))
        done += run
    return tuple(parts)


def reshaped_order(source: tuple[int, ...], target: tuple[int, ...], order: Order) -> Order | None:
    """The physical order of a reshaped tensor when the reshape is only another view of the memory; else None.

    Dimensions are matched in the smallest groups of equal size. A group that splits or merges dimensions must be
    contiguous in memory. Flattening everything behind the first dimension is always a view: the order inside the row
    then differs from ONNX's, and the weights of the next layer are permuted once, offline, to match it.
    """
    if len(target) == 2 and len(source) > 2 and target[0] == source[0]:
        return (0, 1)
    groups = _matching_groups(source, target)
    new_order: list[int] = []
    rest = [d for d in order if source[d] != 1]
    while rest:
        old, new = next((pair for pair in groups if rest[0] in pair[0]), ((), ()))
        members = [d for d in old if source[d] != 1]
        if rest[: len(members)] != members:
            return None
        new_order += new
        rest = rest[len(members) :]
    ones = [d for d in range(len(target)) if d not in new_order]
    return (*ones, *new_order)


def _matching_groups(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Smallest runs of dimensions of both shapes with equal products, in order."""
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        i0, j0, left, right = i, j, source[i], target[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * source[i], i + 1
            else:
                right, j = right * target[j], j + 1
        groups.append((tuple(range(i0, i)), tuple(range(j0, j))))
    return groups


def _product(batch: int, rows: int, reduction: int, columns: int) -> MatmulShape:
    return MatmulShape(
        images=1,
        groups=batch,
        in_channels=reduction,
        out_channels=columns,
        in_rows=1,
        in_cols=rows,
        out_rows=1,
        out_cols=rows,
    )


def _matrix_shape(shape: tuple[int, ...], row: bool) -> tuple[int, ...]:
    """A vector operand of MatMul as a matrix of one row (left) or one column (right)."""
    if len(shape) > 1:
        return shape
    return (1, *shape) if row else (*shape, 1)


def _broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(left), len(right))
    padded = ((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right)
    return tuple(max(a, b) for a, b in zip(*padded, strict=True))


def _batch_indices(shape: tuple[int, ...], lead: tuple[int, ...]) -> list[int]:
    """For each element of the broadcast batch, the index of its matrix in an operand of batch `shape`."""
    padded = (1,) * (len(lead) - len(shape)) + shape
    indices = [0]
    for size, full in zip(padded, lead, strict=True):
        indices = [index * size + (step if size > 1 else 0) for index in indices for step in range(full)]
    return indices


def _is_full(tensor: Tensor, output: Tensor) -> bool:
    """Whether an operand is a tensor to be read from memory rather than a few constants for each channel."""
    return tensor.elements == output.elements and tensor.elements > max(output.shape, default=1)


def _fused_note(group: Group) -> tuple[str, ...]:
    if not group.steps:
        return ()
    return (f"fused: {', '.join(step.node.op + (' (folded)' if step.folded else '') for step in group.steps)}",)
