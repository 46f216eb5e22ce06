"""Which simulator this is: its source, its version, and the libraries it runs on."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import hwconfigs
import lowering
import vsim

_SUFFIXES = {".py", ".yaml"}


@cache
def simulator_digest() -> str:
    """Return a hash of all source that can change a result: the code and DRAM tables, not presets or command line.

    A sweep is never continued with results of other code, also while vsim itself is being changed.
    """
    digest = hashlib.sha256()
    for package in (hwconfigs, lowering, vsim):
        root = Path(package.__path__[0])
        for file in sorted(root.rglob("*")):
            name = file.relative_to(root).as_posix()
            if file.suffix in _SUFFIXES and not name.startswith(("presets/", "cli")):
                digest.update(f"{root.name}/{name}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of vsim, Python and the libraries that a result might depend on."""
    packages = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "onnx")}
    return {"python": platform.python_version(), "vsim": vsim.__version__, **packages}


def git_revision() -> str | None:
    """Return the git revision of the vsim source, with ``-dirty`` when it was changed; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # An installed copy may lie inside somebody else's repository, whose revision says nothing about vsim.
    tracked = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else None
