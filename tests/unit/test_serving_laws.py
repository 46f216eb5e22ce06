"""Laws of queues, on servers with tables of their own: M/D/1, Little's law, lanes that do not disturb each other."""

from __future__ import annotations

import numpy as np
import pytest

from vsim.serving.api import Policy, ServePoint, serve
from vsim.serving.costs import Costs, Table
from vsim.serving.requests import Lengths, poisson
from vsim.serving.results import ServeResult

MHZ = 1000
SERVICE_S = 0.01
"""One iteration of the server of a single request."""


def constant(seconds: float) -> Costs:
    """Every iteration takes as long as every other."""
    none = Table.constant(0.0)
    return Costs({"all": Table.constant(seconds * MHZ * 1e6)}, none, none, none)


def mean_wait(load: float, seeds: int, requests: int, tokens: int) -> float:
    """Mean wait before service, in service times; a request is served for `tokens` iterations."""
    service = SERVICE_S * tokens
    points = [
        ServePoint(
            constant(SERVICE_S), MHZ,
            poisson(load / service, requests, Lengths(16), Lengths(tokens), seed),
            Policy(max_batch=1), kv_capacity=64,
        )
        for seed in range(seeds)
    ]  # fmt: skip
    results = serve(points)
    assert {result.status for result in results} == {"ok"}
    return float(np.mean([result.summary["latency_mean_s"] for result in results])) / service - 1


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_one_server_waits_as_m_d_1_does(load: float):
    """Pollaczek and Khinchine: load / (2 (1 - load)) service times. 128 seeds of 2,000 requests, 256,000 in all."""
    assert mean_wait(load, seeds=128, requests=2000, tokens=1) == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def test_service_of_several_iterations_is_one_service():
    """Fixed prompts and outputs: three iterations a request, still deterministic. 128 seeds of 1,000 requests."""
    assert mean_wait(0.5, seeds=128, requests=1000, tokens=3) == pytest.approx(0.5, rel=0.05)


def growing() -> Costs:
    """Iterations that grow with tokens and contexts."""
    return Costs(
        {"all": Table((1, 64, 512), (20e6, 24e6, 80e6))},
        Table((1, 2), (2e5, 4e5)), Table((64, 128), (2e5, 4e5)), Table((64, 128), (2e4, 4e4)),
    )  # fmt: skip


def busy_points(policies: list[Policy], rates: list[float]) -> list[ServePoint]:
    prompt, output = Lengths(64, 0.8, 256), Lengths(24, 0.8, 96)
    return [
        ServePoint(growing(), MHZ, poisson(rate, 600, prompt, output, seed=7), policy, kv_capacity=1000, window_s=8.0)
        for policy in policies
        for rate in rates
    ]


POLICIES = [
    Policy(max_batch=16),
    Policy(max_batch=16, token_budget=64),
    Policy(max_batch=8, admission="conservative"),
    Policy(max_batch=8, batching="static"),
]
RATES = [2.0, 8.0, 16.0]


@pytest.fixture(scope="module")
def results() -> list[ServeResult]:
    return serve(busy_points(POLICIES, RATES))


def test_littles_law_holds_in_every_lane(results: list[ServeResult]):
    """The mean number in the system, summed over time in the state, is throughput times the mean time in the system."""
    for result in results:
        summary = result.summary
        assert result.status == "ok"
        assert summary["mean_in_system"] == pytest.approx(
            summary["requests_per_s"] * summary["latency_mean_s"], rel=0.02
        )


def test_every_request_is_served_once_with_all_its_tokens(results: list[ServeResult]):
    assert any(result.summary["evictions"] for result in results)
    for result in results:
        table = result.requests
        assert set(table["served"].tolist()) == {1}
        assert np.array_equal(table["made"], table["output"])
        assert (table["ttft_s"] > 0).all() and (table["latency_s"] >= table["ttft_s"]).all()
        assert result.summary["peak_kv_share"] <= 1.0


def test_windows_add_up_to_the_run(results: list[ServeResult]):
    for result in results:
        windows, summary = result.windows, result.summary
        assert windows["seconds"].sum() == pytest.approx(summary["seconds"], rel=1e-4)
        for window, mean in (("kv_share", "mean_kv_share"), ("in_system", "mean_in_system")):
            over_time = float((windows[window] * windows["seconds"]).sum()) / summary["seconds"]
            assert over_time == pytest.approx(summary[mean], rel=1e-4)


def test_lanes_give_what_they_give_alone(results: list[ServeResult]):
    """Side by side, in another order, with refills, in short chunks: equal, bit for bit."""
    points = busy_points(POLICIES, RATES)
    again = serve(points[::-1], lanes=5, chunk_iterations=100)[::-1]
    for result, other in zip(results, again, strict=True):
        assert result.summary == other.summary
        for name, column in result.requests.items():
            assert np.array_equal(column, other.requests[name], equal_nan=True)


def test_no_time_wraps():
    """Iterations of 10**18 cycles: the second one would end beyond what two words hold."""
    requests = poisson(1.0, 5, Lengths(4), Lengths(2), seed=1)
    [result] = serve([ServePoint(constant(1e9), MHZ, requests, Policy(), kv_capacity=100)])
    assert result.status == "horizon"
    assert result.summary["seconds"] >= 1e9


@pytest.mark.parametrize(
    ("status", "limits"),
    [
        ("kv_capacity", {"kv_capacity": 40}),
        ("overflow_queue", {"queue_capacity": 3}),
        ("horizon", {"horizon_s": 0.5}),
    ],
)
def test_what_runs_out_ends_the_lane_with_its_name(status: str, limits: dict[str, float]):
    requests = poisson(200.0, 100, Lengths(32), Lengths(16), seed=1)
    fields = {"kv_capacity": 1000, **limits}
    [result] = serve([ServePoint(growing(), MHZ, requests, Policy(), **fields)])  # pyright: ignore[reportArgumentType]
    assert result.status == status
    assert result.summary["completed"] < 100
    assert np.isnan(result.requests["latency_s"][result.requests["served"] == 0]).all()
