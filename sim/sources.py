"""Where requests come from: the workload's arrival times, or clients that wait for their answers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

from ..costmodels.step_times import PS
from ..scenarios.clients import Clients
from .fleet import Fleet, Process


class Sink(Protocol):
    """What serves the requests of a fleet."""

    answered: Callable[[int], None] | None
    """Called with the time (ps, not past) at which a request's last token leaves."""
    needs_state: bool
    """Whether where a request goes depends on what the fleet is doing when it is ready."""

    def listen(self) -> None:
        """Have the fleet tell of the finishes that matter; clients are known by now."""

    def dispatch(self, q: int) -> bool:
        """Take a request that is ready now; False when it can never be served."""


def play(fleet: Fleet, sink: Sink, clients: Clients | None, delay_ps: int, seed: int) -> None:
    """Play the fleet's requests to the end: at their arrival times, or sent by ``clients`` (ready ``delay_ps`` later)."""
    if clients is not None:
        sink.answered = _ClosedLoop(fleet, clients, sink.dispatch, delay_ps, seed).answered
    elif sink.needs_state:
        fleet.env.process(_open_loop(fleet, sink.dispatch))
    else:
        for q in range(len(fleet.requests)):
            sink.dispatch(q)
    sink.listen()
    fleet.run()


def _open_loop(fleet: Fleet, dispatch: Callable[[int], bool]) -> Process:
    """Hands over each request when it is ready."""
    env, ready = fleet.env, fleet.requests.ready
    for q in range(len(ready)):
        wait = ready[q] - env.now
        if wait > 0:
            yield env.timeout(wait)
        dispatch(q)


class _ClosedLoop:
    """Clients over one queue of requests: whoever is free sends the next one. Arrival times of the workload do not count.

    A request's arrival is when it was sent; it is ready ``delay_ps`` later. A rejected one counts as answered at once.
    """

    def __init__(self, fleet: Fleet, clients: Clients, dispatch: Callable[[int], bool], delay_ps: int, seed: int) -> None:
        self.fleet, self.clients, self.dispatch, self.delay_ps = fleet, clients, dispatch, delay_ps
        self._draw = Random(seed)
        self._next = 0
        for i in range(min(clients.n_clients, len(fleet.requests))):
            fleet.at(round(clients.ramp_s * PS * i / clients.n_clients), self._send)

    def answered(self, time: int) -> None:
        """A request's last token leaves at ``time`` (ps, not past): its client thinks, then sends the next."""
        mean = self.clients.think_s
        think_s = self._draw.expovariate(1 / mean) if self.clients.random_think and mean else mean
        self.fleet.at(time + round(think_s * PS), self._send)

    def _send(self) -> None:
        requests = self.fleet.requests
        if self._next == len(requests):
            return
        q, self._next = self._next, self._next + 1
        requests.arrival[q] = self.fleet.now
        requests.ready[q] = self.fleet.now + self.delay_ps
        if self.delay_ps:
            self.fleet.at(requests.ready[q], self._hand_over, q)
        else:
            self._hand_over(q)

    def _hand_over(self, q: int) -> None:
        if not self.dispatch(q):
            self.answered(self.fleet.now)
