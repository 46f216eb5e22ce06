"""Lanes one to a core, with a machine that only counts down and a kernel in Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.test_engine import Countdown
from vsim import alone
from vsim.engine import Progress

LENGTHS = [1, 25, 7, 40, 3, 11, 2]
REBASE_AT = 16


class Kernel:
    """Counts down in place. It must be rebased after every REBASE_AT steps, and breaks on `bad` steps left."""

    def __init__(self, bad: int) -> None:
        self.bad, self.since_rebase = bad, 0

    def advance(self, state: Any, iterations: int) -> int:
        assert self.since_rebase < REBASE_AT
        steps = min(iterations, int(state["left"][0]), REBASE_AT - self.since_rebase)
        if state["left"][0] == self.bad:
            raise ValueError("a broken kernel")
        state["left"] -= steps
        state["steps"] += steps
        self.since_rebase += steps
        return steps

    def must_rebase(self, state: Any) -> bool:
        due = self.since_rebase >= REBASE_AT
        self.since_rebase = 0 if due else self.since_rebase
        return due


@dataclass(frozen=True)
class WithKernel(Countdown):
    bad: int = -1

    def has_kernel(self) -> bool:
        return True

    def kernel(self, shared: Any, params: Any, lanes: np.ndarray) -> Kernel:
        assert lanes.shape == (1,)
        return Kernel(self.bad)


def run(machine: WithKernel, threads: int, reports: list[Progress] | None = None) -> dict[int, int]:
    steps: dict[int, int] = {}
    params, lanes = jnp.zeros(len(LENGTHS), jnp.int32), jnp.asarray(LENGTHS, jnp.int32)
    alone.run(
        machine, jnp.int32(0), params, lanes, LENGTHS, threads=threads, chunk_iterations=10,
        on_lane=lambda index, outcome: steps.__setitem__(index, int(outcome)),
        on_progress=None if reports is None else reports.append,
    )  # fmt: skip
    return steps


@pytest.mark.parametrize("threads", [1, 2, 100])
def test_every_lane_runs_to_its_own_end(threads: int) -> None:
    reports: list[Progress] = []
    assert run(WithKernel("alone"), threads, reports) == dict(enumerate(LENGTHS))
    last = reports[-1]
    assert (last.lanes_done, last.lanes_total) == (len(LENGTHS), len(LENGTHS))
    assert last.lane_cycles == last.lane_iterations == last.expected_lane_cycles == sum(LENGTHS)
    assert last.lane_iterations <= last.place_iterations


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="a broken kernel"):
        run(WithKernel("broken", bad=25), 2)
