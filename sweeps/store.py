"""The result folder of a sweep.

``journal.jsonl``  one line per finished point, flushed to disk as it finishes; the only record of what is done;
``manifest.json``  what ran: spec, versions, hash of every point, times;
``*.parquet``      tables made from the journal at the end of every run: results (one row a point), layers, cores,
                   channels; of mixes also tenants (one row a request) and windows (of time, one row each of every
                   request), see `sweeps.tenants_table`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from hwconfigs.errors import UserError
from sweeps.mix_points import TenantsPoint
from sweeps.points import Point
from sweeps.tenants_table import point_columns, tenant_rows, window_rows

MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
LOCK = ".lock"
FORMAT = 1
STATUS_PRUNED = "pruned"
"""Of a point that was not simulated, since the closed form expects too much time of it (`sweeps.estimates`)."""


AnyPoint = Point | TenantsPoint


class ResultFolderError(UserError):
    """A folder that cannot hold, or does not hold, the results asked for."""


class ResultFolder:
    """An open result folder: the results finished so far, and the way to add one. Use as a context manager."""

    def __init__(self, path: Path, lock: BinaryIO) -> None:
        self.path = path
        self._lock = lock
        self.results: dict[str, dict[str, Any]] = _read_journal(path / JOURNAL)
        self._journal = (path / JOURNAL).open("ab")

    @classmethod
    def open(cls, path: Path, points: Sequence[AnyPoint], *, resume: bool) -> Self:
        """Open or create the folder for these points.

        An existing folder must hold the same points (any subset finished); with `resume` it may hold others, and those
        that match are reused. `ResultFolderError` when it does not fit, is no result folder, or is being written to.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(path)
            lock = _lock(path)
        except OSError as error:
            raise ResultFolderError(f"{path}: cannot write the results there: {error.strerror}") from error
        try:
            _check_fits(path, points, resume)
            return cls(path, lock)
        except BaseException:
            lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()
        self._lock.close()

    def has_finished(self, digest: str) -> bool:
        """Tell whether a point has a result; one that was pruned has none, and may be simulated later."""
        return digest in self.results and self.results[digest]["status"] != STATUS_PRUNED

    def append(self, digest: str, result: dict[str, Any]) -> None:
        """Record the result of a point; it is on disk when this returns."""
        line = json.dumps({"hash": digest, "result": result}, separators=(",", ":"))
        self._journal.write(line.encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self.results[digest] = result

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Write the manifest, replacing the previous one at once or not at all."""
        text = json.dumps({"format": FORMAT, **content}, indent=1)
        replace_file(self.path / MANIFEST, text.encode() + b"\n")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a result folder; `ResultFolderError` when there is none or it cannot be read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultFolderError(f"{path}: no result folder of a sweep: it has no {MANIFEST}") from error
    except NotADirectoryError as error:
        raise ResultFolderError(f"{path}: not a folder") from error
    except OSError as error:
        raise ResultFolderError(f"{path / MANIFEST}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultFolderError(f"{path / MANIFEST}: not JSON, so not written by vsim: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ResultFolderError(f"{path / MANIFEST}: format {found!r} is not the format {FORMAT} of this vsim")
    return manifest


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, sees either the old content or the new."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def _lock(path: Path) -> BinaryIO:
    stream = (path / LOCK).open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise ResultFolderError(f"{path}: another vsim is writing to this folder") from error
    return stream


def _refuse_foreign(path: Path) -> None:
    # A kill at the very start may leave a result folder that has no manifest yet.
    own = {LOCK, JOURNAL, f"{MANIFEST}.part"}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in own)
    if others and not (path / MANIFEST).exists():
        raise ResultFolderError(f"{path}: not a result folder, and not empty ({others[0]}); choose another --out")


def _check_fits(path: Path, points: Sequence[AnyPoint], resume: bool) -> None:
    if not (path / MANIFEST).exists():
        return
    manifest = read_manifest(path)
    stored = {entry["hash"] for entry in manifest["points"]}
    asked = {point.digest for point in points}
    if stored == asked or resume:
        return
    shared = f"{len(stored & asked)} of its {len(stored)} points are among these {len(asked)}"
    raise ResultFolderError(
        f"{path}: holds another sweep ({shared}); use --resume to keep those and run the others, or another --out"
    )


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Return the finished results by hash, and cut off a last line that a kill left incomplete."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as stream:
            stream.truncate(complete)
    results = {}
    for number, line in enumerate(content[:complete].splitlines(), start=1):
        try:
            record = json.loads(line)
            results[record["hash"]] = record["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultFolderError(f"{path}:{number}: damaged line; delete it to simulate its point again") from error
    return results


def read_table(path: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of one table of a result folder; `ResultFolderError` when it has none."""
    from pyarrow import ArrowException, parquet

    file = path / f"{name}.parquet"
    try:
        return parquet.read_table(file).to_pylist()
    except FileNotFoundError as error:
        raise ResultFolderError(f"{file}: not there; has the sweep finished a point?") from error
    except (OSError, ArrowException) as error:
        raise ResultFolderError(f"{file}: not a readable Parquet file: {str(error).splitlines()[0]}") from error


def write_tables(path: Path, points: Sequence[AnyPoint], results: Mapping[str, dict[str, Any]]) -> None:
    """Write the Parquet tables of all finished points. Same results, same bytes."""
    finished = [(point, results[point.digest]) for point in points if point.digest in results]
    mixes = [(point, result) for point, result in finished if isinstance(point, TenantsPoint)]
    of_mixes = {point.index: point_columns(point, result, results) for point, result in mixes}
    rows = [_result_row(point, result) | of_mixes.get(point.index, {}) for point, result in finished]
    _write_table(path / "results.parquet", rows)
    if any(isinstance(point, TenantsPoint) for point in points):
        tenants = [row for point, result in mixes for row in tenant_rows(point, result, results)]
        _write_table(path / "tenants.parquet", tenants)
        windows = [row for point, result in mixes for row in window_rows(point, result)]
        _write_table(path / "windows.parquet", windows)
    for name, rows_of in (
        ("layers", lambda result: result.get("layers", [])),
        ("cores", lambda result: result.get("cores", [])),
        ("channels", lambda result: result.get("dram", {}).get("channels", [])),
    ):
        rows = [
            {"point": point.index, name.removesuffix("s"): index, **_scalars(row)}
            for point, result in finished
            for index, row in enumerate(rows_of(result))
        ]
        _write_table(path / f"{name}.parquet", rows)


def _result_row(point: AnyPoint, result: Mapping[str, Any]) -> dict[str, Any]:
    layers = result.get("layers")

    def total(name: str) -> int | None:
        return None if layers is None else sum(layer[name] for layer in layers)

    return {
        "point": point.index,
        "hash": point.digest,
        **point.columns,
        "hw": point.hw.name,
        **point.values,
        **_scalars(result),
        "macs": total("macs"),
        "load_bytes": total("load_bytes"),
        "store_bytes": total("store_bytes"),
    }


def _scalars(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers and texts of a result by name, nested ones as ``dram_reads``; no lists of records."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _scalars(value, f"{prefix}{key}_")
        elif isinstance(value, list):
            if value and all(isinstance(item, str) for item in value):
                flat[f"{prefix}{key}"] = "; ".join(value)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _write_table(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    replace_file(file, sink.getvalue().to_pybytes())


def _column(values: list[Any]) -> Any:
    import pyarrow as pa

    kinds = {type(value) for value in values} - {type(None)}
    if len(kinds) > 1 and kinds != {int, float}:
        # A swept key may mix numbers with names; such a column can only be text.
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values)
