"""How fast the closed-form model is: one training iteration of ResNet-50 on many designs, compilation apart."""

from __future__ import annotations

import random
import time
from typing import Any

from hwconfigs.systolic_schema import SystolicHw, load_systolic
from vsim.systolic.designs import stack
from vsim.systolic.evaluate import DESIGNS_TOGETHER, totals
from vsim.systolic.networks import network

DESIGNS = 10_000
BASES = ("01", "02", "05", "06", "08", "09", "11", "12")
ALLOWED_SECONDS = 10.0
ALLOWED_PER_SECOND = 3_000_000
"""Bars of the project, on two CPU cores."""


def designs(count: int = DESIGNS) -> list[SystolicHw]:
    """SimDIT's training designs with other memories and ports, drawn with a fixed seed."""
    draw = random.Random(0)
    bases = [load_systolic(f"simdit-training-{base}") for base in BASES]
    ports = ("weight", "ifmap", "ofmap", "vector")
    found = []
    for index in range(count):
        base = bases[index % len(bases)]
        buffers = base.buffers.model_dump()
        scaled = {name: kib * draw.choice((1, 2, 3, 4)) for name, kib in buffers.items()}
        widths = {f"{port}_bits_per_cycle": draw.choice((64, 128, 256, 512)) for port in ports}
        found.append(
            base.model_copy(
                update={
                    "buffers": base.buffers.model_copy(update=scaled),
                    "ports": base.ports.model_copy(update=widths),
                }
            )
        )
    return found


def measure(count: int = DESIGNS) -> dict[str, Any]:
    """Seconds of the first call (it compiles) and of a whole space of designs."""
    layers, space = network("ResNet50", "Training", batch=32), stack(designs(count))
    start = time.perf_counter()
    totals(layers, stack(designs(DESIGNS_TOGETHER)), faults=True)
    compiled = time.perf_counter()
    sums = totals(layers, space, faults=True)
    seconds = time.perf_counter() - compiled
    return {
        "layers": len(layers),
        "designs": count,
        "runnable_designs": int(sums.fits.sum()),
        "first_seconds": round(compiled - start, 2),
        "seconds": round(seconds, 3),
        "evaluations_per_second": round(len(layers) * count / seconds),
        "allowed_seconds": ALLOWED_SECONDS,
        "allowed_per_second": ALLOWED_PER_SECOND,
    }


def line(report: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"systolic: {report['layers']} layers of ResNet-50 training x {report['designs']:,} designs in "
        f"{report['seconds']:.2f} s (bar {report['allowed_seconds']:.0f} s), "
        f"{report['evaluations_per_second']:,} layer-design evaluations/s (bar {report['allowed_per_second']:,}); "
        f"first call {report['first_seconds']:.1f} s"
    )


if __name__ == "__main__":
    print(line(measure()))
