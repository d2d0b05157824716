"""Uneven expert load under expert parallelism: Zipf routing, the most loaded rank, and extra copies of hot experts (EPLB)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numpy.typing import NDArray

from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from .arrays import Array
from .experts import chosen

N_PLACEMENTS = 64
"""Random placements averaged where nobody chose one."""
N_SIZES = 128
"""Longer arrays of step sizes are interpolated between this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Copies of experts on ranks: ``expert[r, i]`` sits in slot ``i`` of rank ``r``; ``share_frac[r, i]`` is a token's chance to go there.

    Shares of all slots sum to ``top_k``. Copies of one expert divide its tokens evenly.
    """

    expert: NDArray[np.int64]
    share_frac: NDArray[np.float64]

    @property
    def rank_share(self) -> NDArray[np.float64]:
        """Pairs per token that each rank gets."""
        out: NDArray[np.float64] = self.share_frac.sum(axis=1)
        return out

    @property
    def factor(self) -> float:
        """Load of the most loaded rank over the mean (EPLB's balancedness is its inverse)."""
        load = self.rank_share
        return float(load.max() / load.mean())


def copies_of(share: NDArray[np.float64], n_extra: int, most: int) -> NDArray[np.int64]:
    """Copies per expert: ``n_extra`` times, one more for the expert whose copies each carry most, at most ``most`` of one expert.

    Greedy is optimal for the largest load per copy. Source: DeepSeek's EPLB repository, ``replicate_experts``.
    """
    copies = np.ones(len(share), np.int64)
    heap = [(-float(s), e) for e, s in enumerate(share)]
    heapify(heap)
    for _ in range(n_extra):
        load, e = heap[0]
        copies[e] += 1
        # a copy on every rank already: no more of this expert help
        again = (-float(share[e]) / copies[e], e) if copies[e] < most else (np.inf, e)
        if load == np.inf:
            raise BadInput(f"redundant_experts={n_extra}: every expert already has a copy on each of {most} ranks")
        heapreplace(heap, again)
    return copies


def balanced(share: NDArray[np.float64], n_ranks: int, n_extra: int) -> Placement:
    """Copies packed greedily: heaviest first, each to the least loaded rank with a free slot (longest processing time first).

    Every rank has ``(E + n_extra)/n_ranks`` slots; BadInput unless that is whole. Source: EPLB repository, ``balanced_packing``.
    """
    n_slots = _slots(len(share), n_ranks, n_extra)
    copies = copies_of(share, n_extra, n_ranks)
    each = np.repeat(share / copies, copies)
    who = np.repeat(np.arange(len(share)), copies)
    heap: list[tuple[float, int, int]] = [(0.0, r, 0) for r in range(n_ranks)]
    expert, got = np.zeros((n_ranks, n_slots), np.int64), np.zeros((n_ranks, n_slots))
    for i in np.argsort(-each, kind="stable"):
        load, rank, used = heappop(heap)
        expert[rank, used], got[rank, used] = who[i], each[i]
        if used + 1 < n_slots:
            heappush(heap, (load + float(each[i]), rank, used + 1))
    return Placement(expert=expert, share_frac=got)


def as_numbered(share: NDArray[np.float64], n_ranks: int) -> list[Placement]:
    """Placements by expert number, which says nothing of popularity: seeded random ones to average over."""
    n_slots = _slots(len(share), n_ranks, 0)
    draw = np.random.default_rng(0)
    orders = [draw.permutation(len(share)).reshape(n_ranks, n_slots) for _ in range(N_PLACEMENTS)]
    return [Placement(expert=order, share_frac=share[order]) for order in orders]


def _slots(n_experts: int, n_ranks: int, n_extra: int) -> int:
    if (n_experts + n_extra) % n_ranks:
        low = -(n_experts % -n_ranks)
        raise BadInput(
            f"redundant_experts={n_extra}: {n_experts} experts and the copies must divide evenly over ep={n_ranks} ranks; "
            f"legal: {low}, {low + n_ranks}, {low + 2 * n_ranks}, …"
        )
    return (n_experts + n_extra) // n_ranks


@cache
def placements(n_experts: int, top_k: int, skew: float, ep: int, n_extra: int) -> tuple[Placement, ...]:
    """What a plan's experts look like: EPLB's packing where it has extra copies, else the random ones."""
    share = chosen(n_experts, top_k, skew)
    if ep == 1:
        return (Placement(expert=np.arange(n_experts)[None], share_frac=share[None]),)
    return (balanced(share, ep, n_extra),) if n_extra else tuple(as_numbered(share, ep))


def load_factor(n_experts: int, top_k: int, skew: float, ep: int, n_extra: int = 0) -> float:
    """Load of the most loaded of ``ep`` ranks over the mean, as tokens grow without limit; 1 is even."""
    return float(np.mean([p.factor for p in placements(n_experts, top_k, skew, ep, n_extra)]))


def most_loaded(n_experts: int, top_k: int, skew: float, ep: int, n_extra: int, tokens: Array) -> tuple[Array, Array]:
    """Expert-token pairs of the rank that gets most, and the most distinct experts a rank must read, for ``tokens`` over all ranks.

    A rank of share ``s`` gets ``x + √(2·x·ln n)`` pairs, ``x = tokens·s``: the expected largest of ``n`` Poisson counts, where ``n``
    is how many ranks are as loaded, ``Σs/max s``. Its busy experts are ``Σ 1 − (1 − share)^tokens`` over its slots.
    """
    if not skew and not n_extra:  # all ranks are alike, wherever experts sit
        x = tokens * top_k / ep
        return np.minimum(x + np.sqrt(2 * x * np.log(ep)), tokens * top_k), n_experts / ep * (1 - (1 - top_k / n_experts) ** tokens)
    if tokens.size > N_SIZES:  # smooth in the tokens: a geometric grid and lines between
        sizes = np.geomspace(1.0, max(float(tokens.max()), 2.0), N_SIZES - 1)
        at = np.concatenate([[0.0], sizes])
        columns = most_loaded(n_experts, top_k, skew, ep, n_extra, at)
        return np.interp(tokens, at, columns[0]), np.interp(tokens, at, columns[1])
    found = placements(n_experts, top_k, skew, ep, n_extra)
    pairs, busy = np.zeros(tokens.shape), np.zeros(tokens.shape)
    for p in found:
        load = p.rank_share
        top = float(load.max())
        x = tokens * top
        pairs += np.minimum(x + np.sqrt(2 * x * np.log(max(top_k / top, 1.0))), tokens * min(top_k, p.share_frac.shape[1]))
        read = 1 - (1 - np.minimum(p.share_frac, 1.0)) ** tokens[..., None, None]
        busy += read.sum(axis=-1).max(axis=-1)
    return pairs / len(found), busy / len(found)


def uneven_s(model: ModelSpec, plan: EnginePlan, tokens: Array, even_s: Callable[[Array], Array]) -> Array:
    """Seconds of the routed experts on the most loaded rank, from the price of an evenly loaded layer ``even_s(tokens)``.

    ``even_s(t_busy) + even_s(t_rows) − even_s(min(t_rows, t_full))``: an even layer of ``t_busy`` tokens reads as many experts, one of
    ``t_rows`` has as many rows, and from ``t_full = E/k`` on every expert is read, so growth past it is rows alone. Plans with no
    skew and no copies are even: ``even_s(tokens)``.
    """
    if not plan.expert_skew and not plan.redundant_experts:
        return even_s(tokens)
    ep = plan.ep if plan.ep > 1 else 1
    pairs, busy = most_loaded(model.n_experts, model.top_k, plan.expert_skew, ep, plan.redundant_experts, tokens)
    t_rows, t_busy = pairs * ep / model.top_k, busy * ep / model.top_k
    full = np.full(tokens.shape, model.n_experts / model.top_k)
    out: Array = even_s(np.minimum(t_busy, t_rows)) + even_s(t_rows) - even_s(np.minimum(t_rows, full))
    return out
