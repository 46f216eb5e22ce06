"""Graphs of prefill and decode passes against closed forms that are written independently of them."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from lowering.ir import Graph, Node, Tensor
from lowering.llm.closed_forms import compulsory_traffic, kv_bytes_per_token, macs, visible_keys
from lowering.llm.graph import build_graph
from lowering.llm.inference import Inference, TensorParallel, expert_tokens, share
from tests.unit.test_llm_configs import PUBLISHED, architecture

PASSES = {
    "prefill": Inference.prefill(96, batch=2),
    "decode": Inference.decode(100, batch=3),
    "later part": Inference(1, 40, 60),
}
NAMES = [name for name in PUBLISHED if name not in ("qwen3-30b-a3b", "qwen1.5-moe-a2.7b")]


def matrix_macs(node: Node) -> int:
    """Multiply-accumulates of a product, from the shapes of its operands alone."""
    if node.op not in ("MatMul", "Gemm"):
        return 0
    left, right = node.input(0).shape, node.input(1).shape
    return math.prod(left) * right[0 if node.int("transB", 0) else -1]


def score_macs(node: Node, keys: int) -> int:
    """Multiply-accumulates of an Attention node whose queries see `keys` keys, added up."""
    head = node.input(0).shape[2] // node.int("q_num_heads", 0)
    return 2 * node.input(0).shape[0] * node.int("q_num_heads", 0) * head * keys


def attentions(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "Attention"]


# An encoder does not decode.
RUNS = [
    (name, which) for name in NAMES for which in PASSES if architecture(name).causal or not PASSES[which].cached_tokens
]


@pytest.mark.parametrize(("name", "which"), RUNS)
def test_macs_equal_their_closed_form(name: str, which: str):
    model, run = architecture(name), PASSES[which]
    graph = build_graph(model, run)
    expected = macs(model, run)
    products = sum(matrix_macs(node) for node in graph.nodes)
    assert products == sum(value for part, value in expected.items() if part != "scores")
    keys = visible_keys(model, run)
    assert sum(score_macs(node, keys) for node in attentions(graph)) == expected["scores"]


def test_visible_keys_count_a_triangle_a_rectangle_and_a_band():
    llama, mistral = architecture("llama-3-8b"), architecture("mistral-7b-v0.1")
    assert visible_keys(llama, Inference.prefill(5)) == 1 + 2 + 3 + 4 + 5
    assert visible_keys(llama, Inference.decode(4096)) == 4097
    assert visible_keys(llama, Inference(1, 2, 10)) == 11 + 12
    assert visible_keys(mistral, Inference.decode(5000)) == 4096
    assert visible_keys(mistral, Inference.prefill(4098)) == 4096 * 4097 // 2 + 2 * 4096
    assert visible_keys(architecture("bert-base-uncased"), Inference.prefill(7)) == 49


def test_llama_moves_what_a_hand_count_says():
    model = architecture("llama-3-8b")
    assert kv_bytes_per_token(model, 2) == 32 * 2 * 8 * 128 * 2 == 131_072
    traffic = compulsory_traffic(model, Inference.decode(4096), 2)
    assert traffic.weights == 2 * (PUBLISHED["llama-3-8b"] - 128_256 * 4096 + 4096)
    assert (traffic.kv_read, traffic.kv_write) == (4096 * 131_072, 131_072)
    assert macs(model, Inference.prefill(2048))["feed-forward"] == 32 * 2048 * 3 * 4096 * 14336
    window = compulsory_traffic(architecture("mistral-7b-v0.1"), Inference.decode(5000), 2)
    assert window.kv_read == 4095 * 131_072


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bert-base-uncased"])
def test_the_cache_grows_by_the_new_tokens(name: str):
    model, run = architecture(name), PASSES["later part"]
    graph = build_graph(model, run)
    past = sum(node.input(4).elements + node.input(5).elements for node in attentions(graph))
    present = sum(node.outputs[1].elements + node.outputs[2].elements for node in attentions(graph))
    assert past == run.batch * run.cached_tokens * kv_bytes_per_token(model, 1)
    assert present - past == run.batch * run.new_tokens * kv_bytes_per_token(model, 1)
    assert len(attentions(graph)) == model.layers


def test_every_value_is_computed_before_it_is_read():
    for name in NAMES:
        graph = build_graph(architecture(name), PASSES["prefill"], layers=2)
        known = {tensor.name for tensor in graph.inputs}
        for node in graph.nodes:
            missing = [t.name for t in node.inputs if t is not None and not t.constant and t.name not in known]
            assert not missing, f"{name}: {node.name} reads {missing}"
            fresh = {tensor.name for tensor in node.outputs}
            assert not fresh & known
            known |= fresh
        assert {tensor.name for tensor in graph.outputs} <= known
        assert len({node.name for node in graph.nodes}) == len(graph.nodes)


def test_tokens_are_routed_evenly_and_idle_experts_cost_nothing():
    model = architecture("mixtral-8x7b-v0.1")
    assert expert_tokens(model, 0, 1) == [1, 1]
    assert expert_tokens(model, 0, 6) == [2, 2, 2, 2, 1, 1, 1, 1]
    one, four = (compulsory_traffic(model, Inference.decode(10, batch), 2).weights for batch in (1, 4))
    expert = 3 * 4096 * 14336
    assert four - one == 2 * (32 * 6 * expert + 3 * 4096)
    names = Counter(
        node.name.split(".")[3] for node in build_graph(model, Inference.decode(10)).nodes if "moe.e" in node.name
    )
    assert set(names) == {"expert0", "expert1"}


@pytest.mark.parametrize(("name", "sums"), [("llama-3-8b", 2 * 32 + 1), ("mixtral-8x7b-v0.1", 2 * 32 + 1)])
def test_tensor_parallel_layers_sum_twice(name: str, sums: int):
    model, run = architecture(name), Inference.decode(100, batch=4)
    graph = build_graph(model, run, TensorParallel(4, 50.0))
    collectives = [node for node in graph.nodes if node.op in ("AllReduce", "AllGather")]
    assert Counter(node.op for node in collectives) == {"AllReduce": sums, "AllGather": 1}
    assert all(node.input(0).elements == 4 * 4096 for node in collectives if node.op == "AllReduce")
    assert graph.outputs[0].shape == (4, model.vocab)
    products = sum(matrix_macs(node) for node in graph.nodes)
    of_share = macs(share(model, 4), run)
    assert products == sum(of_share.values()) - of_share["scores"]
    # Every chip computes the whole router; everything else is divided.
    experts = model.experts.count if model.experts else 0
    router = model.layers * 4 * model.hidden * experts
    assert 4 * sum(of_share.values()) == sum(macs(model, run).values()) + 3 * router


def test_a_tied_head_reads_the_token_table():
    graph = build_graph(architecture("gpt2"), PASSES["prefill"])
    head = next(node for node in graph.nodes if node.name == "lm_head")
    assert head.input(1) == Tensor("embed_tokens.weight", (50257, 768), constant=True)
    assert head.input(0).shape == (2, 768)
