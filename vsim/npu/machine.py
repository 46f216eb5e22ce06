"""The cycle-level NPU as a machine of the batch engine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vsim.npu import dispatch
from vsim.npu import state as batch
from vsim.npu.step import step
from vsim.npu.types import MixInput, NpuOutcome, NpuParams, NpuShape, NpuState, ProgramTables

if TYPE_CHECKING:
    from vsim.npu.kernel.lane import Lane

KERNEL_PORTS = 64
"""The kernel has sets of so many channels, and of ports that receive, in a word."""


@dataclass(frozen=True)
class NpuMachine:
    """See `vsim.engine.Machine`. A lane's own input is the index of its program, or its mix."""

    shape: NpuShape

    def init(self, shared: ProgramTables, params: NpuParams, lanes: Array | MixInput) -> NpuState:
        """The lanes before their first tick."""
        return batch.init(self.shape, params, shared, lanes)

    def step(self, shared: ProgramTables, params: NpuParams, state: NpuState) -> NpuState:
        """Up to one tick of each clock domain, in every lane."""
        return step(self.shape, params, shared, state)

    def alive(self, state: NpuState) -> Array:
        """Neither done nor frozen by a status."""
        return ~state.done & (state.status == 0)

    def rebase(self, state: NpuState) -> NpuState:
        """Restart the clocks' counts."""
        return batch.rebase(self.shape, state)

    def outcome(self, state: NpuState) -> NpuOutcome:
        """Counters and times, without queues and tables."""
        return NpuOutcome(
            cycles=dispatch.absolute(state.core), status=state.status, iterations=state.iterations,
            schedule=state.schedule, activity=state.core.activity, activity_high=state.core.activity_high,
            requests=state.noc.requests, reads=state.noc.reads, writes=state.noc.writes,
            row_hits=state.dram.row_hits, row_misses=state.dram.row_misses, row_conflicts=state.dram.row_conflicts,
        )  # fmt: skip

    def elapsed(self, state: NpuState) -> Array:
        """Core cycles."""
        high, low = dispatch.absolute(state.core)
        return high.astype(jnp.float32) * float(1 << dispatch.RADIX_BITS) + low.astype(jnp.float32)

    def has_kernel(self) -> bool:
        """On a CPU, where Numba is installed."""
        return (
            self.shape.channels <= KERNEL_PORTS
            and jax.default_backend() == "cpu"
            and importlib.util.find_spec("numba") is not None
        )

    def kernel(self, shared: ProgramTables, params: NpuParams, lanes: Array | MixInput) -> Lane:
        """The lane's kernel (`vsim.npu.kernel`)."""
        # Numba takes a second to import, which processes that do not need it should not wait for.
        from vsim.npu.kernel.lane import Lane

        which = 0 if isinstance(lanes, MixInput) else int(np.asarray(lanes)[0])
        return Lane(self.shape, shared, params, which)
