"""Finding and opening model files: paths, and the small graphs that ship inside the onnx package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from hwconfigs.errors import UserError, nearest

MIN_OPSET = 9
"""Older graphs express BatchNormalization, Upsample and broadcasting differently; vsim does not read them."""

_LIGHT_MODELS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


class ModelError(UserError):
    """The model cannot be used as it is; the message says what to change."""


@dataclass(frozen=True)
class LoadedModel:
    """A checked ONNX model without its external weights.

    name: file name without suffix; path: where it was read from; opset: version of the default operator set.
    """

    name: str
    path: Path
    proto: onnx.ModelProto
    opset: int


def light_models() -> list[str]:
    """Names that `onnx:NAME` accepts: the graphs inside the onnx package."""
    return sorted(path.stem for path in _LIGHT_MODELS.glob("*.onnx"))


def resolve(spec: str | Path) -> Path:
    """The file that `spec` means: a path, or `onnx:light_resnet50` for a graph of the onnx package."""
    text = str(spec)
    if text.startswith("onnx:"):
        name = text.removeprefix("onnx:")
        path = _LIGHT_MODELS / f"{name}.onnx"
        if name not in light_models():
            raise ModelError(
                f"model {text}: the onnx package ships no graph of that name{nearest(name, light_models())}"
            )
        return path
    path = Path(spec)
    if not path.is_file():
        kind = "is a folder, not an ONNX file" if path.is_dir() else "no such file"
        raise ModelError(f"model {path}: {kind}")
    return path


def load_model(spec: str | Path) -> LoadedModel:
    """Open and check an ONNX model; external weights may be missing, they are not needed.

    Raises ModelError when the file is missing, is no ONNX, or uses an operator set older than `MIN_OPSET`.
    """
    path = resolve(spec)
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"model {path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # protobuf's DecodeError, and whatever other formats onnx guesses from the suffix
        raise ModelError(f"model {path}: not an ONNX file, or one that was cut off ({_first_line(error)})") from error
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"model {path}: not an ONNX file (it decodes to a graph without operators)")
    opset = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise ModelError(
            f"model {path}: operator set {opset or 'missing'}, vsim reads {MIN_OPSET} and later; "
            "convert it with onnx.version_converter"
        )
    return LoadedModel(path.stem, path, proto, opset)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
