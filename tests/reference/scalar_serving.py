"""A server of a language model in plain Python, request by request: shares no code with `vsim.serving`.

Written from the rules (first come, first served; decodes before prefills within the token budget; the last admitted is
evicted when the cache is full and computes everything again; a static batch leaves together).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Request:
    """One request; times in cycles, None until they are known."""

    number: int
    arrival: int
    prompt: int
    output: int
    cached: int = 0
    kv: int = 0
    made: int = 0
    first: int | None = None
    finish: int | None = None
    evictions: int = 0
    times_served: int = 0

    @property
    def pending(self) -> int:
        return self.cached + self.prompt + self.made - self.kv

    @property
    def largest(self) -> int:
        return self.cached + self.prompt + self.output - 1


@dataclass
class Iteration:
    """Sizes of one iteration, from which its cycles follow: (new tokens, tokens cached before) of each sequence."""

    sequences: list[tuple[int, int]]
    outputs: int


@dataclass
class Server:
    """Policy and capacities; `cycles` gives an iteration's length."""

    cycles: Callable[[Iteration], int]
    max_batch: int
    token_budget: int
    kv_capacity: int
    queue_capacity: int
    static: bool
    conservative: bool
    horizon: int

    def serve(self, requests: list[Request]) -> tuple[str, int]:
        """Serve the trace in place; the set of status names, joined by "+", or "ok", and the time at the end."""
        self.now, self.waiting, self.running, self.ended = 0, [], [], []
        self.coming = list(requests)
        self._arrive()
        while self.coming or self.waiting or self.running or self.ended:
            fails = []
            fresh = [request for request in self.waiting if not request.evictions]
            present = len(self.waiting) + len(self.running) + len(self.ended)
            before = len(self.coming)
            moved, gone = self._iterate()
            seen = [request for request in fresh if request is fresh[0] or request in self.admitted]
            if any(request.largest > self.kv_capacity for request in seen):
                fails.append("kv_capacity")
            if present + before - len(self.coming) > self.queue_capacity:
                fails.append("overflow_queue")
            if not moved and self.coming:
                self.now = self.coming[0].arrival
                self._arrive()
            elif not moved and not fails:
                raise AssertionError("nothing can run")
            if self.now >= self.horizon:
                fails.append("horizon")
            for request in gone:
                request.times_served += 1
            if fails:
                return "+".join(fails), self.now
        return "ok", self.now

    def _arrive(self) -> None:
        while self.coming and self.coming[0].arrival <= self.now:
            request = self.coming.pop(0)
            request.kv = request.cached
            self.waiting.append(request)

    def _iterate(self) -> tuple[bool, list[Request]]:
        held = sum(request.kv for request in self.ended)
        decodes = [request for request in self.running if request.pending == 1]
        budget = self.token_budget - len(decodes)
        tokens = {request.number: 1 for request in decodes}
        for request in self.running:
            if request.number not in tokens:
                tokens[request.number] = min(budget, request.pending)
                budget -= tokens[request.number]

        evicted: list[Request] = []
        self.admitted: list[Request] = []
        was_idle = not self.running and not self.ended
        while self.running and held + sum(r.kv + tokens[r.number] for r in self.running) > self.kv_capacity:
            evicted.insert(0, self.running.pop())
        if not evicted and (was_idle or not self.static):
            self._admit(tokens, budget, held)
        for request in evicted:
            request.kv = 0
            request.evictions += 1
        self.waiting = evicted + self.waiting

        batch = [request for request in self.running if tokens[request.number]]
        length = 0
        if batch:
            made = sum(request.pending == tokens[request.number] for request in batch)
            length = self.cycles(Iteration([(tokens[r.number], r.kv) for r in batch], made))
        self.now += length
        for request in batch:
            complete = request.pending == tokens[request.number]
            request.kv += tokens[request.number]
            if complete:
                request.made += 1
                request.first = self.now if request.first is None else request.first
        self.ended += [request for request in self.running if request.made == request.output]
        self.running = [request for request in self.running if request.made < request.output]
        gone: list[Request] = []
        if not (self.static and self.running):
            gone, self.ended = self.ended, []
        for request in gone:
            request.finish = self.now
        self._arrive()
        return bool(length or gone or evicted), gone

    def _admit(self, tokens: dict[int, int], budget: int, held: int) -> None:
        def demand(request: Request) -> int:
            return request.largest if self.conservative else request.cached + request.prompt + request.made

        taken = held + sum(demand(request) for request in self.running)
        while self.waiting and len(self.running) < self.max_batch and budget > 0:
            request = self.waiting[0]
            taken += demand(request)
            if taken > self.kv_capacity:
                return
            tokens[request.number] = min(budget, request.pending)
            budget -= tokens[request.number]
            self.admitted.append(self.waiting.pop(0))
            self.running.append(request)
