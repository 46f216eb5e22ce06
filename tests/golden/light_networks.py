"""The nine `light_*` networks of the onnx package on the server preset, default mode: golden results and their maker.

`python -m tests.golden.light_networks` simulates them and rewrites `tests/data/light_networks.json`. Do that only when
the model is meant to give other numbers, and say why in the commit.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from hwconfigs import load_hw
from lowering import lower
from tests.conftest import DATA
from vsim.api import SimPoint, SimResult, simulate

GOLDENS = DATA / "light_networks.json"
HARDWARE = "npu-server-128x128x4"
NETWORKS = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)


def point(network: str) -> SimPoint:
    """Batch 1 on the server preset."""
    hw = load_hw(HARDWARE)
    return SimPoint(hw, lower(f"onnx:light_{network}", hw), label=network)


def summary(result: SimResult) -> dict[str, Any]:
    """What a golden keeps of a result."""
    kept = {name: result.dram[name] for name in ("reads", "writes", "row_hits", "row_misses", "row_conflicts")}
    return {
        "status": result.status,
        "cycles": result.cycles,
        "macs": sum(layer["macs"] for layer in result.layers),
        "layer_finish_cycles": [layer["finish_cycle"] for layer in result.layers],
        **kept,
    }


def main() -> None:
    """Simulate all nine and write the golden file."""
    results = simulate([point(network) for network in NETWORKS])
    provenance = {
        "command": "python -m tests.golden.light_networks",
        "hardware": HARDWARE,
        "mode": "default, batch 1",
        "versions": {package: version(package) for package in ("vsim", "jax", "onnx", "onnxscript", "numpy")},
    }
    networks = {network: summary(result) for network, result in zip(NETWORKS, results, strict=True)}
    GOLDENS.write_text(json.dumps({"provenance": provenance, "networks": networks}, indent=1) + "\n")
    for network, golden in networks.items():
        print(f"{network:14} {golden['status']:10} {golden['cycles']:>10,} cycles  {golden['macs']:>14,} MACs")


if __name__ == "__main__":
    main()
