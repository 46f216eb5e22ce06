"""What figures read: the finished points of a result folder and the axes they vary along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwconfigs.errors import UserError
from sweeps.store import read_manifest, read_table

_LABELS = {
    "batch": "Batch size",
    "model": "Model",
    "base": "Hardware",
    "clocks.core_mhz": "Core clock (MHz)",
    "clocks.noc_mhz": "NoC clock (MHz)",
    "clocks.dram_mhz": "DRAM clock (MHz)",
    "cores.count": "Cores",
    "cores.rows": "Array rows",
    "cores.cols": "Array columns",
    "cores.spad_kib": "Scratchpad (KiB)",
    "cores.acc_kib": "Accumulator (KiB)",
    "cores.vector_bits": "Vector width (bits)",
    "dma.outstanding_requests": "Outstanding requests per core",
    "dma.descriptors_per_cycle": "DMA descriptors per cycle",
    "dram.channels": "DRAM channels",
    "dram.standard": "DRAM standard",
    "dram.read_queue": "DRAM read queue entries",
    "dram.write_queue": "DRAM write queue entries",
    "dram.scheduler": "DRAM scheduler",
    "dram.latency_cycles": "DRAM latency (cycles)",
    "noc.latency_cycles": "NoC latency (cycles)",
    "noc.ports_per_core": "NoC ports per core",
    "precision_bytes": "Precision (bytes)",
}


class FigureError(UserError):
    """Results that a figure cannot be drawn from."""


@dataclass(frozen=True)
class PlotAxis:
    """One swept axis: the result column that stands for it, and its values in order."""

    key: str
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        """Tell whether the values have a distance: all are numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def label(self) -> str:
        """Name of the axis as a paper would print it."""
        return axis_label(self.key)


@dataclass(frozen=True)
class SweepData:
    """The finished, successful points of a sweep: one mapping of column to value each, and the axes that vary.

    Models that ran alone for comparison with mixes are not among them. of_mixes: it is a sweep over mixes.
    """

    name: str
    rows: tuple[Mapping[str, Any], ...]
    axes: tuple[PlotAxis, ...]
    total_points: int
    of_mixes: bool = False


def axis_label(key: str) -> str:
    """Return the printed name of a configuration key; ``dram.timing.nRCD`` becomes ``nRCD (cycles)``."""
    if key.startswith("dram.timing."):
        return f"{key.rpartition('.')[2]} (cycles)"
    return _LABELS.get(key, key)


def value_label(value: object) -> str:
    """Return a swept value as a paper would print it: no trailing zeros, model files by name."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return Path(text.removeprefix("onnx:")).name.removesuffix(".onnx").removesuffix(".yaml")


def load_sweep(folder: Path) -> SweepData:
    """Read a result folder; `UserError` when it is none, or no point of it has finished well."""
    manifest = read_manifest(folder)
    finished = [row for row in read_table(folder, "results") if row["status"] == "ok"]
    rows = tuple(row for row in finished if not row.get("alone"))
    if not rows:
        raise FigureError(f"{folder}: no point of this sweep finished with status ok; nothing to draw")
    axes = [_plot_axis(axis) for axis in manifest["axes"] if len(axis["values"]) > 1]
    total = len(manifest["points"]) - (len(finished) - len(rows))
    return SweepData(manifest["name"], rows, tuple(axes), total, of_mixes="alone" in rows[0])


def load_layers(folder: Path, point: int) -> list[Mapping[str, Any]]:
    """Return the layer rows of one point in order of execution."""
    layers = [row for row in read_table(folder, "layers") if row["point"] == point]
    return sorted(layers, key=lambda row: row["layer"])


def _plot_axis(axis: Mapping[str, Any]) -> PlotAxis:
    """Let the first numeric key of a group that advances together stand for the group, else its first key."""
    values_by_key = zip(*axis["values"], strict=True)
    columns = [PlotAxis(key, values) for key, values in zip(axis["keys"], values_by_key, strict=True)]
    return next((column for column in columns if column.numeric), columns[0])
