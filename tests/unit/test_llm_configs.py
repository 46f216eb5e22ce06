"""Reading config.json: published sizes, and one clear error for every kind of bad file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowering.llm.architecture import Architecture
from lowering.llm.closed_forms import parameters
from lowering.llm.configs import OnnximConfig, model_name, read_config
from lowering.llm.graph import build_graph
from lowering.llm.inference import Inference, TensorParallel, share
from lowering.models import ModelError
from tests.conftest import DATA

PUBLISHED = {
    "llama-3-8b": 8_030_261_248,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "qwen2-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen3-30b-a3b": 30_532_122_624,
    "gpt2": 124_439_808,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "bert-base-uncased": 109_482_240,
}
"""Parameters of the checkpoints on Hugging Face; tied tables once."""


def config_path(name: str) -> Path:
    return DATA / "llm" / f"{name}.json"


def architecture(name: str) -> Architecture:
    return read_config(config_path(name)).architecture(name, f"{name}.json")


def write(folder: Path, name: str, **changes: Any) -> Path:
    """A copy of a config with some keys changed; None removes a key."""
    data = json.loads(config_path(name).read_text()) | changes
    path = folder / "config.json"
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str):
    assert sum(parameters(architecture(name)).values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "qwen3-30b-a3b"])
def test_graph_reads_every_parameter_once(name: str):
    model = architecture(name)
    tokens = model.experts.count if model.experts else 4
    graph = build_graph(model, Inference.prefill(tokens))
    weights = {t.name: t.elements for n in graph.nodes for t in n.inputs if t and t.constant and t.values is None}
    assert sum(weights.values()) == PUBLISHED[name]


def _replicated(model: Architecture) -> int:
    """Parameters that every chip of a tensor-parallel group holds: norms, position tables, late biases, routers."""
    parts = parameters(model)
    router = model.hidden * (model.experts.count + bool(model.experts.shared_ffn)) if model.experts else 0
    late = model.hidden * (model.out_bias + model.mlp_bias)
    projections = parts["positions"] + parts["norms"] + parts["projections"] + parts["pooler"]
    return projections + model.layers * (late + router + 2 * model.head_dim * model.qk_norm)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in ("gpt2", "qwen2-7b", "opt-125m")])
@pytest.mark.parametrize("degree", [2, 4])
def test_shares_of_the_chips_add_up(name: str, degree: int):
    model = architecture(name)
    vocabulary = share(model, degree).vocab * degree - model.vocab
    tables = (1 if model.tied_head or not model.causal else 2) * vocabulary * model.embedding
    together = degree * sum(parameters(share(model, degree)).values())
    assert together == PUBLISHED[name] + (degree - 1) * _replicated(model) + tables


def test_key_and_value_heads_are_repeated_when_chips_outnumber_them():
    assert [share(architecture("llama-3-8b"), degree).kv_heads for degree in (2, 8, 16)] == [4, 1, 1]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-3-8b", {"hidden_size": None}, "config.json: key 'hidden_size' is missing"),
        ("llama-3-8b", {"hidden_size": "4096"}, "config.json: hidden_size = '4096': expected a whole number"),
        ("llama-3-8b", {"num_hidden_layers": 0}, "num_hidden_layers = 0 is out of range"),
        ("llama-3-8b", {"num_key_value_heads": 5}, "num_key_value_heads = 5 does not divide num_attention_heads = 32"),
        ("llama-3-8b", {"num_attention_heads": 24}, "num_attention_heads = 24 does not divide hidden_size = 4096"),
        ("llama-3-8b", {"head_dim": 127}, "head_dim = 127 is odd"),
        ("llama-3-8b", {"hidden_act": "sine"}, "hidden_act = 'sine' is not valid; expected"),
        ("llama-3-8b", {"model_type": "lama"}, "model_type = 'lama' is not modelled; did you mean 'llama'?"),
        ("llama-3-8b", {"model_type": None}, "key 'model_type' is missing; valid: bert, gpt2, llama"),
        ("llama-3-8b", {"model_type": ["llama"]}, "model_type = ['llama'] is not modelled"),
        ("llama-3-8b", {"architectures": ["LlamaForTokenClassification"]}, "'LlamaForTokenClassification' is not"),
        ("mixtral-8x7b-v0.1", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9 is more than num_local_experts = 8"),
        ("mixtral-8x7b-v0.1", {"num_local_experts": None}, "key 'num_local_experts' is missing"),
        ("qwen3-30b-a3b", {"num_experts": 4}, "num_experts_per_tok = 8 is more than num_experts = 4"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [48]}, "mlp_only_layers names layer 48 of num_hidden_layers = 48"),
        ("qwen2-7b", {"use_sliding_window": True, "max_window_layers": 14}, "max_window_layers = 14 gives a window"),
        ("gpt2", {"n_head": 7}, "n_head = 7 does not divide n_embd = 768"),
        ("bert-base-uncased", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
    ],
)
def test_a_bad_config_is_one_error_with_file_and_key(tmp_path: Path, name: str, changes: dict[str, Any], message: str):
    with pytest.raises(ModelError) as caught:
        read_config(write(tmp_path, name, **changes))
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "a JSON object, not list"), ("", "not JSON")])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        read_config(path)


def test_onnxim_json_is_a_llama_of_one_layer(tmp_path: Path):
    keys = {"num_attention_heads": 32, "num_kv_heads": 8, "num_hidden_layers": 32, "max_seq_length": 8192}
    keys |= {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256, "tensor_parallel_size": 2}
    path = tmp_path / "llama3-8b.json"
    text = {"activation_function": "swish", "ffn_type": "llama", "run_single_layer": False}
    path.write_text(json.dumps(keys | text))
    config = read_config(path)
    assert isinstance(config, OnnximConfig) and config.tensor_parallel_size == 2
    assert sum(parameters(config.architecture("x", "y")).values()) == PUBLISHED["llama-3-8b"]
    path.write_text(json.dumps(keys | text | {"run_single_layer": True}))
    assert read_config(path).architecture("x", "y").layers == 1
    path.write_text(json.dumps(keys | text | {"pipeline_parallel_size": 2}))
    with pytest.raises(ModelError, match="pipeline_parallel_size = 2 is not valid; expected 1"):
        read_config(path)


def test_a_file_called_config_is_named_after_its_folder(tmp_path: Path):
    assert model_name(tmp_path / "llama" / "config.json") == "llama"
    assert model_name("models/gpt2.json") == "gpt2"


@pytest.mark.parametrize(
    ("name", "run", "degree", "message"),
    [
        ("gpt2", Inference.prefill(1025), 1, "1025 tokens .* are more than the 1024 positions"),
        ("gpt2", Inference.decode(1024), 1, "1025 tokens"),
        ("bert-base-uncased", Inference.decode(5), 1, "BERT is an encoder"),
        ("llama-3-8b", Inference.prefill(8), 3, "degree 3 does not divide the attention heads, 32"),
        ("qwen2-7b", Inference.prefill(8), 14, "degree 14 does not divide the inner feed-forward size"),
        ("qwen1.5-moe-a2.7b", Inference.prefill(8), 32, "degree 32 does not divide the attention heads"),
    ],
)
def test_a_pass_that_cannot_be_made_is_refused(name: str, run: Inference, degree: int, message: str):
    with pytest.raises(ModelError, match=message):
        build_graph(architecture(name), run, TensorParallel(degree, 50.0))
