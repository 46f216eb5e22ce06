"""Traced steps kept on disk: a process that needs a known one neither traces nor lowers it again.

JAX's compilation cache keeps what XLA made of a program, but its key is the program, which takes seconds to trace from
thousands of operations. Here the traced program is kept, under a key that names everything it was traced from: the
machine, the shapes of its inputs, the sources of this package and the version of JAX.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import jax
from jax import Array, export

import lowering
from vsim import devices

DIGEST_BYTES = hashlib.sha256().digest_size


def call(function: Callable[..., Sequence[Array]], name: str, leaves: Sequence[Array]) -> Sequence[Array]:
    """function(*leaves), traced from its source only when no earlier process has done so; for use under a trace.

    function: arrays to arrays; name: all that decides what it does, apart from shapes and sources.
    """
    folder = _folder()
    if folder is None:
        return function(*leaves)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    key = hashlib.sha256(repr((name, shapes, jax.__version__, jax.default_backend(), _sources())).encode()).hexdigest()
    path = folder / f"{key}.traced"
    program = _load(path)
    if program is None:
        program = export.export(jax.jit(function))(*shapes)
        _save(path, program)
    return cast("Sequence[Array]", program.call(*leaves))


def _folder() -> Path | None:
    return devices.kept_programs("traced")


@cache
def _sources() -> str:
    """Digest of the sources that a step can be traced from."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parent, Path(lowering.__file__).parent):
        for source in sorted(package.rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _load(path: Path) -> export.Exported | None:
    """A kept program; None if there is none or it is damaged: then it is made anew."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, program = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    return export.deserialize(bytearray(program)) if hashlib.sha256(program).digest() == digest else None


def _save(path: Path, exported: export.Exported) -> None:
    """Keep a program behind its digest, whole or not at all; a cache that cannot be written is no reason to fail."""
    program = bytes(exported.serialize())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
            partial.write(hashlib.sha256(program).digest() + program)
        Path(partial.name).replace(path)
    except OSError:
        return
