"""The compiled kernel of a lone lane against the step that it stands for (`vsim.npu.kernel`): the same states.

Every case is a machine of its own, so that every rule of core, NoC and DRAM is met by some. States are compared after
stretches of iterations of uneven length, to the run's end or as far as the case says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hwconfigs import HwConfig, load_hw
from lowering import lower
from lowering.mix import Scheduler
from lowering.models import LoadedModel
from lowering.onnxim import lower_onnxim
from lowering.program import Program
from tests import mixes, models
from tests.golden.onnxim_reference import CONFIGURATIONS
from tests.unit import test_mixes, test_npu_launches
from vsim.api import SimPoint, simulate
from vsim.npu.compile import params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.compile_mix import mix_input, mix_needs, mix_shape_of, mix_tables_of, stack_inputs
from vsim.npu.machine import NpuMachine

STRETCHES = (1, 7, 50, 300)


@dataclass(frozen=True)
class Case:
    """A chip and what it runs. iterations: how far to compare, None to the end."""

    hw: Callable[[], HwConfig]
    program: Callable[[HwConfig], Program]
    compat: bool = False
    idle_skip: bool = True
    iterations: int | None = None
    max_cycles: int | None = None


def _product(*size: int) -> Callable[[HwConfig], Program]:
    return lambda hw: lower(LoadedModel("m", Path("m.onnx"), models.mm(*size), 13), hw)


def _onnxim(*size: int) -> Callable[[HwConfig], Program]:
    return lambda hw: lower_onnxim(models.mm(*size), hw)


def _convolution(hw: HwConfig) -> Program:
    return lower(LoadedModel("m", Path("m.onnx"), models.conv(16, 24, 3, 2, 1, 14), 13), hw)


def _chip(preset: str, **changes: Any) -> Callable[[], HwConfig]:
    return lambda: load_hw(preset).with_overrides({key.replace("__", "."): value for key, value in changes.items()})


ODD_CLOCKS = {"clocks__core_mhz": 700, "clocks__noc_mhz": 1100, "clocks__dram_mhz": 433}
SIMPLE_DRAM = {"dram.standard": "simple", "dram.latency_cycles": 30}
CASES = {
    "server": Case(_chip("npu-server-128x128x4"), _product(256, 512, 256)),
    "server without idle skip": Case(_chip("npu-server-128x128x4"), _product(64, 256, 64), idle_skip=False),
    "four small cores": Case(_chip("npu-mobile-8x8x4"), _product(100, 70, 50)),
    "slow noc": Case(_chip("npu-mobile-8x8x4", noc__latency_cycles=64), _product(32, 48, 40)),
    "odd clocks": Case(_chip("npu-mobile-8x8x4", **ODD_CLOCKS), _product(40, 50, 60)),
    "transformer block": Case(
        lambda: CONFIGURATIONS["mobile_c4"],
        lambda hw: lower_onnxim(models.transformer_block(16, 32, 2, 64), hw),
        compat=True,
    ),
    "convolution": Case(_chip("npu-mobile-8x8"), _convolution),
    "launches": Case(lambda: test_npu_launches.HW, lambda hw: test_npu_launches.LATE_LAYERS, compat=True),
    "cycle limit": Case(_chip("npu-mobile-8x8"), _product(64, 64, 64), max_cycles=700),
    "onnxim server": Case(lambda: CONFIGURATIONS["server"], _onnxim(128, 256, 128), compat=True, iterations=6000),
    "onnxim mobile": Case(lambda: CONFIGURATIONS["mobile_c1"], _onnxim(64, 64, 64), compat=True),
    "onnxim simple dram": Case(
        lambda: CONFIGURATIONS["mobile_c1"].with_overrides(SIMPLE_DRAM), _onnxim(40, 64, 24), compat=True
    ),
}  # fmt: skip


def test_clocks_are_rebased() -> None:
    """A launch so late that clocks must restart on the way."""
    program = test_npu_launches.program(None, (1 << 30) - 1)
    point = SimPoint(test_npu_launches.HW, program, compat=True)
    [by_kernel], [by_step] = simulate([point]), simulate([point], lanes=1)
    assert by_kernel.to_json() == by_step.to_json()
    assert by_kernel.cycles >= 1 << 30


@cache
def _stretch(machine: NpuMachine) -> Any:
    """(shared, params, state, iterations) -> state, by the JAX step."""

    def run(shared: Any, params: Any, state: Any, iterations: Any) -> Any:
        def body(carry: tuple[Any, Any]) -> tuple[Any, Any]:
            return carry[0] + 1, machine.step(shared, params, carry[1])

        def going(carry: tuple[Any, Any]) -> Any:
            return (carry[0] < iterations) & machine.alive(carry[1])[0]

        return lax.while_loop(going, body, (jnp.int32(0), state))[1]

    return jax.jit(run)


def _comparable(state: Any) -> dict[str, np.ndarray]:
    """Leaves by name. Of times that have passed, only that they have."""
    state = jax.tree.map(np.asarray, state)
    clock = state.dram.clock
    memory = {
        name: np.maximum(getattr(state.dram, name), clock) for name in ("ready_bank", "ready_group", "ready_rank")
    }
    state = state.replace(dram=state.dram.replace(**memory))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_step(name: str) -> None:
    case = CASES[name]
    hw = case.hw()
    program = case.program(hw)
    machine = NpuMachine(shape_of(hw, program_needs(program), compat=case.compat))
    params = stack_params([params_of(hw, compat=case.compat, max_cycles=case.max_cycles, idle_skip=case.idle_skip)])
    done = compare(machine, tables_of([program], machine.shape), params, jnp.zeros(1, jnp.int32), case.iterations)
    assert done > 100


ONNXIM_MIXES = [(plan, True) for plan in test_mixes.PLANS]
MIXES_WITH_SHARES = [(plan, False) for plan in test_mixes.PLANS if plan.scheduler is not Scheduler.SPATIAL_SPLIT]


@pytest.mark.parametrize(("plan", "compat"), ONNXIM_MIXES + MIXES_WITH_SHARES)
def test_mixes_equal_the_step(plan: mixes.MixPlan, compat: bool) -> None:
    """As ONNXim has them; and in default mode with DDR4, the first tenant with a share of the bandwidth."""
    mix, hw = plan.build(), mixes.HW if compat else CONFIGURATIONS["mobile_c4"]
    if not compat:
        first, *others = mix.tenants
        mix = dataclasses.replace(mix, tenants=(dataclasses.replace(first, bandwidth_share=0.03), *others))
    needs = mix_needs(test_mixes.LARGEST)
    machine = NpuMachine(mix_shape_of(hw, needs, mixes.MOST_TENANTS, compat=compat, shares=not compat))
    programs = [tenant.program for tenant in mix.tenants]
    params = stack_params([params_of(hw, compat=compat, max_cycles=None, idle_skip=True)])
    own = stack_inputs([mix_input(hw, mix, range(len(programs)), machine.shape)])
    done = compare(machine, mix_tables_of(programs, machine.shape), params, own, None)
    assert done > 500


def compare(machine: NpuMachine, shared: Any, params: Any, own: Any, iterations_compared: int | None) -> int:
    """Every part of the state is equal after every stretch. Returns how many iterations were compared."""
    expected = machine.init(shared, params, own)
    state = jax.tree.map(np.array, expected)
    lane = machine.kernel(shared, params, own)
    done = 0
    while bool(machine.alive(expected)[0]) and (iterations_compared is None or done < iterations_compared):
        iterations = STRETCHES[done % len(STRETCHES)]
        expected = _stretch(machine)(shared, params, expected, np.int32(iterations))
        done += lane.advance(state, iterations)
        ours = _comparable(state)
        for leaf, value in _comparable(expected).items():
            np.testing.assert_array_equal(ours[leaf], value, err_msg=f"{leaf} after {done} iterations")
        if done % 5 == 0:
            expected = machine.rebase(expected)
            state = jax.tree.map(np.array, expected)
    return done
