"""Scaled dot-product attention as exporters write it: MatMul, scale, mask, Softmax, MatMul, and the heads around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from onnx_ir import Node, Value
from onnxscript.rewriter import RewriteRule, RewriteRuleClassBase, pattern

from lowering.patterns.algebra import (
    Builder,
    close,
    computed,
    integer,
    like,
    producer,
    scalar,
    scaled,
    shape,
)
from lowering.patterns.heads import (
    four_dimensional,
    merged_heads,
    shared_heads,
    sizes_value,
    untransposed,
)
from lowering.patterns.masks import Masks


@dataclass(frozen=True)
class _Scores:
    """scale * queries @ transposed + masks, with a soft cap (0: none) before the masks."""

    queries: Value
    transposed: Value
    scale: float = 1.0
    softcap: float = 0.0
    masks: tuple[Value, ...] = ()


class ScaledDotProduct(RewriteRuleClassBase):
    """A product with a softmax over the last dimension of a scaled and masked product."""

    def __init__(self) -> None:
        super().__init__(remove_nodes=False)
        self._masks = Masks()

    def pattern(self, op: Builder, weights: Any, values: Any) -> Any:
        """The root: the second product."""
        return op.MatMul(weights, values, _outputs=["y"])

    def rewrite(self, op: Builder, weights: Value, values: Value, y: Value) -> Value | None:
        """Attention with heads merged where they were split just before; None where something else is computed."""
        softmax = _softmax(weights)
        scores = _scores(softmax) if softmax is not None else None
        keys = untransposed(scaled(scores.transposed)[1]) if scores is not None else None
        if scores is None or keys is None:
            return None
        scale, queries = scaled(scores.queries)
        scale *= scores.scale * scaled(scores.transposed)[0]
        return _attention(op, self._masks, replace(scores, queries=queries, scale=scale), keys, values, y)


def _softmax(weights: Value) -> Value | None:
    """The input of the softmax that computes `weights`; a guard against rows without any key is looked through."""
    guard = producer(weights, "Where")
    if guard is not None:
        test = producer(guard.inputs[0], "IsNaN")
        if test is None or test.inputs[0] is not guard.inputs[2] or scalar(guard.inputs[1]) != 0:
            return None
        weights = computed(guard)[2]
    view = producer(weights, "Reshape")
    if view is not None and _same_rows(view):
        weights = computed(view)[0]
    node = producer(weights, "Softmax")
    sizes = shape(weights)
    if node is None or sizes is None or integer(node, "axis", -1) not in (-1, len(sizes) - 1):
        return None
    return node.inputs[0]


def _scores(value: Value) -> _Scores | None:
    """What a score matrix is computed from; None when it does not lead to a product of two computed matrices."""
    node = producer(value, "MatMul", "Mul", "Div", "Add", "Sub", "Where", "Reshape", "Tanh")
    if node is None or None in node.inputs:
        return None
    if node.op_type == "MatMul":
        queries, transposed = computed(node)
        return _Scores(queries, transposed)
    if node.op_type == "Reshape":
        return _scores(computed(node)[0]) if _same_rows(node) else None
    if node.op_type in ("Mul", "Div"):
        return _scaled_scores(value)
    if node.op_type == "Where":
        return _where(node)
    sizes = shape(value)
    operands = computed(node)
    for scores, mask in (operands, operands[::-1]) if node.op_type == "Add" else (operands,):
        if shape(scores) == sizes and (found := _scores(scores)) is not None:
            return replace(found, masks=(*found.masks, mask))
    return None


def _scaled_scores(value: Value) -> _Scores | None:
    factor, inner = scaled(value)
    tanh = producer(inner, "Tanh")
    if tanh is not None and tanh.inputs[0] is not None:
        cap, scores = scaled(tanh.inputs[0])
        found = _scores(scores) if close(cap * factor, 1.0) else None
        return replace(found, softcap=factor) if found is not None and not found.masks else None
    found = _scores(inner) if inner is not value else None
    # A factor behind a mask would scale the mask too.
    return replace(found, scale=found.scale * factor) if found is not None and not found.masks else None


def _where(node: Node) -> _Scores | None:
    """Where(condition, scores, small number), or the other way round."""
    condition, yes, no = computed(node)
    for scores, fill in ((yes, no), (no, yes)):
        number = scalar(fill)
        if number is not None and number < -1e3 and shape(scores) == shape(node.outputs[0]):
            found = _scores(scores)
            return replace(found, masks=(*found.masks, condition)) if found is not None else None
    return None


def _same_rows(view: Node) -> bool:
    before, after = shape(view.inputs[0]), shape(view.outputs[0])
    return before is not None and after is not None and before[-2:] == after[-2:]


# -- the operator


@dataclass(frozen=True)
class _Heads:
    """A value and its sizes by heads; merged: heads lie side by side in the last of three dimensions."""

    value: Value
    batch: int
    heads: int
    length: int
    width: int


def _attention(
    op: Builder, known: Masks, scores: _Scores, keys: tuple[Value, bool], values: Value, y: Value
) -> Value | None:
    q, v = four_dimensional(scores.queries), four_dimensional(values)
    k = four_dimensional(keys[0]) if keys[1] else keys[0]
    q_sizes, k_sizes, v_sizes, y_sizes = shape(q), shape(k), shape(v), shape(y)
    if q_sizes is None or k_sizes is None or v_sizes is None or y_sizes is None:
        return None
    if not len(q_sizes) == len(k_sizes) == len(v_sizes) or len(q_sizes) not in (3, 4):
        return None
    if len(q_sizes) == 3:
        return _headless(op, known, scores, (q, k, v), y)
    shared = shared_heads(k) if keys[1] else k, shared_heads(v)
    of_keys = _by_heads(op, shared[0], keys[1])
    of_values = _by_heads(op, shared[1], True)
    if of_keys.heads != of_values.heads:
        of_keys, of_values = _by_heads(op, k, keys[1]), _by_heads(op, v, True)
    queries = _by_heads(op, q, True)
    if (of_keys.batch, of_keys.length, of_keys.width) != (queries.batch, of_values.length, queries.width):
        return None
    full = (queries.batch, queries.heads, queries.length, of_keys.length)
    mask, attributes = _mask(op, known, scores.masks, full)
    result = op.Attention(
        queries.value,
        of_keys.value,
        of_values.value,
        mask,
        q_num_heads=queries.heads,
        kv_num_heads=of_keys.heads,
        scale=scores.scale,
        softcap=scores.softcap,
        **attributes,
    )
    whole = (queries.batch, queries.heads, queries.length, of_values.width)
    if y_sizes == whole:
        return result
    return op.Reshape(like(result, whole, y), sizes_value(op, y_sizes))


def _headless(
    op: Builder, known: Masks, scores: _Scores, operands: tuple[Value, Value, Value], y: Value
) -> Value | None:
    """Three dimensions without any head: (batch, length, width)."""
    sizes = [shape(value) or (0, 0, 0) for value in operands]
    if any(item[0] != sizes[0][0] for item in sizes) or any((shape(mask) or (0,))[0] != 1 for mask in scores.masks):
        return None
    mask, attributes = _mask(op, known, scores.masks, (sizes[0][0], 1, sizes[0][1], sizes[1][1]))
    return op.Attention(
        *operands, mask, q_num_heads=1, kv_num_heads=1, scale=scores.scale, softcap=scores.softcap, **attributes
    )


def _by_heads(op: Builder, value: Value, heads_first: bool) -> _Heads:
    """The value without the split of heads just before it, where there is one."""
    sizes = shape(value) or (0, 0, 0, 0)
    if not heads_first:
        batch, length, heads, width = sizes
        split = producer(value, "Reshape")
        source = split.inputs[0] if split is not None else None
        merged = (batch, length, heads * width)
        if source is None or shape(source) != merged:
            source = like(op.Reshape(value, sizes_value(op, merged)), merged, value)
        return _Heads(source, batch, heads, length, width)
    batch, heads, length, width = sizes
    return _Heads(merged_heads(value) or value, batch, heads, length, width)


def _mask(
    op: Builder, known: Masks, masks: tuple[Value, ...], full: tuple[int, int, int, int]
) -> tuple[Value | None, dict[str, int]]:
    """The mask that has to be read, and what constant masks say instead of being read."""
    left: list[Value] = []
    attributes = {"is_causal": 0, "window": 0}
    for mask in masks:
        sizes = shape(mask) or ()
        if sizes == () or all(size == 1 for size in sizes):
            continue
        found = known.band(mask, *full[2:])
        if found is None:
            left.append(mask)
        elif found[0]:
            attributes = {"is_causal": 1, "window": found[1]}
    if not left:
        return None, attributes
    total = left[0]
    for mask in left[1:]:
        sizes = tuple(max(pair) for pair in zip(_padded(total), _padded(mask), strict=True))
        total = like(op.Add(total, mask), sizes, total)
    return total, attributes


def _padded(value: Value) -> tuple[int, ...]:
    sizes = shape(value) or ()
    return (1,) * (4 - len(sizes)) + sizes


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [ScaledDotProduct.rule()]


# -- forms of the operator


class MergedResult(RewriteRuleClassBase):
    """The heads of the result are merged right behind the attention."""

    def pattern(self, op: Builder) -> Any:
        """The root: the merging Reshape."""
        attention = op.Attention(_allow_other_inputs=True, _allow_other_attributes=True, _outputs=["attention"])
        return op.Reshape(op.Transpose(attention, perm=[0, 2, 1, 3]), pattern.ANY_VALUE, _outputs=["y"])

    def rewrite(self, op: Builder, attention: Value, y: Value) -> Value | None:
        """Attention whose result has three dimensions."""
        node, sizes, target = attention.producer(), shape(attention), shape(y)
        if node is None or sizes is None or len(node.outputs) != 1 or target is None:
            return None
        batch, heads, length, width = sizes
        merged = (batch, length, heads * width)
        result = op.Attention(*node.inputs, **node.attributes)
        if target == merged:
            return result
        return op.Reshape(like(result, merged, y), sizes_value(op, target))


class GrowingCache(RewriteRuleClassBase):
    """Keys and values that are appended to those of a cache."""

    def __init__(self) -> None:
        super().__init__(remove_nodes=False)

    def pattern(self, op: Builder, past_key: Any, key: Any, past_value: Any, value: Any) -> Any:
        """The roots: the attention, and both grown caches."""
        keys = op.Concat(past_key, key, _outputs=["keys"])
        values = op.Concat(past_value, value, _outputs=["values"])
        attention = op.Attention(
            pattern.ANY_VALUE, keys, values, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"]
        )
        return attention, keys, values

    def rewrite(
        self,
        op: Builder,
        past_key: Value,
        key: Value,
        past_value: Value,
        value: Value,
        y: Value,
        keys: Value,
        values: Value,
    ) -> tuple[Value, Value, Value] | None:
        """Attention with a cache, whose new rows are written in place."""
        node = y.producer()
        axes = [integer(item, "axis", 0) for item in (keys.producer(), values.producer()) if item is not None]
        if node is None or any(axis not in (2, -2) for axis in axes) or len(node.outputs) != 1:
            return None
        if any(len(shape(item) or ()) != 4 for item in (past_key, past_value)):
            return None
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        new = [merged_heads(item) or item for item in (key, value)]
        return op.Attention(node.inputs[0], *new, mask, past_key, past_value, **node.attributes, _outputs=3)


def form_rules() -> list[RewriteRule]:
    """Rules for what surrounds an Attention, after `rules`."""
    return [MergedResult.rule(), GrowingCache.rule()]
