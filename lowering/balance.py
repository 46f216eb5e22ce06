"""Handing work to cores."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balance(costs: Sequence[Sequence[float]]) -> list[list[int]]:
    """Assign items to cores so that the loads are even: longest first, each to the core that ends earliest.

    costs[core][item]: what the item costs on that core. Returns each core's items in their original order.
    Equal items go round-robin, so the first items of all cores are neighbours.
    """
    n_cores, n_items = len(costs), len(costs[0])
    cheapest = costs[0] if n_cores == 1 else [min(core[item] for core in costs) for item in range(n_items)]
    assigned: list[list[int]] = [[] for _ in range(n_cores)]
    loads = [(0.0, core) for core in range(n_cores)]
    uniform = all(core == costs[0] for core in costs)
    for item in sorted(range(n_items), key=lambda index: -cheapest[index]):
        if uniform:
            load, core = heapq.heappop(loads)
            heapq.heappush(loads, (load + costs[core][item], core))
        else:
            index = min(range(n_cores), key=lambda k: (loads[k][0] + costs[k][item], k))
            core = loads[index][1]
            loads[index] = (loads[index][0] + costs[core][item], core)
        assigned[core].append(item)
    return [sorted(items) for items in assigned]
