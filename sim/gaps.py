"""Times between a request's tokens, kept as a histogram: no token is stored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..costmodels.step_times import PS

FOLD = 1 << 16
"""Entries kept before they are folded into the histogram."""
BINS_PER_OCTAVE = 128
LOWEST_PS = 10_000_000  # 10 us; shorter gaps share the lowest bin
N_BINS = 30 * BINS_PER_OCTAVE


class GapHistogram:
    """Append a gap to ``ps`` and how many tokens had it to ``counts``; bins are 0.54 % wide, the mean is exact."""

    def __init__(self) -> None:
        self.ps: list[int] = []
        self.counts: list[int] = []
        self.bins: NDArray[np.int64] = np.zeros(N_BINS, np.int64)
        self.total_ps, self.n_tokens, self.max_ps = 0, 0, 0

    def fold(self) -> None:
        """Move what was appended into the bins."""
        if not self.ps:
            return
        gaps, counts = np.array(self.ps, np.float64), np.array(self.counts, np.int64)
        at = np.clip(np.log2(np.maximum(gaps, LOWEST_PS) / LOWEST_PS) * BINS_PER_OCTAVE, 0, N_BINS - 1).astype(np.int64)
        self.bins += np.bincount(at, counts, N_BINS).astype(np.int64)
        self.total_ps += sum(map(int.__mul__, self.ps, self.counts))
        self.n_tokens += int(counts.sum())
        self.max_ps = max(self.max_ps, int(gaps[counts > 0].max(initial=0)))
        self.ps.clear()
        self.counts.clear()

    def merge(self, other: GapHistogram) -> None:
        """Add another replica's gaps."""
        other.fold()
        self.bins += other.bins
        self.total_ps += other.total_ps
        self.n_tokens += other.n_tokens
        self.max_ps = max(self.max_ps, other.max_ps)

    def quantile_s(self, q: float) -> float:
        """Seconds at quantile ``q``: the middle of its bin; 0 when there are no gaps."""
        self.fold()
        if not self.n_tokens:
            return 0.0
        at = int(np.searchsorted(np.cumsum(self.bins), q * self.n_tokens))
        return min(float(LOWEST_PS * 2 ** ((min(at, N_BINS - 1) + 0.5) / BINS_PER_OCTAVE)), float(self.max_ps)) / PS

    def mean_s(self) -> float:
        """Exact mean in seconds; 0 when there are no gaps."""
        self.fold()
        return self.total_ps / self.n_tokens / PS if self.n_tokens else 0.0
