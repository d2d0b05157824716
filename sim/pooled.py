"""Replicas that each prefill and decode, behind a router."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .fleet import Fleet
from .router import OF_KV, STATELESS, Router


class Pooled:
    """A pool of which the replicas ``among`` take requests; ``in_order`` where they act on each other (KV tiers they share)."""

    def __init__(self, fleet: Fleet, router: Router, *, in_order: bool = False) -> None:
        self.fleet, self.router, self.in_order = fleet, router, in_order
        self.n_dispatched = 0
        self.among: Sequence[int] = range(len(fleet.replicas))
        self.needs_state = router.name not in STATELESS
        self.answered: Callable[[int], None] | None = None

    def listen(self) -> None:
        """Hear of every finish if somebody waits for answers."""
        self.fleet.hear(self._finished)
        if self.in_order or self.answered is not None:
            self.fleet.watch(range(len(self.fleet.replicas)))

    def dispatch(self, q: int) -> bool:
        """Give a ready request to the replica the router picks."""
        self.n_dispatched += 1
        if self.needs_state:
            self.fleet.catch_up()
        if self.router.name in OF_KV:
            for i in self.among:
                self.fleet.catch_up(i)
        return self.fleet.submit(q, self.router.pick(q, self.among))

    def _finished(self, i: int, q: int, at: int, step_ps: int) -> None:
        if self.answered is not None:
            self.answered(at)
