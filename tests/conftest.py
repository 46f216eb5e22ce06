"""What all tests share: where the recorded reference data lie, and a quiet hypothesis profile for shared machines."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded reference data; the test is skipped where it is absent."""
    if SHARED is None:
        pytest.skip(f"reference data not found: {_SHARED}")
    return SHARED
