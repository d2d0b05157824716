"""Which guesses a speculating replica has accepted, and how many it makes: acceptance of each request, and γ of each step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..costmodels.speculation_time import VerifyTimes, depth_acceptance
from ..costmodels.step_times import PS
from ..scenarios.serving_parts import Speculation
from .arrivals import rng

ACCEPT_STREAM, GUESS_STREAM = 4, 5
FIRST_STEPS = 64
NEIGHBOURS, BLOCKS_KEPT = 32, 64
"""The first draws of so many requests are made at once, and kept for so many such blocks: requests come nearly in order of id."""
LONGEST_RUN = 1 << 20
"""Guesses accepted in a row by a draft that is never wrong."""
MEMORY_GUESSES = 2000.0
"""The moving estimate of acceptance forgets like a window of so many checked guesses."""
MEMORY_PS = 5 * PS
"""The estimate of the load forgets like a window of so long."""
LEAST_IDLE_FRAC = 0.02
"""A queue without end is taken for one whose server idles this share of the time."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Acceptance:
    """Draws of a run: request ``q`` accepts each guess with its own chance, from a Beta of the speculation's mean and spread.

    The draw of step ``j`` of request ``q`` is a hash of (seed, q, j), so that it does not depend on what runs beside it.
    """

    def __init__(self, speculation: Speculation, n_requests: int, seed: int) -> None:
        mean, spread = speculation.accept_frac, speculation.accept_spread_frac
        alpha: Floats = np.full(n_requests, mean)
        if spread:
            known = mean * (1 - mean) / spread**2 - 1
            draw = rng(seed, ACCEPT_STREAM)
            alpha = draw.beta(mean * known, (1 - mean) * known, n_requests) if known > 0 else (draw.random(n_requests) < mean).astype(float)
        self.alpha = np.clip(depth_acceptance(speculation, alpha), 0.0, 1.0)
        with np.errstate(divide="ignore"):
            self._scale = 1 / -np.abs(np.log(self.alpha))  # -0 for a draft that is always wrong, -inf for one that never is
        self._first: dict[int, Ints] = {}
        key = np.uint64(rng(seed, GUESS_STREAM).integers(1 << 63))
        self._keys = _mixed(np.arange(n_requests, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key)

    def runs(self, requests: Ints, steps: Ints) -> Ints:
        """Guesses accepted in a row at these steps of these requests (shapes broadcast): ``floor(ln u / ln α)``, P(run ≥ i) = α^i."""
        bits = _mixed(steps.astype(np.uint64) * np.uint64(0xD1342543DE82EF95) + self._keys[requests])
        u = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return np.minimum(np.log(u) * self._scale[requests], LONGEST_RUN).astype(np.int64)

    def first_runs(self, request: int) -> Ints:
        """``runs`` of a request's first FIRST_STEPS steps; those of its neighbours, who come soon, are drawn with it."""
        block = request // NEIGHBOURS
        if block not in self._first:
            if len(self._first) >= BLOCKS_KEPT:
                self._first.pop(next(iter(self._first)))
            ids = np.arange(block * NEIGHBOURS, min((block + 1) * NEIGHBOURS, len(self.alpha)))
            self._first[block] = self.runs(ids[:, None], np.arange(FIRST_STEPS))
        return self._first[block][request % NEIGHBOURS]


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: bits of equal chance from a counter. Source: Steele, Lea, Flood 2014."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Controller:
    """γ of each step: fixed, by batch size, or (``goodput``) what ends most waiting a second under a moving estimate of acceptance.

    In steps of decodes alone that is the γ of most expected answer tokens over the step's own time from the tables. Where prompts share
    the step and its token budget, see ``choose``. Source: SmartSpec (Liu et al. 2024) for steps of decodes alone.
    """

    def __init__(self, speculation: Speculation, verify: VerifyTimes, max_seqs: int, budget: int) -> None:
        self.verify, self.budget = verify, budget
        self.moving = speculation.controller == "goodput"
        self.accepted = MEMORY_GUESSES * float(depth_acceptance(speculation, speculation.accept_frac))
        self.tried = MEMORY_GUESSES
        self.load_frac, self._seen_to = 0.0, 0
        self._tables = list(zip(verify.layers, verify.fixed, verify.per_kv, strict=True))
        self._by_batch = [_of_batch(speculation, n) for n in range(max_seqs + 1)]

    def choose(self, rows: int, n: int, kv: int, prompt_tokens: int = 0, n_prompts: int = 0) -> int:
        """γ for ``n`` sequences (``rows`` with padding) of ``kv`` tokens, while ``n_prompts`` requests wait for ``prompt_tokens``.

        Answer and prompt tokens count by the waiting they end, in request-picoseconds: an answer token brings its own request on by the
        time to the next one, a prompt token all that wait by its own time. Either also spares those who come later its marginal work: of a
        server busy a share ρ of the time, ``ρ/(1 − ρ)`` for each request now here.
        """
        budget, width = self.budget, self.verify.width
        most = min(self._by_batch[n], max(budget // rows - 1, 0) // width)
        if not self.moving or not most:
            return most
        linear, alpha, alone = self.verify.times.linear, self.accepted / self.tried, self.verify.fixed[0][0]
        beside = max(min(prompt_tokens, budget - rows * (1 + most * width)), 0)
        alone += linear[beside]
        q, tokens, power = 1, 0.0, 1.0
        pace = work = float("inf")
        options = []
        for layers, fixed, per_kv in self._tables[: most + 1]:
            checked, rest = rows * q, fixed[rows] + per_kv[n] * (kv + n * q)
            tokens += power  # Σ α^i to γ = (1 − α^(γ+1))/(1 − α)
            own = (layers[rows] + rest) / tokens
            if own < pace:
                pace = own
            own = ((linear[checked + beside] if beside else layers[rows]) + rest - alone) / tokens
            if own < work:
                work = own
            options.append((checked, layers[rows], rest, tokens))
            power *= alpha
            q += width
        most_prompts = min(prompt_tokens, budget - rows)
        prompt_work = (linear[rows + most_prompts] - linear[rows]) / most_prompts if most_prompts > 0 else 0.0
        later = (n + n_prompts) * self.load_frac / max(1 - self.load_frac, LEAST_IDLE_FRAC) if prompt_tokens else 0.0
        answer_value, prompt_value = n * pace + later * work, (n_prompts + later) * prompt_work
        best, best_rate = 0, 0.0
        for gamma, (checked, whole, rest, tokens) in enumerate(options):
            prompts = budget - checked
            if prompts > prompt_tokens:
                prompts = prompt_tokens
            rate = (tokens * answer_value + prompts * prompt_value) / ((linear[checked + prompts] if prompts > 0 else whole) + rest)
            if rate > best_rate:
                best, best_rate = gamma, rate
        return best

    def watch(self, now: int, dt: int, prompts: bool) -> None:
        """Take in a step that ended at ``now`` after ``dt``, with or without prompts: the load is the share of time that steps had some."""
        keep = max(1 - (now - self._seen_to) / MEMORY_PS, 0.0)
        self.load_frac = min(self.load_frac * keep + prompts * dt / MEMORY_PS, 1.0)
        self._seen_to = now

    def learn(self, accepted: int, rejected: int) -> None:
        """Take in the guesses a step had accepted, and how many sequences had one rejected."""
        tried = accepted + rejected
        keep = max(1 - tried / MEMORY_GUESSES, 0.0)
        self.accepted = self.accepted * keep + accepted
        self.tried = self.tried * keep + tried


def _of_batch(speculation: Speculation, n: int) -> int:
    """γ at batch ``n``: the first row that reaches it, none over the last; without rows always ``draft_tokens``."""
    if not speculation.gamma_by_batch:
        return speculation.draft_tokens
    return next((gamma for batch, gamma in speculation.gamma_by_batch if n <= batch), 0)
