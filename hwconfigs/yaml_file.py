"""Reading YAML and JSON files so that an error can name the line: values plus the line of every key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hwconfigs.errors import ConfigError

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """Contents of one file. ``lines`` maps the path of a key (list positions as decimal text) to its line, from 1."""

    path: Path
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, key_path: Sequence[str | int] = ()) -> str:
        """``"file:line"`` of the deepest part of ``key_path`` that the file has, or just the file."""
        parts = tuple(str(part) for part in key_path)
        while parts and parts not in self.lines:
            parts = parts[:-1]
        return f"{self.path}:{self.lines[parts]}" if parts else str(self.path)


def read_document(path: Path) -> Document:
    """Read a YAML or JSON file (by suffix, else by a leading brace). Raises `ConfigError` naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; expected YAML or JSON") from None
    is_json = path.suffix == ".json" or (path.suffix not in (".yaml", ".yml") and text.lstrip().startswith("{"))
    if is_json:
        return _read_json(path, text)
    return _read_yaml(path, text)


def _read_json(path: Path, text: str) -> Document:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    # JSON carries no positions; the first line that spells a top-level key is where an editor will look.
    lines: dict[KeyPath, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        for key in data if isinstance(data, dict) else ():
            if f'"{key}"' in line:
                lines.setdefault((key,), number)
    return Document(path, data, lines)


def _read_yaml(path: Path, text: str) -> Document:
    lines: dict[KeyPath, int] = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _collect_lines(root, (), lines, path)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{path}: not valid YAML: holds characters that YAML does not allow") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML here: refers to itself or is nested too deeply") from None
    return Document(path, data, lines)


def _collect_lines(node: yaml.Node, prefix: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key_path = (*prefix, str(key.value))
            line = key.start_mark.line + 1
            # YAML keeps the last of two equal keys silently; the first would be lost without a word.
            if key_path in lines:
                raise ConfigError(f"{path}:{line}: key {'.'.join(key_path)!r} is given twice")
            lines[key_path] = line
            _collect_lines(value, key_path, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            key_path = (*prefix, str(position))
            lines[key_path] = value.start_mark.line + 1
            _collect_lines(value, key_path, lines, path)
