"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from hwconfigs.energy_schema import Technology, load_technology
from hwconfigs.errors import UserError

HwOption = Annotated[str, typer.Option("--hw", help="Preset, YAML file or ONNXim JSON file.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Size of a dynamic first dimension.")]
DimsOption = Annotated[
    list[str] | None, typer.Option("--dim", metavar="NAME=SIZE", help="Size of a dynamic dimension. Repeatable.")
]
MaxCyclesOption = Annotated[int | None, typer.Option("--max-cycles", min=1, help="Stop after so many core cycles.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the hardware description. Repeatable."),
]
MappingOption = Annotated[
    Path | None, typer.Option("--mapping", metavar="FILE", help="Tile sizes of the matrix layers, as vsim map writes.")
]
EnergyOption = Annotated[
    str | None, typer.Option("--energy", metavar="TABLE", help="Unit energies: horowitz-45nm, or a YAML file.")
]
NodeOption = Annotated[float | None, typer.Option("--node-nm", help="With --energy: scale the table to this node.")]
SupplyOption = Annotated[float | None, typer.Option("--supply-v", help="With --energy: and to this supply voltage.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def technology_of(name: str | None, node_nm: float | None, supply_v: float | None) -> Technology | None:
    """The table of unit energies that --energy names, scaled; None without one. Raises UserError."""
    if name is None:
        if node_nm is not None or supply_v is not None:
            raise UserError("--node-nm and --supply-v scale a table of unit energies: give it with --energy")
        return None
    table = load_technology(name)
    if node_nm is None and supply_v is None:
        return table
    return table.at(node_nm=node_nm or table.node_nm, supply_v=supply_v or table.supply_v)


def parse_overrides(texts: Sequence[str] | None, example: str) -> dict[str, Any]:
    """Values of --set by key. Raises UserError."""
    given = dict(_split(text, "--set", f"KEY=VALUE, such as {example}") for text in texts or ())
    return {key: _parse_value(key, text) for key, text in given.items()}


def _parse_value(key: str, text: str) -> Any:
    """Read a value as YAML does: numbers, true and false, lists and mappings in braces, else text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}: {text!r} is not a value") from error


def parse_dims(texts: Sequence[str] | None, least: int = 1) -> dict[str, int]:
    """Sizes by name, each at least ``least``. Raises UserError."""
    sizes = {}
    for text in texts or ():
        name, size = _split(text, "--dim", "NAME=SIZE, such as sequence=128")
        if not size.isascii() or not size.isdigit() or int(size) < least:
            raise UserError(f"--dim {name}: {size!r} is not a whole number{' above 0' if least else ''}")
        sizes[name] = int(size)
    return sizes


def parse_sizes(text: str, option: str, example: str) -> list[int]:
    """Whole numbers above 0, from the smallest. Raises UserError for text that is no list of different ones."""
    sizes = text.split(",")
    if not all(size.isascii() and size.isdigit() and int(size) for size in sizes) or len(set(sizes)) < len(sizes):
        raise UserError(f"{option} {text!r}: expected different whole numbers above 0, such as {example}")
    return sorted(map(int, sizes))


def _split(text: str, option: str, form: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UserError(f"{option} {text!r}: expected {form}")
    return key.strip(), value
