"""A small sweep over mixes for tests: tiny models on two small cores with a memory that compiles fast."""

from __future__ import annotations

from pathlib import Path

from sweeps.mix_points import TenantsPoint, expand_mixes
from sweeps.points import Expansion
from sweeps.spec import LoadedSpec, load_spec
from tests import models
from tests.sweep_results import save_model

SPEC = """\
name: pairs
mix:
  hw: npu-mobile-8x8x4
  set: {dram.standard: simple, cores.count: 2}
  scheduler: simple
  core_split: even
workloads:
  wide: {model: wide.onnx}
  deep: {model: deep.onnx, arrival: {times_us: [0, 0.5]}}
alone: true
sweep:
  tenants: [[wide, deep], [deep, deep]]
  scheduler: [simple, partition_cpu]
  clocks.dram_mhz: [300, 1200]
"""
"""Eight mixes."""


def write_spec(folder: Path, text: str = SPEC) -> Path:
    """Write the models and a specification; return the path of the latter."""
    save_model(models.mlp(16, 32, 48, 16), folder / "wide.onnx")
    save_model(models.mlp(8, 16, 16, 8), folder / "deep.onnx")
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def load(folder: Path, text: str = SPEC) -> tuple[LoadedSpec, Expansion[TenantsPoint]]:
    """Load and expand a specification given as text."""
    loaded = load_spec(write_spec(folder, text))
    return loaded, expand_mixes(loaded)
