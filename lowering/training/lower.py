"""From an inference graph to the program of one training iteration."""

from __future__ import annotations

from dataclasses import replace

from lowering.chip import Chip
from lowering.ir import Graph
from lowering.network import lower_graph
from lowering.parts import MappingChooser
from lowering.program import LayerInfo, Program
from lowering.training.derive import derive
from lowering.training.graph import Role, TrainingGraph
from lowering.training.options import TrainingOptions


def lower_training(
    graph: Graph, chip: Chip, options: TrainingOptions, *, mapping: MappingChooser | None = None
) -> Program:
    """The program of one iteration; the first note of every layer is its role (`Role`).

    Raises what `derive` and `lower_graph` raise.
    """
    training = derive(graph, options)
    program = lower_graph(training.graph, chip, mapping=mapping)
    layers = _with_roles(program.layers, training)
    return replace(program, layers=layers, warnings=(*training.warnings, *program.warnings))


def _with_roles(layers: tuple[LayerInfo, ...], training: TrainingGraph) -> tuple[LayerInfo, ...]:
    """The layers with the roles of their operators: those by whose names, or whose results', theirs begin.

    A layer of neither name rearranges an operand of the layer behind it, and has its role.
    """
    roles: dict[str, Role] = {}
    for operator in training.operators:
        roles |= dict.fromkeys((operator.name, *(tensor.name for tensor in operator.node.outputs)), operator.role)
    noted: list[LayerInfo] = []
    role = Role.FORWARD
    for layer in reversed(layers):
        name = layer.name
        while name not in roles and " (" in name:
            name = name[: name.rindex(" (")]
        role = roles.get(name, role)
        noted.append(replace(layer, notes=(role.value, *layer.notes)))
    return tuple(reversed(noted))
