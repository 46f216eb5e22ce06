"""Training iterations, cycle by cycle: the command line and the engine, on networks of a few layers."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from hwconfigs.load import load_hw
from lowering import LoadedModel, TrainingOptions, lower
from tests.one_node import loaded
from tests.unit.test_training_lowering import cnn
from vsim.api import SimPoint, simulate
from vsim.cli import main

MOBILE = load_hw("npu-mobile-8x8")


def transformer(tokens: int = 8, width: int = 32, heads: int = 2, vocabulary: int = 40) -> LoadedModel:
    """An embedding, a pre-norm block with attention and a GELU network, a norm and a head, for two sequences."""

    def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs.split(), [output], output, **attributes)

    nodes = [
        node("Gather", "table ids", "x", axis=0),
        node("LayerNormalization", "x s1 b1", "n1"),
        *(node("MatMul", f"n1 W{name}", name) for name in "qkv"),
        node("Attention", "q k v", "a", q_num_heads=heads, kv_num_heads=heads, is_causal=1),
        node("MatMul", "a Wo", "o"),
        node("Add", "x o", "r"),
        node("LayerNormalization", "r s2 b2", "n2"),
        node("MatMul", "n2 W1", "u"),
        node("Gelu", "u", "g"),
        node("MatMul", "g W2", "d"),
        node("Add", "r d", "e"),
        node("MatMul", "e Wh", "Y"),
    ]
    square, inner = (width, width), 2 * width
    shapes: dict[str, tuple[int, ...]] = {
        "table": (vocabulary, width), "Wh": (width, vocabulary), "W1": (width, inner), "W2": (inner, width),
        **dict.fromkeys(("Wq", "Wk", "Wv", "Wo"), square), **dict.fromkeys(("s1", "b1", "s2", "b2"), (width,)),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [2, tokens])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT) for name, shape in shapes.items()],
    )
    return loaded(graph)


def test_iterations_run_cycle_by_cycle() -> None:
    """Both networks with each optimiser, side by side; all that is loaded and stored passes through the DRAM."""
    points = [
        SimPoint(hw=MOBILE, program=lower(model, MOBILE, batch=batch, training=TrainingOptions(optimizer=optimizer)))
        for model, batch in ((cnn(channels=8, size=8), 2), (transformer(), 1))
        for optimizer in ("sgd", "adam")
    ]
    results = simulate(points)
    cycles = []
    for point, result in zip(points, results, strict=True):
        content = result.to_json()
        assert content["status"] == "ok"
        layers = point.program.layers
        assert content["dram"]["reads"] * MOBILE.dram.request_bytes == sum(layer.load_bytes for layer in layers)
        assert content["dram"]["writes"] * MOBILE.dram.request_bytes == sum(layer.store_bytes for layer in layers)
        busy = sum(layer.systolic_cycles for layer in layers)
        assert content["cycles"] > busy
        cycles.append(content["cycles"])
    assert cycles[0] < cycles[1]
    assert cycles[2] < cycles[3]


def test_command_line_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cnn.onnx"
    onnx.save(cnn(channels=8, size=8).proto, path)
    arguments = ["run", str(path), "--hw", "npu-mobile-8x8", "--train", "--optimizer", "momentum", "--batch", "2"]
    assert main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["status"] == "ok"
    ops = [layer["op"] for layer in content["layers"]]
    assert ops.count("Momentum") == 7
    assert ops.count("ConvWeightGrad") == 2
    assert ops.count("BatchNormGrad") >= 1
    roles = content["training"]
    assert list(roles) == ["forward", "loss", "grad_input", "grad_weight", "update"]
    assert sum(role["cycles"] for role in roles.values()) == content["layers"][-1]["finish_cycle"]
    assert sum(role["macs"] for role in roles.values()) == sum(layer["macs"] for layer in content["layers"])
    assert roles["grad_weight"]["macs"] == roles["forward"]["macs"] > roles["grad_input"]["macs"] > 0
    assert roles["update"]["macs"] == 0 < roles["update"]["bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "adam"], "--optimizer is about training: it needs --train"),
        (["--restore-batch-norm"], "--restore-batch-norm is about training: it needs --train"),
        (["--train", "--optimizer", "adm"], "--optimizer 'adm' is unknown; did you mean 'adam'?"),
        (["--train", "--compat", "onnxim"], "--train does not go with --compat"),
        (["--train", "--skip-unknown"], "--train does not go with --skip-unknown"),
        (["--train", "--loss-output", "Z"], "--loss-output Z: no such output; there are Y"),
        (["--train", "--recompute", "all"], "--recompute 'all' is unknown; valid: cheap, none, segments"),
    ],
)
def test_bad_requests_are_one_line(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cnn.onnx"
    onnx.save(cnn().proto, path)
    assert main(["run", str(path), "--hw", "npu-mobile-8x8", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_language_model_descriptions_are_for_inference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert main(["run", str(path), "--hw", "npu-mobile-8x8", "--train"]) == 2
    assert "--train takes an ONNX model" in capsys.readouterr().err
