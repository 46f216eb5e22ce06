"""Which module lowers which operator, beyond those that `lowering.network` lowers itself."""

from __future__ import annotations

from lowering import (
    attention_node,
    collectives,
    einsum,
    gather,
    movement,
    normalisation,
    recurrent,
    reduction,
    resampling,
    rotary,
)
from lowering.context import Handler
from lowering.training import layers

HANDLERS: dict[str, Handler] = {
    **attention_node.HANDLERS,
    **collectives.HANDLERS,
    **einsum.HANDLERS,
    **gather.HANDLERS,
    **movement.HANDLERS,
    **normalisation.HANDLERS,
    **recurrent.HANDLERS,
    **reduction.HANDLERS,
    **resampling.HANDLERS,
    **rotary.HANDLERS,
    **layers.HANDLERS,
}
