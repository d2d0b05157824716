"""A pool of replicas that grows with its load and shrinks when the load has gone, as a horizontal pod autoscaler does."""

from __future__ import annotations

from collections import deque

from ..costmodels.step_times import PS
from ..scenarios.serving_parts import Autoscale
from .fleet import Fleet, Process
from .pooled import Pooled


class Autoscaler:
    """Every ``interval_s`` it wants ``ceil(outstanding / target_requests)`` replicas, from the least to the most allowed.

    Too few: draining replicas are taken back at once, others asked for serve ``provision_s`` later. Too many: the pool shrinks to the
    most it wanted within the last ``cooldown_s``; those on their way are given up first, then the replicas with fewest requests take no
    more and are let go when the last is done. A replica is paid for from when it was asked for until it was let go. The pool starts at its
    least. Source: Kubernetes, Horizontal Pod Autoscaling, algorithm details and downscale stabilisation.
    """

    def __init__(self, fleet: Fleet, pool: Pooled, spec: Autoscale) -> None:
        self.fleet, self.pool, self.spec = fleet, pool, spec
        self.serving = list(range(spec.min_replicas))
        self.coming: list[int] = []
        self.draining: dict[int, int] = {}
        self.off = list(range(spec.min_replicas, spec.max_replicas))
        self.paid_from = dict.fromkeys(self.serving, 0)
        self.paid: list[tuple[int, int]] = []
        self._wanted: deque[tuple[int, int]] = deque()
        pool.among, pool.needs_state = self.serving, True
        fleet.env.process(self._run())

    def _run(self) -> Process:
        spec, fleet = self.spec, self.fleet
        while True:
            yield fleet.env.timeout(round(spec.interval_s * PS))
            fleet.catch_up()
            self._release()
            outstanding = sum(replica.n_outstanding for replica in fleet.replicas)
            if not outstanding and self.pool.n_dispatched == len(fleet.requests):
                return
            self._aim(min(max(-(-outstanding // spec.target_requests), spec.min_replicas), spec.max_replicas))

    def _aim(self, wanted: int) -> None:
        """Grow to what is wanted now, or shrink to the most that was wanted within the cooldown."""
        now = self.fleet.now
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - round(self.spec.cooldown_s * PS):
            self._wanted.popleft()
        have = len(self.serving) + len(self.coming)
        for _ in range(wanted - have):
            if self.draining:
                self.serving.append(self.draining.popitem()[0])
            else:
                i = self.off.pop(0)
                self.paid_from[i] = now
                self.coming.append(i)
                self.fleet.at(now + round(self.spec.provision_s * PS), self._arrive, i, now)
        for _ in range(have - max(most for _, most in self._wanted)):
            if self.coming:
                self._stop(self.coming.pop(), now)
            else:
                i = min(self.serving, key=lambda i: (self.fleet.replicas[i].n_outstanding, -i))
                self.serving.remove(i)
                self.draining[i] = now
        self._release()

    def _arrive(self, i: int, asked: int) -> None:
        """A replica is ready, unless it was given up since it was asked for."""
        if i in self.coming and self.paid_from[i] == asked:
            self.coming.remove(i)
            self.serving.append(i)

    def _release(self) -> None:
        for i in [i for i in self.draining if not self.fleet.replicas[i].n_outstanding]:
            idle_since = max(self.fleet.replicas[i].now, self.draining.pop(i))
            self._stop(i, min(idle_since, self.fleet.now))

    def _stop(self, i: int, at: int) -> None:
        self.paid.append((self.paid_from.pop(i), at))
        self.off.append(i)

    def bill(self, end: int) -> tuple[float, tuple[tuple[float, int], ...]]:
        """(replica-seconds paid for until ``end``, the moments at which the number paid for changed as (s, replicas))."""
        spans = [*self.paid, *((since, end) for since in self.paid_from.values())]
        spans = [(start, min(stop, end)) for start, stop in spans if start < end]
        change: dict[int, int] = {}
        for start, stop in spans:
            change[start] = change.get(start, 0) + 1
            change[stop] = change.get(stop, 0) - 1
        steps, n = [], 0
        for at in sorted(change):
            n += change[at]
            if change[at] and at < end:
                steps.append((at / PS, n))
        return sum(stop - start for start, stop in spans) / PS, tuple(steps)
