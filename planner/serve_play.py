"""Plays candidates in the simulator: what one carries within the promises, and what its requests see at a given load."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..costmodels.serving_memory import ServeMemory
from ..costmodels.serving_ops import ServeSystem
from ..scenarios.clients import Clients
from ..scenarios.hardware import Cluster
from ..sim.deployment import simulate_deployment
from ..sim.serve_result import ServeResult
from ..sim.serving_metrics import saturation
from .serve_ask import ServeAsk
from .serve_judge import WARM_FRAC, Seen, judge
from .serve_kinds import Candidate
from .serve_rates import RATE_STEP, highest, level, level_from, rate
from .serve_sketch import is_pipeline, quick, sketch

LOWEST_FRAC = 0.01
"""A candidate that carries less than this part of its bound keeps no promise worth having."""
MIN_REQUESTS, MAX_REQUESTS = 300, 6000
LIFETIMES, LOADED = 5.0, 6.0
"""Requests of a run: this many times those under way, which stay six times as long as on an idle replica, or what promises allow."""
FILLS = 3.0
"""A queue only grows once seats or KV are full: a run that fills them three times shows it."""
FIRST_JUMP, LIKELY_FRAC = 4, 0.8
"""First step of the search in rate (in powers of RATE_STEP), and where in a bound it starts without a hint."""
CONFIRM_STEPS = 100
MOST_LONGER = 4
"""A run in which requests stay so long that it holds under LIFETIMES of their stays is played again, up to so many times as long; so is
one of under twice that in which fewer ended than came, though first tokens did not come ever later: it may only fill."""
DRAWS, MOST_FALL = 4, 32
"""Draws of arrivals that a plan's rate is held against, and steps of rate that they may differ."""
ENDED_FRAC = 0.985
"""Where no promise binds, fewer requests that end for each that arrives, on average over the draws, mean that too many arrive."""
CHUNK_EFFORT, PREEMPTION_EFFORT = 0.25, 3
MAX_PASSES = 300_000
"""A second or so of the full simulator."""
MAX_CHUNKS = 4000
"""Prompt chunks of one run: long prompts are played with fewer requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A candidate's goodput (0: less than it was asked for) with what was seen at it; ``limit`` is the promise that fails one step above.

    ``upper_per_s`` is the lowest rate it was seen to fail, else its bound; ``confirmed`` by the full simulator. ``quick_per_s`` is what
    the quick play found before. Once settled, ``drawn_per_s`` holds what is carried under each draw of arrivals, the first's first.
    """

    candidate: Candidate
    goodput_per_s: float
    upper_per_s: float
    seen: Seen | None
    limit: str
    memory: ServeMemory
    confirmed: bool = False
    quick_per_s: float = 0.0
    drawn_per_s: tuple[float, ...] = ()


class Player:
    """Plays candidates and counts the simulated requests as ``spent``."""

    def __init__(self, ask: ServeAsk, system: ServeSystem) -> None:
        self.ask, self.system = ask, system
        self.spent = self.n_runs = 0

    def carried(self, candidate: Candidate, copies: int, at_least: float = 0.0, hint: float = 0.0) -> Played:
        """The highest rate one replica or group carries, up to its bound; given up at once if it does not carry ``at_least``.

        The first rate tried is ``at_least``, else ``hint``.
        """
        top, runs = level(candidate.bound_per_s), dict[int, Seen]()
        first = level_from(at_least or hint or LIKELY_FRAC * candidate.bound_per_s)
        bottom = top - round(-math.log(LOWEST_FRAC) / math.log(RATE_STEP))
        first = max(min(first, top), bottom + 1)

        def failed(at: int) -> str:
            runs[at] = self.seen(candidate, copies, rate(at))
            return runs[at].failed

        found = highest(failed, first, first - 1 if at_least else bottom, top + 1, FIRST_JUMP)
        best, worst = runs.get(found), runs.get(found + 1)
        upper = best.rate_per_s if best else min(candidate.bound_per_s, rate(found + 1))
        return Played(
            candidate=candidate, goodput_per_s=best.rate_per_s if best else 0.0, upper_per_s=upper,
            seen=best, limit=worst.failed if worst else "capacity", memory=candidate.serve.model.memory,
            confirmed=not quick(candidate, self.ask.context_tokens),
        )  # fmt: skip

    def confirmed(self, played: Played, copies: int, at_least: float = 0.0, fall: int = 0) -> Played:
        """A quick play's goodput in the full simulator: the highest rate at or under it that is carried there, if ``at_least`` is.

        The first rate tried is ``fall`` steps down.
        Pipelines whose passes would take too long to play are taken at their quick play's word.
        """
        candidate, top = played.candidate, level(played.goodput_per_s)
        played = replace(played, confirmed=True, quick_per_s=played.goodput_per_s)
        if self._passes(candidate, played.goodput_per_s) > MAX_PASSES:
            return played
        most = min(top - level_from(at_least), CONFIRM_STEPS) if at_least else CONFIRM_STEPS
        runs: dict[int, Seen] = {}

        def failed(at: int) -> str:
            runs[at] = self.seen(candidate, copies, rate(at), full=True)
            return runs[at].failed

        found = highest(failed, top - min(fall, most), top - most - 1, top + 1)
        best, worst = runs.get(found), runs.get(found + 1)
        limit = worst.failed if worst else played.limit
        if best is None:
            return replace(played, goodput_per_s=0.0, upper_per_s=min(played.upper_per_s, rate(found + 1)), seen=None, limit=limit)
        return replace(played, goodput_per_s=best.rate_per_s, upper_per_s=best.rate_per_s, seen=best, limit=limit)

    def settled(self, played: Played, copies: int) -> Played:
        """The rate that most of DRAWS draws of arrivals carry: all but one of them.

        What only the quick play sees is tried as many steps higher as the full simulator was lower. Without a promise that binds, what
        arrives beyond what ends is taken off: the mean of ``finished_frac`` over the other draws, whose runs are then twice as long.
        """
        candidate, top, seen = played.candidate, level(played.goodput_per_s), played.seen
        if seen is None or self.ask.keep_arrivals:
            return played
        above = level(played.quick_per_s) - top if played.quick_per_s else 0
        edges, ended, longer = [top], [], 2 if played.limit == "capacity" else 1
        for draw in range(1, DRAWS):
            runs: dict[int, Seen] = {}

            def failed(at: int, draw: int = draw, runs: dict[int, Seen] = runs) -> str:
                runs[at] = self.seen(candidate, copies, rate(at + above), draw=draw, longer=longer)
                return runs[at].failed

            edges.append(highest(failed, top, top - MOST_FALL, top + 1))
            ended += [runs[edges[-1]].finished_frac] if edges[-1] in runs else []
        most = sorted(edges)[1] if len(edges) > 1 else top
        if longer > 1 and ended and (mean := sum(ended) / len(ended)) < ENDED_FRAC:
            most = min(most, top + math.floor(math.log(mean) / math.log(RATE_STEP)))
        drawn = tuple(map(rate, edges))
        if most == top:
            return replace(played, drawn_per_s=drawn)
        seen = self.seen(candidate, copies, rate(most), full=self._passes(candidate, played.goodput_per_s) <= MAX_PASSES)
        return replace(played, goodput_per_s=rate(most), seen=replace(seen, failed=""), drawn_per_s=drawn)

    def seen(self, candidate: Candidate, copies: int, rate_per_s: float, *, full: bool = False, draw: int = 0, longer: int = 1) -> Seen:
        """One run at this rate; ``copies`` such candidates share the trace, each taking every so many-th request.

        Groups of prefill and decode replicas and pipelines are sketched unless it is to be ``full``. A sketched pipeline that cuts
        prompts promises no time to first token: its chunks would follow one another through the stages.
        """
        ask = self.ask
        shape = ask.requests(longer * self.n_requests(candidate, rate_per_s), copies)
        work = ask.at_rate(shape, rate_per_s, draw)
        self.n_runs += 1
        sketched = not full and quick(candidate, ask.context_tokens)
        if sketched:
            cut = is_pipeline(candidate.serve) and candidate.prefill is None
            free = replace(ask, slo=replace(ask.slo, ttft_s=math.inf)) if cut else ask
            result = sketch(candidate, work, self.system)
            seen = judge(free, result, rate_per_s)
        else:
            deployment, cluster = candidate.deployment(), self._cluster(candidate)
            result = simulate_deployment(ask.model, cluster, deployment, work, engine=self.system.engine, kinds=candidate.kinds)
            seen = judge(ask, result, rate_per_s)
        self.spent += _effort(candidate, result) + (result.n_steps if not sketched and is_stepped(candidate) else 0)
        stays = LIFETIMES * (2 if seen.failed else 1)
        short = stays * seen.e2e_s * rate_per_s > len(work) and len(work) < MAX_REQUESTS
        queues = seen.failed == "capacity" and saturation(result)["saturated"]
        if short and longer < MOST_LONGER and seen.failed in ("", "capacity") and not queues:
            return self.seen(candidate, copies, rate_per_s, full=full, draw=draw, longer=2 * longer)
        return seen

    def closed(self, candidate: Candidate, copies: int, clients: int) -> Seen:
        """One run with so many clients to each copy, each with a request under way; the rate is what they draw, start and end left out."""
        ask = self.ask
        wanted = max(MIN_REQUESTS, round(1.5 * LIFETIMES * clients))
        affordable = max(self.n_requests(candidate, candidate.bound_per_s), 2 * clients + 20)
        work = ask.requests(min(wanted, affordable), copies)
        deployment, cluster = candidate.deployment(), self._cluster(candidate)
        self.spent += len(work) * 4
        self.n_runs += 1
        result = simulate_deployment(
            ask.model, cluster, deployment, work, engine=self.system.engine, kinds=candidate.kinds,
            clients=Clients(n_clients=min(clients, len(work))),
        )  # fmt: skip
        ends = np.sort(result.finish_s[np.isfinite(result.finish_s)])
        first = int(WARM_FRAC * len(ends))
        last = max(len(ends) - 1 - clients, first + 1)
        if last >= len(ends):
            return judge(ask, result, 0.0, settled=True)
        return judge(ask, result, float((last - first) / (ends[last] - ends[first])), settled=True)

    def _cluster(self, candidate: Candidate) -> Cluster:
        """A group that fits into a node plays inside one; larger ones have the whole cluster."""
        cluster = self.system.cluster
        if candidate.n_gpus <= cluster.gpus_per_node < cluster.n_gpus:
            return cluster.with_gpus(candidate.n_gpus)
        return cluster

    def _held(self, candidate: Candidate, rate_per_s: float) -> float:
        """Requests that can be under way at once: by seats, by KV room, and by the promises."""
        ask, model = self.ask, candidate.serve.model
        room = model.limits.blocks * model.limits.block_tokens / (ask.prompt_tokens + ask.output_tokens)
        return min(candidate.n_decode * min(model.limits.max_seqs, room), rate_per_s * self._stay_s())

    def _stay_s(self) -> float:
        """Those who stay longer break the promises."""
        slo = self.ask.slo
        return min(slo.ttft_s + self.ask.output_tokens * slo.tpot_s, slo.e2e_s)

    def _passes(self, candidate: Candidate, rate_per_s: float) -> float:
        """Micro-batches that a full run at this rate would pass through the stages, about."""
        lasts_s = self.n_requests(candidate, rate_per_s) / rate_per_s + candidate.e2e_s
        deep = [(k, n) for k, n in ((candidate.prefill, candidate.n_prefill), (candidate.serve, candidate.n_decode)) if is_pipeline(k)]
        return sum(n * k.plan.pp * lasts_s / k.bounds.tpot_s for k, n in deep if k is not None and k.bounds.tpot_s)

    def n_requests(self, candidate: Candidate, rate_per_s: float) -> int:
        """A few times as many as are under way at this rate, so that the system is full; fewer where prompts take many steps."""
        wanted = max(LIFETIMES * rate_per_s * min(LOADED * candidate.e2e_s, self._stay_s()), FILLS * self._held(candidate, rate_per_s))
        chunks = self.ask.prompt_tokens / (candidate.prefill or candidate.serve).plan.token_budget
        most = min(MAX_REQUESTS, max(40, int(MAX_CHUNKS / max(chunks, 1))))
        return int(min(max(wanted, MIN_REQUESTS), most))


def _effort(candidate: Candidate, result: ServeResult) -> int:
    """What a run took, in requests of one short prompt on a plain replica (10 us or so); steps played one by one are not in it."""
    first, work = (candidate.prefill or candidate.serve).plan, result.work
    chunks = float(work.prompt_tokens.mean()) / first.token_budget
    each = (2 if candidate.prefill else 1) * (2 if first.prefix_cache else 1) * (1 + CHUNK_EFFORT * chunks)
    return round(len(work) * each) + PREEMPTION_EFFORT * result.n_preempted


def is_stepped(candidate: Candidate) -> bool:
    """Whether the full simulator plays every step of some replica."""
    plans = [kind.plan for kind in (candidate.prefill, candidate.serve) if kind is not None]
    return any(plan.speculation is not None or plan.pp > 1 for plan in plans)
