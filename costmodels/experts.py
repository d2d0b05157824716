"""Which share of the experts a batch of tokens touches: uniform routing in closed form, skewed routing by a Zipf law."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .op import Floats


def expert_share_read(n_experts: int, top_k: int, tokens: Floats, *, skew: float = 0.0) -> Floats:
    """Share of experts that ``tokens`` tokens touch: ``mean over e of 1 - (1 - q_e)^n``, ``q_e`` ∝ rank^-skew, ``sum q_e = top_k``.

    ``skew = 0`` is uniform routing, ``1 - (1 - k/E)^n``. No ``q_e`` exceeds 1: the excess goes to the other experts.
    """
    q = chosen(n_experts, top_k, skew)
    n = np.asarray(tokens, float)
    share: Floats = np.mean(1 - (1 - q) ** n[..., None], axis=-1)
    return share


@cache
def chosen(n_experts: int, top_k: int, skew: float) -> NDArray[np.float64]:
    """Chance that a token chooses each expert."""
    weight = np.arange(1, n_experts + 1, dtype=float) ** -skew
    q = np.zeros(n_experts)
    free = np.ones(n_experts, bool)
    for _ in range(n_experts):
        q[free] = weight[free] * (top_k - np.count_nonzero(~free)) / weight[free].sum()
        over = free & (q > 1)
        if not over.any():
            break
        q[over], free = 1.0, free & ~over
    return np.minimum(q, 1.0)
