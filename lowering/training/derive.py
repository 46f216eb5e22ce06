"""One training iteration from an inference graph: forward, loss, backward, updates.

The derivation works on the internal graph (`lowering.ir`) after canonical form and simplification, not on the ONNX
file:

* every shape is known there, so that each gradient's operator and shape follow by arithmetic; in the file they would
  have to be inferred again, and ONNX has no operators for most gradients;
* decomposed attention, normalisations and activations are single operators there: their backward passes are written
  once, and not as the backward passes of a dozen parts;
* weights are marked as constants, wherever the exporter put them; and language models that are no ONNX files make such
  graphs too;
* the result is a graph of the same kind, which the lowering of inference takes as it is: fusion, layouts, mapping.

Reverse mode: operators in reverse order ask `lowering.training.rules` for their gradients. A tensor that several
operators read gets one addition for each further gradient; a parameter is updated as soon as its gradient is complete.
Gradients that nothing trained needs (the first layer's input) are not computed.

What the file does not tell: dropout is not put back; a constant of more than one element is a parameter wherever
`rules.TRAINABLE` says that parameters stand, integers and single numbers are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lowering.context import UnsupportedError
from lowering.ir import Attribute, Graph, Node, Tensor
from lowering.models import ModelError
from lowering.simplify import is_bookkeeping
from lowering.training.graph import OperandRole, Operator, Role, TrainingGraph
from lowering.training.loss import loss_nodes
from lowering.training.options import TrainingOptions
from lowering.training.prepare import prepare
from lowering.training.recompute import kept_tensors
from lowering.training.rules import RULES, TRAINABLE
from lowering.training.tape import Gradients
from lowering.training.update import update_node

_ROLE_OF_RESULT = {
    Role.GRAD_INPUT: OperandRole.GRADIENT,
    Role.GRAD_WEIGHT: OperandRole.WEIGHT_GRADIENT,
    Role.ACCUMULATE: OperandRole.GRADIENT,
    Role.UPDATE: OperandRole.STATE,
}


def derive(graph: Graph, options: TrainingOptions | None = None) -> TrainingGraph:
    """The training iteration of an inference graph (`lowering.read_graph`), batch and sizes as they are there.

    Raises ModelError when nothing can be trained, UnsupportedError for an operator without a gradient.
    """
    options = options or TrainingOptions()
    forward, warnings = prepare(graph, options)
    output = forward.outputs[0]
    tape = _Tape(forward, options)
    for node in forward.nodes:
        tape.append(node, Role.FORWARD, node.name)
    outside, nodes, gradient = loss_nodes(options.loss, output)
    for node, role in nodes:
        tape.append(node, role, "loss")
    if not tape.needs(output):
        raise ModelError(f"output {output.name} depends on no parameter, so nothing can be trained")
    tape.gradients[output.name] = [gradient]
    tape.backward()
    losses = tuple(node.outputs[0] for node, role in nodes if role is Role.LOSS)
    return TrainingGraph(
        name=graph.name,
        opset=graph.opset,
        operators=tuple(tape.operators),
        inputs=(*forward.inputs, *outside),
        outputs=(*losses, *tape.updated),
        parameters=tuple(tape.trained),
        roles=tape.roles,
        saved=tuple(tape.kept.values()),
        warnings=warnings,
    )


@dataclass
class _Parameter:
    """A parameter: where it is used first, how often there, and the gradients so far (of which use, and what)."""

    first_use: int
    uses: int = 0
    gradients: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    done: bool = False


@dataclass
class _Tape:
    """The backward pass while it is being written (`lowering.training.tape`)."""

    forward: Graph
    options: TrainingOptions
    operators: list[Operator] = field(default_factory=list)
    roles: dict[str, OperandRole] = field(default_factory=dict)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    updated: list[Tensor] = field(default_factory=list)
    trained: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.opset = self.forward.opset
        self._names: dict[str, int] = {}
        self._producer = {t.name: node for node in self.forward.nodes for t in node.outputs if t.name}
        self._readable = kept_tensors(self.forward, self.options.recompute)
        self._again: dict[str, Tensor] = {}
        self._index = len(self.forward.nodes)
        self._parameters: dict[str, _Parameter] = {}
        self._needed: set[str] = set()
        for index, node in enumerate(self.forward.nodes):
            self._note(index, node)
        self.roles |= {t.name: OperandRole.ACTIVATION for t in self.forward.inputs}

    def _note(self, index: int, node: Node) -> None:
        """Find the parameters of a node, and whether its results depend on any."""
        for position in TRAINABLE.get(node.op, ()):
            tensor = node.optional_input(position)
            if tensor is None or not tensor.constant or tensor.integer or tensor.elements < 2:
                continue
            known = self._parameters.setdefault(_key(tensor), _Parameter(index))
            known.uses += known.first_use == index
            self._needed.add(tensor.name)
            self.roles[tensor.name] = OperandRole.WEIGHT
        if any(tensor is not None and tensor.name in self._needed for tensor in node.inputs):
            self._needed.update(tensor.name for tensor in node.outputs if not tensor.integer)

    # -- what rules may ask for

    def needs(self, tensor: Tensor | None) -> bool:
        """Whether a gradient of the tensor is of use."""
        return tensor is not None and tensor.name in self._needed

    def emit(
        self,
        op: str,
        inputs: tuple[Tensor | None, ...],
        shapes: tuple[tuple[int, ...], ...],
        role: Role,
        label: str = "",
        **attributes: Attribute,
    ) -> tuple[Tensor, ...]:
        """Add an operator; returns its outputs."""
        source = self.forward.nodes[self._index].name
        name = self._unique(f"{source} ({label or op})")
        names = [name] if len(shapes) == 1 else [f"{name} {number}" for number in range(len(shapes))]
        outputs = tuple(Tensor(each, shape) for each, shape in zip(names, shapes, strict=True))
        self.append(Node(name, op, inputs, outputs, attributes), role, source)
        return outputs

    def saved(self, tensor: Tensor) -> Tensor:
        """A tensor of the forward pass: as it was saved, or computed again, once."""
        if tensor.constant or tensor.name not in self._producer:
            return tensor
        if tensor.name in self._readable:
            self.kept[tensor.name] = tensor
            return tensor
        if tensor.name not in self._again:
            node = _again(self._producer[tensor.name])
            inputs = tuple(None if t is None else self.saved(t) for t in node.inputs)
            outputs = tuple(replace(t, name=f"{t.name} (again)") if t.name else t for t in node.outputs)
            self.append(replace(node, name=f"{node.name} (again)", inputs=inputs, outputs=outputs), Role.RECOMPUTE)
            self._again |= {old.name: new for old, new in zip(node.outputs, outputs, strict=True)}
        return self._again[tensor.name]

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        """Add to the gradient of a tensor; a parameter's is followed by its update once it is complete."""
        if not tensor.constant:
            self.gradients.setdefault(tensor.name, []).append(gradient)
            return
        parameter = self._parameters[_key(tensor)]
        parameter.gradients.append((tensor, gradient))
        self.roles[gradient.name] = OperandRole.WEIGHT_GRADIENT
        if self._index == parameter.first_use:
            parameter.uses -= 1
            if not parameter.uses:
                self._update(parameter)

    # -- the pass

    def append(self, node: Node, role: Role, forward: str = "") -> None:
        """Add a node as it is."""
        self.operators.append(Operator(node, role, forward or node.name.removesuffix(" (again)")))
        for tensor in node.outputs:
            self.roles.setdefault(tensor.name, _ROLE_OF_RESULT.get(role, OperandRole.ACTIVATION))

    def backward(self) -> None:
        """All operators in reverse order."""
        for index in reversed(range(len(self.forward.nodes))):
            self._index = index
            node = self.forward.nodes[index]
            found: Gradients = tuple(self._gradient(tensor) for tensor in node.outputs)
            wanted = any(self.needs(tensor) for tensor in node.inputs)
            if wanted and any(item is not None for item in found) and not is_bookkeeping(node):
                rule = RULES.get(node.op)
                if rule is None:
                    raise UnsupportedError(
                        f"node {node.name}: no gradient of operator {node.op} is modelled; without --train it runs"
                    )
                rule(self, node, found)
            for parameter in self._parameters.values():
                if parameter.first_use == index and parameter.gradients and not parameter.done:
                    self._update(parameter)

    def _gradient(self, tensor: Tensor) -> Tensor | None:
        """The sum of all gradients of a tensor."""
        return self._sum(self.gradients.pop(tensor.name, []), Role.ACCUMULATE, tensor.name)

    def _sum(self, parts: list[Tensor], role: Role, of: str) -> Tensor | None:
        total: Tensor | None = None
        for part in parts:
            if total is None:
                total = part
                continue
            name = self._unique(f"{of} (sum of gradients)")
            result = Tensor(name, part.shape)
            self.append(Node(name, "Add", (total, part), (result,)), role, self.forward.nodes[self._index].name)
            total = result
        return total

    def _update(self, parameter: _Parameter) -> None:
        """The update of a parameter whose gradient is complete."""
        parameter.done = True
        tensor = parameter.gradients[0][0]
        parts = [self._turned(gradient, tensor) for _, gradient in parameter.gradients]
        gradient = self._sum(parts, Role.ACCUMULATE, tensor.name)
        if gradient is None:
            raise ValueError(f"{tensor.name} has no gradient")
        self.roles[gradient.name] = OperandRole.WEIGHT_GRADIENT
        node = update_node(self.options.optimizer, tensor, gradient)
        self.roles |= {state.name: OperandRole.STATE for state in node.inputs[2:] if state is not None}
        self.roles[node.outputs[0].name] = OperandRole.WEIGHT
        self.append(node, Role.UPDATE, self.forward.nodes[self._index].name)
        self.trained.append(tensor)
        self.updated.append(node.outputs[0])

    def _turned(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        """A gradient of a use in which the parameter is transposed."""
        if gradient.shape == parameter.shape:
            return gradient
        perm = tuple(reversed(range(len(parameter.shape))))
        return self.emit("Transpose", (gradient,), (parameter.shape,), Role.ACCUMULATE, "turned", perm=perm)[0]

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name} {count}"


def _key(tensor: Tensor) -> str:
    """What a constant is known by: the weight of the file that it is, possibly transposed, so that uses are tied."""
    if len(tensor.leaves) == 1 and tensor.leaves[0].elements == tensor.elements:
        return tensor.leaves[0].name
    return tensor.name


def _again(node: Node) -> Node:
    """A node as it runs a second time: batch normalisation has its statistics already."""
    if node.op != "BatchNormTraining":
        return node
    statistics = node.outputs[1:3]
    return replace(
        node, op="BatchNormalization", inputs=(*node.inputs[:3], *statistics), outputs=node.outputs[:1], attributes={}
    )
