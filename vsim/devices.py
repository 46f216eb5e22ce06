"""What JAX may use of this machine: every CPU core as a device, and a compilation cache that outlives the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

KEPT_SECONDS, KEPT_SECONDS_OF_JAX = 0.02, 1.0
"""Programs that take so long to compile are kept. By JAX's own choice a lane's beginning and end are not."""


def prepare() -> None:
    """Configure JAX before its first use; settings that the user made, or that come too late, stand.

    XLA does not spread one step over CPU cores well: the engine splits the lanes over one device per core.
    Compiled programs are kept in `$XDG_CACHE_HOME/vsim` (`~/.cache/vsim`) unless JAX_COMPILATION_CACHE_DIR is set.
    """
    if setting("jax_num_cpu_devices") < 0:
        try:
            jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
        except RuntimeError:
            # JAX has started already, with the devices somebody else chose.
            return
    if setting("jax_compilation_cache_dir") is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "vsim"))
        if setting("jax_persistent_cache_min_compile_time_secs") == KEPT_SECONDS_OF_JAX:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS)


def kept_programs(name: str) -> Path | None:
    """The folder beside JAX's compiled programs for others that outlive the process; None while caching is off."""
    compiled = setting("jax_compilation_cache_dir")
    return Path(compiled) / name if compiled and setting("jax_enable_compilation_cache") else None


def one_thread() -> None:
    """For a process that simulates a single lane, before `prepare`: XLA's second thread only slows its small kernels.

    The variable is what XLA sizes its thread pool by; it is read once, when JAX starts.
    """
    os.environ.setdefault("NPROC", "1")


def compiler_options() -> dict[str, Any] | None:
    """Options of XLA for the step: on CPUs, vectors as long as AVX-512 has them (measured 6 % faster than 256 bits)."""
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else None


LONE_LANES = 32
"""Of the JAX step, up to so many points per CPU core run fastest one after the other (measured in tests/benchmarks)."""


def lanes_side_by_side(bytes_per_lane: int, points: int) -> int:
    """Lanes that the devices together simulate fastest, of so many bytes of state each and so many in all.

    XLA's CPU runtime starts some 900 kernels an iteration, which is what a batch of few lanes costs. The loop of a lone
    lane it compiles as one kernel without any such start (a batch gains little from that: the kernels of XLA's older
    emitter, which such loops get, do not vectorise over lanes), so few points run one to a core. A batch needs some 64
    lanes to outweigh its kernels' start, but should stay near the caches. Other devices take what a quarter of their
    memory holds.
    """
    local = jax.local_devices()
    least, most, budget = 64, 512, 16 << 20
    if local[0].platform != "cpu":
        most, budget = 65_536, (local[0].memory_stats() or {}).get("bytes_limit", 4 << 30) // 4
    elif points <= LONE_LANES * len(local):
        return len(local)
    each = max(least, min(most, budget // bytes_per_lane // 64 * 64))
    return each * len(local)


def setting(name: str) -> Any:
    """A configuration value of JAX."""
    return getattr(jax.config, name)
