"""Named links that transfers share by max-min fairness: every transfer gets what its tightest link can give it, and no link is overfull."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from ..scenarios.errors import BadInput

Path = tuple[tuple[int, float], ...]
"""Links a transfer crosses, each with the share of its bytes that goes over it."""


@dataclass(slots=True)
class _Flow:
    """One transfer: its path, its own ceiling, bytes left at time ``since``, its present rate, and how often it was re-timed."""

    path: Path
    ceiling: float
    left: float
    since: float
    rate: float = 0.0
    version: int = 0


class FairLinks:
    """Transfers over links of given bytes per second, by progressive filling.

    All transfers' rates rise together until a link is full (``Σ share·rate = bytes_per_s``) or a transfer is at its own ceiling; those
    stop, the others rise on. The result is the one allocation in which no rate can grow without taking from a smaller one. A start or an
    end can only change rates of transfers joined to it by shared links; those are settled and re-timed. Raises BadInput for a link
    without bandwidth. Source: Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2.
    """

    def __init__(self, names: list[str], bytes_per_s: list[float]) -> None:
        for name, rate in zip(names, bytes_per_s, strict=True):
            if not 0 < rate < float("inf"):
                raise BadInput(f"link {name} of {rate} bytes/s: the rate must be more than 0 and finite")
        self.names, self.bytes_per_s = names, bytes_per_s
        self.carried = [0.0] * len(names)
        self._on: list[dict[int, float]] = [{} for _ in names]
        self._flows: dict[int, _Flow] = {}
        self._ends: list[tuple[float, int, int]] = []

    def start(self, transfer: int, n_bytes: float, path: Path, at: float, ceiling: float = float("inf")) -> None:
        """Begin to send ``n_bytes``; ``at`` (seconds) must not lie before the last event."""
        self._flows[transfer] = _Flow(path=path, ceiling=ceiling, left=n_bytes, since=at)
        alone = True
        for link, share in path:
            alone = alone and not self._on[link]
            self._on[link][transfer] = share
            self.carried[link] += n_bytes * share
        if alone:
            self._retime(transfer, self._most(transfer), at)
        else:
            self._share(path, at)

    def next_end(self) -> tuple[float, int]:
        """(time, transfer) of the one that ends first at the present rates; (inf, -1) when none runs. Ties go to the lowest id."""
        while self._ends:
            at, transfer, version = self._ends[0]
            flow = self._flows.get(transfer)
            if flow is not None and flow.version == version:
                return at, transfer
            heappop(self._ends)
        return float("inf"), -1

    def end(self, transfer: int, at: float) -> None:
        """Take a finished transfer off its links."""
        path = self._flows.pop(transfer).path
        for link, _ in path:
            del self._on[link][transfer]
        self._share(path, at)

    def rate(self, transfer: int) -> float:
        """Bytes a second at which a transfer runs now."""
        return self._flows[transfer].rate

    def _share(self, path: Path, at: float) -> None:
        """Rates anew for every transfer joined to ``path`` by shared links."""
        flows, on = self._flows, self._on
        links = dict.fromkeys(link for link, _ in path)
        touched: dict[int, None] = {}
        todo = list(links)
        while todo:
            for transfer in on[todo.pop()]:
                if transfer not in touched:
                    touched[transfer] = None
                    for link, _ in flows[transfer].path:
                        if link not in links:
                            links[link] = None
                            todo.append(link)
        if not touched:
            return
        rates = self._fill(touched, links) if len(touched) > 1 else {transfer: self._most(transfer) for transfer in touched}
        for transfer, rate in rates.items():
            if rate != flows[transfer].rate:
                self._retime(transfer, rate, at)

    def _retime(self, transfer: int, rate: float, at: float) -> None:
        flow = self._flows[transfer]
        flow.left = max(flow.left - (at - flow.since) * flow.rate, 0.0)
        flow.since, flow.rate = at, rate
        flow.version += 1
        heappush(self._ends, (at + flow.left / rate, transfer, flow.version))

    def _most(self, transfer: int) -> float:
        """Rate of a transfer that has its links to itself."""
        flow = self._flows[transfer]
        return min([flow.ceiling, *[self.bytes_per_s[link] / share for link, share in flow.path]])

    def _fill(self, touched: dict[int, None], links: dict[int, None]) -> dict[int, float]:
        """Progressive filling over one group of joined transfers."""
        flows, on = self._flows, self._on
        room = {link: self.bytes_per_s[link] for link in links if on[link]}
        rising = {link: sum(on[link].values()) for link in room}
        ceilings = sorted((flows[t].ceiling, t) for t in touched)
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
                stop = [t for t in on[tightest] if t not in found]
            for transfer in stop:
                found[transfer] = level
                for link, share in flows[transfer].path:
                    room[link] = max(room[link] - level * share, 0.0)
                    rising[link] -= share
            if tightest >= 0 and stop and all(t in found for t in on[tightest]):
                rising[tightest] = 0.0
        return found
