"""The integer program over replicas: how many of which kind carry the most, or carry enough with the fewest GPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something a fleet may hold any number of: a replica, or a group of prefill and decode replicas; what it carries and occupies."""

    value_per_s: float
    n_gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Copies of each part, the requests a second they carry and the GPUs they fill; ``gap_frac`` is what the solver left unproved."""

    counts: tuple[int, ...]
    value_per_s: float
    n_gpus: int
    gap_frac: float = 0.0


def most_carried(parts: Sequence[Part], n_gpus: int) -> Fleet:
    """``max Σ nᵢ·valueᵢ`` with ``Σ nᵢ·gpusᵢ ≤ n_gpus``; of equal fleets the one with fewer GPUs."""
    worth = [p.value_per_s for p in parts]
    least = min((w for w in worth if w > 0), default=1.0)
    return _solve(parts, [w - 1e-7 * least * p.n_gpus for w, p in zip(worth, parts, strict=True)], n_gpus=n_gpus)


def fewest_gpus(parts: Sequence[Part], rate_per_s: float, n_gpus: int) -> Fleet | None:
    """``min Σ nᵢ·gpusᵢ`` with ``Σ nᵢ·valueᵢ ≥ rate`` and at most ``n_gpus``; None when no fleet carries the rate."""
    most = most_carried(parts, n_gpus)
    if most.value_per_s < rate_per_s * (1 - 1e-9):
        return None
    return _solve(parts, [-float(p.n_gpus) for p in parts], n_gpus=n_gpus, rate_per_s=rate_per_s)


def _solve(parts: Sequence[Part], worth: list[float], *, n_gpus: int, rate_per_s: float = 0.0) -> Fleet:
    """The program by HiGHS with integer counts; its proof is read from ``sol_status``, as ``status`` lies at a time limit."""
    usable = [i for i, p in enumerate(parts) if p.n_gpus <= n_gpus and p.value_per_s > 0]
    if not usable:
        return Fleet(counts=(0,) * len(parts), value_per_s=0.0, n_gpus=0)
    import pulp

    from .highs import Highs

    program = pulp.LpProblem("fleet", pulp.LpMaximize)
    scale = max(abs(worth[i]) for i in usable) or 1.0
    n = {i: program.add_variable(f"n{i}", 0, n_gpus // parts[i].n_gpus, pulp.LpInteger) for i in usable}
    program += pulp.lpSum(worth[i] / scale * n[i] for i in usable)
    program += pulp.lpSum(parts[i].n_gpus * n[i] for i in usable) <= n_gpus
    if rate_per_s:
        program += pulp.lpSum(parts[i].value_per_s / rate_per_s * n[i] for i in usable) >= 1 - 1e-9
    program.solve(Highs(20.0))
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Fleet(counts=(0,) * len(parts), value_per_s=0.0, n_gpus=0, gap_frac=math.inf)
    counts = tuple(round(n[i].value()) if i in n else 0 for i in range(len(parts)))
    proved = program.sol_status == pulp.LpSolutionOptimal
    gap = 0.0 if proved else float(program.solverModel.getInfo().mip_gap)
    return fleet_of(parts, counts, gap)


def fleet_of(parts: Sequence[Part], counts: tuple[int, ...], gap_frac: float = 0.0) -> Fleet:
    """The fleet with these copies of each part."""
    return Fleet(
        counts=counts, value_per_s=math.fsum(c * p.value_per_s for c, p in zip(counts, parts, strict=True)),
        n_gpus=sum(c * p.n_gpus for c, p in zip(counts, parts, strict=True)), gap_frac=gap_frac,
    )  # fmt: skip
