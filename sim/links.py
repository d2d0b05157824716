"""Named links that transfers share by max-min fairness: every transfer gets what its tightest link can give it, and no link is overfull."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from ..scenarios.errors import BadInput

Path = tuple[tuple[int, float], ...]
"""Links a transfer crosses, each with the share of its bytes that goes over it."""


@dataclass(slots=True)
class _Lane:
    """Transfers of one path and ceiling, which always run at one rate: what each has sent since the lane was empty, at time ``since``.

    ``uses`` has (lanes on the link with their shares, link, own share) for each of its links. ``goals`` is a heap of (bytes sent at which
    one is done, transfer); ``n`` counts those that run, ``version`` how often it was re-timed; ``alone`` has the rate of so many transfers
    while the lane has its links to itself.
    """

    path: Path
    ceiling: float
    uses: tuple[tuple[dict[int, float], int, float], ...]
    sent: float = 0.0
    since: float = 0.0
    rate: float = 0.0
    n: int = 0
    version: int = 0
    goals: list[tuple[float, int]] = field(default_factory=list)
    alone: dict[int, float] = field(default_factory=dict)


class FairLinks:
    """Transfers over links of given bytes per second, by progressive filling.

    All transfers' rates rise together until a link is full (``Σ share·rate = bytes_per_s``) or a transfer is at its own ceiling; those
    stop, the others rise on. The result is the one allocation in which no rate can grow without taking from a smaller one. Transfers of
    one path and ceiling have one rate and are re-timed as one. A start or an end can only change rates of transfers joined to it by
    shared links. Raises BadInput for a link without bandwidth. Source: Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2.
    """

    def __init__(self, names: list[str], bytes_per_s: list[float]) -> None:
        for name, rate in zip(names, bytes_per_s, strict=True):
            if not 0 < rate < float("inf"):
                raise BadInput(f"link {name} of {rate} bytes/s: the rate must be more than 0 and finite")
        self.names, self.bytes_per_s = names, bytes_per_s
        self.carried = [0.0] * len(names)
        self._on: list[dict[int, float]] = [{} for _ in names]
        self._lanes: list[_Lane] = []
        self._lane_of: dict[tuple[Path, float], int] = {}
        self._flows: dict[int, int] = {}
        self._ends: list[tuple[float, int, int, int]] = []

    def start(self, transfer: int, n_bytes: float, path: Path, at: float, ceiling: float = float("inf")) -> None:
        """Begin to send ``n_bytes``; ``at`` (seconds) must not lie before the last event."""
        i = self._lane_of.setdefault((path, ceiling), len(self._lanes))
        if i == len(self._lanes):
            self._lanes.append(_Lane(path, ceiling, tuple((self._on[link], link, share) for link, share in path)))
        lane, carried, alone = self._lanes[i], self.carried, True
        if lane.n:
            self._advance(lane, at)
        else:
            lane.sent, lane.since = 0.0, at
            lane.goals.clear()
        for on, link, share in lane.uses:
            on[i] = share
            if len(on) > 1:
                alone = False
            carried[link] += n_bytes * share
        lane.n += 1
        heappush(lane.goals, (lane.sent + n_bytes, transfer))
        self._flows[transfer] = i
        if alone:
            self._retime(lane, i, self._alone(lane), at)
        else:
            self._share(path, at, i)

    def next_end(self) -> tuple[float, int]:
        """(time, transfer) of the one that ends first at the present rates; (inf, -1) when none runs. Ties go to the lowest id."""
        ends, lanes = self._ends, self._lanes
        while ends:
            at, transfer, i, version = ends[0]
            if lanes[i].version == version:
                return at, transfer
            heappop(ends)
        return float("inf"), -1

    def end(self, transfer: int, at: float) -> None:
        """Take a finished transfer off its links."""
        i = self._flows.pop(transfer)
        lane = self._lanes[i]
        lane.n -= 1
        lane.version += 1
        alone = True
        for on, _, _ in lane.uses:
            if len(on) > 1:
                alone = False
            if not lane.n:
                del on[i]
        if lane.n:
            self._advance(lane, at)
            while lane.goals[0][1] not in self._flows:
                heappop(lane.goals)
            if alone:
                self._retime(lane, i, self._alone(lane), at)
                return
        else:
            lane.rate = 0.0
            if alone:
                return
        self._share(lane.path, at, i)

    def rate(self, transfer: int) -> float:
        """Bytes a second at which a transfer runs now."""
        return self._lanes[self._flows[transfer]].rate

    def _advance(self, lane: _Lane, at: float) -> None:
        lane.sent += (at - lane.since) * lane.rate
        lane.since = at

    def _share(self, path: Path, at: float, changed: int) -> None:
        """Rates anew for every lane joined to ``path`` by shared links; lane ``changed`` is re-timed in any case."""
        lanes, on = self._lanes, self._on
        links: dict[int, None] = {link: None for link, _ in path}
        touched: dict[int, None] = {}
        todo = list(links)
        while todo:
            for i in on[todo.pop()]:
                if i not in touched:
                    touched[i] = None
                    for link, _ in lanes[i].path:
                        if link not in links:
                            links[link] = None
                            todo.append(link)
        for i, rate in (self._fill(touched, links) if len(touched) > 1 else {i: self._alone(lanes[i]) for i in touched}).items():
            if rate != lanes[i].rate or i == changed:
                self._retime(lanes[i], i, rate, at)

    def _retime(self, lane: _Lane, i: int, rate: float, at: float) -> None:
        """Lane ``i`` runs at ``rate`` from now on: when its next transfer ends."""
        if lane.since != at:
            self._advance(lane, at)
        lane.rate = rate
        lane.version = version = lane.version + 1
        goal, transfer = lane.goals[0]
        left = goal - lane.sent
        heappush(self._ends, (at + (left / rate if left > 0.0 else 0.0), transfer, i, version))

    def _alone(self, lane: _Lane) -> float:
        """Rate of the transfers of a lane that has its links to itself."""
        rate = lane.alone.get(lane.n)
        if rate is None:
            rates = [self.bytes_per_s[link] / (share * lane.n) for link, share in lane.path]
            rate = lane.alone[lane.n] = min([lane.ceiling, *rates])
        return rate

    def _fill(self, touched: dict[int, None], links: dict[int, None]) -> dict[int, float]:
        """Progressive filling over one group of joined lanes: the rate of each one's transfers."""
        lanes, on = self._lanes, self._on
        room = {link: self.bytes_per_s[link] for link in links if on[link]}
        rising = {link: sum([share * lanes[i].n for i, share in on[link].items()]) for link in room}
        ceilings = sorted((lanes[i].ceiling, i) for i in touched)
        found: dict[int, float] = {}
        low = 0
        while len(found) < len(touched):
            tightest, level = -1, float("inf")
            for link, shares in rising.items():
                if shares > 1e-12 and room[link] / shares < level:
                    tightest, level = link, room[link] / shares
            while low < len(ceilings) and ceilings[low][1] in found:
                low += 1
            if low < len(ceilings) and ceilings[low][0] <= level:
                level, stop = ceilings[low][0], [ceilings[low][1]]
            else:
                stop = [i for i in on[tightest] if i not in found]
            for i in stop:
                found[i] = level
            if len(found) == len(touched):
                break
            for i in stop:
                for link, share in lanes[i].path:
                    room[link] = max(room[link] - level * share * lanes[i].n, 0.0)
                    rising[link] -= share * lanes[i].n
            if tightest >= 0 and stop and found.keys() >= on[tightest].keys():
                rising[tightest] = 0.0
        return found
