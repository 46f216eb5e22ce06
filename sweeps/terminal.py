"""What a sweep shows on the terminal: points done, lane-cycles per second and time left, and a summary at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from sweeps.runner import Observer, SweepSummary
from vsim.api import Progress

_LINE_EVERY_SECONDS = 20.0
_MAX_FAILURES_SHOWN = 10


class ProgressReport(Observer):
    """A progress bar on a terminal; elsewhere (a log file, CI) a line now and then. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._stage = ""
        self._task = self._bar.add_task("starting", total=None, speed="")
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def estimating(self, total: int) -> None:
        """Show that estimates are under way; they come all at once."""
        self._show("evaluating the closed form", 0, total, "")

    def lowering(self, done: int, total: int) -> None:
        """Show how many points are lowered."""
        self._show("lowering", done, total, "")

    def simulating(self, before: int, progress: Progress) -> None:
        """Show how many points are finished, how fast lanes advance, and the time left at this pace."""
        speed = _speed(progress)
        self._show("simulating", before + progress.lanes_done, before + progress.lanes_total, speed)

    def _show(self, stage: str, done: int, total: int, speed: str) -> None:
        if stage != self._stage:
            self._bar.remove_task(self._task)
            self._stage, self._task = stage, self._bar.add_task(stage, total=total, speed=speed)
        self._bar.update(self._task, completed=done, total=total, speed=speed)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = now
            self._console.print(f"{stage}: {done}/{total} points" + (f", {speed}" if speed else ""), soft_wrap=True)


def _speed(progress: Progress) -> str:
    """Return lane-cycles per second and, once a lane is done, the time left at that speed."""
    if not progress.seconds or not progress.lane_cycles:
        return ""
    speed = progress.lane_cycles / progress.seconds
    text = f"{speed:,.0f} lane-cycles/s"
    if not progress.expected_lane_cycles:
        return text
    return f"{text}, {format_seconds((progress.expected_lane_cycles - progress.lane_cycles) / speed)} left"


def format_seconds(seconds: float) -> str:
    """Return a duration such as ``42 s``, ``3 min 20 s`` or ``1 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def print_summary(summary: SweepSummary, console: Console) -> None:
    """Print what a sweep did, where its results are, and which points failed."""
    good = summary.points - len(summary.failed) - summary.pruned
    reused = f", {summary.reused} of them from before" if summary.reused else ""
    pruned = f", {summary.pruned} pruned by their estimates" if summary.pruned else ""
    console.print(f"{good} of {summary.points} points ok{reused}{pruned}; results in {summary.folder}")
    if summary.simulated and summary.seconds:
        speed = summary.lane_cycles / summary.seconds
        console.print(
            f"{summary.simulated} points simulated in {summary.seconds:,.1f} s: "
            f"{summary.lane_cycles:,} lane-cycles, {speed:,.0f} a second"
        )
    if good:
        console.print(f"draw them with: vsim figures {summary.folder}")
    for label, status in summary.failed[:_MAX_FAILURES_SHOWN]:
        console.print(f"  {status}: {label}")
    if len(summary.failed) > _MAX_FAILURES_SHOWN:
        console.print(f"  and {len(summary.failed) - _MAX_FAILURES_SHOWN} more, see results.parquet")
