"""Prefill replicas played ahead of the clock, as far as their KV pools surely have room: until then what they do depends on nobody."""

from __future__ import annotations

from collections import deque

from .clock import NEVER
from .engine import Replica

Ended = tuple[int, int, int]
"""A request that ended with its prompt, when, and how long its last step took, in ps."""


class Foresight:
    """A replica that was given all its requests and keeps the KV of each prompt until told to let go, played ahead of the clock.

    What others do to it is to let go of KV. That matters only if it ever lacks room, and it cannot before the first request is ready that
    would overfill the pool together with all those before it, those let go by now left out. So it is played to there at once, and each step
    is told when the clock gets to it: ``told`` holds (start, requests that end with the step).
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.told: deque[tuple[int, list[Ended]]] = deque()
        self._room, self._sure = replica.blocks, 0

    def freed(self, request: int) -> None:
        """The replica let go of this request's prompt."""
        self._room += self._blocks(request)

    def look(self) -> bool:
        """Play the replica ahead; False if that is not sure to go by itself for a step."""
        replica = self.replica
        replica.ahead = []
        replica.run(self._horizon())
        steps: dict[int, list[Ended]] = {start: [] for start in replica.ahead}
        replica.ahead = None
        if replica.seen:
            finish = replica.r.finish
            for request, step_ps in replica.seen:
                end = finish[request]
                steps[end - step_ps].append((request, end, step_ps))
            replica.seen = []
        self.told.extend(steps.items())
        return bool(steps)

    def _horizon(self) -> int:
        """When the first request is ready for which there may be no room, in ps."""
        pending, ready = self.replica.pending, self.replica.r.ready
        while self._sure < len(pending):
            blocks = self._blocks(pending[self._sure])
            if blocks > self._room:
                return ready[pending[self._sure]]
            self._room -= blocks
            self._sure += 1
        return NEVER

    def _blocks(self, request: int) -> int:
        return -(-self.replica.r.prompt[request] // self.replica.block)
