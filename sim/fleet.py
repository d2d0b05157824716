"""Replicas that play between the events of a SimPy clock: arrivals, transfers, clients and scaling are its processes, steps are not."""

from __future__ import annotations

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any

import simpy

from .engine import NEVER, Replica
from .requests import Requests

Process = Generator[simpy.Event, Any, None]
Finished = Callable[[int, int, int, int], None]
"""Called with (replica, request, time of its finish, time its last step took), in ps, before the clock reaches that time."""


class Fleet:
    """Replicas and a SimPy environment whose clock counts whole picoseconds.

    Before an event at ``t`` all steps that start before ``t`` are played, so an event sees a step under way as done and what it submits
    can join the step that starts at ``t``. Nobody watching, replicas act on each other through events alone, and each plays on by itself
    to the next event. Once finishes are watched each may cause an event: replicas then play in order of their steps' starts, one never
    past the start of another, and pause at each finish, which makes the order exact.
    """

    def __init__(self, requests: Requests, replicas: list[Replica]) -> None:
        self.env = simpy.Environment(initial_time=0)
        self.requests, self.replicas = requests, replicas
        self._busy: list[tuple[int, int]] = []
        self._queued = [False] * len(replicas)
        self._finished: Finished | None = None

    def watch(self, finished: Finished) -> None:
        """Hear of every finish from now on."""
        self._finished = finished
        for replica in self.replicas:
            replica.seen = []

    @property
    def now(self) -> int:
        return int(self.env.now)

    def at(self, time: int, action: Callable[..., object], *values: Any) -> None:
        """Do something at a time (ps) that is not past."""
        event = self.env.timeout(time - self.env.now)
        assert event.callbacks is not None
        event.callbacks.append(lambda _: action(*values))

    def submit(self, request: int, i: int) -> bool:
        """Give replica ``i`` a request that is ready now; False when it can never hold it."""
        accepted = self.replicas[i].submit(request)
        if accepted:
            self.wake(i)
        return accepted

    def wake(self, i: int) -> None:
        """Replica ``i`` may have something to do from now on."""
        replica = self.replicas[i]
        if replica.n_outstanding and not self._queued[i]:
            replica.now = max(replica.now, self.now)
            self._queue(i, replica.now)

    def run(self) -> None:
        """Play until no event is left and every replica is idle."""
        env, busy = self.env, self._busy
        play = self._in_order if self._finished else self._apart
        while True:
            at = env.peek()
            if busy and busy[0][0] < at:
                play(NEVER if at == float("inf") else int(at))
            elif at == float("inf"):
                return
            else:
                env.step()

    def _apart(self, at: int) -> None:
        """Every replica by itself up to the next event."""
        busy = self._busy
        while busy and busy[0][0] < at:
            start, i = heappop(busy)
            self.replicas[i].run(at)
            self._requeue(i, start)

    def _in_order(self, at: int) -> None:
        """The replica whose step starts first, up to where another might act on it or the next event."""
        busy = self._busy
        start, i = heappop(busy)
        replica = self.replicas[i]
        replica.run(min(at, max(busy[0][0], start + 1)) if busy else at)
        self._requeue(i, start)
        if replica.seen:
            assert self._finished is not None
            ended, replica.seen = replica.seen, []
            for request, step_ps in ended:
                self._finished(i, request, replica.now, step_ps)

    def _requeue(self, i: int, start: int) -> None:
        """Next turn of a replica that just had one: its next step, or when KV it waits for lands; none while it lacks room."""
        replica = self.replicas[i]
        self._queued[i] = False
        if not replica.n_outstanding:
            return
        if replica.now > start:
            self._queue(i, replica.now)
        elif replica.loading:
            self._queue(i, replica.loading[0][0])

    def _queue(self, i: int, start: int) -> None:
        self._queued[i] = True
        heappush(self._busy, (start, i))
