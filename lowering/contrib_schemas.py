"""Shapes of com.microsoft operators, told to ONNX's shape inference.

onnx knows no schemas outside its own domains, so the result of such an operator, and everything after it, would have
no shape. `register` adds the schemas that are missing, once for each process. Source: ONNX Runtime's
ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import TypeProto, defs
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceContext, InferenceError

DOMAIN = "com.microsoft"
_TYPES = [
    f"tensor({name})"
    for name in ("float", "float16", "bfloat16", "double", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool")
]

_FUNCTIONS = ("GroupNormalization", "MeanVarianceNormalization")
"""Operators of ONNX that are defined by a function whose shapes onnx cannot follow; they have those of input 0."""

Infer = Callable[[InferenceContext], None]


def register() -> None:
    """Add the schemas of this module that onnx does not have yet, and shapes where its own schemas give none."""
    for name in _FUNCTIONS:
        schema = defs.get_schema(name)
        if not schema.has_type_and_shape_inference_function:
            schema.set_type_and_shape_inference_function(_like(0))
            defs.deregister_schema(name, schema.since_version, "")
            defs.register_schema(schema)
    wanted = [(DOMAIN, name, infer) for name, infer in SCHEMAS.items()]
    # ONNX Runtime's optimiser leaves this one in ONNX's own domain.
    wanted.append(("", "SimplifiedLayerNormalization", _like(0)))
    for domain, name, infer in wanted:
        if not defs.has(name, domain):
            schema = OpSchema(
                name,
                domain,
                1,
                inputs=[_parameter("inputs", variadic=True)],
                outputs=[_parameter("outputs", variadic=True)],
                type_constraints=[("T", _TYPES, "")],
                attributes=[OpSchema.Attribute(key, kind, required=False) for key, kind in _attributes(name)],
            )
            schema.set_type_and_shape_inference_function(infer)
            defs.register_schema(schema)


def _parameter(name: str, *, variadic: bool) -> OpSchema.FormalParameter:
    option = OpSchema.FormalParameterOption.Variadic if variadic else OpSchema.FormalParameterOption.Single
    return OpSchema.FormalParameter(name, "T", "", param_option=option, is_homogeneous=False, min_arity=1)


_INTEGER_ATTRIBUTES = (
    *("transA", "transB", "transBatchA", "transBatchB", "axis", "group", "channels_last", "groups", "activation_algo"),
    *("mask_index_type", "interleaved", "num_heads", "rotary_embedding_dim", "is_packed_batching", "stash_type"),
    *("count_include_pad", "ceil_mode", "opset", "block_size", "saturate", "output_dtype"),
    *("kv_num_heads", "unidirectional", "do_rotary", "local_window_size", "past_present_share_buffer"),
    *("rotary_interleaved", "smooth_softmax"),
)
_ATTRIBUTES = [
    *((name, OpSchema.AttrType.INT) for name in _INTEGER_ATTRIBUTES),
    *((name, OpSchema.AttrType.INTS) for name in ("kernel_shape", "strides", "dilations", "pads", "qkv_hidden_sizes")),
    *((name, OpSchema.AttrType.FLOAT) for name in ("alpha", "beta", "epsilon", "scale", "softcap")),
    *((f"activation_{name}", OpSchema.AttrType.FLOAT) for name in ("alpha", "beta", "gamma")),
    ("mask_filter_value", OpSchema.AttrType.FLOAT),
    *((name, OpSchema.AttrType.STRING) for name in ("activation", "auto_pad", "approximate")),
    ("activation_params", OpSchema.AttrType.FLOATS),
]
"""Attributes of all the operators together; which operator takes which is not checked."""


def _attributes(name: str) -> list[tuple[str, OpSchema.AttrType]]:
    """The attributes of an operator. GroupNorm numbers its activations, the others name them."""
    if name == "GroupNorm":
        return [(key, OpSchema.AttrType.INT if key == "activation" else kind) for key, kind in _ATTRIBUTES]
    return _ATTRIBUTES


# -- shapes


def _shape(context: InferenceContext, index: int) -> list[int] | None:
    """Static shape of an input; None when a dimension or the rank is not known yet."""
    kind = context.get_input_type(index) if index < context.get_num_inputs() else None
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return [dim.dim_value for dim in dims] if all(dim.HasField("dim_value") for dim in dims) else None


def _set(context: InferenceContext, output: int, shape: list[int], like: int = 0) -> None:
    if output >= context.get_num_outputs():
        return
    kind = TypeProto()
    kind.tensor_type.elem_type = context.get_input_type(like).tensor_type.elem_type
    kind.tensor_type.shape.SetInParent()
    for size in shape:
        kind.tensor_type.shape.dim.add().dim_value = size
    context.set_output_type(output, kind)


def _attribute(context: InferenceContext, name: str, default: int = 0) -> int:
    found = context.get_attribute(name)
    return found.i if found is not None else default


def _ints(context: InferenceContext, name: str, default: list[int]) -> list[int]:
    found = context.get_attribute(name)
    return list(found.ints) if found is not None and found.ints else default


def _like(index: int, sums: int = 0) -> Infer:
    """Output 0 has the shape of input `index`; so has output `sums`, when it is not 0."""

    def infer(context: InferenceContext) -> None:
        shape = _shape(context, index)
        if shape is not None:
            for output in {0, sums}:
                _set(context, output, shape, index)

    return infer


def _skip_norm(context: InferenceContext) -> None:
    """Results, mean, inverse deviation, and the sum of the inputs."""
    shape = _shape(context, 0)
    if shape is None:
        return
    for output in (0, 3):
        _set(context, output, shape)
    for output in (1, 2):
        _set(context, output, [*shape[:-1], 1])


def _embed(context: InferenceContext) -> None:
    ids, word = _shape(context, 0), _shape(context, 2)
    if ids is None or word is None:
        return
    _set(context, 0, [*ids, word[-1]], like=2)
    _set(context, 1, ids[:1])
    _set(context, 2, [*ids, word[-1]], like=2)


def _attention(context: InferenceContext) -> None:
    x, weights = _shape(context, 0), _shape(context, 1)
    if x is None or weights is None:
        return
    widths = _ints(context, "qkv_hidden_sizes", [weights[1] // 3] * 3)
    _set(context, 0, [*x[:2], widths[2]])
    past, heads = _shape(context, 4), _attribute(context, "num_heads", 1)
    _set(context, 1, [2, x[0], heads, x[1] + (past[3] if past is not None else 0), widths[2] // heads])


def _cached_attention(keys: str, cache: int) -> Infer:
    """Attentions with queries, keys and values in inputs 0 to 2 and a cache from input `cache` on.

    keys: the attribute with the number of key heads.
    """

    def infer(context: InferenceContext) -> None:
        q, k, v, past = (_shape(context, index) for index in (0, 1, 2, cache))
        heads, kv_heads = _attribute(context, "num_heads", 1), _attribute(context, keys, 1)
        if q is None:
            return
        packed = q[2] // (heads + 2 * kv_heads)
        width = packed if v is None else v[-1] // (kv_heads if len(v) == 3 else 1)
        new = q[1] if k is None else k[1 if len(k) == 3 else 2]
        key_width = packed if k is None else k[-1] // (kv_heads if len(k) == 3 else 1)
        total = new + (past[2] if past is not None else 0)
        _set(context, 0, [*q[:2], heads * width])
        _set(context, 1, [q[0], kv_heads, total, key_width])
        _set(context, 2, [q[0], kv_heads, total, width])

    return infer


def _matmul(left: int, right: int) -> Infer:
    def infer(context: InferenceContext) -> None:
        a, b = _shape(context, left), _shape(context, right)
        if a is None or b is None:
            return
        if len(a) < 2 or len(b) < 2:
            raise InferenceError(f"{context.get_display_name()}: operands of shapes {a} and {b} are not matrices")
        if _attribute(context, "transA"):
            a = [*a[:-2], a[-1], a[-2]]
        if _attribute(context, "transB"):
            b = [*b[:-2], b[-1], b[-2]]
        lead_a, lead_b = a[:-2], b[:-2]
        rank = max(len(lead_a), len(lead_b))
        lead_a, lead_b = ([1] * (rank - len(lead)) + lead for lead in (lead_a, lead_b))
        if a[-1] != b[-2] or any(x != y and 1 not in (x, y) for x, y in zip(lead_a, lead_b, strict=True)):
            raise InferenceError(f"{context.get_display_name()}: operands of shapes {a} and {b} do not fit")
        lead = [max(x, y) for x, y in zip(lead_a, lead_b, strict=True)]
        _set(context, 0, [*lead, a[-2], b[-1]])

    return infer


def _conv(context: InferenceContext) -> None:
    x, w = _shape(context, 0), _shape(context, 1)
    if x is None or w is None:
        return
    spatial = len(x) - 2
    ones = [1] * spatial
    strides, dilations = _ints(context, "strides", ones), _ints(context, "dilations", ones)
    pads = _ints(context, "pads", [0] * (2 * spatial))
    automatic = context.get_attribute("auto_pad")
    same = automatic is not None and automatic.s.startswith(b"SAME")
    sizes: list[int] = []
    for axis in range(spatial):
        extent = (w[2 + axis] - 1) * dilations[axis] + 1
        padded = x[2 + axis] + pads[axis] + pads[axis + spatial]
        sizes.append(-(-x[2 + axis] // strides[axis]) if same else (padded - extent) // strides[axis] + 1)
    _set(context, 0, [x[0], w[0], *sizes])


def _pool(context: InferenceContext) -> None:
    x, kernel = _shape(context, 0), _ints(context, "kernel_shape", [])
    if x is None or len(kernel) != len(x) - 2:
        return
    ones = [1] * len(kernel)
    strides, pads = _ints(context, "strides", ones), _ints(context, "pads", [0] * (2 * len(kernel)))
    slack = [stride - 1 if _attribute(context, "ceil_mode") else 0 for stride in strides]
    sizes = [
        (x[2 + i] + pads[i] + pads[i + len(kernel)] - kernel[i] + slack[i]) // strides[i] + 1
        for i in range(len(kernel))
    ]
    _set(context, 0, [*x[:2], *sizes])


def _broadcast(left: int, right: int) -> Infer:
    def infer(context: InferenceContext) -> None:
        a, b = _shape(context, left), _shape(context, right)
        if a is None or b is None:
            return
        rank = max(len(a), len(b))
        a, b = ([1] * (rank - len(shape)) + shape for shape in (a, b))
        if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
            raise InferenceError(f"{context.get_display_name()}: operands of shapes {a} and {b} do not broadcast")
        _set(context, 0, [max(x, y) for x, y in zip(a, b, strict=True)])

    return infer


def _global_pool(context: InferenceContext) -> None:
    shape = _shape(context, 0)
    if shape is not None:
        last = _attribute(context, "channels_last")
        ones = [1] * (len(shape) - 2)
        _set(context, 0, [shape[0], *ones, shape[-1]] if last else [*shape[:2], *ones])


def _concat(context: InferenceContext) -> None:
    shapes = [_shape(context, index) for index in range(2, context.get_num_inputs(), 3)]
    known = [shape for shape in shapes if shape is not None]
    if len(known) == len(shapes) and known:
        axis = _attribute(context, "axis") % len(known[0])
        total = sum(shape[axis] for shape in known)
        _set(context, 0, [*known[0][:axis], total, *known[0][axis + 1 :]], like=2)


SCHEMAS: dict[str, Infer] = {
    "FusedConv": _conv,
    "FusedGemm": _matmul(0, 1),
    "FusedMatMul": _matmul(0, 1),
    "QGemm": _matmul(0, 3),
    "DynamicQuantizeMatMul": _matmul(0, 1),
    "MatMulIntegerToFloat": _matmul(0, 1),
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "EmbedLayerNormalization": _embed,
    "Attention": _attention,
    "MultiHeadAttention": _cached_attention("num_heads", 6),
    "GroupQueryAttention": _cached_attention("kv_num_heads", 3),
    "QLinearAdd": _broadcast(0, 3),
    "QLinearMul": _broadcast(0, 3),
    "QLinearGlobalAveragePool": _global_pool,
    "QLinearConcat": _concat,
    "QLinearAveragePool": _pool,
    **{
        name: _like(0)
        for name in (
            *("BiasGelu", "FastGelu", "QuickGelu", "Gelu", "Silu", "BiasAdd", "RotaryEmbedding", "GroupNorm"),
            "SimplifiedLayerNormalization",
            *("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QuantizeLinear", "DequantizeLinear"),
        )
    },
}
