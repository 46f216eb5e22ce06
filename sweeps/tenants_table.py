"""What tables say of the tenants of a mix: latencies, slowdowns against running alone, and fairness.

The slowdown of a request is its latency over that of its model's only request on the same chip; waiting for earlier
requests counts. Of a mix: weighted speedup, the sum over workloads of 1 / slowdown (Snavely and Tullsen, "Symbiotic
jobscheduling for a simultaneous multithreaded processor", ASPLOS 2000; "system throughput" of Eyerman and Eeckhout,
IEEE Micro 28(3), 2008), and fairness, Jain's index of 1 / slowdown: 1 where all lose equally, 1/n where one of n gets
all (Jain, Chiu and Hawe, "A quantitative measure of fairness and discrimination", DEC TR-301, 1984).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.mix_points import TenantsPoint

Result = Mapping[str, Any]
_IN_OTHER_TABLES = ("layers", "window_cycles", "window_bytes")


def tenant_rows(point: TenantsPoint, result: Result, results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """Return a row a request. results: of all points by digest; cycles are null for what did not start or end."""
    per_us = point.hw.clocks.core_mhz
    rows = []
    for index, tenant in enumerate(result.get("tenants", [])):
        spec = point.mix.tenants[tenant["workload"]]
        latency, start = tenant["latency_cycles"], tenant["start_cycle"]
        due, finish = tenant["deadline_cycle"], tenant["finish_cycle"]
        alone = _alone_cycles(point, tenant["workload"], results)
        rows.append(
            {
                "point": point.index,
                "tenant": index,
                **{key: value for key, value in tenant.items() if key not in _IN_OTHER_TABLES},
                "model": spec.model,
                "batch": spec.batch,
                "priority": spec.priority,
                "bandwidth_share": spec.bandwidth_share,
                "is_late": None if due is None or finish is None else finish > due,
                "wait_cycles": None if start is None else start - tenant["arrival_cycle"],
                "latency_us": None if latency is None else latency / per_us,
                "alone_cycles": alone,
                "slowdown": _slowdown(latency, alone),
            }
        )
    return rows


def window_rows(point: TenantsPoint, result: Result) -> list[dict[str, Any]]:
    """Return a row for every request and window of time: the bytes that its loads and stores asked for in it."""
    return [
        {
            "point": point.index,
            "tenant": index,
            "window": window,
            "start_cycle": window * tenant["window_cycles"],
            "window_cycles": tenant["window_cycles"],
            "bytes": moved,
        }
        for index, tenant in enumerate(result.get("tenants", []))
        for window, moved in enumerate(tenant["window_bytes"])
    ]


def point_columns(point: TenantsPoint, result: Result, results: Mapping[str, Result]) -> dict[str, float | None]:
    """Return what the results table has of a mix beyond other points; null where a slowdown is not known."""
    slowdowns = _slowdowns(point, result, results)
    if slowdowns is None:
        return dict.fromkeys(("slowdown_mean", "slowdown_max", "weighted_speedup", "fairness"))
    progress = [1 / slowdown for slowdown in slowdowns]
    return {
        "slowdown_mean": sum(slowdowns) / len(slowdowns),
        "slowdown_max": max(slowdowns),
        "weighted_speedup": sum(progress),
        "fairness": jain_index(progress),
    }


def jain_index(shares: Sequence[float]) -> float:
    """Return (sum x)^2 / (n sum x^2) of n >= 1 shares, not all 0."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def _slowdowns(point: TenantsPoint, result: Result, results: Mapping[str, Result]) -> list[float] | None:
    """Mean slowdown of the requests of every workload; None where one is not known."""
    of_workloads: list[list[float]] = [[] for _ in point.mix.tenants]
    for tenant in result.get("tenants", []):
        workload = tenant["workload"]
        slowdown = _slowdown(tenant["latency_cycles"], _alone_cycles(point, workload, results))
        if slowdown is None:
            return None
        of_workloads[workload].append(slowdown)
    return [sum(values) / len(values) for values in of_workloads] if all(of_workloads) else None


def _alone_cycles(point: TenantsPoint, workload: int, results: Mapping[str, Result]) -> int | None:
    """Latency of the workload's model alone, where that was simulated to its end."""
    if not point.alone or point.alone[workload] not in results:
        return None
    tenants = results[point.alone[workload]].get("tenants", [])
    return tenants[0]["latency_cycles"] if tenants else None


def _slowdown(latency: int | None, alone: int | None) -> float | None:
    return latency / alone if latency is not None and alone else None
