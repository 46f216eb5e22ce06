"""What all tests share: where the recorded reference data lie, a quiet hypothesis profile for shared machines, and how
JAX is set up.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

REPO_ROOT = Path(__file__).resolve().parent.parent
DATA = REPO_ROOT / "tests" / "data"
"""Small excerpts of the reference data, with provenance, that travel with the repository."""

_SHARED = REPO_ROOT.parent / "shared"
SHARED: Path | None = _SHARED if _SHARED.is_dir() else None
"""The recorded reference runs beside the repository, or None on a plain clone."""

settings.register_profile("vsim", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vsim")


def pytest_configure(config: pytest.Config) -> None:
    """Compile each program once: for one device, and for all workers of this run and the programs they start."""
    jax.config.update("jax_num_cpu_devices", 1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="vsim-tests-")
        jax.config.update("jax_compilation_cache_dir", folder)
        config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded reference data; the test is skipped where it is absent."""
    if SHARED is None:
        pytest.skip(f"reference data not found: {_SHARED}")
    return SHARED
