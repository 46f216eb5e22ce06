"""Recognition of decomposed operators: whole exports, the forms that exporters write, and what is left alone."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from hwconfigs import load_hw
from lowering import load_model, read_graph
from lowering.chip import Chip
from lowering.context import UnsupportedError
from lowering.ir import Graph, Node
from lowering.network import lower_graph
from lowering.program import Program
from tests.conftest import REPO_ROOT

MODELS = REPO_ROOT.parent / "shared" / "models"
SERVER = Chip.of(load_hw("npu-server-128x128x4"))

EXPORTS = {
    "bert_base_torchscript": Counter(Attention=12, LayerNormalization=25, Gelu=12),
    "gpt2_dynamo": Counter(Attention=12, LayerNormalization=25, Gelu=12),
    "llama_gqa_4layer_dynamo": Counter(Attention=4, RMSNormalization=9, RotaryEmbedding=8, Swish=4),
    "t5_small_encoder_torchscript": Counter(Attention=6, RMSNormalization=13),
    "vit_b16_dynamo": Counter(Attention=12, LayerNormalization=25, Gelu=12),
}
FUSED = {"Attention", "LayerNormalization", "RMSNormalization", "Gelu", "RotaryEmbedding", "Swish"}

needs_exports = pytest.mark.skipif(not MODELS.is_dir(), reason="the exported models are not in the repository")


@lru_cache(maxsize=2)
def export(name: str, patterns: bool) -> Graph:
    dims = {"batch": 1, "seq": 128} if "torchscript" in name else {}
    return read_graph(load_model(MODELS / f"{name}.onnx"), 1, dims, patterns=patterns)


def traffic(program: Program) -> int:
    return sum(layer.load_bytes + layer.store_bytes for layer in program.layers)


@needs_exports
@pytest.mark.parametrize("name", EXPORTS)
def test_exports_lose_no_work_and_save_traffic(name: str) -> None:
    """One attention for each layer; as many products as without; fewer bytes, but at least every operand once."""
    graph = export(name, True)
    assert Counter(node.op for node in graph.nodes if node.op in FUSED) == EXPORTS[name]
    assert not any(node.op == "Softmax" for node in graph.nodes)
    fused, plain = lower_graph(graph, SERVER), lower_graph(export(name, False), SERVER)
    assert sum(layer.macs for layer in fused.layers) == sum(layer.macs for layer in plain.layers)
    assert traffic(fused) < traffic(plain)
    nodes = [node for node in graph.nodes if node.op == "Attention"]
    layers = [layer for layer in fused.layers if layer.op == "Attention"]
    for node, layer in zip(nodes, layers, strict=True):
        loaded = sum(tensor.elements for tensor in node.inputs if tensor is not None)
        assert layer.load_bytes >= loaded * SERVER.element_bytes
        assert layer.store_bytes == node.outputs[0].elements * SERVER.element_bytes


@needs_exports
def test_small_accumulators_save_traffic_too() -> None:
    chip = Chip.of(load_hw("npu-mobile-8x8"))
    name = "t5_small_encoder_torchscript"
    assert traffic(lower_graph(export(name, True), chip)) < traffic(lower_graph(export(name, False), chip))


@needs_exports
def test_llama_shares_keys_and_merges_heads() -> None:
    """32 query and 4 key heads of width 64: no repeated keys, no transposed copies."""
    graph = export("llama_gqa_4layer_dynamo", True)
    node = next(node for node in graph.nodes if node.op == "Attention")
    assert [tensor.shape for tensor in node.inputs[:3] if tensor] == [(1, 128, 2048), (1, 128, 256), (1, 128, 256)]
    assert node.outputs[0].shape == (1, 128, 2048)
    assert (node.int("q_num_heads", 0), node.int("kv_num_heads", 0)) == (32, 4)
    assert not any(node.op in ("Transpose", "Expand") for node in graph.nodes)


# -- forms, one small graph each


def read(folder: Path, text: str, **constants: object) -> Graph:
    """The graph of a model in ONNX's text form; constants become initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>\n{text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, folder / "form.onnx")
    return read_graph(load_model(folder / "form.onnx"))


def only(graph: Graph, op: str) -> Node:
    """The single operator of the graph."""
    assert [node.op for node in graph.nodes] == [op]
    return graph.nodes[0]


HALF, ONE, ROOT = np.float32(0.5), np.float32(1), np.float32(np.sqrt(2))


@pytest.mark.parametrize(
    "body",
    [
        "a = Div(x, root) e = Erf(a) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)",
        "a = Div(x, root) e = Erf(a) p = Add(one, e) m = Mul(half, p) y = Mul(x, m)",
        "a = Mul(inverse, x) e = Erf(a) p = Add(e, one) m = Mul(x, half) y = Mul(p, m)",
    ],
)
def test_gelu_in_any_order(tmp_path: Path, body: str) -> None:
    inverse = np.float32(np.sqrt(0.5))
    text = f"g (float[2, 8] x) => (float[2, 8] y) {{ {body} }}"
    node = only(read(tmp_path, text, half=HALF, one=ONE, root=ROOT, inverse=inverse), "Gelu")
    assert node.text("approximate", "") == "none"


@pytest.mark.parametrize(
    "body",
    [
        "c = Pow(x, three) d = Mul(c, k) e = Add(x, d) f = Mul(e, s) t = Tanh(f)",
        "c = Mul(x, x) c3 = Mul(c, x) d = Mul(k, c3) e = Add(d, x) f = Mul(s, e) t = Tanh(f)",
        "c = Mul(x, x) d = Mul(k, c) e = Add(d, one) xs = Mul(x, s) f = Mul(xs, e) t = Tanh(f)",
    ],
)
def test_tanh_gelu_in_any_order(tmp_path: Path, body: str) -> None:
    text = f"g (float[2, 8] x) => (float[2, 8] y) {{ {body} p = Add(t, one) m = Mul(half, x) y = Mul(m, p) }}"
    cubic, scale = np.float32(0.044715), np.float32(np.sqrt(2 / np.pi))
    node = only(read(tmp_path, text, half=HALF, one=ONE, three=np.float32(3), k=cubic, s=scale), "Gelu")
    assert node.text("approximate", "") == "tanh"


def test_another_polynomial_is_no_gelu(tmp_path: Path) -> None:
    text = "g (float[8] x) => (float[8] y) { e = Erf(x) p = Add(e, one) m = Mul(x, p) y = Mul(m, half) }"
    assert "Gelu" not in [node.op for node in read(tmp_path, text, half=HALF, one=ONE).nodes]


def test_swish_of_a_gate(tmp_path: Path) -> None:
    text = "g (float[8] x, float[8] u) => (float[8] y) { s = Sigmoid(x) a = Mul(s, x) y = Mul(a, u) }"
    assert [node.op for node in read(tmp_path, text).nodes] == ["Swish", "Mul"]


CENTRE = "mean = ReduceMean <keepdims = 1> (x, last) c = Sub(x, mean)"
ROOT_OF = "v = ReduceMean <keepdims = 1> (s, last) e = Add(v, epsilon) r = Sqrt(e)"


@pytest.mark.parametrize(
    ("body", "op", "inputs"),
    [
        (f"{CENTRE} s = Mul(c, c) {ROOT_OF} n = Div(c, r) w1 = Mul(n, w) y = Add(w1, b)", "LayerNormalization", 3),
        (f"{CENTRE} s = Pow(c, two) {ROOT_OF} i = Reciprocal(r) n = Mul(i, c) y = Mul(w, n)", "LayerNormalization", 2),
        (f"s = Pow(x, two) {ROOT_OF} i = Div(one, r) n = Mul(x, i) y = Mul(w, n)", "RMSNormalization", 2),
        (f"s = Mul(x, x) {ROOT_OF} n = Div(x, r) y = Mul(n, w)", "RMSNormalization", 2),
    ],
)
def test_normalisations(tmp_path: Path, body: str, op: str, inputs: int) -> None:
    text = f"g (float[2, 8] x, float[8] w, float[8] b) => (float[2, 8] y) {{ {body} }}"
    graph = read(tmp_path, text, last=np.array([-1]), two=np.float32(2), one=ONE, epsilon=np.float32(1e-5))
    assert len(only(graph, op).inputs) == inputs


def test_a_mean_over_another_dimension_is_left_alone(tmp_path: Path) -> None:
    text = f"g (float[8, 8] x, float[8] w) => (float[8, 8] y) {{ s = Mul(x, x) {ROOT_OF} n = Div(x, r) y = Mul(n, w) }}"
    graph = read(tmp_path, text, last=np.array([0]), epsilon=np.float32(1e-5))
    assert "RMSNormalization" not in [node.op for node in graph.nodes]


PRODUCT = "kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul(q, kt)"
HEADS = "float[2, 4, 8, 16] q, float[2, 4, 8, 16] k, float[2, 4, 8, 16] v"


@pytest.mark.parametrize(
    ("masking", "mask"),
    [
        ("d = Div(s, four) p = Softmax <axis = -1> (d)", None),
        ("d = Mul(s, four) e = Add(m, d) p = Softmax <axis = 3> (e)", (2, 1, 8, 8)),
        ("d = Where(shown, s, low) p = Softmax <axis = -1> (d)", (1, 1, 8, 8)),
        ("d = Add(s, m) p0 = Softmax <axis = -1> (d) n = IsNaN(p0) p = Where(n, zero, p0)", (2, 1, 8, 8)),
        ("d = Div(s, four) t = Tanh(d) c = Mul(t, four) p = Softmax <axis = -1> (c)", None),
    ],
)
def test_attention_with_scale_mask_and_cap(tmp_path: Path, masking: str, mask: tuple[int, ...] | None) -> None:
    inputs = f"{HEADS}, float[2, 1, 8, 8] m, bool[1, 1, 8, 8] shown"
    text = f"g ({inputs}) => (float[2, 4, 8, 16] y) {{ {PRODUCT} {masking} y = MatMul(p, v) }}"
    graph = read(tmp_path, text, four=np.float32(4), low=np.float32(-1e9), zero=np.float32(0))
    node = only(graph, "Attention")
    found = node.optional_input(3)
    assert (found.shape if found is not None else None) == mask
    assert (node.attributes.get("softcap", 0) != 0) == ("Tanh" in masking)


def test_causal_masks_written_as_arithmetic_are_read_no_more(tmp_path: Path) -> None:
    mask = "row = Range(nought, n, step) at = Unsqueeze(row, last) h = LessOrEqual(row, at) m = Where(h, zero, low)"
    body = f"{mask} {PRODUCT} d = Add(s, m) p = Softmax <axis = -1> (d) y = MatMul(p, v)"
    heads = HEADS.replace("8, 16", "64, 16")
    graph = read(
        tmp_path,
        f"g ({heads}) => (float[2, 4, 64, 16] y) {{ {body} }}",
        nought=np.int64(0),
        n=np.int64(64),
        step=np.int64(1),
        last=np.array([-1]),
        zero=np.float32(0),
        low=np.float32(-1e9),
    )
    node = only(graph, "Attention")
    assert node.optional_input(3) is None
    assert node.int("is_causal", 0) == 1


def test_softmax_over_the_queries_stays_as_it_is(tmp_path: Path) -> None:
    body = f"{PRODUCT} p = Softmax <axis = 2> (s) y = MatMul(p, v)"
    graph = read(tmp_path, f"g ({HEADS}) => (float[2, 4, 8, 16] y) {{ {body} }}")
    assert [node.op for node in graph.nodes] == ["Transpose", "MatMul", "Softmax", "MatMul"]


def test_batched_products_of_three_dimensions(tmp_path: Path) -> None:
    body = "kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul(q, kt) p = Softmax <axis = -1> (s) y = MatMul(p, v)"
    text = f"g (float[6, 8, 16] q, float[6, 9, 16] k, float[6, 9, 16] v) => (float[6, 8, 16] y) {{ {body} }}"
    assert only(read(tmp_path, text), "Attention").int("q_num_heads", 0) == 1


def test_repeated_squares_and_sums_end_soon(tmp_path: Path) -> None:
    """Multiplied out, the last of 200 squares would have 2 ** 200 factors."""
    squares = " ".join(f"x{i + 1} = Mul(x{i}, x{i})" for i in range(200))
    sums = " ".join(f"s{i + 1} = Add(s{i}, s{i})" for i in range(200))
    body = f"{squares} s0 = Relu(x200) {sums} p = Softmax <axis = -1> (s200) y = MatMul(p, v)"
    graph = read(tmp_path, f"g (float[1, 2, 8, 8] x0, float[1, 2, 8, 4] v) => (float[1, 2, 8, 4] y) {{ {body} }}")
    assert Counter(node.op for node in graph.nodes) == Counter(Mul=200, Add=200, Relu=1, Softmax=1, MatMul=1)


def test_a_cache_that_grows(tmp_path: Path) -> None:
    """Keys and values are concatenated to those of the past, repeated for their group, and returned."""
    body = """
        K = Concat <axis = 2> (pk, k)  V = Concat <axis = 2> (pv, v)
        K1 = Unsqueeze(K, two)  K2 = Expand(K1, wide)  K3 = Reshape(K2, heads)
        V1 = Unsqueeze(V, two)  V2 = Expand(V1, wide)  V3 = Reshape(V2, heads)
        kt = Transpose <perm = [0, 1, 3, 2]> (K3)  s = MatMul(q, kt)  p = Softmax <axis = -1> (s)  y = MatMul(p, V3)
    """
    inputs = "float[1, 4, 1, 16] q, float[1, 2, 1, 16] k, float[1, 2, 1, 16] v, float[1, 2, 7, 16] pk"
    outputs = "float[1, 4, 1, 16] y, float[1, 2, 8, 16] K, float[1, 2, 8, 16] V"
    graph = read(
        tmp_path,
        f"g ({inputs}, float[1, 2, 7, 16] pv) => ({outputs}) {{ {body} }}",
        two=np.array([2]),
        wide=np.array([1, 2, 2, 8, 16]),
        heads=np.array([1, 4, 8, 16]),
    )
    node = only(graph, "Attention")
    assert [tensor.shape for tensor in node.outputs] == [(1, 4, 1, 16), (1, 2, 8, 16), (1, 2, 8, 16)]
    assert node.input(4).shape == (1, 2, 7, 16)
    (layer,) = lower_graph(graph, SERVER).layers
    assert layer.store_bytes == (4 + 2 * 2) * 16 * SERVER.element_bytes


# -- fused operators of ONNX Runtime


def test_multi_head_attention(tmp_path: Path) -> None:
    inputs = "float[2, 8, 64] q, float[2, 8, 64] k, float[2, 8, 64] v, int32[2, 8] m"
    node = 'y = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, "", m)'
    program = lower_graph(read(tmp_path, f"g ({inputs}) => (float[2, 8, 64] y) {{ {node} }}"), SERVER)
    assert [layer.op for layer in program.layers] == ["Attention"]
    assert program.layers[0].macs == 2 * 4 * 8 * 8 * 32


def test_attention_with_one_weight(tmp_path: Path) -> None:
    node = "y = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w, b)"
    weight, bias = np.zeros((32, 192), np.float32), np.zeros(192, np.float32)
    graph = read(tmp_path, f"g (float[2, 8, 32] x) => (float[2, 8, 64] y) {{ {node} }}", w=weight, b=bias)
    program = lower_graph(graph, SERVER)
    assert [layer.op for layer in program.layers] == ["MatMul"] * 3 + ["Attention"]
    assert sum(layer.macs for layer in program.layers[:3]) == 2 * 8 * 32 * 192
    assert program.layers[3].macs == 2 * 4 * 8 * 8 * 32


def test_group_query_attention_with_rotary_embedding_and_cache(tmp_path: Path) -> None:
    inputs = """float[1, 1, 64] q, float[1, 1, 32] k, float[1, 1, 32] v, float[1, 2, 15, 16] pk, float[1, 2, 15, 16] pv,
        int32[1] lengths, int32 total, float[64, 8] c, float[64, 8] s"""
    node = """y, ck, cv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, do_rotary = 1,
        local_window_size = 8> (q, k, v, pk, pv, lengths, total, c, s)"""
    outputs = "float[1, 1, 64] y, float[1, 2, 16, 16] ck, float[1, 2, 16, 16] cv"
    program = lower_graph(read(tmp_path, f"g ({inputs}) => ({outputs}) {{ {node} }}"), SERVER)
    assert [layer.op for layer in program.layers] == ["RotaryEmbedding", "RotaryEmbedding", "Attention"]
    row = 16 * SERVER.element_bytes
    assert program.layers[2].load_bytes == 4 * row + 2 * 2 * 8 * row
    assert program.layers[2].store_bytes == 4 * row + 2 * 2 * row


def test_packed_queries_keys_and_values_are_split(tmp_path: Path) -> None:
    inputs = "float[1, 4, 128] qkv, int32[1] lengths, int32 total"
    node = """y = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (qkv, "", "", "", "", lengths,
        total)"""
    program = lower_graph(read(tmp_path, f"g ({inputs}) => (float[1, 4, 64] y) {{ {node} }}"), SERVER)
    assert program.layers[-1].op == "Attention"
    assert program.layers[-1].macs == 4 * 4 * 4 * 32


def test_a_cache_of_keys_and_values_in_one_tensor(tmp_path: Path) -> None:
    """GPT-2 as ONNX Runtime's optimiser writes it: one token behind 15 others."""
    node = 'y, present = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w, "", "", past)'
    inputs, outputs = (
        "float[2, 1, 32] x, float[2, 2, 4, 15, 16] past",
        "float[2, 1, 64] y, float[2, 2, 4, 16, 16] present",
    )
    graph = read(tmp_path, f"g ({inputs}) => ({outputs}) {{ {node} }}", w=np.zeros((32, 192), np.float32))
    assert [tensor.shape for tensor in graph.outputs] == [(2, 1, 64), (2, 2, 4, 16, 16)]
    program = lower_graph(graph, SERVER)
    assert [layer.op for layer in program.layers] == ["MatMul"] * 3 + ["Attention"]
    row = 2 * 4 * 16 * SERVER.element_bytes
    assert program.layers[3].macs == 2 * 4 * 16 * 2 * 16
    assert program.layers[3].load_bytes == row + 2 * 16 * row
    assert program.layers[3].store_bytes == row + 2 * row


def test_the_cache_of_a_prompt_is_stored(tmp_path: Path) -> None:
    node = "y, present = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w)"
    text = f"g (float[1, 8, 32] x) => (float[1, 8, 64] y, float[2, 1, 4, 8, 16] present) {{ {node} }}"
    program = lower_graph(read(tmp_path, text, w=np.zeros((32, 192), np.float32)), SERVER)
    assert program.layers[-1].store_bytes == 3 * 8 * 64 * SERVER.element_bytes


def test_a_computed_cache_in_one_tensor_is_refused(tmp_path: Path) -> None:
    body = 'past = Relu (z) y = com.microsoft.Attention <num_heads = 4> (x, w, "", "", past)'
    text = f"g (float[2, 8, 32] x, float[2, 2, 4, 3, 16] z) => (float[2, 8, 64] y) {{ {body} }}"
    graph = read(tmp_path, text, w=np.zeros((32, 192), np.float32))
    with pytest.raises(UnsupportedError, match="past, keys and values in one tensor, is no input of the graph"):
        lower_graph(graph, SERVER)
