"""`vsim explain-compat`: one small network through the real engine, and the labels and sums of what it reports."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from hwconfigs.errors import UserError
from lowering.models import LoadedModel
from lowering.onnxim import lower_onnxim
from lowering.onnxim.comparison import LanguageComparison, OnnxComparison
from lowering.onnxim.faults import IN_DEFAULT, NONE, Fault
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS
from vsim.api import SimPoint, simulate
from vsim.cli import main
from vsim.cli_explain import print_explanation
from vsim.explain_compat import DRAIN

SERVER, MOBILE = CONFIGURATIONS["server"], CONFIGURATIONS["mobile_c4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and hardware of the run, and its figure."""
    path = tmp_path_factory.mktemp("explained")
    onnx.save(models.mlp(16, 32, 48, 16), path / "mlp.onnx")
    (path / "hw.yaml").write_text(MOBILE.to_yaml())
    return path


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    """What `--json` prints."""
    arguments = [str(folder / "mlp.onnx"), "--hw", str(folder / "hw.yaml"), "--figure", str(folder / "faults.png")]
    with redirect_stdout(io.StringIO()) as text:
        assert main(["explain-compat", *arguments, "--json"]) == 0
    return json.loads(text.getvalue())


def test_every_column_adds_up(content):
    lines, total = content["layers"], content["total"]
    for key in ("original_cycles", "together_cycles", "remaining_cycles", "default_cycles"):
        assert sum(line[key] for line in lines) == total[key]
    for fault in content["faults"]:
        assert sum(line["moved_cycles"][fault["id"]] for line in lines) == total["moved_cycles"][fault["id"]]
    for line in (*lines, total):
        assert line["original_cycles"] + line["together_cycles"] + line["remaining_cycles"] == line["default_cycles"]


def test_every_fault_is_a_column_or_absent(content):
    columns, absent = ([item["id"] for item in content[key]] for key in ("faults", "absent"))
    assert sorted([*columns, *absent]) == sorted(Fault)
    assert {"Q8", "Q9", "Q10", "Q11", "Q12", "Q16"} <= set(columns)
    assert {"Q1", "Q2", "Q5", "Q6", "Q14", "Q17", "Q20"} <= set(absent)
    reasons = {item["id"]: item["reason"] for item in content["absent"]}
    assert content["onnxim_aborts"] == []
    assert reasons["Q1"] == reasons["Q3"] == "does not occur"
    assert reasons["Q20"] != "does not occur"


def test_fused_nodes_are_in_the_row_of_their_carrier(content):
    assert [(line["name"], line["layers"], line["default_layers"]) for line in content["layers"]] == [
        ("g1", ["g1", "relu"], ["g1"]),
        ("g2", ["g2"], ["g2"]),
        (DRAIN, [], []),
    ]


def test_strict_stores_leave_nothing_behind_the_last_layer(content):
    drain = content["layers"][-1]
    assert drain["original_cycles"] > 20
    assert 0 <= drain["original_cycles"] + drain["moved_cycles"]["Q11"] <= 1


def test_strict_stores_with_and_without_idle_skip():
    program = lower_onnxim(models.mlp(16, 32, 48, 16), MOBILE)
    points = [SimPoint(MOBILE, program, compat=True, repaired=faults) for faults in (NONE, frozenset({Fault.Q11}))]
    skipping, ticking = simulate(points), simulate(points, idle_skip=False)
    assert [result.to_json() for result in skipping] == [result.to_json() for result in ticking]
    loose, strict = ([layer["finish_cycle"] for layer in result.layers] for result in skipping)
    assert all(late > early for late, early in zip(strict, loose, strict=True))


def test_an_activation_costs_cycles_where_it_is_repaired(content):
    assert content["layers"][0]["moved_cycles"]["Q12"] > 2 * MOBILE.noc.latency_cycles
    assert content["corrected_hardware"] == {
        "dram.request_bytes": 64, "clocks.dram_mhz": 800, "dram.scheduler": "fr_fcfs",
    }  # fmt: skip
    assert content["layers"][0]["moved_cycles"]["Q9"] < 0


def test_people_get_a_table_and_a_figure(content, folder, capsys):
    print_explanation(content)
    text = capsys.readouterr().out
    assert "do not occur in this model: Q1, Q2, Q3" in text
    assert f"{content['total']['original_cycles']:,} cycles as ONNXim" in text
    assert all(f"{fault['id']}: {fault['behaviour']}" in text for fault in content["faults"])
    assert (folder / "faults.png").read_bytes().startswith(b"\x89PNG")


def test_what_onnxim_cannot_run_is_one_error(folder, capsys):
    model = models.conv(8, 8, 3, 1, 1, 8)
    model.graph.node[0].attribute.append(helper.make_attribute("group", 8))
    onnx.save(model, folder / "grouped.onnx")
    arguments = [str(folder / "grouped.onnx"), "--hw", str(folder / "hw.yaml")]
    assert main(["explain-compat", *arguments]) == 2
    error = capsys.readouterr().err
    assert "node conv (Conv): group = 8; ONNXim cannot run grouped convolutions" in error
    assert main(["explain-compat", *arguments, "--prefill", "4"]) == 2
    assert "go with ONNXim's language models" in capsys.readouterr().err


def loaded(model: onnx.ModelProto) -> LoadedModel:
    return LoadedModel(model.graph.name, Path(f"{model.graph.name}.onnx"), model, 13)


def test_every_layer_is_in_one_row():
    model = models.transformer_block(64, 128, 2, 256)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    comparison = OnnxComparison(loaded(model))
    original, default = comparison.original(SERVER, NONE), comparison.default(SERVER)
    rows = comparison.rows(original, default)
    assert sorted(i for row in rows for i in row.original) == list(range(original.n_layers))
    assert sorted(i for row in rows for i in row.default) == list(range(default.n_layers))
    projections = next(row for row in rows if row.name == "att/projection")
    assert [default.layers[i].name for i in projections.default] == ["att (q)", "att (k)", "att (v)"]
    assert next(row for row in rows if row.name == "fc1").original == tuple(
        i for i, item in enumerate(original.layers) if item.name in ("fc1", "gelu")
    )


def test_an_empty_cache_is_none():
    cache = helper.make_tensor_value_info("past", TensorProto.FLOAT, [2, 1, 2, "past_seq_len", 64])
    model = models.transformer_block(64, 128, 2, 256)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.input.extend([cache, helper.make_tensor_value_info("mask", TensorProto.INT32, [1, 64])])
    model.graph.node[0].input.extend(["mask", "past"])
    comparison = OnnxComparison(loaded(model), dims={"past_seq_len": 0})
    default = comparison.default(SERVER)
    assert [item.op for item in default.layers].count("Attention") == 1
    assert comparison.original(SERVER, IN_DEFAULT).n_layers == 8
    model.graph.node[0].input[3] = ""
    with pytest.raises(UserError, match="give it a mask"):
        comparison.original(SERVER, NONE)


def test_language_models_are_compared_by_role(tmp_path):
    sizes = {
        "num_attention_heads": 4, "num_kv_heads": 2, "vocab_size": 1000, "num_hidden_layers": 2, "hidden_size": 256,
        "intermediate_size": 384, "max_seq_length": 512,
    }  # fmt: skip
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({**sizes, "activation_function": "swish", "ffn_type": "llama"}))
    comparison = LanguageComparison(path, 2, prompt=16)
    original, default = comparison.original(SERVER, NONE), comparison.default(SERVER)
    rows = comparison.rows(original, default)
    assert sorted(i for row in rows for i in row.original) == list(range(original.n_layers))
    assert sorted(i for row in rows for i in row.default) == list(range(default.n_layers))
    parts = ("attn.QKVgen", "attn.Attention", "attn.proj", "attn.ln", "ffn.fc1", "ffn.fc2", "ffn.ln")
    both = [row.name for row in rows if row.original and row.default]
    assert both == [f"layer{number}.{part}" for number in (0, 1) for part in parts]
    assert {row.name for row in rows if not row.original} == {"embed_tokens"}


def test_the_original_counts_a_token_too_many(tmp_path):
    sizes = {
        "num_attention_heads": 4, "num_kv_heads": 4, "vocab_size": 1000, "num_hidden_layers": 1, "hidden_size": 256,
        "intermediate_size": 384, "max_seq_length": 512,
    }  # fmt: skip
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({**sizes, "activation_function": "relu"}))
    comparison = LanguageComparison(path, prompt=1, context=100)
    macs = {}
    for faults in (NONE, frozenset({Fault.Q15})):
        program = comparison.original(SERVER, faults)
        macs[faults] = next(item.macs for item in program.layers if item.op == "Attention")
    assert list(macs.values()) == [2 * 256 * 102, 2 * 256 * 101]
