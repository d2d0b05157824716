"""Closed-form limits of one serving replica: rates no schedule can exceed and latencies none can go below.

A step with ``n`` decodes and ``t`` tokens takes at least ``linear[t] + decode[n] + slope·kv``. For any price ``p`` of a prompt token and
any credit ``m`` a step, ``d = min_n (min_t(linear[t] − p·t) + p·n + decode[n] − m)/n`` is a price of a decoded token that no step
undercuts, so a request of ``u`` prompt and ``a`` decoded tokens takes ``p·u + d·a + m·a/n̄`` or more of the GPU, where ``n̄`` is the
largest mean batch that the KV pool and the seats leave. Tokens that keep a promised time also pay ``λ`` for every second their step is
longer than it. The best of many (p, m, λ) is the bound: weak duality of the linear program over step shapes.

In a pipeline a step is a micro-batch's time on one stage, the widest or the last as bounds more; a token's step is a whole pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from ..costmodels.pipeline_times import PipelineTimes
from ..costmodels.step_times import PS, StepTimes
from ..scenarios.serving import EnginePlan, Floats64, Ints64, ServeWorkload
from ..scenarios.units import show_number
from ..sim.replica_kind import ReplicaModel
from ..sim.serving_metrics import Slo

ATTAIN_FRAC = 0.95
"""Share of requests that must keep the promised latencies at the goodput."""
PRICES = np.linspace(0, 1, 11)
CREDITS = np.linspace(0, 0.95, 12)
FINE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Requests a second one replica cannot exceed by role, and least mean latencies; ``why`` names the promise it cannot keep, or ''."""

    mixed_per_s: float = 0.0
    prefill_per_s: float = 0.0
    decode_per_s: float = 0.0
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    e2e_s: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """What decoding must keep: the promised step time (s) for a share ``kept`` of tokens, ``kv_tokens`` or more cached for each.

    ``cached`` is the mean sum of cached tokens that one request reads.
    """

    tpot_s: float
    kv_tokens: float
    cached: float
    kept: float


class Load:
    """Lengths of a sample of requests as arrays, and what a cache that never forgets would save of their prompts."""

    def __init__(self, work: ServeWorkload) -> None:
        self.work = work
        self.prompt: Floats64 = work.prompt_tokens.astype(np.float64)
        self.steps: Floats64 = work.output_tokens.astype(np.float64) - 1

    @cached_property
    def uncached(self) -> Floats64:
        """Prompt tokens of each request that no earlier request named; at least the last one is always computed."""
        starts, ids = self.work.block_starts, self.work.block_ids
        if not len(starts):
            return self.prompt
        new = np.zeros(len(ids))
        new[np.unique(ids, return_index=True)[1]] = 1
        seen = np.diff(starts) - np.diff(np.concatenate([[0.0], np.cumsum(new)])[starts])
        return np.maximum(self.prompt - seen * self.work.block_id_tokens, 1.0)


def serve_bounds(load: Load, plan: EnginePlan, kind: ReplicaModel, slo: Slo) -> Bounds:
    """Limits of one replica under this load and these promises. ``why`` starts with ``memory:``, ``ttft:`` or ``tpot:`` if one breaks."""
    limits = kind.limits
    fits = np.ceil((load.prompt + load.steps) / limits.block_tokens) <= limits.blocks
    if fits.mean() < ATTAIN_FRAC:
        longest = int((load.prompt + load.steps).max()) + 1
        return Bounds(why=f"memory: {longest:,} tokens are more than the {limits.blocks * limits.block_tokens:,} of the KV pool")
    costs = _costs(kind, int(load.prompt.max()))
    u = (load.uncached if plan.prefix_cache else load.prompt)[fits]
    prompt, steps = load.prompt[fits], load.steps[fits]
    tokens_a_step = 1.0 + plan.speculation.draft_tokens if plan.speculation else 1.0
    ttft = np.maximum.reduce([c.alone_s(u, prompt) for c in costs]) + kind.request_cpu_s
    step = costs[0].token_s(prompt) / tokens_a_step
    floors = Bounds(ttft_s=float(ttft.mean()), tpot_s=float(step.mean()), e2e_s=float((ttft + steps * step).mean()))
    if np.mean(ttft <= slo.ttft_s) * fits.mean() < ATTAIN_FRAC:
        least = np.quantile(ttft, ATTAIN_FRAC)
        return replace(floors, why=f"ttft: the prompt alone takes {show_number(least)} s of the promised {show_number(slo.ttft_s)} s")
    if np.mean((step <= slo.tpot_s) | (steps == 0)) * fits.mean() < ATTAIN_FRAC:
        least = np.quantile(step, ATTAIN_FRAC)
        return replace(floors, why=f"tpot: one token takes {show_number(least)} s of the promised {show_number(slo.tpot_s)} s")

    a = float(steps.mean()) / tokens_a_step
    own = float(np.mean(steps / tokens_a_step * ((u if plan.prefix_cache else prompt) + steps / 2)))
    cached = float(np.mean(steps / tokens_a_step * (prompt + steps / 2)))
    batch = min(float(costs[0].seats), limits.blocks * limits.block_tokens * a / own if own else np.inf)
    share = float(fits.mean())
    within = Within(tpot_s=slo.tpot_s * tokens_a_step, kv_tokens=float(prompt.min()), cached=cached, kept=ATTAIN_FRAC)
    area = float(np.mean(prompt**2 - (prompt - u) ** 2)) / 2
    last = np.maximum(steps - 1, 0) / tokens_a_step
    later = replace(within, cached=float(np.mean(last * (prompt + np.maximum(steps - 1, 0) / 2))))
    mixed = max(c.shared_s(float(u.mean()), a, batch, within) + c.attention * area for c in costs)
    alone = max(c.shared_s(float(u.mean()), 0.0, batch, within) + c.attention * area for c in costs)
    decode = max(c.shared_s(0.0, float(last.mean()), batch, later) for c in costs)
    return replace(
        floors, mixed_per_s=float(1 / (mixed * share)), prefill_per_s=float(1 / (alone * share)),
        decode_per_s=float(1 / (decode * share)) if decode > 0 else np.inf,
    )  # fmt: skip


def _costs(kind: ReplicaModel, longest: int) -> list[_Costs]:
    """What steps take: of a pipeline on its widest stage, and on its last."""
    times, limits = kind.times, kind.limits
    if isinstance(times, PipelineTimes):
        n = len(times.layers)
        stages = sorted({times.layers.index(max(times.layers)), n - 1})
        return [_Costs(times.stage(i), times.whole, limits.budget, -(-limits.max_seqs // n), longest) for i in stages]
    assert isinstance(times, StepTimes)  # the FFN is never on GPUs of its own here
    return [_Costs(times, times, limits.budget, limits.max_seqs, longest)]


class _Costs:
    """The step tables in seconds, as arrays, with what they can never undercut: ``t`` of a stage, ``whole`` of a token's pass."""

    def __init__(self, t: StepTimes, whole: StepTimes, budget: int, seats: int, longest: int) -> None:
        self.budget, self.seats = budget, seats
        self.linear, self.decode, self.slope = self._steps(t)
        self.pass_linear, self.pass_decode, self.pass_slope = self._steps(whole)
        chunks = np.arange(1, min(budget, longest, len(t.prefill) - 1) + 1, dtype=np.float64)
        fresh = 2 * np.array(t.prefill, np.float64)[1 : len(chunks) + 1] / chunks**2
        again = np.array(t.prefill_slope, np.float64)[1 : len(chunks) + 1] / chunks
        self.attention = float(min(fresh.min(), again.min())) / PS / t.ranks  # other prompts may lie on the other ranks
        self.floor, self.pass_floor = (np.minimum.accumulate(x[::-1])[::-1] for x in (self.linear, self.pass_linear))
        edges = _edges(budget)
        self.bins = edges[:-1].astype(np.float64), edges[1:] - 1.0
        self.n_bins = int(np.searchsorted(edges[:-1], seats, side="right"))
        self.n_low = edges[1 : self.n_bins]
        self.least_linear = np.minimum.reduceat(self.linear, edges[:-1])
        self.least_decode, self.least_pass = (np.minimum.reduceat(x, self.n_low) for x in (self.decode, self.pass_decode))

    def _steps(self, t: StepTimes) -> tuple[Floats64, Floats64, float]:
        linear = np.array(t.linear, np.float64)[: self.budget + 1] / PS
        decode = np.array(t.decode, np.float64)[: self.seats + 1] / PS
        return linear, decode, float(np.array(t.decode_slope, np.float64)[1 : self.seats + 1].min()) / PS

    def token_s(self, cached: Floats64) -> Floats64:
        """Least time of one decoded token after ``cached``."""
        return np.asarray(self.pass_linear[1] + self.pass_decode[1] + self.pass_slope * cached, dtype=np.float64)

    def alone_s(self, uncached: Floats64, prompt: Floats64) -> Floats64:
        """Least time from a step's start to the first token of each prompt: its tokens at the best rate, its attention, a head a step.

        In a pipeline also a token's way through the other stages.
        """
        rate = float(np.min(self.linear[1:] / np.arange(1, len(self.linear))))
        tokens = np.maximum(uncached * rate, self.floor[np.minimum(uncached, self.budget).astype(np.int64)])
        area = (prompt**2 - (prompt - uncached) ** 2) / 2
        others = self.pass_floor[1] - self.floor[1] + self.pass_decode[0] - self.decode[0]
        return np.asarray(tokens + self.attention * area + np.ceil(uncached / self.budget) * self.decode[0] + others, dtype=np.float64)

    def shared_s(self, prompt_tokens: float, decoded: float, batch: float, within: Within) -> float:
        """Least time of the parts a step's tokens share (weights, head, host): see the module's docstring."""
        n_low: Floats64 = self.bins[0][1 : self.n_bins]
        n_high: Floats64 = np.minimum(self.bins[1][1 : self.n_bins], float(self.seats))
        dearest = float(np.min((self.linear[1:] + self.decode[0]) / np.arange(1, self.budget + 1)))
        step = self.pass_floor[self.n_low] + self.least_pass + self.pass_slope * within.kv_tokens * n_low
        best = 0.0
        for p in PRICES * dearest if prompt_tokens else (0.0,):
            if not decoded:
                best = max(best, p * prompt_tokens)
                continue
            rest = np.minimum.accumulate((self.least_linear - p * self.bins[1])[::-1])[::-1]
            fixed = rest[1 : self.n_bins] + p * n_low + self.least_decode
            m = CREDITS[:, None] * fixed.min()
            d = ((fixed - m) / n_high).min(axis=1)
            freely = float(np.max(d * decoded + m[:, 0] * decoded / batch)) + self.slope * within.cached
            in_time = within.kept * self.in_time_s(fixed, step, (n_low, n_high), within) * decoded
            best = max(best, p * prompt_tokens + max(freely, in_time))
        return best

    def in_time_s(self, fixed: Floats64, step: Floats64, n: tuple[Floats64, Floats64], within: Within) -> float:
        """Least GPU time of a token that keeps the promise: ``max_λ min_n (cost(n)/n + λ·(step(n) − promise))``; 0 without a promise.

        Their steps' times, weighted by their tokens, average to the promise or less; ``λ`` prices that.
        """
        if not np.isfinite(within.tpot_s):
            return 0.0
        most = n[1][max(int(np.searchsorted(np.maximum.accumulate(step), within.tpot_s)), 1) - 1]
        lam = np.concatenate([[0.0], np.logspace(-3, 2, 16) / most])[:, None]
        lows = np.minimum.accumulate(step[::-1])[::-1]
        costs = np.minimum.accumulate((fixed + self.slope * within.kv_tokens * n[0])[::-1])[::-1]
        return max(0.0, float((costs / n[1] + lam * (lows - within.tpot_s)).min(axis=1).max()))


@lru_cache(maxsize=64)
def _edges(budget: int) -> Ints64:
    """Where bins of token counts 0 to ``budget`` begin, and where the last ends: single counts up to FINE, then a FINE-th of the count.

    A bound takes the least price and the most tokens of a bin, and so is at most a FINE-th lower than over every count.
    """
    edges = [0]
    while edges[-1] <= budget:
        edges.append(edges[-1] + max(edges[-1] // FINE, 1))
    edges[-1] = budget + 1
    return np.array(edges, np.int64)
