"""The cycle-level NPU as a machine of the batch engine."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from vsim.npu import dispatch
from vsim.npu import state as batch
from vsim.npu.step import step
from vsim.npu.types import NpuParams, NpuShape, NpuState, ProgramTables


@dataclass(frozen=True)
class NpuMachine:
    """See `vsim.engine.Machine`. A lane's own input is the index of its program."""

    shape: NpuShape

    def init(self, shared: ProgramTables, params: NpuParams, lanes: Array) -> NpuState:
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

    def elapsed(self, state: NpuState) -> Array:
        """Core cycles."""
        high, low = dispatch.absolute(state.core)
        return high.astype(jnp.float32) * float(1 << dispatch.RADIX_BITS) + low.astype(jnp.float32)
