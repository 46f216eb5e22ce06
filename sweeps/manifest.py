"""The manifest of a result folder: what was asked, what ran it, and how far it got."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from sweeps.identity import git_revision, versions
from sweeps.mix_points import TenantsPoint
from sweeps.points import Expansion, Point
from sweeps.spec import LoadedSpec
from sweeps.store import MANIFEST, ResultFolder, read_manifest

NOT_RUN = "not_run"


@dataclass
class RunRecord:
    """Writes the manifest of one run. lane_cycles: simulated so far, summed over lanes."""

    loaded: LoadedSpec
    expansion: Expansion[Point] | Expansion[TenantsPoint]
    folder: ResultFolder
    lane_cycles: int = 0

    def __post_init__(self) -> None:
        exists = (self.folder.path / MANIFEST).exists()
        self._earlier_runs = read_manifest(self.folder.path)["runs"] if exists else []
        self._started = _now()
        self._clock = time.perf_counter()
        self._finished_before = self._finished()
        self._revision = git_revision()

    def _finished(self) -> int:
        return sum(self.folder.has_finished(digest) for digest in self.folder.results)

    def write(self, state: str) -> None:
        """Write the manifest with this run in `state`: running, finished or interrupted."""
        run = {
            "state": state,
            "started": self._started,
            "seconds": round(time.perf_counter() - self._clock, 3),
            "points_finished": self._finished() - self._finished_before,
            "lane_cycles": self.lane_cycles,
            "versions": versions(),
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
