"""A closed loop on one replica: each client sends its next request when the last is answered, through the server's front end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..costmodels.step_times import PS
from ..scenarios.serving import EnginePlan, Floats64, ServeWorkload, ServingEngine
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
        self.latency, self.turn = round(engine.request_cpu_s * PS), round(engine.frontend_cpu_s * PS)
        self.free = 0
        self.late: list[tuple[int, int]] = []
        self.held: list[int] = []
        self.opens = 0

    def send(self, request: int, at: int) -> None:
        """``request`` leaves its client at ``at`` (ps)."""
        r, replica = self.replica.r, self.replica
        step = replica.times.step_ps(replica.n, replica.kv + replica.n, []) if replica.n else 0
        r.arrival[request] = at
        self.free = max(self.free, at) + self.turn
        ready = base = self.free + self.latency
        if step and self.recipe.poll_steps:
            steps = max(0, -(-(ready - replica.now) // step))
            ready = max(ready, replica.now + (steps + (-(replica.k + steps)) % self.recipe.poll_steps) * step)
        if step and self.recipe.wait_steps:
            ready = self._wait(request, ready, step)
        r.ready[request] = ready
        if ready > base:
            self.late.append((request, base))
        replica.submit(request)

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
    n, sent = len(work), min(clients, len(work))
    for q in range(sent):
        door.send(q, 0)
    while replica.n_outstanding:
        replica.run()
        if not replica.n:
            door.let_in()
        for request in range(sent, min(sent + len(replica.seen), n)):
            door.send(request, replica.now)
        sent = min(sent + len(replica.seen), n)
        replica.seen.clear()
    return LoopResult(
        sent_s=np.array(requests.arrival, np.float64) / PS,
        first_s=_seconds(requests.first),
        finish_s=_seconds(requests.finish),
        end_s=replica.now / PS,
    )


def _seconds(ticks: object) -> Floats64:
    at = np.array(ticks, np.float64) / PS
    return np.where(at < 0, np.nan, at)
