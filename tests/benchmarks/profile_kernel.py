"""`make profile`, the kernel's part: where the time of a lone lane's step goes on a CPU, stage by stage.

The stages are those of `vsim.npu.kernel.step`, with the processor's cycle counter read between them. Its reading takes
some 10 ns, which a counter read twice in a row shows and which is taken off.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vsim.api import SimPoint
from vsim.npu.compile import params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.kernel import step
from vsim.npu.kernel.lane import Lane, scratch_of
from vsim.npu.kernel.structs import Struct
from vsim.npu.machine import NpuMachine

WARM_UP, ITERATIONS, ROUNDS = 20_000, 5_000, 20
STAGES = ("core", "noc", "dram", "clocks", "reading")


@intrinsic
def _counter(typing: Any) -> Any:
    """The processor's cycle counter."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", fnty=kind), [])

    return types.int64(), generate


counter: Any = _counter


@numba.njit(nogil=True, error_model="numpy", _nrt=False)
def _advance(z: Any, p: Any, t: Any, w: Any, s: Any, iterations: int, spent: Any) -> int:
    """As `step.advance`; counts of the processor's clock by stage are added to spent, int64[5]."""
    step.prepare(w, s)
    for count in range(iterations):
        if s.done or s.status != 0:
            return count
        s.iterations += 1
        begun = counter()
        step.core_turn(z, p, t, w, s)
        after_core = counter()
        step.noc_turn(z, p, t, w, s)
        after_noc = counter()
        step.dram_turn(z, p, w, s)
        after_dram = counter()
        step.clocks_turn(z, p, t, s)
        ended = counter()
        spent[0] += after_core - begun
        spent[1] += after_noc - after_core
        spent[2] += after_dram - after_noc
        spent[3] += ended - after_dram
        spent[4] += counter() - ended
    return iterations


def report(case: str, point: SimPoint) -> None:
    """Print the breakdown, best of the rounds."""
    machine = NpuMachine(shape_of(point.hw, program_needs(point.program), compat=point.compat))
    params = stack_params([params_of(point.hw, compat=point.compat, max_cycles=None, idle_skip=True)])
    shared = tables_of([point.program], machine.shape)
    state = jax.tree.map(np.array, machine.init(shared, params, jnp.zeros(1, jnp.int32)))
    lane = Lane(machine.shape, shared, params, 0)
    lane.advance(state, WARM_UP)
    begun = jax.tree.map(np.array, state)
    plain_us, spent_us = [], []
    for _ in range(ROUNDS + 1):
        copy = jax.tree.map(np.array, begun)
        started = time.perf_counter()
        lane.advance(copy, ITERATIONS)
        plain_us.append((time.perf_counter() - started) / ITERATIONS * 1e6)
        spent, copy = np.zeros(len(STAGES), np.int64), jax.tree.map(np.array, begun)
        inputs = *lane.inputs, Struct(copy)
        started = time.perf_counter()
        _advance(*inputs, ITERATIONS, spent)
        spent_us.append(spent / spent.sum() * (time.perf_counter() - started) / ITERATIONS * 1e6)
    cycles = int(copy.core.now[0] - begun.core.now[0]) / ITERATIONS
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (state, scratch_of(machine.shape))]
    _print(case, min(plain_us[1:]), np.min(spent_us[1:], axis=0), cycles, sizes)


def _print(case: str, plain_us: float, spent_us: np.ndarray, cycles: float, sizes: list[int]) -> None:
    of_stages = np.maximum(spent_us[:-1] - spent_us[-1], 0)
    print(f"{case}, one lane by the kernel on one core: {plain_us:.2f} us per iteration of {cycles:.3f} cycles")
    print(f"state {sizes[0] / 1e3:.0f} KB and scratch {sizes[1] / 1e3:.0f} KB")
    for stage, us in zip(STAGES[:-1], of_stages, strict=True):
        print(f"{stage:<8} {us:>6.2f} us {us / of_stages.sum():>5.0%}")
