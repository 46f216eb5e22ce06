"""The com.microsoft attentions as the `Attention` of `lowering.attention`, with the operators that they contain.

Source: ONNX Runtime's ContribOperators.md. Masks that give lengths only (key counts of each batch entry) are not read:
all positions count. A cache is taken to hold as many positions as its tensor, and to grow by the new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowering.context import unsupported
from lowering.ir import Attribute, Graph, Node, Tensor
from lowering.simplify import consumers

_ATTENTION = "com.microsoft.Attention"
_PAST, _PAST_VALUE = 4, 7
"""Inputs of com.microsoft.Attention: the cache; its values, where `separate_caches` has parted them from the keys."""


def separate_caches(graph: Graph) -> Graph:
    """The graph with the keys and the values of com.microsoft.Attention's caches in tensors of their own.

    In one tensor, (2, batch, heads, tokens, head), the two lie one behind the other. Raises UnsupportedError where
    such a tensor is more than an input or an output of the graph.
    """
    uses, given = consumers(graph.nodes), {tensor.name for tensor in graph.inputs}
    nodes: list[Node] = []
    caches: list[Tensor] = []
    for node in graph.nodes:
        past = node.optional_input(_PAST) if node.op == _ATTENTION else None
        grown = [tensor for tensor in node.outputs[1:] if tensor.name] if node.op == _ATTENTION else []
        if past is not None and (past.name not in given or len(uses[past.name]) > 1):
            raise unsupported(
                node, f"{past.name}, keys and values in one tensor, is no input of the graph, or is shared"
            )
        if any(tensor.name in uses for tensor in grown):
            raise unsupported(node, f"{grown[0].name}, keys and values in one tensor, is read by another operator")
        caches += grown if past is None else [past, *grown]
        nodes.append(_with_halves(node, past, grown))
    parted = {tensor.name: _halves(tensor) for tensor in caches}
    inputs, outputs = (
        tuple(part for tensor in tensors for part in parted.get(tensor.name, (tensor,)))
        for tensors in (graph.inputs, graph.outputs)
    )
    return replace(graph, inputs=inputs, outputs=outputs, nodes=tuple(nodes))


def _with_halves(node: Node, past: Tensor | None, grown: Sequence[Tensor]) -> Node:
    """The node with both halves of its cache as inputs and of the grown one as outputs; an empty cache is none."""
    if past is not None:
        inputs = [*node.inputs, *[None] * _PAST_VALUE][:_PAST_VALUE]
        keys, values = _halves(past) if past.elements else (None, None)
        node = replace(node, inputs=(*inputs[:_PAST], keys, *inputs[_PAST + 1 :], values))
    if grown:
        node = replace(node, outputs=(node.outputs[0], *_halves(grown[0])))
    return node


def _halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = (Tensor(f"{tensor.name} ({part})", tensor.shape[1:]) for part in ("keys", "values"))
    return keys, values


def attention(node: Node) -> list[Node]:
    """Attention: one weight for queries, keys and values, here as three products."""
    x, weights = node.input(0), node.input(1)
    bias, past = node.optional_input(2), (node.optional_input(_PAST), node.optional_input(_PAST_VALUE))
    if not weights.constant:
        raise unsupported(node, "computed weights")
    widths = node.ints("qkv_hidden_sizes") or (weights.shape[1] // 3,) * 3
    nodes: list[Node] = []
    operands: list[Tensor] = []
    for part, width in zip("qkv", widths, strict=True):
        result = Tensor(f"{node.name} ({part})", (*x.shape[:-1], width))
        own = Tensor(f"{weights.name} ({part})", (weights.shape[0], width), constant=True)
        nodes.append(Node(result.name, "MatMul", (x, own), (result,)))
        operands.append(_biased(nodes, result, bias, part))
    mask = _mask(nodes, node, node.optional_input(3), node.optional_input(5))
    return [*nodes, _core(node, (*operands, mask, *past), {"is_causal": node.int("unidirectional", 0)})]


def multi_head_attention(node: Node) -> list[Node]:
    """MultiHeadAttention: queries, keys and values in tensors of their own, biases added here."""
    if node.optional_input(1) is None or node.optional_input(2) is None:
        raise unsupported(node, "queries, keys and values packed into one tensor")
    nodes: list[Node] = []
    bias = node.optional_input(3)
    operands = [_biased(nodes, node.input(index), bias, part) for index, part in enumerate("qkv")]
    mask = _mask(nodes, node, node.optional_input(4), node.optional_input(5))
    inputs = (*operands, mask, *_past(node, 6))
    return [*nodes, _core(node, inputs, {"is_causal": node.int("unidirectional", 0)})]


def group_query_attention(node: Node) -> list[Node]:
    """GroupQueryAttention: causal, with a cache, and with rotary embeddings where it asks for them."""
    heads, kv_heads = node.int("num_heads", 1), node.int("kv_num_heads", 1)
    nodes: list[Node] = []
    query, key, value = node.input(0), node.optional_input(1), node.optional_input(2)
    if key is None or value is None:
        width = query.shape[-1] // (heads + 2 * kv_heads)
        parts = tuple(
            Tensor(f"{node.name} ({part})", (*query.shape[:-1], count * width))
            for part, count in zip("qkv", (heads, kv_heads, kv_heads), strict=True)
        )
        nodes.append(Node(f"{node.name} (Split)", "Split", (query,), parts, {"axis": len(query.shape) - 1}))
        query, key, value = parts
    if node.int("do_rotary", 0):
        caches = (node.input(7), node.input(8))
        query, key = (_rotated(nodes, tensor, caches, n) for tensor, n in ((query, heads), (key, kv_heads)))
    mask = node.optional_input(10)
    inputs = (query, key, value, mask, *_past(node, 3))
    attributes = {"is_causal": 1, "kv_num_heads": kv_heads, "window": max(0, node.int("local_window_size", -1))}
    return [*nodes, _core(node, inputs, attributes)]


def _core(node: Node, inputs: tuple[Tensor | None, ...], attributes: dict[str, int]) -> Node:
    heads = node.int("num_heads", 1)
    kept: dict[str, Attribute] = {
        name: node.attributes[name] for name in ("softcap", "scale") if name in node.attributes
    }
    kept |= {"q_num_heads": heads, "kv_num_heads": heads, **attributes}
    return replace(node, op="Attention", inputs=inputs, attributes=kept)


def _past(node: Node, first: int) -> tuple[Tensor | None, Tensor | None]:
    """Old keys and values, where the cache is not empty."""
    pair = node.optional_input(first), node.optional_input(first + 1)
    return (None, None) if pair[0] is not None and not pair[0].elements else pair


def _biased(nodes: list[Node], tensor: Tensor, bias: Tensor | None, part: str) -> Tensor:
    """The tensor with its part of the bias added."""
    if bias is None:
        return tensor
    own = Tensor(f"{bias.name} ({part})", tensor.shape[-1:], constant=bias.constant)
    result = replace(tensor, name=f"{tensor.name} + {own.name}")
    nodes.append(Node(result.name, "Add", (tensor, own), (result,)))
    return result


def _rotated(nodes: list[Node], tensor: Tensor, caches: tuple[Tensor, Tensor], heads: int) -> Tensor:
    result = replace(tensor, name=f"{tensor.name} (rotated)")
    nodes.append(Node(result.name, "RotaryEmbedding", (tensor, *caches), (result,), {"num_heads": heads}))
    return result


def _mask(nodes: list[Node], node: Node, padding: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """One mask from a padding mask (batch, keys) or (batch, queries, keys) and an added bias."""
    if padding is not None and len(padding.shape) in (2, 3) and padding.elements > padding.shape[0]:
        batch, *rest = padding.shape
        shape = (batch, 1, *([1] if len(rest) == 1 else []), *rest)
        view = replace(padding, name=f"{node.name} (mask)", shape=shape, values=None)
        nodes.append(Node(view.name, "Reshape", (padding,), (view,)))
        padding = view
    else:
        padding = None
    if padding is None or bias is None:
        return padding or bias
    sizes = tuple(max(pair) for pair in zip(padding.shape, bias.shape, strict=True))
    both = Tensor(f"{node.name} (masks)", sizes)
    nodes.append(Node(both.name, "Add", (bias, padding), (both,)))
    return both


REWRITES = {
    "com.microsoft.Attention": attention,
    "com.microsoft.MultiHeadAttention": multi_head_attention,
    "com.microsoft.GroupQueryAttention": group_query_attention,
}
