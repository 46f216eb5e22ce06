"""What a server did with its requests, in seconds and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vsim.serving import clock
from vsim.serving.machine import ServerOutcome
from vsim.serving.requests import Requests
from vsim.serving.types import STATUS_NAMES

PERCENTILES = (50, 95, 99)
OK = "ok"


@dataclass(frozen=True)
class Slo:
    """Limits that a good request keeps: time to first token, and time per further token, in seconds; None: none."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True)
class ServeResult:
    """Result of one lane.

    status: "ok", or names of `STATUS_NAMES` joined by "+". summary: one number each, as `vsim serve --json` prints
    them. requests, windows: columns of equal length. Requests that had not left when the lane ended have no times
    (NaN), and are in no summary.
    """

    label: str
    status: str
    summary: dict[str, Any]
    requests: dict[str, np.ndarray]
    windows: dict[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the columns."""
        return {"label": self.label, "status": self.status, **self.summary}


def status_name(bits: int) -> str:
    """Status bits as text."""
    return "+".join(name for bit, name in STATUS_NAMES.items() if bits & bit) or OK


def result_of(
    label: str, core_mhz: int, requests: Requests, kv_capacity: int, slo: Slo, outcome: ServerOutcome
) -> ServeResult:
    """The result of a lane from what the machine kept of it."""
    per_second = core_mhz * 1e6
    columns = _columns(requests, per_second, outcome)
    seconds = int(clock.times_of(np.asarray(outcome.now))) / per_second
    left = columns["served"] > 0
    latencies = {name: columns[name][left] for name in ("ttft_s", "tpot_s", "latency_s")}
    good = left & _keeps(columns, slo)
    in_system, running, kv, busy = (float(total[0]) - float(total[1]) for total in outcome.sums)

    def rate(amount: float) -> float:
        return float(amount) / seconds if seconds else 0.0

    summary: dict[str, Any] = {
        "requests": len(requests),
        "arrived": int(outcome.arrived),
        "completed": int(outcome.done),
        "seconds": seconds,
        "iterations": int(outcome.iterations),
        "evictions": int(outcome.evictions),
        "requests_per_s": rate(left.sum()),
        "tokens_per_s": rate(columns["made"][left].sum()),
        "goodput_per_s": rate(good.sum()),
        "slo_share": float(good.sum() / left.sum()) if left.any() else None,
        "busy_share": rate(busy / per_second),
        "mean_in_system": rate(in_system / per_second),
        "mean_batch": running / busy if busy else 0.0,
        "mean_kv_share": rate(kv / per_second) / kv_capacity,
        "peak_kv_share": int(outcome.kv_peak) / kv_capacity,
    }
    for name, values in latencies.items():
        # One token has no time per further token.
        known = values[~np.isnan(values)]
        summary[f"{name.removesuffix('_s')}_mean_s"] = float(known.mean()) if known.size else None
        for percentile in PERCENTILES:
            value = float(np.percentile(known, percentile)) if known.size else None
            summary[f"{name.removesuffix('_s')}_p{percentile}_s"] = value
    windows = _windows(seconds, per_second, kv_capacity, outcome)
    return ServeResult(label, status_name(int(outcome.status)), summary, columns, windows)


def _columns(requests: Requests, per_second: float, outcome: ServerOutcome) -> dict[str, np.ndarray]:
    count = len(requests)
    served = {name: np.asarray(column)[:count] for name, column in outcome.served._asdict().items()}
    left = served["times"] > 0
    arrival = np.round(requests.seconds * per_second)
    first = clock.times_of(np.stack([served["first_high"], served["first_low"]]))
    finish = clock.times_of(np.stack([served["finish_high"], served["finish_low"]]))

    def known(cycles: np.ndarray) -> np.ndarray:
        return np.where(left, cycles / per_second, np.nan)

    further = np.where(served["made"] > 1, served["made"] - 1, np.nan)
    return {
        "arrival_s": arrival / per_second,
        "prompt": requests.prompt,
        "cached": requests.cached,
        "output": requests.output,
        "served": served["times"],
        "made": served["made"],
        "evictions": served["evictions"],
        "ttft_s": known(first - arrival),
        "tpot_s": known((finish - first) / further),
        "latency_s": known(finish - arrival),
    }


def _keeps(columns: dict[str, np.ndarray], slo: Slo) -> np.ndarray:
    """Which requests keep the limits; one of a single token has no further ones to be late."""
    keeps = np.ones(len(columns["served"]), bool)
    if slo.ttft_s is not None:
        keeps &= columns["ttft_s"] <= slo.ttft_s
    if slo.tpot_s is not None:
        keeps &= np.isnan(columns["tpot_s"]) | (columns["tpot_s"] <= slo.tpot_s)
    return keeps


def _windows(seconds: float, per_second: float, kv_capacity: int, outcome: ServerOutcome) -> dict[str, np.ndarray]:
    """Means over the windows that the ring still holds, oldest first; times are counted back from the end."""
    size, number = outcome.windows.cycles.shape[0], int(outcome.windows.number)
    order = np.arange(max(0, number - size + 1), number + 1) % size
    cycles, kv, running, in_system, tokens = (np.asarray(column, float)[order] for column in outcome.windows[:5])
    if cycles.size and cycles[-1] == 0:
        cycles, kv, running, in_system, tokens = (column[:-1] for column in (cycles, kv, running, in_system, tokens))
    lengths = cycles / per_second
    begin = np.maximum(seconds - np.cumsum(lengths[::-1])[::-1], 0.0)
    return {
        "begin_s": begin,
        "seconds": lengths,
        "kv_share": kv / cycles / kv_capacity,
        "batch": running / cycles,
        "in_system": in_system / cycles,
        "tokens_per_s": tokens / lengths,
    }
