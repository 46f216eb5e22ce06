"""`vsim run` with ONNXim's inputs: model lists and language models, through the real engine, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import models
from tests.conftest import DATA
from tests.sweep_results import save_model
from vsim.cli import main

MOBILE = json.loads((DATA / "onnxim_configs.json").read_text())["E1_conv_n1_c16_h8_m16_k3_s1"]
LIST = {"models": [{"name": "first", "batch_size": 1}, {"name": "second", "request_time": 0.001}, {"name": "first"}]}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A chip with a memory that compiles fast, two graphs, a list, a language model and a trace."""
    for name, size in (("first", (16, 16, 16)), ("second", (8, 24, 16))):
        (tmp_path / name).mkdir()
        save_model(models.mm(*size), tmp_path / name / f"{name}.onnx")
    (tmp_path / "chip.json").write_text(json.dumps(MOBILE | {"dram_type": "simple", "dram_latency": 20}))
    (tmp_path / "list.json").write_text(json.dumps(LIST))
    language = {
        "activation_function": "relu", "num_attention_heads": 2, "num_kv_heads": 2, "vocab_size": 64,
        "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "ffn_type": "default",
        "max_seq_length": 64, "run_single_layer": True,
    }  # fmt: skip
    (tmp_path / "tiny.json").write_text(json.dumps(language))
    (tmp_path / "trace.csv").write_text("time,prompt,target,cached\n0,4,2,0\n")
    return tmp_path


def arguments(inputs: Path, *options: str) -> list[str]:
    """A run of the list."""
    return [
        "run", "--models-list", str(inputs / "list.json"), "--models-dir", str(inputs), "--hw",
        str(inputs / "chip.json"), "--compat", "onnxim", *options,
    ]  # fmt: skip


def test_a_list_of_models(inputs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(arguments(inputs, "--json")) == 0
    output = capsys.readouterr()
    assert output.err == ""
    result = json.loads(output.out)
    assert (result["status"], result["scheduler"]) == ("ok", "simple")
    tenants = result["tenants"]
    assert [tenant["name"] for tenant in tenants] == ["first", "second", "first"]
    assert [tenant["request_time"] for tenant in tenants] == [0.0, 0.001, 0.0]
    assert tenants[0]["finish_cycle"] <= tenants[2]["start_cycle"] < tenants[2]["finish_cycle"]
    assert tenants[1]["start_cycle"] >= 999
    assert len(result["layers"]) == sum(len(tenant["layers"]) for tenant in tenants) == 3
    assert main(arguments(inputs)) == 0
    table = capsys.readouterr().out
    assert "Tenants" in table and f"{tenants[2]['finish_cycle']:,}" in table
    assert main(arguments(inputs, "--scheduler", "spatial_split", "--json")) == 0
    split = json.loads(capsys.readouterr().out)
    assert (split["status"], split["scheduler"]) == ("ok", "spatial_split")


def test_the_language_mode(inputs: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--language", str(inputs / "tiny.json"), "--trace", str(inputs / "trace.csv"), "--compat", "onnxim"]
    assert main(["run", *options, "--hw", str(inputs / "chip.json"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "ok"
    assert [iteration["requests"] for iteration in result["iterations"]] == [[0], [0]]
    assert result["iterations"][1]["finish_cycle"] == max(layer["finish_cycle"] for layer in result["layers"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models-list", "list.json"], "--models-list needs --models-dir"),
        (["--models-dir", "."], "expected either --models-list with --models-dir, or --language with --trace"),
        (["--scheduler", "iter"], "expected either --models-list"),
        (["--language", "tiny.json"], "--language needs --trace"),
        (["--models-list", "list.json", "--models-dir", "."], "--models-list reads ONNXim's inputs and needs --compat"),
        (["--models-list", "list.json", "--models-dir", ".", "--trace", "trace.csv"], "the options of the other mode"),
        (["model.onnx", "--models-list", "list.json", "--models-dir", "."], "MODEL is for single models"),
        (["--batch", "2", "--models-list", "list.json", "--models-dir", "."], "--batch is for single models"),
        ([], "missing argument 'MODEL'"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
):
    monkeypatch.chdir(inputs)
    assert main(["run", *options, "--hw", "chip.json"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--scheduler", "time-multiplex"],
            "scheduler 'time-multiplex' is none of ONNXim's; did you mean 'time_multiplex'?",
        ),
        (["--scheduler", "dynamic"], "scheduler 'dynamic' is none of ONNXim's"),
        (["--hw", "npu-mobile-8x8"], "names no scheduler: add --scheduler NAME"),
        (["--models-dir", "nowhere"], "first.onnx: no such file"),
    ],
    ids=str,
)
def test_inputs_that_cannot_be_used(inputs: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str):
    assert main(arguments(inputs, *options)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
