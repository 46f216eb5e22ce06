"""What a lowering of one operator may ask of the network that it is part of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from hwconfigs.errors import UserError
from lowering.address_space import AddressSpace
from lowering.chip import Chip
from lowering.emit import ProgramBuilder
from lowering.fusion import Group
from lowering.ir import Node, Tensor
from lowering.layout import Layout, Order
from lowering.parts import MappingChooser


class UnsupportedError(UserError):
    """The network contains an operator, or a form of one, that is not modelled."""


class PlacedTensor(Protocol):
    """A tensor in DRAM: the order of its dimensions there, and its layout."""

    @property
    def order(self) -> Order: ...  # noqa: D102

    @property
    def layout(self) -> Layout: ...  # noqa: D102


class Network(Protocol):
    """The network being lowered: the chip, the program so far, and where tensors lie."""

    chip: Chip
    builder: ProgramBuilder
    space: AddressSpace
    mapping: MappingChooser
    opset: int
    inputs: frozenset[str]
    """Names of the graph's inputs."""

    def place(self, tensor: Tensor, order: Order) -> Any:
        """Reserve memory for a tensor; returns where it lies (a `PlacedTensor`)."""
        ...

    def place_at(self, tensor: Tensor, order: Order, base_byte: int) -> Any:
        """Let a tensor be memory that is already reserved, from `base_byte` on."""
        ...

    def find(self, tensor: Tensor) -> Any:
        """Where a tensor lies (a `PlacedTensor`)."""
        ...

    def in_order(self, tensor: Tensor, order: Order) -> Layout:
        """The tensor in the wanted order, rearranged by a layer of its own when it lies otherwise."""
        ...


Handler = Callable[[Network, Group], None]
"""Writes the layers of one group and places its results."""


def unsupported(node: Node, what: str) -> UnsupportedError:
    """The error for a form of an operator that is not modelled; `what` says which and why."""
    return UnsupportedError(f"node {node.name} ({node.op}): {what}")


def present(node: Node, index: int) -> Tensor | None:
    """Output `index` when somebody may read it, else None."""
    if index < len(node.outputs) and node.outputs[index].name:
        return node.outputs[index]
    return None


def axis_of(node: Node, default: int, rank: int) -> int:
    """The attribute `axis`, counted from the front. Raises UnsupportedError when it is outside the tensor."""
    axis = node.int("axis", default)
    if not -rank <= axis < max(rank, 1):
        raise unsupported(node, f"axis {axis} of a tensor of {rank} dimensions")
    return axis % max(rank, 1)


def blocks(layout: Layout) -> int:
    """Memory blocks that a tensor fills."""
    return math.ceil(layout.total_bytes / layout.request_bytes)
