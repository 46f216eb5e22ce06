"""`make profile`: where the time of a step goes, stage by stage, and how far from the machine's limits that is.

Per stage of the step: kernels that XLA made of it, bytes they read and write (a scatter or gather counts the elements
it touches, anything else its operands and result), and time. Then the roofline: the same bytes at the bandwidth that a
plain copy reaches here, and the operations at the rate of a plain elementwise kernel. The profiler's own time per
kernel is measured and taken off.
"""

from __future__ import annotations

import argparse
import collections
import glob
import math
import re
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.benchmarks import profile_kernel
from tests.benchmarks.cases import CASES
from vsim import engine
from vsim.api import SimPoint
from vsim.npu.compile import params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.machine import NpuMachine

ITERATIONS = 60
WARM_UP = 400
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
SHAPE = r"(pred|[suf]\d+)\[([\d,]*)\]"


@dataclass(frozen=True)
class Kernel:
    """One kernel of the loop's body."""

    name: str
    stage: str
    result_bytes: int
    touched_bytes: int


def main() -> None:
    """Print the breakdown and the roofline of one case on one device."""
    parser = argparse.ArgumentParser(prog="profile")
    parser.add_argument("--case", default="gemm", choices=[case.name for case in CASES if case.name != "tenants"])
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--top", type=int, default=15, help="kernels to list")
    options = parser.parse_args()
    case = next(case for case in CASES if case.name == options.case)
    points: Any = case.points(options.lanes)
    if jax.default_backend() == "cpu":
        profile_kernel.report(options.case, points[0])
    step, state, run = _compile(points)
    kernels = {kernel.name: kernel for kernel in _kernels(step.as_text())}
    state = run(state, WARM_UP)
    started = time.perf_counter()
    state = run(state, 5 * ITERATIONS)
    per_iteration_us = (time.perf_counter() - started) / (5 * ITERATIONS) * 1e6
    durations = _durations(lambda: run(state, ITERATIONS), kernels)
    _report(options, kernels, durations, per_iteration_us)


def _compile(points: list[SimPoint]) -> tuple[Any, Any, Any]:
    point, lanes = points[0], len(points)
    machine = NpuMachine(shape_of(point.hw, program_needs(point.program), compat=point.compat))
    params = stack_params([params_of(p.hw, compat=p.compat, max_cycles=None, idle_skip=True) for p in points])
    shared, which = tables_of([point.program], machine.shape), jnp.zeros(lanes, jnp.int32)
    params, which = jax.tree.map(lambda leaf: leaf[None], (params, which))
    compiled = engine.compile_machine(machine, 1)
    state = compiled.fill(shared, params, which)
    counted = np.ones((1, lanes), bool)
    arguments = shared, params, state, counted, np.int32(ITERATIONS), np.int32(0)
    step = compiled.advance.lower(*arguments).compile()  # pyright: ignore[reportFunctionMemberAccess]

    def run(state: Any, iterations: int) -> Any:
        state, chunk = step(shared, params, state, counted, np.int32(iterations), np.int32(0))
        jax.block_until_ready(chunk)
        return state

    return step, state, run


def _kernels(hlo: str) -> list[Kernel]:
    """Kernels of the main loop's body."""
    body = re.findall(r"body=%([\w.\-]+)", hlo)[-1]
    found = re.search(r"^%" + re.escape(body) + r" \(.*?\n((?:.*\n)*?)\}", hlo, re.MULTILINE)
    lines = found[1].splitlines() if found else []
    shapes: dict[str, int] = {}
    kernels = []
    for line in lines:
        match = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (\S+) ([\w\-]+)\(([^)]*)\)", line)
        if not match:
            continue
        name, result, operation, operands = match.groups()
        shapes[name] = _bytes_of(result)
        if operation not in ("fusion", "copy", "conditional", "concatenate", "reduce-window", "scatter", "gather"):
            continue
        inputs = [shapes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands)]
        if "scatter" in name:
            touched = 2 * min([size for size in inputs if size] or [0]) + sum(sorted(inputs)[:-1])
        elif "gather" in name:
            touched = 2 * shapes[name] + sum(sorted(inputs)[:-1])
        else:
            touched = shapes[name] + sum(inputs)
        stage = re.search(r'op_name="[^"]*body/(\w+)/', line)
        kernels.append(Kernel(name, stage[1] if stage else "other", shapes[name], touched))
    return kernels


def _bytes_of(shapes: str) -> int:
    return sum(
        ITEM_BYTES[kind] * math.prod(int(d) for d in dims.split(",") if d) for kind, dims in re.findall(SHAPE, shapes)
    )


def _durations(run: Any, kernels: dict[str, Kernel]) -> dict[str, float]:
    """Median microseconds of every kernel, the profiler's share (the shortest kernel's time) taken off."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        [path] = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
        events: dict[str, list[float]] = collections.defaultdict(list)
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in kernels:
                        events[event.name].append(event.duration_ns / 1e3)
    medians = {name: float(np.median(times)) for name, times in events.items()}
    least = min(medians.values(), default=0.0)
    return {name: max(time - least, 0.0) for name, time in medians.items()}


def _report(options: argparse.Namespace, kernels: dict[str, Kernel], durations: dict[str, float], us: float) -> None:
    lanes = options.lanes
    print(f"{options.case}, {lanes} lanes on one {jax.default_backend()} device")
    print(f"{us:.0f} us per iteration, {us / lanes:.2f} per lane")
    print(f"{'stage':<8} {'kernels':>8} {'KB/lane':>8} {'us/lane':>8}   (kernel times by profiler)")
    stages: dict[str, list[Kernel]] = collections.defaultdict(list)
    for kernel in kernels.values():
        stages[kernel.stage].append(kernel)
    for stage, members in sorted(stages.items(), key=lambda item: -sum(durations.get(k.name, 0) for k in item[1])):
        touched, spent = sum(k.touched_bytes for k in members), sum(durations.get(k.name, 0.0) for k in members)
        print(f"{stage:<8} {len(members):>8} {touched / lanes / 1e3:>8.1f} {spent / lanes:>8.3f}")
    for name, spent in sorted(durations.items(), key=lambda item: -item[1])[: options.top]:
        kernel = kernels[name]
        touched = kernel.touched_bytes / lanes / 1e3
        print(f"  {spent / lanes:>7.3f} us/lane {touched:>7.1f} KB/lane  {kernel.stage:<7} {name}")
    touched = sum(kernel.touched_bytes for kernel in kernels.values())
    near, far = _copy_gbps(1 << 18), _copy_gbps(1 << 24)
    launch_us = _launch_us()
    print(f"bytes touched per lane-iteration: {touched / lanes / 1e3:.0f} KB")
    for what, gbps in (("near the core (1 MiB copied)", near), ("far from it (64 MiB copied)", far)):
        print(f"  at the {gbps:.0f} GB/s of memory {what}: {touched / lanes / gbps / 1e3:.2f} us")
    starting = len(kernels) * launch_us / lanes
    print(f"starting {len(kernels)} kernels at {launch_us * 1e3:.0f} ns: {starting:.2f} us per lane-iteration")
    print(f"measured: {us / lanes:.2f} us")


def _copy_gbps(items: int) -> float:
    """Bandwidth, read and written, of an elementwise kernel over so many int32."""
    rounds = max((1 << 28) // items, 4)
    run = jax.jit(lambda x: lax.fori_loop(0, rounds, lambda i, x: x + i, x), donate_argnums=0)
    x = run(jnp.zeros(items, jnp.int32)).block_until_ready()
    started = time.perf_counter()
    run(x).block_until_ready()
    return 8 * items * rounds / (time.perf_counter() - started) / 1e9


def _launch_us() -> float:
    """Microseconds per kernel of a loop of kernels that have nothing to do."""

    def body(_: Any, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(x * 3 + index for index, x in enumerate(xs))

    rounds, count = 2000, 64
    run = jax.jit(lambda xs: lax.fori_loop(0, rounds, body, xs))
    xs = tuple(jnp.zeros(8, jnp.int32) for _ in range(count))
    jax.block_until_ready(run(xs))
    started = time.perf_counter()
    jax.block_until_ready(run(xs))
    return (time.perf_counter() - started) / rounds / count * 1e6


if __name__ == "__main__":
    main()
