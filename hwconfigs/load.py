"""Finding and reading hardware descriptions: presets by name, YAML files, ONNXim JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hwconfigs.errors import ConfigError, nearest
from hwconfigs.onnxim_import import import_onnxim, is_onnxim
from hwconfigs.schema import HwConfig
from hwconfigs.validation import build
from hwconfigs.yaml_file import read_document

PRESETS = Path(__file__).parent / "presets"
_SUFFIXES = {".yaml", ".yml", ".json"}


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_hw(name_or_path: str | Path) -> HwConfig:
    """The description called ``name_or_path``: a preset, else a YAML file or an ONNXim JSON file (told by content).

    Raises `ConfigError` with one line naming file, line and key.
    """
    name = str(name_or_path)
    if name in preset_names():
        return _load_file(PRESETS / f"{name}.yaml")
    path = Path(name_or_path)
    if path.suffix not in _SUFFIXES and not path.is_file():
        raise ConfigError(f"no hardware preset or file is called {name!r}{nearest(name, preset_names())}")
    return _load_file(path)


def _load_file(path: Path) -> HwConfig:
    document = read_document(path)
    if is_onnxim(document.data):
        return import_onnxim(document)
    if not isinstance(document.data, Mapping):
        raise ConfigError(f"{path}: is not a hardware description; expected keys such as clocks, cores and dram")
    return build(HwConfig, document.data, document.where)
