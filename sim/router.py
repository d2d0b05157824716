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


def _route_by_state(requests: Requests, replicas: list[Replica], router: str) -> None:
    """Look at the replicas as each request arrives (a step under way counts as done).

    ``busy`` holds (start of its next step, replica) of all that have work, so an arrival plays only the replicas that moved since.
    """
    busy: list[tuple[int, int]] = []
    for q in range(len(requests)):
        at = requests.ready[q]
        while busy and busy[0][0] < at:
            i = heappop(busy)[1]
            replicas[i].run(at)
            if replicas[i].n_outstanding:
                heappush(busy, (replicas[i].now, i))
        if router == "least-outstanding":
            best = min(range(len(replicas)), key=lambda i: replicas[i].n_outstanding)
        else:
            best = max(range(len(replicas)), key=lambda i: replicas[i].free - replicas[i].queued_blocks())
        idle = not replicas[best].n_outstanding
        if replicas[best].submit(q) and idle:
            heappush(busy, (max(at, replicas[best].now), best))
