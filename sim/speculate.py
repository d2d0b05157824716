"""Which guesses a speculating replica has accepted, and how many it makes: acceptance of each request, and γ of each step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..costmodels.acceptance import chain_tokens
from ..costmodels.speculation_time import VerifyTimes, depth_acceptance
from ..scenarios.serving_parts import Speculation
from .arrivals import rng

ACCEPT_STREAM, GUESS_STREAM = 4, 5
LONGEST_RUN = 1 << 20
"""Guesses accepted in a row by a draft that is never wrong."""
MEMORY_GUESSES = 2000.0
"""The moving estimate of acceptance forgets like a window of so many checked guesses."""

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
    """γ of each step: fixed, by batch size, or the one of most useful tokens a second under a moving estimate of α.

    ``goodput`` counts answer tokens expected and prompt tokens carried, both over the step's own time from the tables.
    """

    def __init__(self, speculation: Speculation, verify: VerifyTimes, max_seqs: int, budget: int) -> None:
        self.verify, self.budget = verify, budget
        self.moving = speculation.controller == "goodput"
        self.accepted = MEMORY_GUESSES * float(depth_acceptance(speculation, speculation.accept_frac))
        self.tried = MEMORY_GUESSES
        self._by_batch = [_of_batch(speculation, n) for n in range(max_seqs + 1)]

    def choose(self, rows: int, n: int, kv: int, prompt_tokens: int) -> int:
        """γ for ``n`` sequences (``rows`` with padding) that hold ``kv`` tokens while ``prompt_tokens`` wait to be computed."""
        width = self.verify.width
        most = min(self._by_batch[n], max(self.budget // rows - 1, 0) // width)
        if not self.moving or not most:
            return most
        alpha = self.accepted / self.tried
        linear, fixed, per_kv = self.verify.times.linear, self.verify.fixed, self.verify.per_kv
        best, best_rate = 0, 0.0
        for gamma in range(most + 1):
            checked = rows * (1 + gamma * width)
            prompts = min(prompt_tokens, self.budget - checked)
            step = linear[checked + prompts] + fixed[gamma][rows] + per_kv[gamma][n] * (kv + n * (1 + gamma * width))
            rate = (n * chain_tokens(alpha, gamma) + prompts) / step
            if rate > best_rate:
                best, best_rate = gamma, rate
        return best

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
    return next((min(gamma, speculation.draft_tokens) for batch, gamma in speculation.gamma_by_batch if n <= batch), 0)
