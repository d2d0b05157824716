"""Which guesses a speculating replica has accepted, and how many it makes: acceptance of each request, and γ of each step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..costmodels.acceptance import chain_tokens
from ..costmodels.speculation_time import VerifyTimes, depth_acceptance
from ..costmodels.step_times import PS
from ..scenarios.serving_parts import Speculation
from .arrivals import rng

ACCEPT_STREAM, GUESS_STREAM = 4, 5
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
            alpha = draw.beta(mean * known, (1 - mean) * known, n_requests) if known > 0 else 1.0 * (draw.random(n_requests) < mean)
        self.alpha = np.clip(depth_acceptance(speculation, alpha), 0.0, 1.0)
        with np.errstate(divide="ignore"):
            self._scale = 1 / -np.abs(np.log(self.alpha))  # -0 for a draft that is always wrong, -inf for one that never is
        key = np.uint64(rng(seed, GUESS_STREAM).integers(1 << 63))
        self._keys = _mixed(np.arange(n_requests, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key)

    def runs(self, requests: Ints, steps: Ints) -> Ints:
        """Guesses accepted in a row at these steps of these requests (shapes broadcast): ``floor(ln u / ln α)``, P(run ≥ i) = α^i."""
        bits = _mixed(steps.astype(np.uint64) * np.uint64(0xD1342543DE82EF95) + self._keys[requests])
        u = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return np.minimum(np.log(u) * self._scale[requests], LONGEST_RUN).astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: bits of equal chance from a counter. Source: Steele, Lea, Flood 2014."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Controller:
    """γ of each step: fixed, by batch size, or (``goodput``) what ends most waiting a second under a moving estimate of acceptance.

    In steps of decodes alone that is the γ of most expected answer tokens over the step's own time from the tables. Where prompts share
    the step, and its token budget, see ``_beside_prompts``. Source: SmartSpec (Liu et al. 2024) for steps of decodes alone.
    """

    def __init__(self, speculation: Speculation, verify: VerifyTimes, max_seqs: int, budget: int) -> None:
        self.verify, self.budget = verify, budget
        self.moving = speculation.controller == "goodput"
        self.accepted = MEMORY_GUESSES * float(depth_acceptance(speculation, speculation.accept_frac))
        self.tried = MEMORY_GUESSES
        self.load_frac, self._seen_to = 0.0, 0
        self._by_batch = [_of_batch(speculation, n) for n in range(max_seqs + 1)]

    def choose(self, rows: int, n: int, kv: int, prompt_tokens: int = 0, n_prompts: int = 0) -> int:
        """γ for ``n`` sequences (``rows`` with padding) of ``kv`` tokens, while ``n_prompts`` requests wait for ``prompt_tokens``."""
        width = self.verify.width
        most = min(self._by_batch[n], max(self.budget // rows - 1, 0) // width)
        if not self.moving or not most:
            return most
        alpha, fixed, per_kv = self.accepted / self.tried, self.verify.fixed, self.verify.per_kv
        checked = [rows * (1 + gamma * width) for gamma in range(most + 1)]
        yielded = [chain_tokens(alpha, gamma) for gamma in range(most + 1)]
        rest = [fixed[gamma][rows] + per_kv[gamma][n] * (kv + n * (1 + gamma * width)) for gamma in range(most + 1)]
        if prompt_tokens:
            return self._beside_prompts(n, prompt_tokens, n_prompts, checked, yielded, rest)
        linear = self.verify.times.linear
        paces = [(linear[c] + r) / y for c, r, y in zip(checked, rest, yielded, strict=True)]
        return paces.index(min(paces))

    def _beside_prompts(self, n: int, prompt_tokens: int, n_prompts: int, checked: list[int], yielded: list[float], rest: list[int]) -> int:
        """γ of the most waiting ended a second by answer and prompt tokens together; both in request-picoseconds.

        An answer token brings its own request on by the time to the next one, a prompt token all that wait by its own time. Either also
        spares those who come later its marginal work: of a server busy a share ρ of the time, ``ρ/(1 − ρ)`` for each request now here.
        """
        linear, budget, fixed = self.verify.times.linear, self.budget, self.verify.fixed
        later = (n + n_prompts) * self.load_frac / max(1 - self.load_frac, LEAST_IDLE_FRAC)
        most_prompts = min(prompt_tokens, budget - checked[0])
        prompt_work = (linear[checked[0] + most_prompts] - linear[checked[0]]) / max(most_prompts, 1)
        beside = min(prompt_tokens, max(budget - checked[-1], 0))
        without = linear[beside] + fixed[0][0]
        both = list(zip(checked, rest, yielded, strict=True))
        answer_work = min([(linear[c + beside] + r - without) / y for c, r, y in both])
        pace = min([(linear[c] + r) / y for c, r, y in both])
        answer_value, prompt_value = n * pace + later * answer_work, (n_prompts + later) * prompt_work
        rates = []
        for c, r, y in both:
            prompts = min(prompt_tokens, budget - c)
            rates.append((y * answer_value + prompts * prompt_value) / (linear[c + prompts] + r))
        return rates.index(max(rates))

    def watch(self, now: int, dt: int, prompts: bool) -> None:
        """Take in a step that ended at ``now`` after ``dt``, with or without prompts: the load is the share of time that steps had some."""
        keep = max(1 - (now - self._seen_to) / MEMORY_PS, 0.0)
        self.load_frac = min(self.load_frac * keep + prompts * dt / MEMORY_PS, 1.0)
        self._seen_to = now

    def learn(self, runs: Ints, gamma: int) -> None:
        """Take in what a step of γ guesses had accepted: of a run cut short the guess after it was tried and failed."""
        accepted = int(np.minimum(runs, gamma).sum())
        tried = accepted + int((runs < gamma).sum())
        keep = max(1 - tried / MEMORY_GUESSES, 0.0)
        self.accepted = self.accepted * keep + accepted
        self.tried = self.tried * keep + tried


def _of_batch(speculation: Speculation, n: int) -> int:
    """γ at batch ``n``: the first row that reaches it, none over the last; without rows always ``draft_tokens``."""
    if not speculation.gamma_by_batch:
        return speculation.draft_tokens
    return next((gamma for batch, gamma in speculation.gamma_by_batch if n <= batch), 0)
