"""A closed loop on one replica: each client sends its next request when the last is answered, through the server's front end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ..costmodels.step_times import PS
from ..scenarios.serving import EnginePlan, Floats64, ServeWorkload, ServingEngine
from ..sim.clock import NEVER
from ..sim.engine import Replica
from ..sim.replica_kind import ReplicaModel, start_replicas
from ..sim.requests import Requests
from .serving_recipes import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult:
    """Seconds at which each request was sent, its first and last token came back, and the run ended."""

    sent_s: Floats64
    first_s: Floats64
    finish_s: Floats64
    end_s: float


class Door:
    """The way of a request from its client to the scheduler: one front end in turn, then the scheduler's own terms (see ``Recipe``)."""

    def __init__(self, replica: Replica, engine: ServingEngine, recipe: Recipe, budget: int) -> None:
        self.replica, self.recipe, self.budget = replica, recipe, budget
        self.overlapped = engine.overlapped
        self.latency, self.turn, self.token = (round(s * PS) for s in (engine.request_cpu_s, engine.frontend_cpu_s, engine.token_cpu_s))
        self.free = 0
        self.late: list[tuple[int, int]] = []
        self.held: list[int] = []
        self.opens = 0
        self.looked = 0

    def arrive(self, request: int, at: int) -> int:
        """When (ps) a request that leaves its client at ``at`` has passed the front end."""
        r = self.replica.r
        r.arrival[request] = at
        self.free = max(self.free, at) + self.turn + self.token * r.prompt[request]
        return self.free + self.latency

    def admit(self, request: int, base: int) -> None:
        """Hand over a request that passed the front end at ``base``; the replica has played every step that starts before.

        Where the host plans a step while the one before it runs, a request is seen one step late.
        """
        r, replica = self.replica.r, self.replica
        if self.overlapped and replica.now >= base and (replica.n or replica.part >= 0 or replica.waiting):
            base = replica.now + 1
        step = replica.times.step_ps(replica.n, replica.kv + replica.n, []) if replica.n else 0
        ready = base
        if step and self.recipe.poll_steps:
            ready = self._poll(ready, step)
        if step and self.recipe.wait_steps:
            ready = self._wait(request, ready, step)
        r.ready[request] = ready
        if ready > base:
            self.late.append((request, base))
        replica.submit(request)

    def _poll(self, ready: int, step: int) -> int:
        """When a server that polls sees what came at ``ready``: after a step of prompts at once, else so many decodes after its last look.

        Source: SGLang's scheduler_recv_skipper.py, whose counter takes a step of prompts as 1,000.
        """
        replica, every = self.replica, self.recipe.poll_steps
        if replica.last_decode < replica.now:
            self.looked = replica.k
            return max(ready, replica.now)
        steps = replica.k + max(0, -(-(ready - replica.now) // step))
        self.looked += max(0, -(-(steps - self.looked) // every)) * every
        return max(ready, replica.now + (self.looked - replica.k) * step)

    def let_in(self) -> None:
        """Nothing decodes any more: the scheduler takes whatever has come through the front end."""
        r, now = self.replica.r, self.replica.now
        for request, base in self.late:
            r.ready[request] = min(r.ready[request], max(base, now))
        self.late, self.held, self.opens = [], [], 0

    def _wait(self, request: int, ready: int, step: int) -> int:
        """When a prompt is let in that reached the scheduler at ``ready``: with those that wait, at the latest when their time is up."""
        r = self.replica.r
        if ready > self.opens:
            self.held, self.opens = [], ready + self.recipe.wait_steps * step
        self.held.append(request)
        enough = 0 < self.recipe.wait_prompts <= len(self.held)
        if enough or sum(r.prompt[q] for q in self.held) + self.replica.n >= self.recipe.wait_fill_frac * self.budget:
            self.opens = ready
            for q in self.held[:-1]:
                r.ready[q] = min(r.ready[q], ready)
        return self.opens


def closed_loop(
    kind: ReplicaModel, plan: EnginePlan, engine: ServingEngine, work: ServeWorkload, clients: int, recipe: Recipe
) -> LoopResult:
    """Play ``work`` in order: the first ``clients`` requests start at 0, each later one when any before it is answered."""
    requests = Requests(work)
    (replica,) = start_replicas(kind, plan, work, requests, 1)
    replica.seen = []
    door = Door(replica, engine, recipe, kind.limits.budget)
    n, n_sent = len(work), 0
    back = [0] * min(clients, n)
    coming: deque[tuple[int, int]] = deque()
    while n_sent < len(back) or coming or replica.n_outstanding:
        sends = back[n_sent] if n_sent < len(back) else NEVER
        replica.run(min(sends, coming[0][1] if coming else NEVER))
        if not replica.n:
            door.let_in()
        if replica.seen:
            back += [replica.now] * min(len(replica.seen), n - len(back))
            replica.seen.clear()
        elif coming and coming[0][1] <= sends:
            door.admit(*coming.popleft())
        elif n_sent < len(back):
            coming.append((n_sent, door.arrive(n_sent, sends)))
            n_sent += 1
    return LoopResult(
        sent_s=np.array(requests.arrival, np.float64) / PS,
        first_s=_seconds(requests.first),
        finish_s=_seconds(requests.finish),
        end_s=replica.now / PS,
    )


def _seconds(ticks: object) -> Floats64:
    at = np.array(ticks, np.float64) / PS
    return np.where(at < 0, np.nan, at)
