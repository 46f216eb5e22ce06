"""What JAX may use of this machine: every CPU core as a device, and a compilation cache that outlives the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax


def prepare() -> None:
    """Configure JAX before its first use; settings that the user made, or that come too late, stand.

    XLA does not spread one step over CPU cores well: the engine splits the lanes over one device per core.
    Compiled programs are kept in `$XDG_CACHE_HOME/vsim` (`~/.cache/vsim`) unless JAX_COMPILATION_CACHE_DIR is set.
    """
    if _setting("jax_num_cpu_devices") < 0:
        try:
            jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
        except RuntimeError:
            # JAX has started already, with the devices somebody else chose.
            return
    if _setting("jax_compilation_cache_dir") is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "vsim"))


def _setting(name: str) -> Any:
    return getattr(jax.config, name)
