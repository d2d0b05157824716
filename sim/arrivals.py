"""Arrival times and lengths of made-up workloads: Poisson, gamma, diurnal, bursts, all at once; one random stream per aspect."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.serving import Floats64, Ints64, ServeWorkload

DAY_S = 86400.0
MAX_PERIODS = 2000
ARRIVAL_STREAM, PROMPT_STREAM, OUTPUT_STREAM = range(3)


def rng(seed: int, stream: int) -> np.random.Generator:
    """An independent stream of random numbers: another aspect's draws never move it."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=(stream,))))


def poisson(n: int, rate_per_s: float, seed: int = 0) -> Floats64:
    """Arrival times of a Poisson process: exponential gaps of mean ``1/rate``."""
    return gamma(n, rate_per_s, 1.0, seed)


def gamma(n: int, rate_per_s: float, cv: float, seed: int = 0) -> Floats64:
    """Arrivals whose gaps are gamma distributed with coefficient of variation ``cv`` (1 is Poisson, more is burstier)."""
    _positive(rate_per_s=rate_per_s, cv=cv)
    return np.cumsum(rng(seed, ARRIVAL_STREAM).gamma(1 / cv**2, cv**2 / rate_per_s, _count(n)))


def diurnal(n: int, rate_per_s: float, swing_frac: float, period_s: float = DAY_S, seed: int = 0) -> Floats64:
    """Poisson arrivals whose rate is ``rate·(1 + swing·sin(2πt/period))``, by inverting the integrated rate on a fine grid."""
    _positive(rate_per_s=rate_per_s, period_s=period_s)
    if not 0 <= swing_frac <= 1:
        raise BadInput(f"swing_frac={swing_frac} must be between 0 and 1")
    due = np.cumsum(rng(seed, ARRIVAL_STREAM).exponential(1.0, _count(n)))
    span = due[-1] / rate_per_s + period_s
    if span / period_s > MAX_PERIODS:
        raise BadInput(
            f"period_s={period_s:g} passes {span / period_s:,.0f} times before the last request, over the limit of {MAX_PERIODS:,}: "
            "such a swing averages out; give a longer period or none"
        )
    t = np.linspace(0, span, max(1024, int(span / period_s * 4096) + 1))
    turn = 2 * np.pi / period_s
    expected = rate_per_s * (t + swing_frac / turn * (1 - np.cos(turn * t)))
    return np.asarray(np.interp(due, expected, t), dtype=np.float64)


def burst(n: int, size: int, gap_s: float) -> Floats64:
    """``size`` requests at once every ``gap_s`` seconds; ``size >= n`` sends all at time 0."""
    if size < 1 or gap_s < 0:
        raise BadInput(f"burst of {size} every {gap_s} s: size must be at least 1 and the gap not negative")
    return (np.arange(_count(n)) // size).astype(np.float64) * gap_s


def lengths(n: int, mean: float, cv: float, seed: int = 0, stream: int = PROMPT_STREAM, largest: int = 10**9) -> Ints64:
    """Token counts of a log-normal with this mean and coefficient of variation (0: all equal), rounded, 1 to ``largest``."""
    _positive(mean=mean)
    if not 0 <= cv <= 1e3:
        raise BadInput(f"cv={cv} must be from 0 to 1000")
    sigma = float(np.sqrt(np.log1p(cv**2)))
    drawn = np.exp(rng(seed, stream).normal(np.log(mean) - sigma**2 / 2, sigma, _count(n))) if cv else np.full(_count(n), float(mean))
    return np.clip(np.rint(drawn), 1, largest).astype(np.int64)


def uniform_lengths(n: int, low: int, high: int, seed: int = 0, stream: int = PROMPT_STREAM) -> Ints64:
    """Whole token counts, evenly from ``low`` to ``high`` inclusive."""
    if not 1 <= low <= high:
        raise BadInput(f"lengths from {low} to {high}: need 1 <= low <= high")
    return rng(seed, stream).integers(low, high + 1, _count(n)).astype(np.int64)


def first_requests(work: ServeWorkload, n: int) -> ServeWorkload:
    """The first ``n`` requests; a longer workload than the trace repeats it, each pass starting a mean gap after the last."""
    _count(n)
    have = len(work)
    at = np.arange(n)
    index = at % have
    span = float(work.arrival_s[-1] - work.arrival_s[0]) * have / max(have - 1, 1)
    starts, ids = work.block_starts, work.block_ids
    if len(starts):
        sizes = np.diff(starts)[index]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        ids = ids[np.repeat(work.block_starts[index] - starts[:-1], sizes) + np.arange(starts[-1])]
    return dataclasses.replace(
        work,
        arrival_s=work.arrival_s[index] + at // have * span,
        prompt_tokens=work.prompt_tokens[index],
        output_tokens=work.output_tokens[index],
        priority=work.priority[index] if len(work.priority) else work.priority,
        block_starts=starts,
        block_ids=ids,
    )


def _count(n: int) -> int:
    if n < 1:
        raise BadInput(f"requests={n} must be at least 1")
    return n


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < 1e12:
            raise BadInput(f"{name}={value} must be more than 0 and below 1e12")
