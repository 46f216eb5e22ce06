"""What the command line prints for people: tables of results, presets and replays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hwconfigs.schema import HwConfig

_PLAIN_WIDTH = 200


def stdout() -> Console:
    """Return a console on standard output. On a narrower terminal lines run over its edge: a number folded within the
    cell of a table could not be read.
    """
    return Console(highlight=False, markup=False, width=max(Console().width, _PLAIN_WIDTH))


def stderr() -> Console:
    """Return a console on standard error; in a pipe or file its lines are not folded."""
    console = Console(stderr=True, highlight=False, markup=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, markup=False, width=_PLAIN_WIDTH)


def print_run(result: Mapping[str, Any]) -> None:
    """Print one simulation result (see `SimResult.to_json`): layers, cores, then totals."""
    console = stdout()
    columns = (*_LAYER_COLUMNS, "dynamic_pj") if "energy" in result else _LAYER_COLUMNS
    console.print(_table("Layers", [_layer_row(layer) for layer in result["layers"]], columns))
    console.print(
        "bound: the resource that alone would need most of the layer's cycles, and the share that it needs; more than "
        "100 %: a layer ends with its tiles, and its last stores drain while the next one runs"
    )
    if "training" in result:
        console.print(_table("Training", [{"role": _words(role), **row} for role, row in result["training"].items()]))
    _print_chip(console, result)


def print_mix(result: Mapping[str, Any]) -> None:
    """Print the result of a mix: tenants, their layers in the order in which they finished, cores, then totals."""
    console = stdout()
    tenants = [{key: row[key] for key in _TENANT_COLUMNS if key in row} for row in result["tenants"]]
    console.print(_table("Tenants", tenants))
    names = [tenant["name"] for tenant in result["tenants"]]
    layers = [_layer_row(layer) | {"tenant": names[layer.get("tenant", 0)]} for layer in result["layers"]]
    console.print(_table("Layers", layers, ("tenant", *_MIX_COLUMNS)))
    _print_chip(console, result)


def _print_chip(console: Console, result: Mapping[str, Any]) -> None:
    console.print(_table("Cores", [{"core": index, **core} for index, core in enumerate(result["cores"])]))
    dram = {key: value for key, value in result["dram"].items() if not isinstance(value, list)}
    noc = {key: value for key, value in result["noc"].items() if not isinstance(value, list)}
    for name, values in (("DRAM", dram), ("NoC", noc)):
        console.print(f"{name}: " + ", ".join(f"{_words(key)} {_number(value)}" for key, value in values.items()))
    if "energy" in result:
        console.print(_energy(result))
    console.print(f"{result['model']} on {result['hw']}: {_outcome(result)}", style="bold")
    for warning in result["warnings"]:
        stderr().print(f"vsim: warning: {warning}")


_LAYER_COLUMNS = (
    "name",
    "op",
    "start_cycle",
    "cycles",
    "macs",
    "load_bytes",
    "store_bytes",
    "macs_per_byte",
    "bound",
    "of_cycles",
    "macs_of_peak",
    "systolic_busy",
    "vector_busy",
    "dram_of_peak",
)


_MIX_COLUMNS = ("name", "op", "start_cycle", "finish_cycle", "macs", "load_bytes", "store_bytes", "macs_of_peak")
_MIX_COLUMNS += ("dram_of_peak",)
_TENANT_COLUMNS = ("name", "request_time", "start_cycle", "finish_cycle", "active_cycles", "load_bytes", "store_bytes")


class _Share(float):
    """A number that is printed in percent."""


def _layer_row(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer as printed: its length instead of its end, shares in percent."""
    start, finish = layer["start_cycle"], layer["finish_cycle"]
    shares = {
        "of_cycles": "bound_utilization",
        "macs_of_peak": "utilization",
        "systolic_busy": "systolic_utilization",
        "vector_busy": "vector_utilization",
        "dram_of_peak": "dram_utilization",
    }
    ended = finish is not None
    return {
        **layer,
        "cycles": finish - start if ended else None,
        **{name: _Share(layer[key]) if ended else None for name, key in shares.items() if key in layer},
    }


def _energy(result: Mapping[str, Any]) -> str:
    found = result["energy"]
    parts = {key.removesuffix("_pj"): value for key, value in found.items() if key.endswith("_pj")}
    return (
        f"Energy: {result['energy_j'] * 1e6:,.3f} µJ, average power {result['power_w']:,.3f} W, "
        f"energy-delay product {result['edp_js']:.4g} J s ({found['table']} at {found['node_nm']:g} nm, "
        f"{found['supply_v']:g} V)\nEnergy by part in µJ: "
        + ", ".join(f"{name} {value * 1e-6:,.3f}" for name, value in parts.items())
    )


def _outcome(result: Mapping[str, Any]) -> str:
    took = f"{result['cycles']:,} cycles, {result['time_us']:,.3f} µs"
    return took if result["status"] == "ok" else f"stopped with status {result['status']} after {took}"


def print_mapping(content: Mapping[str, Any]) -> None:
    """Print the tile sizes of every layer (see `vsim map --json`), and what a search has gained."""
    rows = []
    for layer in content["layers"]:
        cycles = layer.get("cycles")
        gains = {"default_cycles": cycles[0], "cycles": cycles[layer["chosen"]]} if cycles else {}
        for line in layer["lines"]:
            whole, tiles, tile = (section.partition("] ")[2].strip() for section in line.split(" - "))
            rows.append(
                {"layer": layer["name"], "op": layer["op"], "whole": whole, "tiles": tiles, "tile": tile, **gains}
            )
    console = stdout()
    console.print(_table("Tiles: N images or rows, C input and M output channels, S x R kernel, P x Q output", rows))
    if "cycles" in content:
        before, after = content["default_cycles"], content["cycles"]
        console.print(f"{content['model']} on {content['hw']}: {before:,} cycles by default, {after:,} as chosen")


def print_presets(presets: Sequence[HwConfig]) -> None:
    """Print one line a preset."""
    rows = [
        {
            "name": hw.name,
            "cores": hw.cores.count,
            "array": f"{hw.cores.rows}x{hw.cores.cols}",
            "core_mhz": hw.clocks.core_mhz,
            "spad_kib": hw.cores.spad_kib,
            "acc_kib": hw.cores.acc_kib,
            "dram": f"{hw.dram.channels} x {hw.dram.standard}",
            "bytes": hw.precision_bytes,
        }
        for hw in presets
    ]
    stdout().print(_table("Hardware presets (vsim hw show NAME prints one with its source)", rows))


def print_replay(reports: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a replayed trace."""
    stdout().print(_table("Replayed traces", reports))
    checked = [report for report in reports if "equal" in report]
    if checked:
        equal = sum(report["equal"] for report in checked)
        stdout().print(f"{equal} of {len(checked)} traces equal the recording")


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Print one table of any rows."""
    stdout().print(_table(title, rows, columns))


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Table:
    """Return a table of the rows; numbers are set to the right. Columns: those given, else all scalar ones."""
    names = columns or list(
        dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, list | dict))
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        is_number = any(isinstance(row.get(name), int | float) for row in rows)
        table.add_column(_words(name), justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    for row in rows:
        table.add_row(*(_number(row.get(name, "")) for name in names))
    return table


def _words(key: str) -> str:
    return key.replace("_", " ")


def _number(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, _Share):
        return f"{value:.0%}"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)
