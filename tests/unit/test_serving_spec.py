"""Serving specifications, traces, the command line and its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from hwconfigs import UserError
from sweeps.serving_spec import Lane, lanes_of, load_serving
from tests.conftest import REPO_ROOT
from vsim.cli import main
from vsim.serving.api import Policy, ServePoint, serve
from vsim.serving.costs import Costs, Table
from vsim.serving.requests import Lengths, Requests, at_intervals, poisson, read_azure, read_onnxim
from vsim.serving.results import Slo

TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip

SPEC = """
name: small
model: tiny.json
chips:
  - {name: one, hw: npu-mobile-8x8, kv_tokens: 400}
  - {name: four, hw: npu-mobile-8x8x4, kv_gib: 0.001}
policies:
  - {name: continuous, max_batch: 8}
  - {name: static, batching: static, max_batch: 8}
arrivals: {poisson: [100, 1000], requests: 40, seeds: [1, 2]}
prompt: {mean: 32, variation: 0.5, longest: 64}
output: 8
grid: {tokens: [1, 16, 64], sequences: [1, 8], context: 63}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return tmp_path


def written(folder: Path, text: str = SPEC) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def lanes(folder: Path, text: str) -> list[Lane]:
    path = written(folder, text)
    return lanes_of(path, load_serving(path), folder / "store")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_batch: 8}\n  - {name: static", "max_batchs: 8}\n  - {name: static", "policies.0.max_batchs"),
        ("kv_tokens: 400", "kv_tokens: 0", "spec.yaml:5: chips.0.kv_tokens = 0 is out of range"),
        (", kv_tokens: 400", "", "chips.0: expected either kv_tokens or kv_gib"),
        ("name: four", "name: one", "chips has two entries of one name"),
        ("poisson: [100, 1000]", "poisson: []", "arrivals.poisson names no rate"),
        ("poisson: [100, 1000]", "poisson: [0]", "arrivals.poisson.0 = 0"),
        ("requests: 40, ", "", "arrivals.poisson needs requests"),
        ("poisson: [100, 1000], requests: 40, seeds: [1, 2]", "azure: t.csv", "prompt goes with arrivals.poisson"),
        ("output: 8\n", "", "output goes with arrivals.poisson"),
        ("static, max_batch: 8", "static, max_batch: 8, token_budget: 4", "token_budget = 4 is less than max_batch"),
        ("tokens: [1, 16, 64]", "tokens: [16, 1]", "grid.tokens: expected two or more rising sizes"),
        ("model: tiny.json", "model: none.json", "none.json: cannot be read"),
        ("longest: 64", "longest: 2000", None),
        ("output: 8\n", "output: 600\n", "longer than the 512 positions"),
        ("kv_gib: 0.001", "kv_gib: 0.0000001", "one token do not fit in kv_gib"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(folder: Path, old: str, new: str, message: str | None):
    assert old in SPEC
    text = SPEC.replace(old, new)
    if message is None:
        assert lanes(folder, text)
        return
    with pytest.raises(UserError) as caught:
        lanes(folder, text)
    assert message in str(caught.value)
    assert "spec.yaml" in str(caught.value)


def test_combinations_become_lanes_that_share_their_requests(folder: Path):
    every = lanes(folder, SPEC)
    assert len(every) == 2 * 2 * 2 * 2
    assert len({tuple(lane.values.items()) for lane in every}) == 16
    slow, fast = (next(lane for lane in every if lane.values["rate"] == rate) for rate in (100, 1000))
    assert np.array_equal(slow.point.requests.prompt, fast.point.requests.prompt)
    assert np.allclose(slow.point.requests.seconds, 10 * fast.point.requests.seconds)
    # Keys and values of two layers of two heads of 16, two bytes each: 256 bytes a token.
    assert {lane.point.kv_capacity for lane in every} == {400, int(0.001 * 2**30) // 256}


def test_serve_prints_tables_and_draws_figures(folder: Path, capsys: pytest.CaptureFixture[str]):
    out = folder / "out"
    assert main(["serve", str(written(folder)), "--out", str(out), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["lanes"]) == 16
    assert {lane["status"] for lane in content["lanes"]} == {"ok"}
    assert content == json.loads((out / "serving.json").read_text())
    rows = parquet.read_table(out / "requests.parquet").to_pylist()
    assert len(rows) == 16 * 40 and {row["served"] for row in rows} == {1}
    assert parquet.read_table(out / "serving.parquet").num_rows == 16
    assert parquet.read_table(out / "windows.parquet").num_rows > 16
    stems = ("throughput-latency", "latency-cdf", "kv-occupancy")
    names = [f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png")]
    assert all((out / name).stat().st_size > 5000 for name in names)
    assert main(["figures", str(out), "--out", str(folder / "again")]) == 0
    assert all((folder / "again" / name).read_bytes() == (out / name).read_bytes() for name in names)


def test_a_lane_that_does_not_end_well_is_exit_code_1(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", str(written(folder, SPEC + "horizon_s: 0.01\n"))]) == 1
    assert "horizon" in capsys.readouterr().out


def test_a_folder_of_something_else_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", str(written(folder)), "--out", str(folder)]) == 2
    assert "not a folder of vsim serve" in capsys.readouterr().err


def test_azure_traces_start_at_their_first_request(tmp_path: Path):
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n2023-11-16 18:18:03.9799600,110,27\n"
    )
    trace = read_azure(path)
    assert trace.seconds.tolist() == pytest.approx([0.0, 0.052, 60.0])
    assert trace.prompt.tolist() == [4808, 3180, 110]
    assert trace.output.tolist() == [10, 8, 27]
    assert len(trace.first(2)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,Context,Generated\n", "azure.csv:1: expected the columns TIMESTAMP, ContextTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n", "azure.csv:2: expected a time and two numbers"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,1,0\n", "at least one prompt and one output token"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,1,1\n2023-11-15,1,1\n", "TIMESTAMP falls"),
    ],
)
def test_a_wrong_azure_trace_is_told(tmp_path: Path, text: str, message: str):
    path = tmp_path / "azure.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_azure(path)


def test_onnxim_traces_are_in_core_cycles(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text("time, prompt_length, target_length, cached_length\n0, 16, 4, 0\n500, 8, 2, 32\n")
    trace = read_onnxim(path, core_mhz=1000)
    assert trace.seconds.tolist() == [0.0, 5e-7]
    assert (trace.prompt.tolist(), trace.output.tolist(), trace.cached.tolist()) == ([16, 8], [4, 2], [0, 32])


def test_generated_traces_have_the_rates_and_lengths_asked_for():
    trace = poisson(50.0, 20_000, Lengths(200, 0.5), Lengths(30), seed=3)
    assert len(trace) / trace.seconds[-1] == pytest.approx(50.0, rel=0.03)
    gaps = np.diff(trace.seconds)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert trace.prompt.mean() == pytest.approx(200, rel=0.02)
    assert trace.prompt.std() / trace.prompt.mean() == pytest.approx(0.5, rel=0.03)
    assert set(trace.output.tolist()) == {30}
    assert np.diff(at_intervals(4.0, 9, Lengths(1), Lengths(1), 0).seconds).tolist() == [0.25] * 8


def test_summary_of_two_requests_by_hand():
    """A batch of two, iterations of 1 s: the second arrives in the first iteration and joins the next one."""
    none = Table.constant(0.0)
    costs = Costs({"all": Table.constant(1e6)}, none, none, none)
    ones = np.ones(2, np.int64)
    requests = Requests(np.array([0.0, 0.5]), 4 * ones, 3 * ones, 0 * ones)
    [result] = serve([ServePoint(costs, 1, requests, Policy(max_batch=2), 100, slo=Slo(ttft_s=1.2, tpot_s=1.0))])
    summary = result.summary
    assert result.requests["ttft_s"].tolist() == [1.0, 1.5]
    assert result.requests["tpot_s"].tolist() == [1.0, 1.0]
    assert result.requests["latency_s"].tolist() == [3.0, 3.5]
    assert (summary["seconds"], summary["iterations"], summary["completed"]) == (4.0, 4, 2)
    assert summary["tokens_per_s"] == 6 / 4
    assert (summary["goodput_per_s"], summary["slo_share"]) == (0.25, 0.5)
    assert summary["peak_kv_share"] == 0.11
    assert summary["mean_batch"] == (1 + 2 + 2 + 1) / 4


@pytest.mark.slow
def test_llama_under_poisson_load_saturates_and_keeps_littles_law(tmp_path: Path):
    """The sweep in the repository: eight rates on four memories, closed forms."""
    path = REPO_ROOT / "sweeps" / "llama-serving.yaml"
    every = lanes_of(path, load_serving(path), tmp_path)
    results = serve([lane.point for lane in every])
    peaks = []
    for chip in dict.fromkeys(lane.values["chip"] for lane in every):
        own = [result.summary for lane, result in zip(every, results, strict=True) if lane.values["chip"] == chip]
        throughput = [summary["tokens_per_s"] for summary in own]
        assert throughput == sorted(throughput)
        # The lowest rate is served as it comes; the two highest only make requests wait.
        assert own[0]["ttft_p95_s"] < 0.5 < own[-1]["ttft_p95_s"] / 10
        assert throughput[-1] < 1.1 * throughput[-2]
        peaks.append(throughput[-1])
    assert peaks == sorted(peaks)
    for result in results:
        summary = result.summary
        assert result.status == "ok" and set(result.requests["served"].tolist()) == {1}
        assert summary["mean_in_system"] == pytest.approx(
            summary["requests_per_s"] * summary["latency_mean_s"], rel=0.02
        )


def test_the_sweep_in_the_repository_is_eight_rates_on_four_chips():
    spec = load_serving(REPO_ROOT / "sweeps" / "llama-serving.yaml")
    assert len(spec.arrivals.rates or ()) == 8 and len(spec.chips) == 4 and spec.lanes == 32
    assert spec.costs == "closed_form"
