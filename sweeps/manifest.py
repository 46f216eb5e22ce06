"""The manifest of a result folder: what was asked, what ran it, and how far it got."""

from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from sweeps.points import Expansion, vsim_version
from sweeps.spec import LoadedSpec
from sweeps.store import MANIFEST, ResultFolder, read_manifest

NOT_RUN = "not_run"


@dataclass
class RunRecord:
    """Writes the manifest of one run. lane_cycles: simulated so far, summed over lanes."""

    loaded: LoadedSpec
    expansion: Expansion
    folder: ResultFolder
    lane_cycles: int = 0

    def __post_init__(self) -> None:
        exists = (self.folder.path / MANIFEST).exists()
        self._earlier_runs = read_manifest(self.folder.path)["runs"] if exists else []
        self._started = _now()
        self._clock = time.perf_counter()
        self._finished_before = len(self.folder.results)
        self._revision = git_revision()

    def write(self, state: str) -> None:
        """Write the manifest with this run in `state`: running, finished or interrupted."""
        run = {
            "state": state,
            "started": self._started,
            "seconds": round(time.perf_counter() - self._clock, 3),
            "points_finished": len(self.folder.results) - self._finished_before,
            "lane_cycles": self.lane_cycles,
            "versions": _versions(),
            "git_revision": self._revision,
            "platform": platform.platform(),
        }
        results = self.folder.results
        self.folder.write_manifest(
            {
                "name": self.loaded.spec.name,
                "spec_path": str(self.loaded.document.path),
                "spec": self.loaded.text,
                "axes": [
                    {"keys": list(axis.keys), "values": [list(position) for position in axis.positions]}
                    for axis in self.expansion.axes
                ],
                "models": dict(self.expansion.model_digests),
                "points": [
                    {
                        "hash": point.digest,
                        "label": point.label,
                        "status": results[point.digest]["status"] if point.digest in results else NOT_RUN,
                    }
                    for point in self.expansion.points
                ],
                "runs": [*self._earlier_runs, run],
            }
        )


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "onnx")}
    return {"vsim": vsim_version(), "python": platform.python_version(), **packages}


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
