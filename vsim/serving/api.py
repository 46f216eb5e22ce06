"""Serving of language models: servers with their requests go in, results come out; all run in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hwconfigs.errors import UserError
from vsim import devices, engine
from vsim.engine import Progress
from vsim.serving import clock
from vsim.serving.costs import Costs, stack
from vsim.serving.machine import ServingMachine
from vsim.serving.requests import MAX_TOKENS, Requests
from vsim.serving.results import ServeResult, Slo, result_of
from vsim.serving.types import ServerParams, ServerShape

MAX_BATCH = 512
NO_BUDGET = 1 << 29
"""A token budget that never binds: more than MAX_BATCH * MAX_TOKENS."""
assert MAX_BATCH * MAX_TOKENS <= NO_BUDGET


@dataclass(frozen=True)
class Policy:
    """How the server forms batches; the rules are in `vsim.serving.batching`.

    batching: continuous (iteration-level) or static. max_batch: sequences at a time, 1..MAX_BATCH. token_budget: tokens
    of an iteration, >= max_batch; None: no limit, prompts are not cut. admission: optimistic (cache for the next token,
    eviction when it fills up) or conservative (cache for the last token, no eviction).
    """

    batching: Literal["continuous", "static"] = "continuous"
    max_batch: int = 32
    token_budget: int | None = None
    admission: Literal["optimistic", "conservative"] = "optimistic"

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise UserError(f"max_batch = {self.max_batch} is out of range: expected 1..{MAX_BATCH}")
        if self.token_budget is not None and not self.max_batch <= self.token_budget <= NO_BUDGET:
            raise UserError(f"token_budget = {self.token_budget} is out of range: expected max_batch..{NO_BUDGET}")


@dataclass(frozen=True)
class ServePoint:
    """One server with its requests.

    core_mhz: of the chip. kv_capacity: tokens that the cache holds, 1..2**29. queue_capacity: requests in the system.
    horizon_s: time limit, None: none. window_s: of the record over time; None: the last arrival falls into the middle
    of the windows.
    """

    costs: Costs
    core_mhz: int
    requests: Requests
    policy: Policy
    kv_capacity: int
    queue_capacity: int = 1 << 20
    horizon_s: float | None = None
    window_s: float | None = None
    slo: Slo = Slo()
    label: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.kv_capacity <= NO_BUDGET:
            raise UserError(f"kv_capacity = {self.kv_capacity} is out of range: expected 1..{NO_BUDGET}")
        if self.requests.seconds[-1] * self.core_mhz * 1e6 >= clock.LARGEST:
            raise UserError(f"the last request arrives after {self.requests.seconds[-1]:.3g} s, too late to be told")


WINDOWS = 64
"""Stretches of time whose means a lane keeps."""
STATE_BYTES = 1 << 30
"""State of all lanes side by side."""


def serve(
    points: Sequence[ServePoint],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    lanes: int | None = None,
    chunk_iterations: int = engine.CHUNK_ITERATIONS,
) -> list[ServeResult]:
    """Serve all points; results come back in their order. lanes: side by side; None: as many as fit `STATE_BYTES`.
    A step takes time with the square of the largest `max_batch`.
    Raises UserError for tables of costs that do not fit together.
    """
    if not points:
        return []
    devices.prepare()
    slots = 1 << (max(point.policy.max_batch for point in points) - 1).bit_length()
    shape = ServerShape(slots, max(len(point.requests) for point in points), WINDOWS)
    outcomes: list[Any] = [None] * len(points)

    def keep(index: int, outcome: Any) -> None:
        outcomes[index] = outcome

    # Iterations of a server that is never idle are about the tokens of its longest queue; only their order matters.
    estimates = [float(point.requests.output.sum() + len(point.requests)) for point in points]
    machine, params, inputs = ServingMachine(shape), _stacked(points, shape), np.zeros(len(points), np.int32)
    fit = max(STATE_BYTES // engine.bytes_per_lane(machine, None, params, inputs), 1)
    engine.run(
        machine,
        None,
        params,
        inputs,
        estimates,
        width=lanes or min(fit, len(points)),
        on_lane=keep,
        on_progress=on_progress,
        chunk_iterations=chunk_iterations,
    )
    return [
        result_of(point.label, point.core_mhz, point.requests, point.kv_capacity, point.slo, outcome)
        for point, outcome in zip(points, outcomes, strict=True)
    ]


def _stacked(points: Sequence[ServePoint], shape: ServerShape) -> ServerParams:
    """Parameters of all lanes, the lane last."""
    lanes = [_lane(point, shape) for point in points]
    fields: dict[str, Any] = {name: np.stack([lane[name] for lane in lanes], axis=-1) for name in lanes[0]}
    return ServerParams(costs=stack([point.costs for point in points]), **fields)


def _lane(point: ServePoint, shape: ServerShape) -> dict[str, Any]:
    """Parameters of one lane by name, without the lane axis and the tables."""
    requests, policy = point.requests, point.policy
    per_second = point.core_mhz * 1e6
    arrival = np.round(requests.seconds * per_second).astype(np.int64)
    missing = shape.requests - len(requests)
    high, low = clock.words_of(np.pad(arrival, (0, missing), mode="edge"))

    def column(values: np.ndarray) -> np.ndarray:
        return np.pad(values, (0, missing), mode="edge").astype(np.int32)

    horizon = clock.LARGEST if point.horizon_s is None else min(round(point.horizon_s * per_second), clock.LARGEST)
    span = max(arrival[-1] * 2 / WINDOWS, 1.0)
    return {
        "arrival_high": high,
        "arrival_low": low,
        "prompt": column(requests.prompt),
        "output": column(requests.output),
        "cached": column(requests.cached),
        "count": np.int32(len(requests)),
        "max_batch": np.int32(policy.max_batch),
        "token_budget": np.int32(policy.token_budget or NO_BUDGET),
        "kv_capacity": np.int32(point.kv_capacity),
        "queue_capacity": np.int32(point.queue_capacity),
        "static": np.int32(policy.batching == "static"),
        "reserves": np.int32(policy.admission == "conservative"),
        "horizon": clock.words_of(np.asarray(horizon)),
        "window": np.float32(point.window_s * per_second if point.window_s is not None else span),
    }
