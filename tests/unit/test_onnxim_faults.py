"""Where ONNXim itself stops with a fault, compatibility mode runs on and says what it does instead."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from hwconfigs.errors import UserError
from lowering import lower
from lowering.onnxim import lower_onnxim
from lowering.onnxim.language import LanguageModel, Request, lower_language, plan
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS

SERVER = CONFIGURATIONS["server"]


@pytest.mark.parametrize("size", [(64, 256, 256), (100, 300, 200)], ids=str)
def test_a_tile_that_rounds_to_nothing_is_named(size: tuple[int, int, int]) -> None:
    """Section 13, Q3: the examples of the specification."""
    program = lower_onnxim(models.mm(*size), SERVER)
    [warning] = program.warnings
    assert "node mm (MatMul): ONNXim divides by zero" in warning
    assert "Q3" in warning
    [layer] = program.layers
    assert f"at least one block, {layer.notes[0].removeprefix('tile ')}" in warning


def test_a_memory_that_holds_no_square_of_blocks_is_named() -> None:
    """The depth of the tiles: half of 256 KiB has two 128 x 128 blocks, the accumulators have room for a 5 x 5 tile."""
    hw = SERVER.with_overrides({"cores.spad_kib": 256})
    [warning] = lower_onnxim(models.mm(512, 768, 768), hw).warnings
    assert "node mm (MatMul): ONNXim divides by zero" in warning


def test_what_the_original_runs_has_no_warning() -> None:
    for size in [(128, 128, 128), (512, 512, 512), (1, 512, 512)]:
        assert lower_onnxim(models.mm(*size), SERVER).warnings == ()


def test_every_such_node_is_named_once() -> None:
    """The perceptron that stops the original in section 16, and a decoder whose iterations repeat the fault."""
    first, second = lower_onnxim(models.mlp(64, 128, 256, 100), SERVER).warnings
    assert first.startswith("node g1 (Gemm)")
    assert second.startswith("node g2 (Gemm)")
    decoder = LanguageModel("T", "swish", 16, 8, 256, 256, 1000, 256, 1, 1, False, 1)
    iterations = plan([Request(0, 64, 3, 0)], "simple", 0, ())
    assert len(iterations) == 3
    warnings = lower_language(decoder, iterations, SERVER).warnings
    names = ("layer0.attn.proj", "layer0.ffn.fc1", "layer0.ffn.fc2")
    assert [warning.split()[1] for warning in warnings] == [*names, *names], "the prompt and a token differ in rows"


def test_errors_name_the_file(tmp_path: Path) -> None:
    """And the node, with what would be right."""
    path = tmp_path / "constant.onnx"
    model = models.mm(64, 64, 64)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], "const", value_float=1.0))
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"model .*constant\.onnx: node const: .*Constant without inputs; .*fold"):
        lower(path, SERVER, compat="onnxim")


def test_a_language_model_is_told_where_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "opt.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"opt\.json: .*--language MODEL\.json --trace TRACE\.csv"):
        lower(path, SERVER, compat="onnxim")
