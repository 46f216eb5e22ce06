"""From an inference graph to the program of one training iteration."""

from __future__ import annotations

from dataclasses import replace

from lowering.chip import Chip
from lowering.ir import Graph
from lowering.network import lower_graph
from lowering.parts import MappingChooser
from lowering.program import Program
from lowering.training.derive import derive
from lowering.training.options import TrainingOptions


def lower_training(
    graph: Graph, chip: Chip, options: TrainingOptions, *, mapping: MappingChooser | None = None
) -> Program:
    """The program of one iteration. Raises what `derive` and `lower_graph` raise."""
    training = derive(graph, options)
    program = lower_graph(training.graph, chip, mapping=mapping)
    return replace(program, warnings=(*training.warnings, *program.warnings))
