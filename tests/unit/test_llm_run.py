"""Language models through the engine: traffic equal to closed forms, and the error of extrapolated layers bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwconfigs import UserError, load_hw
from lowering import ModelError, Program, lower
from lowering.llm.architecture import Architecture
from lowering.llm.closed_forms import attention_weights, compulsory_traffic, feed_forward_matrix, macs
from lowering.llm.configs import read_config
from lowering.llm.inference import Inference, share
from lowering.llm.lower import HEAD_BLOCK_COLUMNS
from sweeps.points import expand
from sweeps.programs import lower_points
from sweeps.spec import load_spec
from tests.unit.test_llm_configs import architecture, config_path
from vsim.api import SimPoint, simulate
from vsim.cli import main
from vsim.cli_llm import pass_sizes
from vsim.npu.results import SimResult
from vsim.npu.steady import extrapolate

SERVER = load_hw("npu-server-128x128x4")
MOBILE = load_hw("npu-mobile-8x8")
LAYERS = 8
LARGE_VOCABULARY = 4 * HEAD_BLOCK_COLUMNS

STEADY_ERROR = 0.015
"""Bound on the relative error of the total when 2 of 8 layers are simulated. The test's layers last about as long as
the interval between refreshes (7.8 us), the worst case: one refresh more or less in a layer is 2.5 % of it."""


def tiny(folder: Path, vocab: int = 256) -> str:
    """A Llama of 8 small layers."""
    path = folder / f"tiny{vocab}.json"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": vocab, "max_position_embeddings": 512}
    path.write_text(json.dumps({"model_type": "llama", **sizes}))
    return str(path)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], tuple[Program, SimResult]]:
    """Program and result by pass and whether it was extrapolated from two layers."""
    folder = tmp_path_factory.mktemp("llm")
    paths = {"prefill": tiny(folder), "decode": tiny(folder), "large head": tiny(folder, LARGE_VOCABULARY)}
    sizes = {"prefill": {"prompt": 16}, "decode": {"context": 64}, "large head": {"context": 64}}
    keys = [(name, steady) for name in sizes for steady in (False, True)]
    programs = [
        lower(paths[name], MOBILE, dims=sizes[name] | ({"steady_layers": 2} if steady else {})) for name, steady in keys
    ]
    outcomes = simulate([SimPoint(MOBILE, program) for program in programs])
    return dict(zip(keys, zip(programs, outcomes, strict=True), strict=True))


@pytest.mark.parametrize("name", ["prefill", "decode", "large head"])
def test_extrapolated_cycles_are_within_the_stated_error(results: Any, name: str):
    _, full = results[name, False]
    _, steady = results[name, True]
    assert (full.status, steady.status) == ("ok", "ok")
    assert steady.cycles == pytest.approx(full.cycles, rel=STEADY_ERROR)
    assert steady.time_us == pytest.approx(full.time_us, rel=STEADY_ERROR)
    assert steady.extrapolation is not None and full.extrapolation is None
    assert steady.extrapolation["simulated_cycles"] < full.cycles / 2


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_extrapolated_rows_and_traffic_are_those_of_the_whole(results: Any, name: str):
    program, full = results[name, False]
    _, steady = results[name, True]
    for row, info in zip(full.layers, program.layers, strict=True):
        assert (row["load_bytes"], row["store_bytes"]) == (info.load_bytes, info.store_bytes)
    marked = [row["name"] for row in steady.layers if row["name"].endswith(" [extrapolated]")]
    assert len({row.split(".")[1] for row in marked}) == LAYERS - 2
    assert [row["name"].removesuffix(" [extrapolated]") for row in steady.layers] == [
        row["name"] for row in full.layers
    ]
    for key in ("op", "macs", "load_bytes", "store_bytes"):
        assert [row[key] for row in steady.layers] == [row[key] for row in full.layers]
    for before, after in zip(steady.layers, steady.layers[1:], strict=False):
        assert after["start_cycle"] >= before["finish_cycle"]
    for key in ("reads", "writes", "read_bytes", "write_bytes"):
        assert steady.dram[key] == full.dram[key]
    assert steady.dram["bandwidth_gbps"] == pytest.approx(full.dram["bandwidth_gbps"], rel=STEADY_ERROR)
    assert any(warning.startswith("extrapolated: 2 of 8 layers.*") for warning in steady.warnings)


def test_a_run_cut_short_is_not_extrapolated(results: Any):
    program, result = results["decode", True]
    cut = replace(result, status="cycle_limit", extrapolation=None)
    assert program.repeats
    assert extrapolate(cut, program.repeats) is cut


def test_a_large_head_is_cut_into_blocks_that_add_up(results: Any):
    program, _ = results["large head", False]
    _, steady = results["large head", True]
    head = next(row for row in program.layers if row.name == "lm_head")
    blocks = [row for row in steady.layers if row["name"].startswith("lm_head.")]
    names = ["lm_head.0", "lm_head.1", "lm_head.2 [extrapolated]", "lm_head.3 [extrapolated]"]
    assert [row["name"] for row in blocks] == names
    assert sum(row["macs"] for row in blocks) == head.macs
    [layers, cut] = steady.extrapolation["units"]
    assert (layers["prefix"], layers["simulated"], layers["total"]) == ("layers.", 2, LAYERS)
    assert (cut["prefix"], cut["simulated"], cut["total"]) == ("lm_head.", 2, 4)


# -- Llama-3-8B on the server preset: traffic and MACs of every layer in closed form


def rows_of(program: Program, layer: int) -> dict[str, Any]:
    prefix = f"layers.{layer}."
    return {row.name.removeprefix(prefix): row for row in program.layers if row.name.startswith(prefix)}


def test_llama_decode_moves_its_weights_and_cache_once():
    model, run = architecture("llama-3-8b"), Inference.decode(4096)
    program = lower(config_path("llama-3-8b"), SERVER, dims={"context": 4096, "steady_layers": 1})
    rows = rows_of(program, 0)
    products = [row for row in rows.values() if row.op == "MatMul"]
    weights = attention_weights(model)["qkv"] + attention_weights(model)["out"] + feed_forward_matrix(model, model.ffn)
    assert sum(row.macs for row in products) == weights
    one = replace(model, layers=1)
    cache = compulsory_traffic(one, run, 2)
    query, new = model.heads * model.head_dim * 2, cache.kv_write
    attention = rows["attention"]
    assert attention.macs == macs(one, run)["scores"]
    assert attention.load_bytes == cache.kv_read + query + new
    assert attention.store_bytes == query + new
    # Inputs, outputs and residuals of one token are all that is moved besides weights, keys and values.
    moved = sum(row.load_bytes + row.store_bytes for row in rows.values())
    assert 0 < moved - (weights * 2 + cache.kv_read + cache.kv_write) < 0.01 * moved


def test_llama_prefill_does_the_macs_of_its_closed_form():
    model, run = architecture("llama-3-8b"), Inference.prefill(2048)
    program = lower(config_path("llama-3-8b"), SERVER, dims={"prompt": 2048, "steady_layers": 1})
    rows = rows_of(program, 0)
    expected = macs(replace(model, layers=1), run)
    products = sum(row.macs for row in rows.values() if row.op == "MatMul")
    assert products == expected["attention projections"] + expected["feed-forward"]
    # Tiles that the diagonal crosses are computed whole, 128 keys by 128 queries at the finest.
    assert expected["scores"] <= rows["attention"].macs <= expected["scores"] * 1.13
    [block] = [row for row in program.layers if row.name.startswith("lm_head.")]
    assert block.macs * program.repeats[1].total == expected["head"]
    assert rows["attention"].store_bytes == 2048 * (4096 + 2 * 1024) * 2


@pytest.mark.parametrize("degree", [2, 8])
def test_a_chip_of_many_does_its_share(degree: int):
    model, run = architecture("llama-3-8b"), Inference.decode(4096, batch=4)
    sizes = {"context": 4096, "steady_layers": 1, "tensor_parallel": degree, "link_gbps": 50}
    program = lower(config_path("llama-3-8b"), SERVER, batch=4, dims=sizes)
    one: Architecture = replace(share(model, degree), layers=1)
    assert sum(row.macs for row in program.layers) == sum(macs(one, run).values())
    names = [row.name for row in program.layers if row.op == "AllReduce"]
    assert names == ["embed_tokens.AllReduce", "layers.0.attention.out.AllReduce", "layers.0.mlp.down.AllReduce"]
    sums = [row for row in program.layers if row.op == "AllReduce"]
    assert {(row.load_bytes, row.store_bytes) for row in sums} == {(4 * 4096 * 2, 4 * 4096 * 2)}
    assert program.layers[-1].name == "lm_head.AllGather"
    assert program.layers[-1].store_bytes == pytest.approx(4 * model.vocab * 2, rel=0.001)


@pytest.mark.parametrize("name", ["gpt2", "opt-125m", "opt-350m", "bert-base-uncased", "qwen3-8b", "mixtral-8x7b-v0.1"])
def test_every_family_lowers_with_the_macs_of_its_closed_form(name: str):
    model = architecture(name)
    program = lower(config_path(name), SERVER, dims={"prompt": 64, "steady_layers": 1})
    expected = macs(replace(model, layers=1), Inference.prefill(64))
    scores = sum(row.macs for row in program.layers if row.op == "Attention")
    heads = next((repeat.total for repeat in program.repeats if repeat.prefix == "lm_head."), 1)
    head = sum(row.macs for row in program.layers if row.name.startswith(("lm_head", "pooler")))
    assert head * heads == expected["head"]
    rest = sum(row.macs for row in program.layers) - scores - head
    assert rest == sum(expected.values()) - expected["scores"] - expected["head"]
    assert expected["scores"] <= scores <= 2 * expected["scores"]
    assert program.warnings == ()


# -- the doors


def test_command_line_runs_a_decode(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["run", tiny(tmp_path), "--hw", "npu-mobile-8x8", "--decode", "--context", "16", "--steady-layers", "1"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "ok"
    assert result["extrapolation"]["units"][0]["total"] == LAYERS
    assert sum("[extrapolated]" in row["name"] for row in result["layers"]) % (LAYERS - 1) == 0


def test_repeated_layers_cost_as_much_energy_as_simulated_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["run", tiny(tmp_path), "--hw", "npu-mobile-8x8", "--decode", "--context", "16", "--json"]
    arguments += ["--energy", "horowitz-45nm"]
    assert main(arguments) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--steady-layers", "1"]) == 0
    short = json.loads(capsys.readouterr().out)
    # Leakage follows the extrapolated cycles, which are near the simulated ones, not equal.
    leaked = [result["energy"].pop("leakage_pj") for result in (short, whole)]
    assert leaked[0] / leaked[1] == pytest.approx(short["cycles"] / whole["cycles"])
    assert short["energy"] == pytest.approx(whole["energy"])
    assert [row["dynamic_pj"] for row in short["layers"]] == [row["dynamic_pj"] for row in whole["layers"]]


NONE: dict[str, Any] = {"prefill": None, "decode": False, "context": None, "tensor_parallel": None}
NONE |= {"link_gbps": None, "steady_layers": None}


@pytest.mark.parametrize(
    ("model", "sizes", "options", "message"),
    [
        ("a.onnx", {}, {"prefill": 8}, "--prefill goes with the config.json of a language model, not with a.onnx"),
        ("a.onnx", {}, {"decode": True}, "--decode goes with the config.json"),
        ("a.json", {}, {"decode": True}, "--decode makes one token: it needs --context"),
        ("a.json", {}, {"decode": True, "context": 5, "prefill": 8}, "goes without --prefill"),
        ("a.json", {}, {"context": 5}, "--context TOKENS needs --decode"),
        ("a.json", {"prompt": 4}, {"prefill": 8}, "--prefill and --dim prompt say the same thing twice"),
    ],
)
def test_options_that_contradict_are_refused(model: str, sizes: dict[str, int], options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        pass_sizes(model, sizes, **NONE | options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "say what to run: --prefill TOKENS, or --decode"),
        ({"contxt": 5}, "--dim contxt: a language model has no size of that name; did you mean 'context'"),
        ({"prompt": 8, "tensor_parallel": 2}, "degree 2 needs the bandwidth of the chips' links: --link-gbps"),
    ],
)
def test_sizes_that_do_not_say_what_to_run_are_refused(tmp_path: Path, sizes: dict[str, int], message: str):
    with pytest.raises(ModelError, match=message):
        lower(tiny(tmp_path), MOBILE, dims=sizes)


def test_layers_that_differ_cannot_be_extrapolated(tmp_path: Path):
    data = json.loads(config_path("qwen3-30b-a3b").read_text()) | {"mlp_only_layers": [0]}
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(data))
    assert not read_config(path).architecture("mixed", str(path)).uniform
    with pytest.raises(ModelError, match="needs layers that are all alike"):
        lower(path, SERVER, dims={"context": 8, "steady_layers": 2})


def test_onnxims_single_layer_is_announced(tmp_path: Path):
    keys = {"num_attention_heads": 4, "num_kv_heads": 4, "num_hidden_layers": 12, "max_seq_length": 64}
    keys |= {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 256}
    path = tmp_path / "opt.json"
    text = {"activation_function": "relu", "ffn_type": "default", "run_single_layer": True}
    path.write_text(json.dumps(keys | text))
    program = lower(path, MOBILE, dims={"prompt": 8})
    assert "run_single_layer keeps 1 of num_hidden_layers = 12" in program.warnings[0]
    assert {row.name.split(".")[1] for row in program.layers if row.name.startswith("layers.")} == {"0"}


def test_a_sweep_varies_context_batch_and_degree(tmp_path: Path):
    tiny(tmp_path)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: llm\nmodel: tiny256.json\nbase: npu-mobile-8x8\nset: {dims.link_gbps: 20}\n"
        "sweep: {dims.context: [16, 64], batch: [1, 2], dims.tensor_parallel: [1, 2], clocks.core_mhz: [500, 1000]}\n"
    )
    points = expand(load_spec(spec)).points
    programs, errors = lower_points(points, lambda done, total: None)
    assert (len(points), len(programs), errors) == (16, 16, {})
    cycles = {tuple(p.values.values()): programs[p.digest].layers for p in points}
    slow, fast = (
        sum(row.vector_cycles for row in cycles[16, 2, 2, mhz] if row.op == "AllReduce") for mhz in (500, 1000)
    )
    assert fast > slow
