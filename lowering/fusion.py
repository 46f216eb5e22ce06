"""Fusing elementwise operators into the operators that produce their inputs.

A `Group` is a head operator and the elementwise operators that follow it without anything else reading the values
in between: BatchNormalization, activations, bias and scale constants, residual additions. It also takes small closed
side branches, as in `x * sigmoid(x)`. The group's result is stored once; nothing in between is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lowering.ir import Graph, Node, Tensor
from lowering.operators import AFFINE, BINARY, MATRIX, UNARY
from lowering.simplify import consumers, is_bookkeeping


@dataclass(frozen=True)
class Step:
    """One fused operator.

    operands: the other computed tensors (and constants of full size) that it reads.
    folded: it disappears into the weights and bias of the head (free at inference).
    constants: elements of its per-channel constants.
    """

    node: Node
    operands: tuple[Tensor, ...] = ()
    folded: bool = False
    constants: int = 0


@dataclass
class Group:
    """A head, the operators fused into it in order, and what the last one produces."""

    head: Node
    output: Tensor
    position: int
    steps: list[Step] = field(default_factory=list)


def fuse(graph: Graph) -> list[Group]:
    """The graph's operators as groups, in an order in which every operand is ready."""
    uses = consumers(graph.nodes)
    for tensor in graph.outputs:
        uses.setdefault(tensor.name, []).append(Node("graph output", "Output", (tensor,), ()))
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    claimed: set[int] = set()
    groups: list[Group] = []
    for index, node in enumerate(graph.nodes):
        if id(node) in claimed:
            continue
        group = Group(node, node.outputs[0], index)
        if node.op in MATRIX or is_elementwise(node):
            while (steps := _next_steps(group, uses)) is not None:
                if any(id(step.node) in claimed for step in steps):
                    break
                group.steps += steps
                group.output = steps[-1].node.outputs[0]
                claimed.update(id(step.node) for step in steps)
                group.position = max(group.position, *(position[id(step.node)] for step in steps))
        groups.append(group)
    return sorted(groups, key=lambda group: group.position)


def is_elementwise(node: Node) -> bool:
    """Whether every output element depends on the input elements at the same (or broadcast) position only."""
    known = node.op in UNARY or node.op in BINARY or node.op == "BatchNormalization"
    return known and not is_bookkeeping(node)


def _next_steps(group: Group, uses: dict[str, list[Node]]) -> list[Step] | None:
    """What can be fused after the group's output: one operator, or a closed side branch; None when nothing can."""
    tensor = group.output
    users = uses.get(tensor.name, [])
    if len(users) == 1:
        step = _step(group, users[0], tensor)
        return None if step is None else [step]
    if len(users) == 2:
        return _diamond(group, tensor, users, uses)
    return None


def _step(group: Group, node: Node, tensor: Tensor, own: tuple[str, ...] = ()) -> Step | None:
    """`node` as the next step after `tensor`; `own`: names of tensors inside the group that it may read as well."""
    if not is_elementwise(node) or node.outputs[0].shape != tensor.shape:
        return None
    others = [t for t in node.inputs if t is not None and t.name != tensor.name and t.name not in own]
    foldable = group.head.op in MATRIX or group.head.op == "BatchNormalization"
    folded = foldable and all(step.folded for step in group.steps)
    if node.op == "BatchNormalization":
        return Step(node, folded=folded, constants=2 * others[0].elements)
    if node.op in UNARY:
        return Step(node, constants=sum(t.elements for t in others) if node.op == "PRelu" else 0)
    operands = tuple(t for t in others if not is_channel_constant(t, tensor, group.head))
    if any(t.shape != tensor.shape for t in operands):
        return None
    constants = sum(t.elements for t in others if t not in operands)
    return Step(node, operands, folded and not operands and not own and node.op in AFFINE, constants)


def _diamond(group: Group, tensor: Tensor, users: list[Node], uses: dict[str, list[Node]]) -> list[Step] | None:
    """A chain of operators from `tensor` that meets `tensor` again: f(x) combined with x."""
    for first, last in (users, users[::-1]):
        steps: list[Step] = []
        node, current = first, tensor
        while node is not last:
            step = _step(group, node, current)
            following = uses.get(node.outputs[0].name, []) if step is not None else []
            if step is None or step.operands or len(following) != 1:
                break
            steps.append(Step(node, constants=step.constants))
            node, current = following[0], node.outputs[0]
        else:
            closing = _step(group, last, current, own=(tensor.name,)) if steps else None
            if closing is not None and last.op in BINARY and not closing.operands:
                return [*steps, closing]
    return None


def is_channel_constant(tensor: Tensor, result: Tensor, head: Node) -> bool:
    """Whether a constant holds one value for each channel of `result`, or a single one."""
    if not tensor.constant:
        return False
    if tensor.elements == 1:
        return True
    rank = len(result.shape)
    if head.op in ("Conv", "ConvTranspose", "BatchNormalization"):
        channels = (1,)
    else:
        channels = (rank - 1,) if head.op in MATRIX else (1, rank - 1)
    padded = (1,) * (rank - len(tensor.shape)) + tensor.shape
    wide = [axis for axis, size in enumerate(padded) if size > 1]
    return len(wide) == 1 and wide[0] in channels and padded[wide[0]] == result.shape[wide[0]]
