"""`make bench`: how fast vsim is, case by case and lane count by lane count; `bench.json` and a scaling figure.

A lane-cycle is one core cycle of one lane. Nothing here is a test: figures are for people and for comparison with the
dated copies of record in this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from tests.benchmarks import lowering, scaling, systolic
from tests.benchmarks.cases import CASES, Case
from tests.benchmarks.measure import Figures, measure
from vsim import devices

SECONDS = 10.0
QUICK = ("gemm", (None, 1, 64))
CORES = len(os.sched_getaffinity(0))
HEADER = (
    f"{'case':<12} {'lanes':>6} {'lane-cycles/s':>13} {'cycles/it':>9} {'us/lane-it':>10} {'points/h':>9} "
    f"{'occup.':>6} {'compile s':>9} {'bytes/lane':>10} {'RSS MiB':>8}"
)


def main() -> None:
    """Measure, print, write `bench.json` and draw the scaling figure."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--quick", action="store_true", help="the server GEMM by the kernel, at 1 and at 64 lanes only")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only these cases")
    parser.add_argument("--lanes", action="append", type=int, help="these numbers of lanes; 0: by the kernel")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="to measure each row, after its first chunk")
    parser.add_argument("--single", action="store_true", help="one lane of the case, as JSON: for this program itself")
    options = parser.parse_args()
    # A cached program would hide the compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    if options.single:
        devices.one_thread()
        devices.prepare()
        case = next(case for case in CASES if case.name == options.case[0])
        print(json.dumps(measure(case.points(1), 1, options.seconds).to_json()))
        return
    devices.prepare()
    print(f"jax {jax.__version__}, {jax.default_backend()}, {len(jax.local_devices())} devices, {platform.processor()}")
    print(HEADER)
    names = [QUICK[0]] if options.quick else options.case or [case.name for case in CASES]
    results = {case.name: _run(case, _lanes(case, options), options.seconds) for case in CASES if case.name in names}
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "device": jax.local_devices()[0].device_kind,
            "devices": len(jax.local_devices()),
            "cpus": os.cpu_count(),
        },
        "cases": {name: [figures.to_json() for figures in rows] for name, rows in results.items()},
    }
    if not options.case:
        report["lowering"] = lowering.measure()
        print(lowering.line(report["lowering"]))
        report["systolic"] = systolic.measure()
        print(systolic.line(report["systolic"]))
    if not options.quick and not options.case:
        report["scaling"] = scaling.measure_all()
        scaling.draw(report["scaling"], Path("results/bench-scaling.png"))
    Path("bench.json").write_text(json.dumps(report, indent=1) + "\n")


def _lanes(case: Case, options: argparse.Namespace) -> tuple[int | None, ...]:
    if options.quick:
        return QUICK[1]
    return tuple(lanes or None for lanes in options.lanes) if options.lanes else (None, *case.lanes)


def _run(case: Case, lane_counts: tuple[int | None, ...], seconds: float) -> list[Figures]:
    rows = []
    for lanes in lane_counts:
        # Twice as many points as lanes, so that places are refilled; enough for all the seconds by the kernel.
        count = 2 * lanes if lanes else 1000 * CORES
        rows.append(_single(case) if lanes == 1 else measure(case.points(count), lanes, seconds))
        print(_line(case.name, rows[-1]), flush=True)
    return rows


def _single(case: Case) -> Figures:
    """One lane, as `vsim run` has it: in a process of its own with one thread."""
    command = [sys.executable, "-m", "tests.benchmarks", "--single", "--case", case.name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def _line(name: str, row: Figures) -> str:
    points = "-" if row.points_per_hour is None else f"{row.points_per_hour:,}"
    return (
        f"{name:<12} {row.lanes or 'kernel':>6} {row.lane_cycles_per_second:>13,} {row.cycles_per_iteration:>9.3f} "
        f"{row.us_per_lane_iteration:>10.2f} {points:>9} {row.occupancy:>6.2f} {row.compile_seconds:>9.1f} "
        f"{row.state_bytes_per_lane:>10,} {row.peak_rss_mib:>8,}"
    )


if __name__ == "__main__":
    main()
