"""Replicas that play between the events of a SimPy clock: arrivals, transfers, clients and scaling are its events, steps are not."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

import simpy

from .clock import NEVER, Clock
from .engine import Replica
from .foresight import Foresight
from .requests import Requests

Process = Generator[simpy.Event, Any, None]
Finished = Callable[[int, int, int, int], None]
"""Called with (replica, request, time of its finish, time its last step took), in ps, before the clock reaches that time."""


class Fleet:
    """Replicas and the events between them, on a clock of whole picoseconds; events of one time happen in the order in which they were set.

    What one replica does can matter to others only through its finishes. A replica whose finishes nobody hears plays on by itself; it is
    brought up to the clock when its state is asked for, as far as that can have changed, and at the end. Replicas whose finishes are
    watched may cause an event at each: before an event at ``t`` all their finishes in steps that start before ``t`` are played, in order
    of those starts, none past one that may cause an event, with a pause at each. So an event sees a step under way as done, and what it
    submits can join the step that starts at ``t``. ``load`` counts each replica's requests, those promised to it by whoever hands them over
    later too, as far as it has been played.
    """

    def __init__(self, requests: Requests, replicas: list[Replica]) -> None:
        self.env = Clock()
        self.at = self.env.call
        self.now = 0
        self.requests, self.replicas = requests, replicas
        self.load = [0] * len(replicas)
        self._watched = [False] * len(replicas)
        self._turn = [NEVER] * len(replicas)
        self._stalled = [False] * len(replicas)
        self._foresight: list[Foresight | None] = [None] * len(replicas)
        self._ordered: list[tuple[int, int]] = []
        self._apart: Sequence[int] = range(len(replicas))
        self._finished: Finished | None = None
        self._tell_stalled: Callable[[int], None] | None = None

    def hear(self, finished: Finished, stalled: Callable[[int], None] | None = None) -> None:
        """Who is told of the finishes of watched replicas, and of replicas that begin to lack room for all they could do next."""
        self._finished, self._tell_stalled = finished, stalled

    def watch(self, which: Sequence[int], on: bool = True) -> None:
        """Hear, or no longer hear, of the finishes of these replicas, from now on."""
        for i in which:
            self._watched[i] = on
            self.replicas[i].seen = [] if on else None
        turns, watched = enumerate(self._turn), self._watched
        self._ordered[:] = [(turn, i) for i, turn in turns if watched[i] and turn < NEVER]
        self._apart = [i for i, on in enumerate(watched) if not on]
        heapify(self._ordered)

    def foresee(self, which: Sequence[int]) -> None:
        """Play these watched replicas ahead where that is sure: they hold their prompts, and have been given all they will ever be."""
        for i in which:
            replica = self.replicas[i]
            if type(replica) is Replica and replica.store is None and replica.log is None:
                self._foresight[i] = Foresight(replica)

    def submit(self, request: int, i: int) -> bool:
        """Give replica ``i`` a request, ready now or later than all it was given; False when it can never hold it."""
        replica = self.replicas[i]
        if not replica.submit(request):
            return False
        self.load[i] += 1
        start, now = self.requests.ready[request], replica.now
        if start < self._turn[i]:
            self._queue(i, start if start > now else now)
        return True

    def wake(self, i: int) -> None:
        """Replica ``i`` may be able to do something from now on that it was not: it was given work, or room."""
        replica, now = self.replicas[i], self.now
        start = replica.now if replica.now > now else now
        if start < self._turn[i] and replica.n_outstanding:
            self._queue(i, start if replica.n or _at_work(replica) else max(start, _next_news(replica)))

    def let_go(self, i: int, request: int) -> None:
        """Replica ``i`` lets go of the KV of a prompt that it held."""
        self.replicas[i].let_go(request)
        foresight = self._foresight[i]
        if foresight is not None:
            foresight.freed(request)
            if foresight.told:
                return
        self.wake(i)

    def catch_up(self, i: int = -1) -> None:
        """Bring all replicas' numbers of requests up to now; with ``i`` all there is to know of that one."""
        if i < 0:
            self._play_apart(self.now)
        elif self.replicas[i].now < self.now and self._turn[i] < NEVER:
            self._play(i, self.now)

    def run(self) -> None:
        """Play until no event is left and every replica is idle."""
        env, events, turns = self.env, self.env.calls, self._ordered
        while True:
            at = events[0][0] if events else NEVER
            if turns and turns[0][0] < at:
                self._play_first(at)
            elif events:
                self.now = at
                env.step()
            else:
                break
        self._play_apart(NEVER)

    def _play_apart(self, at: int) -> None:
        turn = self._turn
        for i in self._apart:
            while turn[i] < at:
                self._play(i, at)

    def _play_first(self, at: int) -> None:
        """The watched replica whose step starts first, up to where another might act on it, or the next event."""
        turns = self._ordered
        start, i = turns[0]
        if self._turn[i] != start:
            heappop(turns)  # it was given an earlier one since
            return
        foresight = self._foresight[i]
        if foresight is not None and not self._stalled[i] and (foresight.told or foresight.look()):
            self._tell(i, foresight)
            return
        heappop(turns)
        self._play(i, min(at, max(turns[0][0], start + 1)) if turns else at)
        replica = self.replicas[i]
        if replica.seen:
            assert self._finished is not None
            ended, replica.seen = replica.seen, []
            for request, step_ps in ended:
                self._finished(i, request, replica.now, step_ps)

    def _tell(self, i: int, foresight: Foresight) -> None:
        """The turn of a step that was played ahead."""
        assert self._finished is not None
        told, replica = foresight.told, self.replicas[i]
        _, ended = told.popleft()
        self.load[i] -= len(ended)
        for request, end, step_ps in ended:
            self._finished(i, request, end, step_ps)
        if told or replica.n_outstanding:
            at = told[0][0] if told else replica.now if _at_work(replica) else max(replica.now, _next_news(replica))
            self._turn[i] = at
            heapreplace(self._ordered, (at, i))
        else:
            self._turn[i] = NEVER
            heappop(self._ordered)

    def _play(self, i: int, until: int) -> None:
        """Play a replica's turn and give it the next: when something may change next; none while it lacks room."""
        replica = self.replicas[i]
        if self._stalled[i] and replica.now < self._turn[i]:
            replica.now = self._turn[i]
        self._turn[i] = NEVER
        before, had = replica.now, replica.n_outstanding
        replica.run(until)
        left = replica.n_outstanding
        if left != had:
            self.load[i] += left - had
        if not left:
            return
        moved = replica.now > before or replica.stirs() > replica.now
        if replica.n or _at_work(replica):
            if moved:
                self._stalled[i] = False
                self._turn[i] = at = quiet_until(replica)
                if self._watched[i]:
                    heappush(self._ordered, (at, i))
                return
            if not self._stalled[i] and self._tell_stalled is not None:
                self._tell_stalled(i)
            self._stalled[i] = True
        else:
            self._stalled[i] = False
        news = _next_news(replica)
        if news >= until or moved:  # else it lacks room, and whoever makes some will wake it
            self._queue(i, max(news, replica.now))

    def _queue(self, i: int, start: int) -> None:
        if start < self._turn[i]:
            self._turn[i] = start
            if self._watched[i]:
                heappush(self._ordered, (start, i))


def quiet_until(replica: Replica) -> int:
    """A time (ps) up to which no request starts, ends or is preempted on a replica that is given none: it only decodes to its next finish.

    That is the start of the step with that finish. Its present time where more than that goes on or KV may run short. A pipeline's next
    event, and no request starts or ends on it before.
    """
    now, heap, n = replica.now, replica.heap, replica.n
    if type(replica) is not Replica:
        return max(now, min(replica.stirs(), _next_news(replica)))
    if not heap or replica.part >= 0:
        return now
    rows, times = n + replica.pad, replica.tables
    steps = (heap[0] >> replica.bits) - replica.k - 1
    if (replica.waiting or replica.landed) and rows < replica.max_seqs:
        return now
    if most_growth(replica) > replica.free:
        return now
    fixed, slope = times[0][rows] + times[1][rows], times[2][n]
    at = now + steps * fixed + slope * (steps * replica.kv + n * (steps * (steps + 1) >> 1))
    if replica.loading or replica.next_pending < len(replica.pending):
        at = min(at, _next_news(replica))
    return at if at > now else now


def most_growth(replica: Replica) -> int:
    """At most so many KV blocks do the decoding requests take before the next of them finishes."""
    if replica.policy.reserve_output or not replica.heap:
        return 0
    return replica.n * (2 + ((replica.heap[0] >> replica.bits) - replica.k) // replica.block)


def _at_work(replica: Replica) -> bool:
    """Whether requests have reached the replica's queue or batch: more than those still to come and those whose KV is on its way."""
    return replica.n_outstanding > len(replica.pending) - replica.next_pending + len(replica.loading)


def _next_news(replica: Replica) -> int:
    """When the next request or the KV of one reaches a replica, in ps; NEVER if nothing is on its way."""
    at = replica.loading[0][0] if replica.loading else NEVER
    if replica.next_pending < len(replica.pending):
        at = min(at, replica.r.ready[replica.pending[replica.next_pending]])
    return at
