"""RotaryEmbedding (ONNX 23): x cos + rotate(x) sin, two multiplications and an addition for each element."""

from __future__ import annotations

from dataclasses import replace

from lowering.context import Handler, Network
from lowering.fusion import Group
from lowering.ir import Tensor
from lowering.layout import Layout
from lowering.vector_layers import ElementwiseLayer, Identity, emit_elementwise


def rotary_embedding(network: Network, group: Group) -> None:
    """X is read once; of both caches, the rows of the positions are read alongside, shared by heads and images.

    The positions are taken to be consecutive. Elements beyond `rotary_embedding_dim` are not rotated, but pass
    through the vector unit with the rest.
    """
    node = group.head
    x, target = node.input(0), node.outputs[0]
    source = network.find(x)
    sequence = x.shape[2] if len(x.shape) == 4 else x.shape[1]
    caches = tuple(_rows(network, node.input(index), sequence) for index in (1, 2))
    positions = node.optional_input(3)
    where = (network.find(positions).layout,) if positions is not None and not positions.constant else ()
    result = network.place(target, source.order).layout
    layer = ElementwiseLayer(
        Identity(node.name, node.op), result, (source.layout, *caches, *where), {"mul": 1, "mac": 1}
    )
    emit_elementwise(network.builder, layer, network.chip, network.space)


def _rows(network: Network, cache: Tensor, sequence: int) -> Layout:
    """The rows of a cache that a sequence needs."""
    layout = network.find(cache).layout
    if len(cache.shape) == 2 and cache.shape[0] > sequence:
        return replace(layout, physical=(sequence, layout.channels))
    return layout


HANDLERS: dict[str, Handler] = {"RotaryEmbedding": rotary_embedding}
