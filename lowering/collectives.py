"""Collective operations of tensor parallelism on a ring of chips, as one of the chips sees them.

Two operators that ONNX does not have; attributes ``degree`` (p >= 2 chips) and ``link_bytes_per_cycle`` (what a chip
sends to its neighbour, and receives from the other one, in a core cycle):

* ``AllReduce``: every chip has a tensor of N bytes and gets their sum. Ring algorithm (Patarasuk and Yuan, "Bandwidth
  optimal all-reduce algorithms for clusters of workstations", JPDC 2009): 2 (p-1)/p N bytes leave, and as many enter,
  every chip. Each element is read from DRAM once and its sum written once; (p-1)/p N bytes are added on the way.
* ``AllGather``: every chip has N/p bytes and gets all N. (p-1)/p N bytes enter and leave; the own part is read from
  DRAM and everything is written.

A chip's own DRAM traffic is simulated. The link is an approximation: a time, proportional to N, that the data spend in
the vector unit, which adds them up meanwhile (whichever takes longer). Every core has an equal part of the link. There
is no latency of the hops, no waiting for slower chips, and no overlap with the layers before and after. The link's time
appears among the vector unit's active cycles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from lowering.chip import Chip
from lowering.context import Handler, Network
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.fusion import Group
from lowering.ir import Node
from lowering.layout import Layout, row_major
from lowering.matmul import vector_units
from lowering.vector_layers import Identity, shares


@dataclass(frozen=True)
class CollectiveLayer:
    """One collective: x is the chip's own tensor, y the result.

    sent: bytes that cross the link for each byte of x. added: bytes summed up for each byte of x.
    """

    identity: Identity
    x: Layout
    y: Layout
    sent: Fraction
    added: Fraction
    link_bytes_per_cycle: float

    @staticmethod
    def of(node: Node, x: Layout, y: Layout) -> CollectiveLayer:
        """The layer of an `AllReduce` or `AllGather` node."""
        degree = node.int("degree", 1)
        bandwidth = node.attributes.get("link_bytes_per_cycle", 0.0)
        if degree < 2 or not isinstance(bandwidth, int | float) or not bandwidth > 0:
            raise ValueError(f"node {node.name} ({node.op}): {degree} chips and {bandwidth!r} bytes per cycle")
        reduces = node.op == "AllReduce"
        sent = Fraction(2 * (degree - 1), degree) if reduces else Fraction(degree - 1)
        added = Fraction(degree - 1, degree) if reduces else Fraction(0)
        note = f"ring of {degree}: {float(sent):.4g} bytes sent per byte, {bandwidth:.4g} bytes per cycle"
        return CollectiveLayer(Identity(node.name, node.op, (note,)), x, y, sent, added, float(bandwidth))


def link_cycles(layer: CollectiveLayer, n_bytes: int, sharers: int) -> int:
    """Cycles that `n_bytes` of x take over the link when `sharers` cores use it at once."""
    return math.ceil(n_bytes * float(layer.sent) * sharers / layer.link_bytes_per_cycle)


def emit_collective(builder: ProgramBuilder, layer: CollectiveLayer, chip: Chip) -> None:
    """Write the layer: every tile loads a part of x, waits for the link, and stores the part of y that comes of it."""
    request = chip.request_bytes
    x_blocks, y_blocks = (math.ceil(layout.total_bytes / request) for layout in (layer.x, layer.y))
    growth = math.ceil(y_blocks / x_blocks)
    pieces = shares(x_blocks, chip.spad_bytes // ((1 + growth) * request), 1, request, chip)
    sharers = len({core for core, _, _ in pieces})
    builder.begin_layer(layer.identity.info())
    for core, start, count in pieces:
        end = y_blocks if start + count == x_blocks else (start + count) * y_blocks // x_blocks
        first = start * y_blocks // x_blocks
        n_bytes = count * request
        config = chip.cores[core]
        adding = vector_units(math.ceil(n_bytes * layer.added), config) * config.latency.add
        builder.begin_tile(core)
        builder.load(0, _blocks(layer.x, start, count))
        elements = n_bytes // chip.element_bytes
        builder.vector(
            dst=Operand(1),
            src_a=Operand(0),
            size1=Extent(max(adding, link_cycles(layer, n_bytes, sharers))),
            elements=elements,
            operations={"add": math.ceil(elements * layer.added)},
        )
        builder.store(1, _blocks(layer.y, first, end - first), acc=False)
        builder.end_tile()
    builder.end_layer()


def _blocks(layout: Layout, first: int, count: int) -> Descriptor:
    return Descriptor(layout.base_byte // layout.request_bytes + first, count)


def collective(network: Network, group: Group) -> None:
    """Write the layer of an `AllReduce` or `AllGather` node."""
    node = group.head
    source, target = node.input(0), node.outputs[0]
    x = network.in_order(source, row_major(len(source.shape)))
    y = network.place(target, row_major(len(target.shape))).layout
    emit_collective(network.builder, CollectiveLayer.of(node, x, y), network.chip)


HANDLERS: dict[str, Handler] = {"AllReduce": collective, "AllGather": collective}
