"""Figures of the closed-form model: what is drawn is what is reported, and the parts add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figures.data import FigureError
from figures.style import paper_style
from figures.systolic_figures import draw_breakdown, draw_non_conv
from hwconfigs.energy_schema import load_technology
from hwconfigs.systolic_schema import load_systolic
from lowering.training.options import TrainingOptions
from vsim.cli import main
from vsim.systolic.kinds import KINDS, kind_of
from vsim.systolic.layers import MatrixLayer, VectorLayer
from vsim.systolic.operators import VectorOperator
from vsim.systolic.phases import compare_phases

DESIGN = load_systolic("simdit-training-08")


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """ResNet-50 from ONNX, with energy; the array of the design among the sides, its batch the larger one."""
    return compare_phases(
        "onnx:light_resnet50",
        DESIGN,
        batches=[1, 2],
        sides=[16, 64],
        training=TrainingOptions(optimizer="momentum"),
        technology=load_technology("horowitz-45nm"),
    )


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return compare_phases("simdit:ResNet50", DESIGN, batches=[32], sides=[64], faults=True)


@pytest.fixture(scope="module")
def breakdown(content: dict[str, Any]) -> Figure:
    with paper_style():
        return draw_breakdown(content)


def share(content: dict[str, Any], **wanted: object) -> float:
    [row] = [row for row in content["non_conv"] if all(row[key] == value for key, value in wanted.items())]
    return row["share"]


def bars(axes: Axes) -> np.ndarray:
    """Heights of the parts of each bar, ``(phases, parts)``, from below."""
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return np.array([[patch.get_height() for patch in patches if round(patch.get_center()[0]) == x] for x in (0, 1)])


def test_share_of_resnet50_training_is_the_published_one(published: dict[str, Any]):
    assert round(100 * share(published, phase="training", batch=32, array=64), 2) == 59.49


@pytest.mark.parametrize("phase", ["inference", "training"])
def test_share_of_the_design_is_that_of_its_report(content: dict[str, Any], phase: str):
    reported = content["phases"][phase]["vector_share"]
    assert share(content, phase=phase, batch=2, array=64) == pytest.approx(reported, rel=1e-12)
    assert len(content["non_conv"]) == 2 * 2 * 2


def microjoules(report: dict[str, Any]) -> float:
    """Of all layers one after the other: they leak longer than where they overlap, by less than 1 %."""
    total = sum(row["microjoules"] for row in report["layers"])
    assert 1 <= total / report["energy"]["total_microjoules"] < 1.01
    return total


def test_bars_are_the_sums_of_the_report(content: dict[str, Any], breakdown: Figure):
    by_unit, by_kind, by_role, *energies = breakdown.axes
    inference, training = content["phases"].values()
    shares = [100 * report["vector_share"] for report in (inference, training)]
    np.testing.assert_allclose(bars(by_unit)[:, 1], shares)
    # The array is convolutions and matrix products, of either kind.
    np.testing.assert_allclose(bars(by_kind)[:, :2].sum(axis=1), bars(by_unit)[:, 0])
    reported = {row["role"]: 100 * row["of_cycles"] for row in training["roles"]}
    assert sorted(height for height in bars(by_role)[1] if height) == pytest.approx(sorted(reported.values()))
    assert bars(by_role)[0].tolist() == pytest.approx([100, *[0] * 6])
    for report, shown in zip((inference, training), bars(energies[0])[:, 1], strict=True):
        spent = sum(row["microjoules"] for row in report["layers"] if row["unit"] == "vector")
        assert shown == pytest.approx(100 * spent / microjoules(report))


def test_parts_add_up_and_totals_stand_above(content: dict[str, Any], breakdown: Figure):
    for axes in breakdown.axes:
        np.testing.assert_allclose(bars(axes).sum(axis=1), 100)
    reports = content["phases"].values()
    milliseconds = [report["serial_cycles"] / DESIGN.clock_mhz / 1e3 for report in reports]
    inference, training = (microjoules(report) for report in reports)
    written = [text.get_text() for axes in (breakdown.axes[0], breakdown.axes[3]) for text in axes.texts]
    assert {f"{value:.1f} ms" for value in milliseconds} <= set(written)
    assert {f"{inference / 1e3:.1f} mJ", f"{training / 1e6:.1f} J"} <= set(written)


def test_lines_are_the_shares(content: dict[str, Any]):
    with paper_style():
        figure = draw_non_conv(content)
    for axes, phase in zip(figure.axes, ("inference", "training"), strict=True):
        assert axes.get_title() == phase
        for line, batch in zip(axes.lines, (1, 2), strict=True):
            expected = [(side, 100 * share(content, phase=phase, batch=batch, array=side)) for side in (16, 64)]
            np.testing.assert_allclose(line.get_xydata(), expected)


def test_networks_of_simdit_have_no_roles_and_no_energy_unless_asked(published: dict[str, Any]):
    with paper_style():
        figure = draw_breakdown(published)
    assert [axes.get_title() for axes in figure.axes] == ["Convolution or not", "Type of layer"]
    assert bars(figure.axes[0])[1, 1] == pytest.approx(59.49, abs=0.005)


def test_more_batches_than_colours_are_refused(content: dict[str, Any]):
    rows = [{"phase": "inference", "batch": batch, "array": 8, "share": 0.5} for batch in range(1, 9)]
    with pytest.raises(FigureError, match="8 batches: a figure has at most 7 lines"):
        draw_non_conv({"non_conv": rows})


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("batchnorm_grad_x_mu", "normalisation"),
        ("SimplifiedLayerNormalization", "normalisation"),
        ("Relu+Add", "element-wise, copies"),
        ("GlobalAveragePool", "pooling"),
        ("max_pool_grad", "pooling"),
        ("CrossEntropyGrad", "softmax, loss"),
        ("SoftmaxGrad", "softmax, loss"),
        ("Adam", "parameter update"),
        ("sgd4d", "parameter update"),
        ("Transpose", "element-wise, copies"),
    ],
)
def test_kinds_of_vector_layers(operator: str, kind: str):
    layer = VectorLayer("layer", operator, 1, 1, 64, 1, costs=VectorOperator(cycles=1))
    assert kind_of(layer) == kind
    assert kind in KINDS


def test_kinds_of_matrix_layers():
    operators = ("conv_bias", "gemm (1x1 conv)", "gemm (conv weight gradient)", "gemm", "gemm_no_bias")
    kinds = [kind_of(MatrixLayer("layer", operator, 1, 1, 64, 64, 1, 1, 1)) for operator in operators]
    assert kinds == [*["convolution"] * 3, *["matrix product"] * 2]


def test_command_line_draws_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["simdit:ResNet50", "--hw", DESIGN.name, "--compat", "simdit", "--batches", "32", "--arrays", "64"]
    assert main(["systolic", "figures", *arguments, "--out", str(tmp_path / "drawn"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["phases"]["training"]["cycles"] == 992_512_402.25
    names = {Path(file).name for file in report["files"]}
    assert names == {"breakdown.pdf", "breakdown.png", "non-conv.pdf", "non-conv.png"}
    assert (tmp_path / "drawn" / "breakdown.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "1,two"], "--batches '1,two': expected different whole numbers above 0"),
        (["--batches", "0"], "--batches '0': expected"),
        (["--arrays", "16,16"], "--arrays '16,16': expected different"),
        (["--arrays", "8192"], "array.rows"),
        (["--arrays", "2048"], "memory of simdit-training-08 with a 2048x2048 array"),
        (["--optimizer", "adam"], "options of training are for ONNX models"),
        (["--node-nm", "7"], "give it with --energy"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    usual = ["simdit:ResNet50", "--hw", DESIGN.name, "--compat", "simdit", "--batches", "32", "--arrays", "64"]
    assert main(["systolic", "figures", *usual, "--out", str(tmp_path / "drawn"), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_both_phases_of_one_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["simdit:ResNet50-training", "--hw", DESIGN.name, "--out", str(tmp_path)]
    assert main(["systolic", "figures", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "both phases are drawn" in line
