"""Which candidates are worth playing: the most promising first, each given up as soon as it cannot beat what is known."""

from __future__ import annotations

import dataclasses
import math

from ..scenarios.units import show_number
from .serve_ask import ServeAsk
from .serve_fleet import Fleet, Part, fewest_gpus, most_carried
from .serve_kinds import Candidate
from .serve_play import Played, Player, is_stepped
from .serve_rates import level
from .serve_space import describe

MAX_SPENT = 600_000
"""Effort of one search, in simulated requests of about 10 us."""
FIRST_GUESS = 0.8
"""What a candidate is thought to carry of its bound before any of its family was played; moves the order of play only."""
MAX_CUTS = 40
SHOWN_FRAC = 0.6
"""Candidates that are worth less than this part of the best are given up after one run, and not shown."""
CLOSED = 1.01
"""A bound this near the best fleet counts as met: the rates are on a grid of one percent."""
Family = tuple[str, ...]
KINDS = ("whole", "split")
"""Replicas that do everything, and groups of prefill and decode replicas: they take turns."""


class Race:
    """Plays candidates best guess first. A candidate whose bound is under the best fleet found cannot win and is never played."""

    def __init__(self, ask: ServeAsk, player: Player, found: list[Candidate], top: int) -> None:
        self.ask, self.player, self.found, self.top = ask, player, found, top
        self.played: dict[int, Played] = {}
        self.best: dict[Family, float] = {}
        self._share: dict[Family, float] = {}
        self._falls: dict[tuple[str, bool], int] = {}
        self._mix: tuple[list[Played], tuple[int, ...]] | None = None
        self._families = [family(c) for c in found]

    def copies(self, candidate: Candidate) -> int:
        """As many as the cluster holds."""
        return self.ask.cluster.n_gpus // candidate.n_gpus

    def worth(self, candidate: Candidate, value_per_s: float) -> float:
        """What the objective sees in a candidate that carries ``value``: all its copies together, or each GPU."""
        return value_per_s * self.copies(candidate) if self.ask.objective == "throughput" else value_per_s / candidate.n_gpus

    def run(self) -> None:
        """Play until no bound is above the best found, or the search has spent its simulated requests; then narrow what is left."""
        waiting = set(range(len(self.found)))
        while waiting and self.player.spent < MAX_SPENT:
            ranked = sorted(self.best.values(), reverse=True)
            floor = ranked[0] if len(ranked) >= self.top else 0.0
            open_ = [i for i in sorted(waiting) if self.worth(self.found[i], self.found[i].bound_per_s) > max(floor, self._known(i))]
            if not open_:
                if self.confirm():
                    continue
                break
            turn = [i for i in open_ if self._families[i][0] == KINDS[len(self.played) % 2]] or open_
            i = max(turn, key=self._guess)
            waiting.discard(i)
            self._play(i, self._to_beat(i) / self.worth(self.found[i], 1.0))
        self.confirm()
        self.close()

    def confirm(self) -> bool:
        """Play the groups that would be shown, or are part of the best mix, in the full simulator, until all stand; whether any fell."""
        fell = False
        while shaky := [i for i in self._shown() if not self.played[i].confirmed]:
            for i in shaky:
                quick, kind = self.played[i], (self._families[i][0], is_stepped(self.found[i]))
                of_several = len(inside := self._mixed()) > 1 and i in inside
                beat = 0.0 if of_several else self._to_beat(i, confirmed=True) / self.worth(self.found[i], 1.0)
                full = self.player.confirmed(quick, self.copies(self.found[i]), beat, self._falls.get(kind, 0))
                self._note(i, full)
                if full.goodput_per_s < quick.goodput_per_s:
                    fell = True
                    self._falls[kind] = level(quick.goodput_per_s) - level(full.goodput_per_s) if full.goodput_per_s else 0
        return fell

    def settle(self) -> None:
        """Hold what would be shown against other draws of arrivals, and lower its rate to what most of them carry."""
        for i in self._shown():
            self.played[i] = self.player.settled(self.played[i], self.copies(self.found[i]))
        self._mix = None

    def _shown(self) -> list[int]:
        wanted = {id(p) for p in self.exact()[: self.top]}
        return [i for i, p in self.played.items() if id(p) in wanted or i in self._mixed()]

    def _mixed(self) -> list[int]:
        """Candidates of the best fleet."""
        mix = self.mix()
        inside = {id(p) for p, n in zip(*mix, strict=True) if n} if mix else set()
        return [i for i, p in self.played.items() if id(p) in inside]

    def close(self) -> None:
        """Narrow what is unproved: play what the best conceivable fleet is made of, until it is no better than the best one found."""
        for _ in range(MAX_CUTS):
            hopes, where = self._hopes()
            fleet, need = self._fleet(hopes), self._need()
            if fleet is None or not need or fleet.value_per_s <= need * CLOSED or self.player.spent > MAX_SPENT:
                break
            used = [i for i, n in zip(where, fleet.counts, strict=True) if n and not (i in self.played and self.played[i].goodput_per_s)]
            if not used or (self.ask.rate_per_s and self.ask.objective == "cost" and fleet.n_gpus >= self._gpus(self.mix())):
                break
            for i in used:
                hope = self.played[i].upper_per_s if i in self.played else self.found[i].bound_per_s
                self._play(i, hope * need / fleet.value_per_s)
            self.confirm()

    def _need(self) -> float:
        """Requests a second that a fleet must carry to be better than the best one found (0: none was found)."""
        mix = self.mix()
        if mix is None or (self.ask.objective == "cost" and not self.ask.rate_per_s):
            return 0.0
        return self._carried(mix) if self.ask.objective == "throughput" else self.ask.rate_per_s

    def _fleet(self, parts: list[Part]) -> Fleet | None:
        """The best fleet of these parts, as the objective counts it."""
        n, rate = self.ask.cluster.n_gpus, self.ask.rate_per_s
        if self.ask.objective == "cost" and rate:
            return fewest_gpus(parts, rate, n) or most_carried(parts, n)
        return most_carried(parts, n)

    def _known(self, i: int) -> float:
        return self.best.get(self._families[i], 0.0)

    def _guess(self, i: int) -> float:
        """Worth of a candidate if it carries the same share of its bound as its family's last, or as its kind (whole or split) did."""
        name = self._families[i]
        share = self._share.get(name, self._share.get(name[:1], FIRST_GUESS))
        return share * self.worth(self.found[i], self.found[i].bound_per_s)

    def _to_beat(self, i: int, *, confirmed: bool = False) -> float:
        """What a candidate must be worth to be shown: more than its family's best and the last of ``top``, of those played (in full)."""
        best: dict[Family, float] = self.best
        if confirmed:
            best = {}
            for j, p in self.played.items():
                if p.confirmed and p.goodput_per_s:
                    best[self._families[j]] = max(best.get(self._families[j], 0.0), self._of(p))
        ranked = sorted(best.values(), reverse=True)
        worst = ranked[self.top - 1] if len(ranked) >= self.top else 0.0
        return max(worst, best.get(self._families[i], 0.0), SHOWN_FRAC * (ranked[0] if ranked else 0.0))

    def _play(self, i: int, at_least: float) -> None:
        candidate = self.found[i]
        hint = self._guess(i) / self.worth(candidate, 1.0)
        self._note(i, self.player.carried(candidate, self.copies(candidate), min(at_least, candidate.bound_per_s), hint))
        name = self._families[i]
        self._share[name] = self._share[name[:1]] = self.played[i].upper_per_s / candidate.bound_per_s

    def _note(self, i: int, played: Played) -> None:
        """Keep a result; the best of its family is that of all its members played."""
        self.played[i], name, self._mix = played, self._families[i], None
        mine = [p for j, p in self.played.items() if self._families[j] == name and p.goodput_per_s]
        self.best.pop(name, None)
        if mine:
            self.best[name] = max(map(self._of, mine))

    def exact(self) -> list[Played]:
        """The best candidate of each family that carries anything, by worth."""
        chosen: dict[Family, Played] = {}
        for i, played in self.played.items():
            name = self._families[i]
            if played.goodput_per_s and (name not in chosen or self._of(played) > self._of(chosen[name])):
                chosen[name] = played
        return sorted(chosen.values(), key=lambda p: (-self._of(p), p.candidate.n_gpus))

    def _of(self, played: Played) -> float:
        return self.worth(played.candidate, played.goodput_per_s)

    def hopes(self) -> list[Part]:
        """The most that any candidate may carry, by the GPUs it fills: what was seen of those played, the bound of the others."""
        return self._hopes()[0]

    def _hopes(self) -> tuple[list[Part], list[int]]:
        most: dict[int, tuple[float, int]] = {}
        for i, candidate in enumerate(self.found):
            value = self.played[i].upper_per_s if i in self.played else candidate.bound_per_s
            most[candidate.n_gpus] = max(most.get(candidate.n_gpus, (0.0, -1)), (value, -i))
        rows = sorted(most.items())
        return [Part(value_per_s=value, n_gpus=n) for n, (value, _) in rows], [-i for _, (_, i) in rows]

    def mix(self) -> tuple[list[Played], tuple[int, ...]] | None:
        """The best fleet of what was played, of one layout or several, with copies of each; None when nothing carries anything."""
        if self._mix is None:
            best: dict[int, Played] = {}
            for p in self.played.values():
                if p.goodput_per_s > (best[p.candidate.n_gpus].goodput_per_s if p.candidate.n_gpus in best else 0.0):
                    best[p.candidate.n_gpus] = p
            fleet = self._fleet([Part(value_per_s=p.goodput_per_s, n_gpus=n) for n, p in best.items()]) if best else None
            self._mix = (list(best.values()), fleet.counts if fleet else ())
        return self._mix if self._mix[0] else None

    def _carried(self, mix: tuple[list[Played], tuple[int, ...]]) -> float:
        return math.fsum(p.goodput_per_s * n for p, n in zip(*mix, strict=True))

    def _gpus(self, mix: tuple[list[Played], tuple[int, ...]] | None) -> int:
        return sum(p.candidate.n_gpus * n for p, n in zip(*mix, strict=True)) if mix else 0

    def n_gpus_needed(self) -> int:
        """Fewest GPUs that carry the asked rate by what was played, on as many as it takes; 0 when not asked or nothing carries any."""
        rate = self.ask.rate_per_s
        parts = [Part(value_per_s=p.goodput_per_s, n_gpus=p.candidate.n_gpus) for p in self.played.values() if p.goodput_per_s]
        if not rate or not parts:
            return 0
        enough = min(math.ceil(rate / p.value_per_s) * p.n_gpus for p in parts)
        fleet = fewest_gpus(parts, rate, enough)
        return fleet.n_gpus if fleet else enough

    def proved(self) -> tuple[float, float]:
        """(most any fleet may carry, how far the best found is from it): over the whole space, by the same integer program on hopes."""
        exact, hopes, n, mix = self.exact(), self.hopes(), self.ask.cluster.n_gpus, self.mix()
        most = most_carried(hopes, n).value_per_s if hopes else 0.0
        if not exact or mix is None:
            return most, 1.0 if most else 0.0
        if self.ask.objective == "throughput":
            return most, max(most / max(self._of(exact[0]), self._carried(mix)) - 1, 0.0)
        if self.ask.rate_per_s:
            least, used = fewest_gpus(hopes, self.ask.rate_per_s, n), self._gpus(mix)
            return most, used / least.n_gpus - 1 if least and least.n_gpus else 0.0
        return most, max(max(p.value_per_s / p.n_gpus for p in hopes) / self._of(exact[0]) - 1, 0.0)

    def dropped(self) -> dict[str, list[str]]:
        """Why the rest fell, with a sentence each: by their bound, slower when played, a broken promise, or not played for want of time."""
        out: dict[str, list[str]] = {}
        best = max(self.best.values(), default=0.0)
        shown = {id(p) for p in self.exact()}
        for i, c in enumerate(self.found):
            hope = self.copies(c) * c.bound_per_s
            if i not in self.played:
                reason = "bound" if best and self.worth(c, c.bound_per_s) <= max(best, self._known(i)) else "unplayed"
                out.setdefault(reason, []).append(f"{c.describe()}: at most {show_number(hope)} requests/s")
            elif not self.played[i].goodput_per_s and not best:
                out.setdefault("promises", []).append(f"{c.describe()}: {self.played[i].limit} is missed at any rate")
            elif id(self.played[i]) not in shown:
                most = self.copies(c) * self.played[i].upper_per_s
                out.setdefault("slower", []).append(f"{c.describe()}: under {show_number(most)} requests/s, {self.played[i].limit} fails")
        return out


def family(candidate: Candidate) -> Family:
    """What makes candidates alike but for limits and splits: whole or split, degrees, formats, features."""
    serve = dataclasses.replace(candidate.serve.plan, token_budget=0, max_num_seqs=0)
    if candidate.prefill is None:
        return ("whole", describe(serve))
    first = dataclasses.replace(candidate.prefill.plan, token_budget=0, max_num_seqs=0)
    return ("split", describe(first), describe(serve))
