"""Loops with a constant number of trips become straight-line graphs; onnxscript folds If with a constant condition.

Works on ONNX protos, after a first round of folding has made trip counts constant where they can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lowering.models import ModelError

MAX_UNROLLED_NODES = 100_000
"""Longer programs are refused: the loop is not what the model spends its time on, or it should be exported unrolled."""


def unroll(model: onnx.ModelProto, path: object) -> bool:
    """Replace every Loop of the main graph by its trips, in place; returns whether there was one.

    Raises ModelError for a loop whose trip count, or whose condition, depends on the data.
    """
    if not any(node.op_type == "Loop" for node in model.graph.node):
        return False
    constants = _constants(model.graph)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Loop":
            nodes.extend(_Unrolled(model.graph, node, constants, path).nodes())
        else:
            nodes.append(node)
        if len(nodes) > MAX_UNROLLED_NODES:
            raise ModelError(
                f"model {path}: node {_name(node)} (Loop): unrolling gives more than {MAX_UNROLLED_NODES} nodes"
            )
    kept = [_copy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return True


def _name(node: NodeProto) -> str:
    return node.name or (node.output[0] if node.output else "without a name")


def _copy(node: NodeProto) -> NodeProto:
    clone = NodeProto()
    clone.CopyFrom(node)
    return clone


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Constants of a graph by name."""
    found = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    return found


class _Unrolled:
    """The trips of one loop."""

    def __init__(
        self, graph: onnx.GraphProto, node: NodeProto, constants: Mapping[str, TensorProto], path: object
    ) -> None:
        self.graph, self.node, self.path = graph, node, path
        self.prefix = _name(node)
        self.body = next((item.g for item in node.attribute if item.name == "body"), onnx.GraphProto())
        self.trips = self._trips(constants)
        self._check_condition(constants)

    def _fail(self, what: str) -> ModelError:
        return ModelError(
            f"model {self.path}: node {self.prefix} (Loop): {what}; only loops with a constant number of trips are "
            "modelled, export the model with the loop unrolled"
        )

    def _trips(self, constants: Mapping[str, TensorProto]) -> int:
        count = self.node.input[0] if self.node.input else ""
        if count not in constants:
            raise self._fail("its trip count is not constant")
        trips = int(numpy_helper.to_array(constants[count]).reshape(-1)[0])
        if not trips > 0 or trips * max(1, len(self.body.node)) > MAX_UNROLLED_NODES:
            raise self._fail(f"{trips} trips of {len(self.body.node)} nodes")
        return trips

    def _check_condition(self, constants: Mapping[str, TensorProto]) -> None:
        """The condition must start true and stay so."""
        first = self.node.input[1] if len(self.node.input) > 1 else ""
        if first and not (first in constants and numpy_helper.to_array(constants[first]).all()):
            raise self._fail("its first condition is not constant and true")
        inside = _constants(self.body)
        last = self.body.output[0].name if self.body.output else ""
        for node in reversed(self.body.node):
            if node.op_type in ("Identity", "Cast") and node.output[0] == last:
                last = node.input[0]
        stays = len(self.body.input) > 1 and last == self.body.input[1].name
        known = inside.get(last, constants.get(last))
        if not stays and not (known is not None and numpy_helper.to_array(known).all()):
            raise self._fail("its condition is computed in the loop")

    def nodes(self) -> Iterator[NodeProto]:
        """All trips' nodes, then what makes the loop's results of them."""
        carried = list(self.node.input[2:])
        n_carried = len(carried)
        scans: list[list[str]] = [[] for _ in self.body.output[1 + n_carried :]]
        for trip in range(self.trips):
            names = dict(zip((item.name for item in self.body.input[2:]), carried, strict=False))
            for index, (item, value) in enumerate(
                zip(self.body.input[:2], (np.int64(trip), np.bool_(True)), strict=False)
            ):
                names[item.name] = f"{self.prefix}/{trip}/input{index}"
                tensor = numpy_helper.from_array(np.asarray(value), "")
                yield helper.make_node("Constant", [], [names[item.name]], name=names[item.name], value=tensor)
            yield from self._trip(trip, names)
            results = [names.get(item.name, item.name) for item in self.body.output[1:]]
            carried = results[:n_carried]
            for collected, result in zip(scans, results[n_carried:], strict=True):
                row = f"{self.prefix}/{trip}/{len(collected)}/row{scans.index(collected)}"
                axes = numpy_helper.from_array(np.array([0], np.int64), "")
                yield helper.make_node("Constant", [], [f"{row}/axes"], name=f"{row}/axes", value=axes)
                yield helper.make_node("Unsqueeze", [result, f"{row}/axes"], [row], name=row)
                collected.append(row)
        for output, value in zip(self.node.output, carried, strict=False):
            if output:
                yield helper.make_node("Identity", [value], [output], name=f"{self.prefix}/{output}")
        for output, rows in zip(self.node.output[n_carried:], scans, strict=False):
            if output:
                yield helper.make_node("Concat", rows, [output], name=f"{self.prefix}/{output}", axis=0)

    def _trip(self, trip: int, names: dict[str, str]) -> Iterator[NodeProto]:
        """The body's nodes with their values renamed; fills in `names`."""
        for item in self.body.initializer:
            names[item.name] = f"{self.prefix}/{item.name}"
            if trip == 0:
                shared = self.graph.initializer.add()
                shared.CopyFrom(item)
                shared.name = names[item.name]
        for node in self.body.node:
            for output in node.output:
                if output:
                    names[output] = f"{self.prefix}/{trip}/{output}"
            clone = _copy(node)
            clone.name = f"{self.prefix}/{trip}/{_name(node)}"
            _rename(clone, names)
            yield clone


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Apply `names` to a node's values, and to what its subgraphs read from outside."""
    for values in (node.input, node.output):
        for index, value in enumerate(values):
            values[index] = names.get(value, value)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {item.name for item in (*graph.input, *graph.initializer)}
            own.update(output for inner in graph.node for output in inner.output)
            outer = {old: new for old, new in names.items() if old not in own}
            for inner in graph.node:
                _rename(inner, outer)
            for item in graph.output:
                item.name = outer.get(item.name, item.name)
