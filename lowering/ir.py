"""The workload graph: frozen, static shapes, no weights.

A `Graph` is what `lowering.onnx_reader` makes of an ONNX file once every dimension is known: tensors are shapes,
constants are known to be constant but hold no values (except the few small integers that shapes are made of).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """One value of the graph.

    shape: sizes in elements, in ONNX (logical) order; () is a scalar.
    constant: it does not depend on the graph's inputs (a weight, or computed from weights only).
    values: the elements of a small constant in row-major order, where the file holds them; else None.
    integer: integers or truth values (shapes, indices, masks) rather than activations.
    leaves: of a constant computed from others, the constants of the file that it comes from.
    """

    name: str
    shape: tuple[int, ...]
    constant: bool = False
    values: tuple[float, ...] | None = None
    integer: bool = False
    leaves: tuple[Tensor, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """One operator. Absent optional inputs are None, so positions mean what ONNX says they mean."""

    name: str
    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def input(self, index: int) -> Tensor:
        """Input number `index`, which must be there."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        if tensor is None:
            raise ValueError(f"node {self.name} ({self.op}) has no input {index}")
        return tensor

    def optional_input(self, index: int) -> Tensor | None:
        """Input number `index`, or None when the node does not have it."""
        return self.inputs[index] if index < len(self.inputs) else None

    def ints(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        value = self.attributes.get(name, default)
        return tuple(int(item) for item in value) if isinstance(value, tuple) else default

    def texts(self, name: str) -> tuple[str, ...]:
        """An attribute that is a list of strings; empty when it is not there."""
        value = self.attributes.get(name, ())
        return tuple(str(item) for item in value) if isinstance(value, tuple) else ()

    def int(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int | float) else default

    def numbers(self, index: int) -> tuple[float, ...] | None:
        """The values of input `index`; None when it is absent, computed, or kept without its values."""
        tensor = self.optional_input(index)
        return None if tensor is None else tensor.values

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, str) else default


@dataclass(frozen=True)
class Graph:
    """A network with static shapes; `nodes` in an order in which every input is computed before it is used.

    Constant nodes (all inputs constant) are not listed: they cost nothing at inference.
    """

    name: str
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]

    @property
    def parameters(self) -> int:
        """Number of elements of all distinct constants of the file that nodes depend on, integers left out.

        Statistics of BatchNormalization count, and so does a table of which only a few rows are ever read.
        """
        read = {t.name: t for node in self.nodes for t in node.inputs if t is not None and t.constant}
        leaves = {leaf.name: leaf for t in read.values() for leaf in (t.leaves or (t,))}
        return sum(leaf.elements for leaf in leaves.values() if not leaf.integer)
