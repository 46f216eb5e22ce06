"""Lanes one to a CPU core, advanced by a machine's own kernel instead of its JAX step. Knows no model by name.

Where a machine has such a kernel it is the fastest way on a CPU: a lane does only what its own state asks for, and no
lane waits for another. Threads take the lanes, longest estimate first; the kernel runs without Python's lock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from vsim.engine import Machine, Progress, expected

CHUNK_ITERATIONS = 1 << 16
"""Iterations between two looks at what else there is to do; some 20 to 500 ms."""
REPORT_SECONDS = 0.2


class Kernel(Protocol):
    """Advances one lane on a CPU without JAX, exactly as the machine's step does."""

    def advance(self, state: Any, iterations: int) -> int:
        """Advance the state ([..., 1], NumPy arrays, in place) by at most so many iterations; how many it took."""
        ...

    def must_rebase(self, state: Any) -> bool:
        """The machine's `rebase` has to come before more iterations."""
        ...


class MachineWithKernel(Machine, Protocol):
    """A machine that may have a kernel."""

    def has_kernel(self) -> bool:
        """`kernel` may be called."""
        ...

    def kernel(self, shared: Any, params: Any, lanes: Any) -> Kernel:
        """What advances the lane of these inputs ([..., 1], NumPy arrays)."""
        ...


class _Functions(NamedTuple):
    init: Callable[..., Any]
    rebase: Callable[..., Any]
    outcome: Callable[..., Any]


@lru_cache(maxsize=64)
def _compiled(machine: Machine) -> _Functions:
    return _Functions(jax.jit(machine.init), jax.jit(machine.rebase), jax.jit(machine.outcome))


class _Event(NamedTuple):
    """What a thread reports: cycles of the lane so far, seconds and iterations since its last report."""

    lane: int
    cycles: float
    seconds: float
    iterations: int
    outcome: Any
    """None before the lane's end."""
    error: BaseException | None = None


def run(
    machine: MachineWithKernel,
    shared: Any,
    params: Any,
    lanes: Any,
    estimates: Sequence[float],
    *,
    threads: int,
    on_lane: Callable[[int, Any], None],
    on_progress: Callable[[Progress], None] | None = None,
    chunk_iterations: int = CHUNK_ITERATIONS,
) -> None:
    """Run every lane to its end; arguments as of `vsim.engine.run`, the machine has a kernel.

    on_lane and on_progress are called in the caller's thread.
    """
    work = _Work(machine, jax.tree.map(np.asarray, shared), (params, lanes), estimates, chunk_iterations)
    crew = [threading.Thread(target=work.take_lanes, daemon=True) for _ in range(min(threads, len(estimates)))]
    account = _Account(np.asarray(estimates, float), len(crew))
    for thread in crew:
        thread.start()
    try:
        while not account.harvested.all():
            event = work.events.get()
            if event.error is not None:
                raise event.error
            account.enter(event)
            if event.outcome is not None:
                on_lane(event.lane, event.outcome)
            if on_progress is not None:
                on_progress(account.progress())
    finally:
        work.stopped = True
        for thread in crew:
            thread.join()


class _Work:
    """What the threads share."""

    def __init__(
        self, machine: MachineWithKernel, shared: Any, inputs: Any, estimates: Sequence[float], chunk_iterations: int
    ) -> None:
        self.machine, self.shared, self.chunk_iterations = machine, shared, chunk_iterations
        self.inputs = jax.tree.map(np.asarray, inputs)
        order: queue.SimpleQueue[int] = queue.SimpleQueue()
        for lane in np.argsort(-np.asarray(estimates, float), kind="stable"):
            order.put(int(lane))
        self.order = order
        self.events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self.stopped = False

    def take_lanes(self) -> None:
        """Run lanes until there are no more."""
        while not self.stopped:
            try:
                lane = self.order.get_nowait()
            except queue.Empty:
                return
            try:
                self._run(lane)
            except BaseException as error:
                self.events.put(_Event(lane, 0.0, 0.0, 0, None, error))
                return

    def _run(self, lane: int) -> None:
        machine, functions = self.machine, _compiled(self.machine)
        params, own = jax.tree.map(lambda leaf: leaf[..., lane : lane + 1], self.inputs)
        kernel = machine.kernel(self.shared, params, own)
        state = _on_host(functions.init(self.shared, params, own))
        reported, iterations = time.perf_counter(), 0
        while not self.stopped and bool(np.asarray(machine.alive(state))[0]):
            if kernel.must_rebase(state):
                state = _on_host(functions.rebase(state))
            iterations += kernel.advance(state, self.chunk_iterations)
            now = time.perf_counter()
            if now - reported > REPORT_SECONDS:
                self.events.put(_Event(lane, self._cycles(state), now - reported, iterations, None))
                reported, iterations = now, 0
        outcome = jax.tree.map(lambda leaf: np.asarray(leaf)[..., 0], functions.outcome(state))
        self.events.put(_Event(lane, self._cycles(state), time.perf_counter() - reported, iterations, outcome))

    def _cycles(self, state: Any) -> float:
        return float(np.asarray(self.machine.elapsed(state))[0])


def _on_host(state: Any) -> Any:
    """The state as NumPy arrays that may be written to."""
    return jax.tree.map(np.array, state)


class _Account:
    """Adds up what the threads report."""

    def __init__(self, estimates: np.ndarray, threads: int) -> None:
        self.estimates, self.threads = estimates, threads
        self.harvested = np.zeros(len(estimates), bool)
        self.cycles = np.zeros(len(estimates))
        self.busy_seconds = 0.0
        self.iterations = 0
        self.started = time.perf_counter()

    def enter(self, event: _Event) -> None:
        self.cycles[event.lane] = event.cycles
        self.busy_seconds += event.seconds
        self.iterations += event.iterations
        self.harvested[event.lane] = event.outcome is not None

    def progress(self) -> Progress:
        seconds = time.perf_counter() - self.started
        cycles = int(self.cycles.sum())
        finished = float(self.cycles[self.harvested].sum())
        # A place is a thread: those that have nothing left to do, or wait for Python's lock, are idle.
        idle = max(self.threads * seconds / self.busy_seconds, 1.0) if self.busy_seconds else 1.0
        return Progress(
            lanes_done=int(self.harvested.sum()),
            lanes_total=len(self.estimates),
            lane_cycles=cycles,
            seconds=seconds,
            expected_lane_cycles=max(expected(self.estimates, self.harvested, finished), cycles),
            lane_iterations=self.iterations,
            place_iterations=int(self.iterations * idle),
        )
