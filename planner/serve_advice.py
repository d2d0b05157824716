"""When no fleet keeps the promises: the nearest changes that would do, each tried with a real search or a real run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ..costmodels.serving_ops import serve_system
from ..scenarios import registry
from ..scenarios.errors import RoofplanError
from ..scenarios.hardware import Cluster
from ..scenarios.serving import serving_engine
from ..scenarios.units import show_number
from ..sim.serving_metrics import Slo
from .serve_ask import ServeAsk
from .serve_judge import Seen
from .serve_kinds import Candidate, Rejected, candidates, kinds_of
from .serve_play import Player
from .serve_search import ServeDecision, plan_serving

TRIED = 6
"""Candidates that are played to see what they would promise."""
LIGHT_FRAC = 0.02
"""Load of a try without an asked rate, as a part of the candidate's bound: next to nobody waits."""
MAX_GROWTH = 16


def nearest_changes(ask: ServeAsk, decision: ServeDecision) -> list[str]:
    """One sentence per kind of change that makes it fit: looser promises, more GPUs, number formats, fewer requests, a shorter context."""
    ways = (_looser(ask, decision), _more_gpus(ask, decision), _quantised(ask), _slower(ask, decision), _shorter(ask, decision))
    return [sentence for sentence in ways if sentence] or ["no single change of promises, GPUs, formats, rate or lengths makes it fit"]


def _looser(ask: ServeAsk, decision: ServeDecision) -> str:
    """The least stretch of the promises that some candidate keeps, at the asked rate where there is one."""
    if math.isinf(ask.slo.ttft_s) and math.isinf(ask.slo.tpot_s):
        return ""
    free = replace(ask, slo=Slo())
    system = decision.system
    found = candidates(free, kinds_of(free, system, Rejected()))
    player = Player(free, system)
    best: tuple[float, Seen] | None = None
    for candidate in _likely(ask, found):
        copies = ask.cluster.n_gpus // candidate.n_gpus
        rate = ask.rate_per_s / copies if ask.rate_per_s else LIGHT_FRAC * candidate.bound_per_s
        if rate > candidate.bound_per_s:
            continue
        seen = player.seen(candidate, copies, rate, full=True)
        stretch = max(seen.ttft_p95_s / ask.slo.ttft_s, seen.tpot_p95_s / ask.slo.tpot_s)
        if not seen.failed and (best is None or stretch < best[0]):
            best = stretch, seen
    if best is None:
        return ""
    flags = [f"--{name} {_up(value)}" for name, value in (("ttft", best[1].ttft_p95_s), ("tpot", best[1].tpot_p95_s))
             if value > getattr(ask.slo, f"{name}_s")]  # fmt: skip
    load = f"{show_number(ask.rate_per_s, 4)} requests/s" if ask.rate_per_s else "a light load"
    return f"{' '.join(flags)} is kept on these GPUs under {load}" if flags else ""


def _likely(ask: ServeAsk, found: list[Candidate]) -> list[Candidate]:
    """The candidates whose latency floors are nearest to the promises, and those that carry most."""

    def over(c: Candidate) -> float:
        ttft = (c.prefill or c.serve).bounds.ttft_s
        return max(ttft / ask.slo.ttft_s, c.serve.bounds.tpot_s / ask.slo.tpot_s)

    by_floor = sorted(found, key=lambda c: (over(c), -c.bound_per_s))[: TRIED // 2]
    most = sorted(found, key=lambda c: -c.bound_per_s * (ask.cluster.n_gpus // c.n_gpus))
    return by_floor + [c for c in most if c not in by_floor][: TRIED - len(by_floor)]


def _more_gpus(ask: ServeAsk, decision: ServeDecision) -> str:
    if decision.n_gpus_needed > ask.cluster.n_gpus:
        return f"--gpus {_whole(ask, decision.n_gpus_needed)} carries {show_number(ask.rate_per_s, 4)} requests/s"
    for grown in _grown(ask):
        if _fits(grown):
            return f"--gpus {grown.cluster.n_gpus} fits"
    return ""


def _grown(ask: ServeAsk) -> Iterator[ServeAsk]:
    factor = 2
    while factor <= MAX_GROWTH:
        try:
            yield replace(ask, cluster=_with_gpus(ask, ask.cluster.n_gpus * factor))
        except RoofplanError:
            return
        factor *= 2


def _with_gpus(ask: ServeAsk, n_gpus: int) -> Cluster:
    return registry.cluster(ask.cluster.name, n_gpus)


def _whole(ask: ServeAsk, n_gpus: int) -> int:
    """The fewest GPUs at least these that fill whole nodes."""
    while True:
        try:
            return _with_gpus(ask, n_gpus).n_gpus
        except RoofplanError:
            n_gpus += 1


def _quantised(ask: ServeAsk) -> str:
    return "--allow quant fits" if not ask.allow_quant and _fits(replace(ask, allow_quant=True)) else ""


def _slower(ask: ServeAsk, decision: ServeDecision) -> str:
    best = max((c.goodput_per_s for c in decision.choices), default=0.0)
    return f"--rate {show_number(best, 4).replace(',', '')} fits" if best and ask.rate_per_s else ""


def _shorter(ask: ServeAsk, decision: ServeDecision) -> str:
    """Half the prompt, and half of that, where nothing at all was carried."""
    if decision.choices or ask.trace is not None:
        return ""
    isl = ask.prompt_tokens
    while isl > 512:
        isl //= 2
        if _fits(replace(ask, prompt_tokens=isl)):
            return f"--isl {isl} fits"
    return ""


def _fits(ask: ServeAsk) -> bool:
    """Whether some fleet keeps the promises; bounded first, which is cheap."""
    kinds = kinds_of(ask, serve_system(ask.cluster, serving_engine(ask.engine)), Rejected())
    if not candidates(ask, kinds):
        return False
    return any(c.goodput_per_s >= ask.rate_per_s for c in plan_serving(ask, top=1).choices)


def _up(seconds: float) -> str:
    """A promise a little over this, to two digits: ``3.1s``, ``45ms``."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1e3, "ms")
    digits = 10 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value * 1.01 / digits) * digits:.4g}{unit}"
