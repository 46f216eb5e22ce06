"""``vsim compare``: the cycle-level model beside the closed form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from hwconfigs.load import load_hw
from vsim import cli_tables
from vsim.cli_options import (
    BatchOption,
    DimsOption,
    HwOption,
    JsonOption,
    MaxCyclesOption,
    SetOption,
    parse_dims,
    parse_overrides,
)

EXIT_FAILED = 1
_COLUMNS = ("name", "op", "cycles", "closed_form", "ratio", "bound", "bytes", "closed_form_bytes", "note")


def compare(
    model: Annotated[str, typer.Argument(help="ONNX file, or onnx:light_resnet50 for a graph of the onnx package.")],
    hw: HwOption,
    overrides: SetOption = None,
    batch: BatchOption = 1,
    dims: DimsOption = None,
    max_cycles: MaxCyclesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a network on the cycle-level model and on the closed form, and show both layer by layer."""
    hardware, sizes = load_hw(hw).with_overrides(parse_overrides(overrides, "dram.channels=8")), parse_dims(dims)
    from vsim import devices
    from vsim.api import Progress
    from vsim.compare import compare as both

    devices.one_thread()
    with cli_tables.stderr().status("compiling") as status:

        def advance(progress: Progress) -> None:
            status.update(f"simulating: {progress.lane_cycles:,} cycles")

        content = both(model, hardware, batch=batch, dims=sizes, max_cycles=max_cycles, on_progress=advance)
    if as_json:
        print(json.dumps(content, indent=1))
    else:
        _print(content)
    if content["status"] != "ok":
        raise typer.Exit(EXIT_FAILED)


def _print(content: Mapping[str, Any]) -> None:
    console, total = cli_tables.stdout(), content["total"]
    both = total["both"]
    cli_tables.print_rows("Cycle level and closed form", [_rounded(row) for row in content["layers"]], _COLUMNS)
    console.print("ratio: closed form over cycle level; bound: what would need most of the layer's cycles by itself")
    for text in content["left_out"]:
        console.print(f"not in the closed form: {text}")
    for text in content["notes"]:
        console.print(f"of this chip, {text}")
    if both["ratio"] is not None:
        console.print(
            f"{both['layers']} of {total['layers']} layers have both: {both['cycles']:,} cycles, "
            f"{both['closed_form_cycles']:,.0f} in closed form, ratio {both['ratio']:.3f}"
        )
    ended = "" if content["status"] == "ok" else f" (stopped with status {content['status']})"
    ratio = "" if total["ratio"] is None else f", ratio {total['ratio']:.3f}"
    console.print(
        f"{content['model']} on {content['hw']}: {total['cycles']:,} cycles{ended}, "
        f"{total['closed_form_cycles']:,.0f} in closed form{ratio}; {total['bytes']:,} bytes, "
        f"{total['closed_form_bytes']:,.0f} in closed form",
        style="bold",
    )
    for warning in content["warnings"]:
        cli_tables.stderr().print(f"vsim: warning: {warning}")


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as printed: whole cycles and bytes."""
    whole = {"closed_form": row["closed_form_cycles"], "closed_form_bytes": row["closed_form_bytes"]}
    return {**row, **{name: None if value is None else round(value) for name, value in whole.items()}}
