"""Replicas that each prefill and decode, behind a router."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .fleet import Fleet
from .router import Router


class Pooled:
    """A pool of which the replicas ``among`` take requests."""

    def __init__(self, fleet: Fleet, router: Router, *, watches: bool = False) -> None:
        self.fleet, self.router, self.watches = fleet, router, watches
        self.among: Sequence[int] = range(len(fleet.replicas))
        self.answered: Callable[[int], None] | None = None

    def dispatch(self, q: int) -> bool:
        """Give a ready request to the replica the router picks."""
        return self.fleet.submit(q, self.router.pick(q, self.among))

    def finished(self, i: int, q: int, at: int, step_ps: int) -> None:
        """Pass the news on to whoever waits for the answer."""
        if self.answered is not None:
            self.answered(at)
