"""The batch engine with a machine that only counts down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from jax import Array

from vsim import engine, traced


@dataclass(frozen=True)
class Countdown:
    """A machine whose lanes take as many steps as their input says."""

    name: str

    def init(self, shared: Any, params: Any, lanes: Array) -> Any:
        return {"left": lanes + 0, "steps": jnp.zeros_like(lanes)}

    def step(self, shared: Any, params: Any, state: Any) -> Any:
        alive = self.alive(state)
        return {"left": state["left"] - alive, "steps": state["steps"] + alive}

    def alive(self, state: Any) -> Array:
        return state["left"] > 0

    def rebase(self, state: Any) -> Any:
        return state

    def outcome(self, state: Any) -> Any:
        return state["steps"]

    def elapsed(self, state: Any) -> Array:
        return state["steps"].astype(jnp.float32)


def run(machine: Countdown, lengths: list[int], width: int) -> dict[int, int]:
    steps: dict[int, int] = {}
    params, lanes = jnp.zeros(len(lengths), jnp.int32), jnp.asarray(lengths, jnp.int32)
    engine.run(
        machine, jnp.int32(0), params, lanes, lengths, width=width, chunk_iterations=10,
        on_lane=lambda index, outcome: steps.__setitem__(index, int(outcome)),
    )  # fmt: skip
    return steps


@pytest.mark.parametrize("width", [1, 2, 3, 100])
def test_every_lane_runs_to_its_own_end(width: int) -> None:
    lengths = [1, 25, 7, 40, 3, 11, 2]
    assert run(Countdown("ends"), lengths, width) == dict(enumerate(lengths))


def test_advance_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk after chunk and refill after refill, also where the traced step comes from disk: a step takes seconds."""
    monkeypatch.setattr(traced, "_folder", lambda: tmp_path)
    machine = Countdown("once")
    assert run(machine, [25, 14, 31], 1) == {0: 25, 1: 14, 2: 31}
    assert engine.compile_machine(machine, 1).advance._cache_size() == 1
    assert len(list(tmp_path.iterdir())) == 1
