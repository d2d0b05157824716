"""Sends each request to a replica: at random, in turn, to the one with fewest requests, or to the one with most free KV."""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random

from ..scenarios.errors import BadInput
from .engine import NEVER, Replica
from .requests import Requests

ROUTERS = ("round-robin", "random", "least-outstanding", "kv-aware")


def route(requests: Requests, replicas: list[Replica], router: str, seed: int) -> None:
    """Play all requests; ties go to the lowest replica. Raises BadInput for an unknown router."""
    if router not in ROUTERS:
        raise BadInput(f"router={router!r} is not known; legal: {', '.join(ROUTERS)}")
    n = len(replicas)
    draw = Random(seed)
    if n == 1 or router in ("round-robin", "random"):
        for q in range(len(requests)):
            replicas[q % n if router == "round-robin" or n == 1 else draw.randrange(n)].submit(q)
    else:
        _route_by_state(requests, replicas, router)
    for replica in replicas:
        replica.run(NEVER)


class Pool:
    """Replicas seen at the moment something arrives (a step under way counts as done).

    ``busy`` holds (start of its next step, replica) of all that have work, so an arrival plays only the replicas that moved since.
    """

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas
        self._busy: list[tuple[int, int]] = []

    def advance(self, at: int) -> None:
        """Play every step that starts before ``at``."""
        busy, replicas = self._busy, self.replicas
        while busy and busy[0][0] < at:
            i = heappop(busy)[1]
            replicas[i].run(at)
            if replicas[i].n_outstanding:
                heappush(busy, (replicas[i].now, i))

    def submit(self, request: int, i: int, at: int) -> bool:
        """Give replica ``i`` a request that is ready at ``at``; False when it can never hold it."""
        replica = self.replicas[i]
        idle = not replica.n_outstanding
        accepted = replica.submit(request)
        if accepted and idle:
            heappush(self._busy, (max(at, replica.now), i))
        return accepted


def _route_by_state(requests: Requests, replicas: list[Replica], router: str) -> None:
    pool = Pool(replicas)
    everyone = range(len(replicas))
    for q in range(len(requests)):
        at = requests.ready[q]
        pool.advance(at)
        if router == "least-outstanding":
            best = min(everyone, key=lambda i: replicas[i].n_outstanding)
        else:
            best = max(everyone, key=lambda i: replicas[i].free - replicas[i].queued_blocks())
        pool.submit(q, best, at)
