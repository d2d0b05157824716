"""Plans serving: every legal layout bounded in closed form, the promising played in the simulator, fleets by an integer program."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from ..costmodels.serving_memory import ServeMemory
from ..costmodels.serving_ops import ServeSystem, serve_system
from ..scenarios.calibration import Calibration
from ..scenarios.deployment import Deployment
from ..scenarios.serving import EnginePlan, serving_engine
from ..scenarios.units import show_number
from .serve_ask import ServeAsk
from .serve_judge import Seen
from .serve_kinds import Rejected, candidates, kinds_of
from .serve_play import DRAWS, Played, Player
from .serve_race import Race
from .serve_steady import Steady

MIX_GAIN = 1.05
"""A mix of layouts is offered when it carries this much more than copies of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePart:
    """``copies`` of one replica or group in a fleet, what one of them carries (requests/s) and why no more."""

    played: Played
    copies: int

    @property
    def deployment(self) -> Deployment:
        return self.played.candidate.deployment(self.copies)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeChoice:
    """One fleet: requests a second within the promises over all its GPUs, and what requests see at that load (means over the parts)."""

    parts: tuple[ServePart, ...]
    n_gpus: int
    goodput_per_s: float
    bound_per_s: float
    load_per_s: float
    seen: Seen
    output_tokens_per_s_per_gpu: float
    usd_per_mtoken: float

    @property
    def plan(self) -> EnginePlan:
        """Layout of the first part's (decoding) replicas."""
        return self.parts[0].deployment.plan

    @property
    def memory(self) -> ServeMemory:
        """One GPU of the first part's (decoding) replicas."""
        return self.parts[0].played.memory

    @property
    def n_replicas(self) -> int:
        return sum(p.deployment.n_replicas + p.deployment.n_prefill for p in self.parts)

    @property
    def n_prefill(self) -> int:
        return sum(p.deployment.n_prefill for p in self.parts)

    @property
    def ttft_s(self) -> float:
        return self.seen.ttft_s

    @property
    def tpot_s(self) -> float:
        return self.seen.tpot_s

    @property
    def first_draw_per_s(self) -> float:
        """What it carries under the arrivals of the search."""
        return math.fsum(p.copies * (p.played.drawn_per_s or (p.played.goodput_per_s,))[0] for p in self.parts)

    @property
    def drawn_per_s(self) -> tuple[float, ...]:
        """What it carries under each draw of arrivals; none where only one was played."""
        if not all(p.played.drawn_per_s for p in self.parts):
            return ()
        return tuple(math.fsum(p.copies * p.played.drawn_per_s[i] for p in self.parts) for i in range(DRAWS))

    @property
    def limit(self) -> str:
        """The promise that fails first when the load grows, or ``capacity``."""
        return self.parts[0].played.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the search proved: no fleet of the space carries more than ``bound_per_s``; ``gap_frac`` of that over the best shown."""

    bound_per_s: float
    gap_frac: float
    n_bounded: int
    n_simulated: int
    n_runs: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeDecision:
    """Choices best first, what was proved, the fewest GPUs for the asked rate (0: not asked, or not found), why others fell."""

    choices: tuple[ServeChoice, ...]
    proof: Proof
    n_candidates: int
    rejected: tuple[tuple[str, int, str], ...]
    system: ServeSystem
    n_gpus_needed: int = 0

    @property
    def n_simulated(self) -> int:
        return self.proof.n_simulated


def plan_serving(ask: ServeAsk, top: int = 5, calibration: Calibration | None = None) -> ServeDecision:
    """The fleets with the highest goodput (or lowest cost, or latency), best first; empty when none keeps the promises."""
    started = time.perf_counter()
    system = serve_system(ask.cluster, serving_engine(ask.engine), calibration)
    rejected = Rejected()
    kinds = kinds_of(ask, system, rejected)
    found = candidates(ask, kinds)
    player = Player(ask, system)
    race = Steady(ask, player, found, top) if ask.objective == "latency" or ask.concurrency else Race(ask, player, found, top)
    race.run()
    bound, gap = race.proved()
    if isinstance(race, Race):
        race.settle()
    choices = steady_ranked(ask, race, top) if isinstance(race, Steady) else ranked(ask, race, player, top)
    if choices and ask.objective == "throughput" and isinstance(race, Race):
        gap = max(bound / choices[0].first_draw_per_s - 1, 0.0)
    for reason, cases in race.dropped().items():
        rejected.add(reason, cases[0], len(cases))
    if isinstance(race, Race) and (mix := _unshown_mix(race, choices)):
        rejected.add("mix", mix)
    return ServeDecision(
        choices=choices,
        proof=Proof(
            bound_per_s=bound, gap_frac=gap, n_bounded=len(found), n_simulated=len(race.played), n_runs=player.n_runs,
            wall_s=time.perf_counter() - started,
        ),
        n_candidates=kinds.n_candidates, rejected=rejected.rows(),
        n_gpus_needed=race.n_gpus_needed() if isinstance(race, Race) else 0, system=system,
    )  # fmt: skip


def _unshown_mix(race: Race, choices: tuple[ServeChoice, ...]) -> str:
    """The best fleet of several layouts, where it gains too little over one layout to be a choice; "" where it is one, or none is."""
    mix = race.mix()
    used = [(n, played) for played, n in zip(*mix, strict=True) if n] if mix else []
    if len(used) < 2 or not choices or any(len(c.parts) > 1 for c in choices):
        return ""
    carried = math.fsum(n * played.goodput_per_s for n, played in used)
    n_gpus = sum(n * played.candidate.n_gpus for n, played in used)
    better = carried > choices[0].goodput_per_s if race.ask.objective == "throughput" else n_gpus < choices[0].n_gpus
    if not better:
        return ""
    what = " + ".join(f"{n} x ({played.candidate.describe()})" for n, played in used)
    return (
        f"{what}: {show_number(carried, 4)} requests/s on {n_gpus:,} GPUs; a mix of layouts is shown where it gains over {MIX_GAIN - 1:.0%}"
    )


def steady_ranked(ask: ServeAsk, steady: Steady, top: int) -> tuple[ServeChoice, ...]:
    """The fleets that keep the promises at the given load, best first."""
    out = []
    for played, copies in steady.exact()[:top]:
        part, load = ServePart(played=played, copies=copies), copies * played.goodput_per_s
        n_gpus = part.deployment.n_gpus
        per_gpu = load * ask.output_tokens / n_gpus
        assert played.seen is not None
        out.append(ServeChoice(
            parts=(part,), n_gpus=n_gpus, goodput_per_s=load, bound_per_s=copies * played.candidate.bound_per_s, load_per_s=load,
            seen=replace(played.seen, rate_per_s=load), output_tokens_per_s_per_gpu=per_gpu,
            usd_per_mtoken=ask.cluster.on_demand_usd_per_h / 3600 / per_gpu * 1e6,
        ))  # fmt: skip
    return tuple(out)


def ranked(ask: ServeAsk, race: Race, player: Player, top: int) -> tuple[ServeChoice, ...]:
    """Fleets of copies of one candidate, and the best mix where it carries more or needs fewer GPUs; best first."""
    fleets: list[tuple[ServePart, ...]] = [
        (ServePart(played=p, copies=_copies(ask, race, p)),) for p in race.exact()[: top if ask.objective == "throughput" else 3 * top]
    ]
    mix = race.mix()
    if mix and sum(n > 0 for n in mix[1]) > 1:
        parts = [ServePart(played=p, copies=n) for p, n in zip(*mix, strict=True) if n]
        fleets.append(tuple(sorted(parts, key=lambda p: -p.copies * p.played.goodput_per_s)))
    choices = [_choice(ask, player, parts) for parts in fleets]
    best = max((c.goodput_per_s for c in choices if len(c.parts) == 1), default=0.0)
    if ask.objective == "throughput":
        choices = [c for c in choices if len(c.parts) == 1 or c.goodput_per_s > MIX_GAIN * best]
        choices.sort(key=lambda c: (-c.goodput_per_s, c.n_gpus, len(c.parts), c.seen.e2e_s))
    else:
        least = min((c.n_gpus / c.load_per_s for c in choices if len(c.parts) == 1 and c.goodput_per_s >= ask.rate_per_s), default=math.inf)
        choices = [c for c in choices if len(c.parts) == 1 or c.n_gpus / c.load_per_s * MIX_GAIN < least]
        carries = ask.rate_per_s * (1 - 1e-9)
        choices.sort(key=lambda c: (c.goodput_per_s < carries, c.n_gpus / c.load_per_s, -c.goodput_per_s, c.seen.e2e_s))
    return tuple(choices[:top])


def _copies(ask: ServeAsk, race: Race, played: Played) -> int:
    """All the cluster holds; to save GPUs, only as many as carry the asked rate."""
    most = race.copies(played.candidate)
    if ask.objective == "throughput" or not ask.rate_per_s:
        return most
    return min(most, math.ceil(ask.rate_per_s / played.goodput_per_s - 1e-9))


def _choice(ask: ServeAsk, player: Player, parts: tuple[ServePart, ...]) -> ServeChoice:
    """A fleet at the asked rate, or at its goodput; each part takes a share of the load in proportion to what it carries."""
    good = math.fsum(p.copies * p.played.goodput_per_s for p in parts)
    load = min(ask.rate_per_s or good, good)
    seen = [_seen(player, p, load / good) for p in parts]
    share = [p.copies * p.played.goodput_per_s / good for p in parts]
    n_gpus = sum(p.deployment.n_gpus for p in parts)
    per_gpu = load * ask.output_tokens / n_gpus
    return ServeChoice(
        parts=parts, n_gpus=n_gpus, goodput_per_s=good, load_per_s=load,
        bound_per_s=math.fsum(p.copies * p.played.candidate.bound_per_s for p in parts),
        seen=_together(seen, share, load), output_tokens_per_s_per_gpu=per_gpu,
        usd_per_mtoken=ask.cluster.on_demand_usd_per_h / 3600 / per_gpu * 1e6,
    )  # fmt: skip


def _together(seen: list[Seen], share: list[float], load_per_s: float) -> Seen:
    """What the requests of a whole fleet see: means by share of the load, the worst part's 95th percentiles."""

    def mean(name: str) -> float:
        return math.fsum(w * getattr(s, name) for w, s in zip(share, seen, strict=True))

    return Seen(
        rate_per_s=load_per_s, ttft_s=mean("ttft_s"), tpot_s=mean("tpot_s"), e2e_s=mean("e2e_s"),
        ttft_p95_s=max(s.ttft_p95_s for s in seen), tpot_p95_s=max(s.tpot_p95_s for s in seen),
        n_preempted=sum(s.n_preempted for s in seen), cache_hit_frac=mean("cache_hit_frac"), failed="",
    )  # fmt: skip


def _seen(player: Player, part: ServePart, load_frac: float) -> Seen:
    """What a part's requests see at this share of its goodput."""
    seen = part.played.seen
    if seen is not None and load_frac > 1 - 1e-9:
        return seen
    return player.seen(part.played.candidate, part.copies, load_frac * part.played.goodput_per_s)
