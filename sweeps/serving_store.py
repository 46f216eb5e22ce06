"""The result folder of a serving run.

``serving.json``      what ran and what came out: specification, versions, one entry a lane;
``serving.parquet``   one row a lane: its values and its summary;
``requests.parquet``  one row a request of every lane; ``windows.parquet``: means over stretches of time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.identity import versions
from sweeps.serving_spec import Lane, ServingSpec
from sweeps.store import ResultFolderError, replace_file
from vsim.serving.results import ServeResult

MANIFEST = "serving.json"
FORMAT = 1


def content_of(spec: ServingSpec, lanes: Sequence[Lane], results: Sequence[ServeResult]) -> dict[str, Any]:
    """What ``serving.json`` holds, and `vsim serve --json` prints."""
    rows = [
        {**lane.values, "status": result.status, **result.summary} for lane, result in zip(lanes, results, strict=True)
    ]
    return {"format": FORMAT, "versions": versions(), "spec": spec.model_dump(mode="json"), "lanes": rows}


def write_serving(path: Path, content: Mapping[str, Any], results: Sequence[ServeResult]) -> None:
    """Write the folder; an earlier run's files in it are replaced. Raises ResultFolderError for a foreign folder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        others = [entry.name for entry in path.iterdir() if not entry.name.startswith("costs-")]
        if others and not (path / MANIFEST).exists():
            raise ResultFolderError(f"{path}: not a folder of vsim serve, and not empty ({others[0]}); choose another")
        replace_file(path / MANIFEST, json.dumps(content, indent=1).encode() + b"\n")
        lanes = content["lanes"]
        _write(path / "serving.parquet", {name: [lane[name] for lane in lanes] for name in lanes[0]})
        _write(path / "requests.parquet", _columns([result.requests for result in results]))
        _write(path / "windows.parquet", _columns([result.windows for result in results]))
    except OSError as error:
        raise ResultFolderError(f"{path}: cannot write the results there: {error.strerror}") from error


def is_serving(path: Path) -> bool:
    """Whether a folder holds a serving run."""
    return (path / MANIFEST).is_file()


def read_serving(path: Path) -> dict[str, Any]:
    """The content of ``serving.json``. Raises ResultFolderError where it cannot be read."""
    file = path / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultFolderError(f"{file}: cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResultFolderError(f"{file}: not of the format {FORMAT} of this vsim")
    return content


def _columns(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of all lanes below one another, with the lane's number."""
    lengths = [len(next(iter(table.values()))) for table in tables]
    lane = np.repeat(np.arange(len(tables)), lengths)
    return {"lane": lane, **{name: np.concatenate([table[name] for table in tables]) for name in tables[0]}}


def _write(file: Path, columns: Mapping[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), sink)
    replace_file(file, sink.getvalue().to_pybytes())
