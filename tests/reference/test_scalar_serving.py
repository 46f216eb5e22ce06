"""Servers side by side equal a plain-Python server, request by request; none is lost or served twice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.scalar_serving import Iteration, Request, Server
from vsim.serving.api import Policy, ServePoint, serve
from vsim.serving.costs import Costs, Table
from vsim.serving.requests import Requests
from vsim.serving.results import ServeResult

LANES, REQUESTS, SLOTS = 6, 16, 8
MHZ = 1
"""A cycle is a microsecond."""

COSTS = Costs(
    by_token={"products": Table((1, 4, 8), (100, 100, 140)), "elementwise": Table((1, 4, 8), (2, 8, 16))},
    head=Table((1, 2), (5, 8)),
    decode_attention=Table((1, 2), (3, 6)),
    prompt_attention=Table((1, 2), (1, 2)),
)
"""Whole numbers with whole slopes: the machine's float32 is exact."""


def cycles(iteration: Iteration) -> int:
    """The same costs, spelt out."""
    tokens = sum(new for new, _ in iteration.sequences)
    single = [kv + 1 for new, kv in iteration.sequences if new == 1]
    pairs = [new * kv + new * (new + 1) // 2 for new, kv in iteration.sequences if new > 1]
    head = 5 + 3 * (iteration.outputs - 1) if iteration.outputs else 0
    return 100 + 10 * max(tokens - 4, 0) + 2 * tokens + head + 3 * sum(single) + sum(pairs)


@st.composite
def lanes(draw: st.DrawFn) -> ServePoint:
    """A random server with a random trace; small caches, queues and horizons included."""
    count = draw(st.integers(1, REQUESTS))

    def numbers(low: int, high: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)), np.int64)

    gaps = numbers(0, draw(st.sampled_from([0, 300, 3000])))
    requests = Requests(np.cumsum(gaps) / 1e6, numbers(1, 12), numbers(1, 8), numbers(0, 1) * numbers(0, 5))
    batch = draw(st.integers(1, SLOTS))
    policy = Policy(
        batching=draw(st.sampled_from(["continuous", "static"])),
        max_batch=batch,
        token_budget=draw(st.none() | st.integers(batch, 24)),
        admission=draw(st.sampled_from(["optimistic", "conservative"])),
    )
    return ServePoint(
        COSTS, MHZ, requests, policy,
        kv_capacity=draw(st.integers(10, 60)),
        queue_capacity=draw(st.just(REQUESTS) | st.integers(2, REQUESTS)),
        horizon_s=draw(st.none() | st.floats(1e-3, 2e-2)),
    )  # fmt: skip


def filler() -> ServePoint:
    """A lane that gives every batch the same shape, so that it compiles once."""
    ones = np.ones(REQUESTS, np.int64)
    return ServePoint(COSTS, MHZ, Requests(np.zeros(REQUESTS), ones, ones, 0 * ones), Policy(max_batch=SLOTS), 100)


def by_reference(point: ServePoint) -> tuple[str, int, list[Request]]:
    """Status, end and requests of the plain-Python server."""
    policy, trace = point.policy, point.requests
    arrivals = np.round(trace.seconds * 1e6).astype(int).tolist()
    columns = (trace.prompt.tolist(), trace.output.tolist(), trace.cached.tolist())
    requests = [Request(number, *fields) for number, fields in enumerate(zip(arrivals, *columns, strict=True))]
    server = Server(
        cycles,
        max_batch=policy.max_batch,
        token_budget=policy.token_budget or 10**9,
        kv_capacity=point.kv_capacity,
        queue_capacity=point.queue_capacity,
        static=policy.batching == "static",
        conservative=policy.admission == "conservative",
        horizon=round(point.horizon_s * 1e6) if point.horizon_s is not None else 10**18,
    )
    status, end = server.serve(requests)
    return status, end, requests


def check(point: ServePoint, result: ServeResult) -> None:
    status, end, requests = by_reference(point)
    assert result.status == status
    assert round(result.summary["seconds"] * 1e6) == end
    table = result.requests
    assert table["served"].tolist() == [request.times_served for request in requests]
    if status == "ok":
        assert set(table["served"].tolist()) == {1}
        assert table["made"].tolist() == point.requests.output.tolist()
    for request in requests:
        if request.times_served:
            assert request.first is not None and request.finish is not None
            assert round(table["ttft_s"][request.number] * 1e6) == request.first - request.arrival
            assert round(table["latency_s"][request.number] * 1e6) == request.finish - request.arrival
            assert table["evictions"][request.number] == request.evictions
    assert result.summary["completed"] == sum(request.times_served for request in requests)


@given(st.lists(lanes(), min_size=LANES, max_size=LANES))
@settings(max_examples=60)
def test_servers_equal_a_scalar_server(points: list[ServePoint]):
    results = serve([*points, filler()], chunk_iterations=64)
    for point, result in zip(points, results, strict=False):
        check(point, result)
