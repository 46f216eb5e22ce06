"""The rooms and who may know whom: imports go one way, JAX stays inside vsim, nothing imports the command line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO_ROOT

ROOMS = ["hwconfigs", "lowering", "vsim", "sweeps", "figures"]
"""From the foundation upwards; a room may import itself and those before it."""

JAX = {"jax", "jaxlib", "flax"}
THIRD_PARTY = {
    "hwconfigs": {"pydantic", "yaml"},
    "lowering": {"numpy", "onnx", "onnx_ir", "onnxscript", "pydantic", "yaml"},
}
"""Rooms whose outside dependencies are limited; the others may use anything but JAX."""

CLI = "vsim.cli"
"""The front door, with its helper modules ``vsim.cli_*``: may import every room."""


def _modules(room: str) -> list[Path]:
    return sorted((REPO_ROOT / room).rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(REPO_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _is_cli(module: str) -> bool:
    return module == CLI or module.startswith((f"{CLI}.", f"{CLI}_"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str):
    upper = set(ROOMS[ROOMS.index(room) + 1 :])
    wrong = [
        f"{path}:{line} imports {name}"
        for path in _modules(room)
        if not _is_cli(_name(path))
        for line, name in _imports(path)
        if name.split(".")[0] in upper
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "vsim"])
def test_jax_stays_inside_vsim(room: str):
    allowed = THIRD_PARTY.get(room)
    wrong = []
    for path in _modules(room):
        for line, name in _imports(path):
            top = name.split(".")[0]
            outside = top not in ROOMS and top not in sys.stdlib_module_names
            if top in JAX or (allowed is not None and outside and top not in allowed):
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line():
    wrong = [
        f"{path}:{line} imports {name}"
        for room in ROOMS
        for path in _modules(room)
        if not _is_cli(_name(path)) and _name(path) != "vsim.__main__"
        for line, name in _imports(path)
        if _is_cli(name)
    ]
    assert not wrong, "\n".join(wrong)
