"""Sends each request to a replica: in turn, at random, by load, by free KV, or to where its prompt's beginning is cached."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from ..scenarios.errors import BadInput
from ..scenarios.serving import ServeWorkload
from .engine import Replica

STATELESS = ("round-robin", "random", "prefix-hash")
"""Routers that need not know what the replicas are doing."""
OF_KV = ("kv-aware", "cache-aware")
"""Routers that look at KV, not at numbers of requests alone."""
ROUTERS = (*STATELESS, "least-outstanding", "power-of-two", *OF_KV)
MATCH_FRAC = 0.3
"""Share of a prompt that must be cached somewhere for cache-aware routing to follow it."""
MOST_MORE, MOST_TIMES = 64, 1.5
"""Loads are uneven when the highest is over the lowest by more than the first and over it by more than the second as a factor."""


class Router:
    """Picks one of ``groups``, each the replicas behind one address; ``extra`` are requests on their way there.

    ``prefix-hash`` sends equal first prompt blocks to equal replicas. ``least-outstanding`` takes the fewest requests, ``power-of-two`` the
    fewer of two drawn at random, ``kv-aware`` the most free KV after what is queued. ``cache-aware`` takes the longest cached prefix of
    at least MATCH_FRAC of the prompt, else the replica with most free KV; while loads are uneven, the fewest requests. Ties go to the
    lowest replica. Raises BadInput for an unknown router, or one that needs prompt blocks or prefix caches where there are none.
    Source: cache-aware with its three thresholds: SGLang model gateway's documented defaults (0.3, 64, 1.5).
    """

    def __init__(self, name: str, groups: Sequence[Sequence[Replica]], work: ServeWorkload, seed: int) -> None:
        if name not in ROUTERS:
            raise BadInput(f"router={name!r} is not known; legal: {', '.join(ROUTERS)}")
        if name == "prefix-hash" and not len(work.block_starts):
            raise BadInput("router=prefix-hash needs prompt blocks, and the workload names none; use a trace with hash_ids")
        if name == "cache-aware" and any(group[0].store is None for group in groups):
            raise BadInput("router=cache-aware follows prefix caches, and they are off; turn the prefix cache on or take another router")
        self.name, self.groups, self.work = name, groups, work
        self.extra = [0] * len(groups)
        self._draw = Random(seed)
        self._turn = 0

    def load(self, i: int) -> int:
        """Requests at or on their way to group ``i``."""
        return sum(replica.n_outstanding for replica in self.groups[i]) + self.extra[i]

    def pick(self, request: int, among: Sequence[int] | range) -> int:
        """The group that gets ``request``."""
        if len(among) == 1:
            return among[0]
        if self.name == "round-robin":
            self._turn += 1
            return among[(self._turn - 1) % len(among)]
        if self.name == "random":
            return among[self._draw.randrange(len(among))]
        if self.name == "prefix-hash":
            return among[self._first_block(request) * 0x9E3779B97F4A7C15 % 2**64 * len(among) >> 64]
        if self.name == "least-outstanding":
            return min(among, key=self.load)
        if self.name == "power-of-two":
            one, two = sorted(self._draw.sample(range(len(among)), 2))
            return min(among[one], among[two], key=self.load)
        if self.name == "kv-aware":
            return max(among, key=self._room)
        return self._cache_aware(request, among)

    def _cache_aware(self, request: int, among: Sequence[int]) -> int:
        loads = {i: self.load(i) for i in among}
        low, high = min(loads.values()), max(loads.values())
        if high - low > MOST_MORE and high > MOST_TIMES * low:
            return min(among, key=loads.__getitem__)
        cached = {i: self.groups[i][0].peek(request) for i in among}
        best = max(among, key=cached.__getitem__)
        if cached[best] >= MATCH_FRAC * self.groups[best][0].r.prompt[request]:
            return best
        return max(among, key=self._room)

    def _room(self, i: int) -> int:
        return min(replica.free for replica in self.groups[i]) - sum(replica.queued_blocks() for replica in self.groups[i])

    def _first_block(self, request: int) -> int:
        start, end = self.work.block_starts[request], self.work.block_starts[request + 1]
        return int(self.work.block_ids[start]) if end > start else request
