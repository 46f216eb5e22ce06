"""The server of a language model as a machine of the batch engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jax import Array

from vsim.serving import clock, step
from vsim.serving.types import Served, ServerParams, ServerShape, ServerState, Sums, Windows


class ServerOutcome(NamedTuple):
    """What is kept of a lane: see `ServerState`."""

    now: Array
    arrived: Array
    done: Array
    iterations: Array
    evictions: Array
    kv_peak: Array
    status: Array
    served: Served
    sums: Sums
    windows: Windows


class Server(NamedTuple):
    """State of the lanes with the number of requests of each, which `alive` needs."""

    count: Array
    state: ServerState


@dataclass(frozen=True)
class ServingMachine:
    """See `vsim.engine.Machine`. A lane's own input is of no meaning: all that a lane is, is in its parameters."""

    shape: ServerShape

    def init(self, shared: Any, params: ServerParams, lanes: Array) -> Server:
        """Empty servers at time 0."""
        return Server(params.count, step.init(self.shape, params))

    def step(self, shared: Any, params: ServerParams, state: Server) -> Server:
        """One iteration, or the wait for the next arrival."""
        return Server(state.count, step.step(params, state.state))

    def alive(self, state: Server) -> Array:
        """Requests are left and no status has ended the lane."""
        return step.is_alive(state.count, state.state)

    def rebase(self, state: Server) -> Server:
        """Nothing: times are of two words from the start."""
        return state

    def outcome(self, state: Server) -> ServerOutcome:
        """Times of the requests and sums over time."""
        return ServerOutcome(*(getattr(state.state, name) for name in ServerOutcome._fields))

    def elapsed(self, state: Server) -> Array:
        """Cycles."""
        return clock.as_float(state.state.now)
