"""ONNXim's language mode: files, and which requests form which iteration."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hwconfigs.errors import UserError
from lowering.onnxim.language import (
    Iteration,
    Part,
    Request,
    lower_language,
    plan,
    read_language_model,
    read_trace,
)
from tests.golden.onnxim_reference import CONFIGURATIONS, SMALL_LLAMA

SERVER = CONFIGURATIONS["server"]
MODEL = {
    "activation_function": "relu", "num_attention_heads": 12, "num_kv_heads": 12, "vocab_size": 50272,
    "num_hidden_layers": 4, "hidden_size": 768, "intermediate_size": 3072, "ffn_type": "default",
    "max_seq_length": 2048, "run_single_layer": True, "tensor_parallel_size": 2, "pipeline_parallel_size": 2,
}  # fmt: skip


def test_model_file(tmp_path):
    path = tmp_path / "opt.json"
    path.write_text(json.dumps(MODEL))
    model = read_language_model(path)
    assert (model.name, model.layers, model.simulated_layers) == ("opt", 2, 1)
    assert (model.qkv_features, model.attention_features, model.feed_forward_features) == (1152, 384, 1536)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size = None; expected a whole number"),
        ({"activation_function": "tanh"}, "activation_function = 'tanh'; valid: gelu, swish, relu"),
        ({"num_attention_heads": 7}, "hidden_size = 768 is no multiple of num_attention_heads = 7"),
        ({"pipeline_parallel_size": 5}, "more pipeline stages than layers"),
    ],
)
def test_bad_model_files_are_named(tmp_path, change, message):
    path = tmp_path / "opt.json"
    path.write_text(json.dumps(MODEL | change))
    with pytest.raises(UserError, match=message):
        read_language_model(path)


def test_trace_times_add_up(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("time, prompt_length, target_length, cached_length\n0, 16, 2, 0\n100, 8, 1, 4\n50, 9, 1, 0\n")
    assert [request.arrival_cycle for request in read_trace(path)] == [0, 100, 150]
    path.write_text("time, prompt_length, target_length, cached_length\n0, 16, 2\n")
    with pytest.raises(UserError, match=r"trace\.csv:2: expected time, prompt_length"):
        read_trace(path)
    path.write_text("time, prompt_length, target_length, cached_length\n")
    with pytest.raises(UserError, match="no request"):
        read_trace(path)


REQUESTS = (Request(0, 12, 3, 0), Request(100, 9, 1, 0))


def test_simple_scheduler_waits_until_all_have_left():
    first = [Iteration(0, (0,), (Part(0, 12, 0),))] + [Iteration(0, (), (Part(0, 1, context),)) for context in (13, 14)]
    assert plan(REQUESTS, "simple", 0, ()) == (*first, Iteration(99, (1,), (Part(1, 9, 0),)))


def test_iteration_scheduler_joins_what_has_arrived():
    expected = (
        Iteration(0, (0,), (Part(0, 12, 0),)),
        Iteration(0, (1,), (Part(0, 1, 13), Part(1, 9, 0))),
        Iteration(0, (), (Part(0, 1, 14),)),
    )
    assert plan(REQUESTS, "iter", 8, ()) == expected
    # The first iteration ends before the second request arrives, the second in the cycle before.
    late = plan(REQUESTS, "iter", 8, (50, 98))
    assert [[part.request for part in iteration.parts] for iteration in late] == [[0], [0], [0, 1]]


def test_batch_limit_and_idle_gaps():
    requests = [Request(0, 4, 1, 0), Request(0, 4, 1, 0), Request(0, 4, 1, 0), Request(9_000, 4, 1, 0)]
    batches = plan(requests, "simple", 2, (1_000, 2_000))
    assert [iteration.admitted for iteration in batches] == [(0, 1), (2,), (3,)]
    assert [iteration.launch_cycle for iteration in batches] == [0, 0, 8_999]
    with pytest.raises(UserError, match="language scheduler 'fifo' is unknown"):
        plan(requests, "fifo", 0, ())


def test_launches_and_layers_of_a_program():
    iterations = plan(REQUESTS, "iter", 0, ())
    program = lower_language(SMALL_LLAMA, iterations, SERVER)
    # Ten operators a layer, two layers, and one more attention for a second request.
    assert [index for index, release in enumerate(program.releases) if release] == [20, 42]
    assert program.n_layers == 62


def test_memory_that_is_too_small_is_named():
    model = replace(SMALL_LLAMA, vocabulary=2_000_000)
    with pytest.raises(UserError, match=r"language model T: 1\.9 GiB .* exceed dram\.size_gib = 1"):
        lower_language(model, plan(REQUESTS, "simple", 0, ()), SERVER.with_overrides({"dram.size_gib": 1}))
