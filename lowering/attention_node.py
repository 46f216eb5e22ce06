"""The `Attention` node of a graph (its definition is in `lowering.attention`): shapes, and where its tensors lie."""

from __future__ import annotations

from dataclasses import replace

from lowering.attention import AttentionLayer, HeadRows, KeyRows, emit_attention, plan_attention
from lowering.attention_tiling import AttentionShape
from lowering.context import Handler, Network, present, unsupported
from lowering.fusion import Group
from lowering.ir import Node, Tensor
from lowering.layout import Layout, row_major
from lowering.models import ModelError
from lowering.vector_layers import CopyLayer, CopyPart, Identity, emit_copy

_Q, _K, _V, _MASK, _PAST_KEY, _PAST_VALUE = range(6)
_PRESENT_KEY, _PRESENT_VALUE, _SCORES = 1, 2, 3


def attention_shape(node: Node) -> AttentionShape:
    """What an `Attention` node computes. Raises ModelError when its shapes contradict one another."""
    q, k, v = (node.input(index).shape for index in (_Q, _K, _V))
    q_heads, kv_heads = node.int("q_num_heads", 0), node.int("kv_num_heads", 0)
    batch, q_heads, q_len, head = _heads_first(node, "Q", q, q_heads)
    of_keys, of_values = _heads_first(node, "K", k, kv_heads), _heads_first(node, "V", v, kv_heads)
    past_key, past_value = node.optional_input(_PAST_KEY), node.optional_input(_PAST_VALUE)
    past_len = past_key.shape[2] if past_key is not None and len(past_key.shape) == 4 else 0
    kv_heads, new_len, v_head = of_keys[1], of_keys[2], of_values[3]
    expected = {
        "K": (of_keys, (batch, kv_heads, new_len, head)),
        "V": (of_values, (batch, kv_heads, new_len, v_head)),
        "past_key": (past_key.shape if past_key else None, (batch, kv_heads, past_len, head)),
        "past_value": (past_value.shape if past_value else None, (batch, kv_heads, past_len, v_head)),
    }
    for name, (found, wanted) in expected.items():
        if found is not None and found != wanted:
            raise _wrong(node, f"{name} is {found} by heads, {wanted} would match the others")
    if (past_key is None) != (past_value is None):
        raise _wrong(node, "past_key and past_value come together or not at all")
    if q_heads % kv_heads:
        raise _wrong(node, f"{q_heads} query heads cannot share {kv_heads} key/value heads evenly")
    if min(batch, q_heads, q_len, head, v_head, past_len + new_len) < 1 or new_len < 1:
        raise _wrong(node, "a dimension is zero")
    window = max(0, node.int("window", 0))
    shape = AttentionShape(
        batch,
        q_heads,
        kv_heads,
        q_len,
        past_len,
        new_len,
        head,
        v_head,
        causal=bool(node.int("is_causal", 0)) or window > 0,
        window=window,
        softcap=bool(node.attributes.get("softcap", 0.0)),
    )
    return replace(shape, mask=_mask_shape(node, shape))


def _heads_first(node: Node, name: str, shape: tuple[int, ...], heads: int) -> tuple[int, int, int, int]:
    """(batch, heads, length, width) of either form."""
    if len(shape) == 4:
        return shape[0], shape[1], shape[2], shape[3]
    attribute = "q_num_heads" if name == "Q" else "kv_num_heads"
    if len(shape) != 3:
        raise _wrong(node, f"{name} has {len(shape)} dimensions, not 3 or 4")
    if heads < 1 or shape[2] % heads:
        raise _wrong(node, f"{name} {shape} needs {attribute} that divides {shape[2]}, found {heads}")
    return shape[0], heads, shape[1], shape[2] // heads


def _mask_shape(node: Node, shape: AttentionShape) -> tuple[int, ...]:
    mask = node.optional_input(_MASK)
    if mask is None or mask.elements == 1:
        return ()
    padded = (1,) * (4 - len(mask.shape)) + mask.shape
    full = (shape.batch, shape.q_heads, shape.q_len, shape.kv_len)
    if len(padded) > 4 or any(size not in (1, whole) for size, whole in zip(padded, full, strict=True)):
        raise _wrong(node, f"the mask {mask.shape} does not broadcast to {full}")
    return padded


def _wrong(node: Node, what: str) -> ModelError:
    return ModelError(f"node {node.name} (Attention): {what}")


def head_rows(tensor: Tensor, heads: int, layout: Layout) -> HeadRows:
    """The rows of a tensor of either form that lies row-major."""
    if len(tensor.shape) == 4:
        return HeadRows(layout, tensor.shape[1], tensor.shape[2], tensor.shape[3])
    return HeadRows(layout, heads, tensor.shape[1], tensor.shape[2] // heads, merged=True)


def attention(network: Network, group: Group) -> None:
    """Place the results and write the layer. A cache that is no input of the graph is copied before it grows."""
    node = group.head
    if present(node, _SCORES) is not None:
        raise unsupported(node, "the output of the raw scores is not modelled")
    shape, queries, result = attention_shape(node), node.input(_Q), node.outputs[0]
    mask = node.optional_input(_MASK) if shape.mask else None
    append = all(present(node, index) is not None for index in (_PRESENT_KEY, _PRESENT_VALUE))
    layer = AttentionLayer(
        node.name,
        shape,
        head_rows(queries, shape.q_heads, _row_major(network, queries)),
        _key_rows(network, node, (_K, _PAST_KEY, _PRESENT_KEY), shape.kv_heads, append),
        _key_rows(network, node, (_V, _PAST_VALUE, _PRESENT_VALUE), shape.kv_heads, append),
        head_rows(result, shape.q_heads, network.place(result, row_major(len(result.shape))).layout),
        _row_major(network, mask) if mask is not None else None,
    )
    emit_attention(network.builder, plan_attention(layer, network.chip), network.chip)


def _key_rows(network: Network, node: Node, places: tuple[int, int, int], kv_heads: int, append: bool) -> KeyRows:
    """Keys or values; `places`: the inputs of the new and the old ones, the output of both."""
    new, past = node.input(places[0]), node.optional_input(places[1])
    rows = head_rows(new, kv_heads, _row_major(network, new))
    if not append:
        return KeyRows(rows, head_rows(past, kv_heads, _row_major(network, past)) if past is not None else None)
    whole = node.outputs[places[2]]
    cache = head_rows(whole, kv_heads, network.place(whole, row_major(len(whole.shape))).layout)
    if past is not None and past.name not in network.inputs:
        identity = Identity(f"{past.name} (cache)", "Concat", ("a computed cache is copied before it grows",))
        old = _row_major(network, past)
        heads = range(past.shape[0] * past.shape[1])
        parts = tuple(CopyPart(old, i * past.shape[2], past.shape[2], i * whole.shape[2]) for i in heads)
        emit_copy(network.builder, CopyLayer(identity, cache.layout, parts), network.chip)
    return KeyRows(rows, cache, append=True)


def _row_major(network: Network, tensor: Tensor) -> Layout:
    return network.in_order(tensor, row_major(len(tensor.shape)))


HANDLERS: dict[str, Handler] = {"Attention": attention}
