"""`make bench`: simulated lane-cycles per second of the cycle-level model, by number of lanes.

The case is a memory-bound GEMM (1024 x 1024 x 1024, two bytes an element) on the server preset in default mode; every
lane has its own DRAM timing. A lane-cycle is one core cycle of one lane. The first chunk (compilation, cold caches) is
not counted. Prints a table and writes the same figures to `bench.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from hwconfigs import load_hw
from lowering import lower
from tests import models
from vsim import devices, engine
from vsim.npu.compile import params_of, program_needs, shape_of, stack_params, tables_of
from vsim.npu.machine import NpuMachine

LANES = (1, 16, 64, 256)
QUICK_LANES = (1, 64)
SECONDS = 10.0
"""Least time measured per number of lanes."""
CHUNK = 500


def measure(lanes: int, seconds: float) -> dict[str, Any]:
    """Figures of one batch size."""
    hw = load_hw("npu-server-128x128x4")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gemm.onnx"
        onnx.save(models.mm(1024, 1024, 1024), path)
        program = lower(path, hw)
    machine = NpuMachine(shape_of(hw, program_needs(program), compat=False))
    points = [hw.with_overrides({"dram.timing.nRP": 14 + lane % 16}) for lane in range(lanes)]
    params = stack_params([params_of(p, compat=False, max_cycles=None, idle_skip=True) for p in points])
    count = min(len(jax.local_devices()), lanes)
    compiled = engine.compile_machine(machine, count)
    shared, which = tables_of([program], machine.shape), jnp.zeros(lanes, jnp.int32)

    started = time.perf_counter()
    state = compiled.fill(shared, params, which)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // lanes
    advance = compiled.advance.lower(shared, params, state, jnp.int32(CHUNK)).compile()
    compile_seconds = time.perf_counter() - started
    state, _, elapsed = advance(shared, params, state, jnp.int32(CHUNK))
    before, iterations = float(np.asarray(elapsed).sum()), 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        state, alive, elapsed = advance(shared, params, state, jnp.int32(CHUNK))
        after = float(np.asarray(elapsed).sum())
        iterations += CHUNK
        if not np.asarray(alive).all():
            break
    spent = time.perf_counter() - started
    return {
        "lanes": lanes,
        "lane_cycles_per_second": round((after - before) / spent),
        "iterations_per_second": round(iterations / spent),
        "seconds": round(spent, 2),
        "compile_seconds": round(compile_seconds, 1),
        "state_bytes_per_lane": state_bytes,
    }


def main() -> None:
    """Measure, print, write `bench.json`."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--quick", action="store_true", help="1 and 64 lanes only")
    quick = parser.parse_args().quick
    # A cached program would hide the compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    devices.prepare()
    print(f"jax {jax.__version__}, {jax.default_backend()}, {len(jax.local_devices())} devices, {platform.processor()}")
    print("memory-bound GEMM 1024x1024x1024, npu-server-128x128x4, default mode")
    print(f"{'lanes':>6} {'lane-cycles/s':>14} {'iterations/s':>13} {'compile s':>10} {'bytes/lane':>11}")
    rows = []
    for lanes in QUICK_LANES if quick else LANES:
        row = measure(lanes, SECONDS)
        rows.append(row)
        print(
            f"{row['lanes']:>6} {row['lane_cycles_per_second']:>14,} {row['iterations_per_second']:>13,} "
            f"{row['compile_seconds']:>10} {row['state_bytes_per_lane']:>11,}",
            flush=True,
        )
    machine = {"jax": jax.__version__, "backend": jax.default_backend(), "cpus": os.cpu_count()}
    Path("bench.json").write_text(json.dumps({"machine": machine, "gemm_server": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
