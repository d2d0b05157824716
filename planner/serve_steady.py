"""Which candidates are best at a given load: so many clients, or a rate whose latency is to be least."""

from __future__ import annotations

import math

from ..scenarios.units import show_number
from .serve_ask import ServeAsk
from .serve_kinds import Candidate
from .serve_play import Played, Player
from .serve_race import MAX_SPENT, Family, family

Fleet = tuple[int, int]
"""Which candidate, and how many copies of it."""


class Steady:
    """Plays each (candidate, copies) once at its share of the load, best bound first; a bound behind the best seen is never played.

    Scores are better when higher: requests/s, or requests/s per GPU, or less the mean latency, as the objective says. With nothing said
    about the load one client asks at a time.
    """

    def __init__(self, ask: ServeAsk, player: Player, found: list[Candidate], top: int) -> None:
        self.ask, self.player, self.found, self.top = ask, player, found, top
        self.clients = ask.concurrency or (0 if ask.rate_per_s else 1)
        self.played: dict[Fleet, Played] = {}
        self.fleets = [(i, n) for i, c in enumerate(found) for n in self._copies(c)]

    def _copies(self, candidate: Candidate) -> list[int]:
        most = min(self.ask.cluster.n_gpus // candidate.n_gpus, self.clients or self.ask.cluster.n_gpus)
        if self.ask.objective != "cost":
            return [most]
        return sorted({most, *(2**k for k in range(most.bit_length()) if 2**k <= most)})

    def hope(self, fleet: Fleet) -> float:
        """No score can be higher: Little's law with the least latency, and the replicas' own bounds."""
        candidate, copies = self.found[fleet[0]], fleet[1]
        if self.ask.objective == "latency":
            return -candidate.e2e_s if self._carries(fleet) else -math.inf
        rate = min(copies * candidate.bound_per_s, self.clients / candidate.e2e_s)
        return rate / (copies * candidate.n_gpus) if self.ask.objective == "cost" else rate

    def _carries(self, fleet: Fleet) -> bool:
        return fleet[1] * self.found[fleet[0]].bound_per_s >= self.ask.rate_per_s

    def score(self, fleet: Fleet) -> float:
        """What was seen, as the objective counts it; minus infinity when a promise was broken."""
        played = self.played[fleet]
        if played.seen is None or not played.goodput_per_s:
            return -math.inf
        if self.ask.objective == "latency":
            return -played.seen.e2e_s
        rate = played.goodput_per_s * fleet[1]
        return rate / (fleet[1] * played.candidate.n_gpus) if self.ask.objective == "cost" else rate

    def run(self) -> None:
        """Play until no hope is over the best of ``top`` seen, or the search has spent its share of simulated requests."""
        for fleet in sorted(self.fleets, key=lambda f: (-self.hope(f), f)):
            if self.player.spent > MAX_SPENT or self.hope(fleet) == -math.inf:
                break
            best = sorted(self._by_family().values(), reverse=True)
            if len(best) >= self.top and self.hope(fleet) <= best[self.top - 1]:
                break
            self._play(fleet)

    def _play(self, fleet: Fleet) -> None:
        candidate, copies = self.found[fleet[0]], fleet[1]
        if self.clients:
            seen = self.player.closed(candidate, copies, -(-self.clients // copies))
        else:
            seen = self.player.seen(candidate, copies, self.ask.rate_per_s / copies, full=True)
        self.played[fleet] = Played(
            candidate=candidate, goodput_per_s=0.0 if seen.failed else seen.rate_per_s, upper_per_s=seen.rate_per_s, seen=seen,
            limit=seen.failed or "load", memory=candidate.serve.model.memory, confirmed=True,
        )  # fmt: skip

    def _by_family(self) -> dict[Family, float]:
        found: dict[Family, float] = {}
        for fleet in self.played:
            name, score = family(self.found[fleet[0]]), self.score(fleet)
            if score > -math.inf:
                found[name] = max(found.get(name, -math.inf), score)
        return found

    def exact(self) -> list[tuple[Played, int]]:
        """The best of each family that keeps the promises with its copies, best first; of equals the one on fewer GPUs."""
        chosen: dict[Family, Fleet] = {}
        for fleet in self.played:
            name = family(self.found[fleet[0]])
            if self.score(fleet) > -math.inf and (name not in chosen or self.score(fleet) > self.score(chosen[name])):
                chosen[name] = fleet
        order = sorted(chosen.values(), key=lambda f: (-self.score(f), f[1] * self.found[f[0]].n_gpus))
        return [(self.played[f], f[1]) for f in order]

    def proved(self) -> tuple[float, float]:
        """(most requests/s any fleet may carry, how far the best seen is from the best hope that was not played)."""
        most = max((f[1] * self.found[f[0]].bound_per_s for f in self.fleets), default=0.0)
        best = max(self._by_family().values(), default=-math.inf)
        hope = max((self.hope(f) for f in self.fleets if f not in self.played), default=-math.inf)
        if best == -math.inf:
            return most, 1.0 if hope > -math.inf else 0.0
        return most, max((best / hope if self.ask.objective == "latency" else hope / best) - 1, 0.0) if hope > best else 0.0

    def dropped(self) -> dict[str, list[str]]:
        """Why the rest fell: a hope behind what was seen, a worse score, a broken promise, or too little capacity for the rate."""
        out: dict[str, list[str]] = {}
        shown = {id(p.candidate) for p, _ in self.exact()[: self.top]}
        best = max(self._by_family().values(), default=-math.inf)
        for fleet in self.fleets:
            c = self.found[fleet[0]]
            text = f"{fleet[1]} x ({c.describe()})"
            if self.hope(fleet) == -math.inf:
                out.setdefault("rate", []).append(f"{text}: at most {show_number(fleet[1] * c.bound_per_s)} requests/s")
            elif fleet not in self.played:
                reason = "bound" if self.hope(fleet) <= best else "unplayed"
                out.setdefault(reason, []).append(f"{text}: no less than {show_number(c.e2e_s)} s a request")
            elif self.score(fleet) == -math.inf:
                out.setdefault("promises", []).append(f"{text}: {self.played[fleet].limit} is missed")
            elif id(c) not in shown:
                out.setdefault("slower", []).append(f"{text}: {show_number(self.played[fleet].goodput_per_s * fleet[1])} requests/s")
        return out
