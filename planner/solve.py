"""Solves the stage program exactly, and greedily for comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .constraints import StageProblem

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSolution:
    """Layers by role, layers of each stage that take each option, part of the optimizer on the host, and the step time they give."""

    layers: dict[str, int]
    count: dict[str, int]
    offload_frac: float
    step_s: float
    proved: bool
    gap_frac: float


def step_s(p: StageProblem, layers: dict[str, int], count: dict[str, int], offload_frac: float) -> float:
    """The program's objective for given integers (see ``constraints.step_time``)."""
    extra = sum(count[o.name] * o.extra_s for o in p.options)
    period = max(layers[role] * p.layer_s + extra + p.edge_s[role] for role in p.roles)
    return p.base_s + p.n_micro * (period - p.base_period_s) + (p.n_stages - 1) / p.vpp * extra + p.optimizer_s * offload_frac


def overflow_bytes(p: StageProblem, layers: dict[str, int], count: dict[str, int], offload_frac: float) -> tuple[float, float]:
    """(device, host) bytes over the limits, the worst role; at most 0 when everything fits."""
    device = max(
        p.fixed_bytes[r] + layers[r] * p.layer_bytes[r] - offload_frac * p.optimizer_bytes
        - sum(count[o.name] * o.freed_bytes[r] for o in p.options)
        for r in p.roles
    ) - p.hbm_limit_bytes  # fmt: skip
    host = p.host_fixed_bytes + sum(count[o.name] * o.host_bytes for o in p.options) + offload_frac * p.optimizer_host_bytes
    return device, host - p.host_limit_bytes


def solve(p: StageProblem, time_limit_s: float = 60.0) -> StageSolution | None:
    """The optimum by HiGHS, or None when no choice fits. ``proved`` is read from ``sol_status``: at a time limit ``status`` lies."""
    import pulp

    from .constraints import build
    from .highs import Highs

    program, v = build(p)
    program.solve(Highs(time_limit_s))
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return None
    layers = {role: round(x.value()) for role, x in v.layers.items()}
    count = {name: round(x.value()) for name, x in v.count.items()}
    part = min(max(float(v.offload.value() or 0.0), 0.0), 1.0)  # None: the program does not use it
    offload = part if p.fractional else float(round(part))
    info = program.solverModel.getInfo()
    gap = float(info.mip_gap) if program.sol_status != pulp.LpSolutionOptimal else 0.0
    return StageSolution(
        layers=layers, count=count, offload_frac=offload, step_s=step_s(p, layers, count, offload),
        proved=program.sol_status == pulp.LpSolutionOptimal, gap_frac=gap,
    )  # fmt: skip


def bound_s(p: StageProblem) -> float:
    """A step time no choice can beat: each missing byte freed at the best rate of seconds per byte; infinite if too few can be freed.

    Movable layers: stages may be perfectly even, and memory is pooled over all of them.
    """
    room = p.host_limit_bytes - p.host_fixed_bytes
    if room < 0:
        return math.inf
    per_period = p.n_micro + (p.n_stages - 1) / p.vpp
    pools = [_stages(p)] if p.partition else [{role: 1} for role in p.roles]
    worst = 0.0
    for pool in pools:
        missing = _needed(p, pool) - sum(pool.values()) * p.hbm_limit_bytes
        if missing <= 0:
            continue
        freed = {o.name: sum(n * o.freed_bytes[role] for role, n in pool.items()) for o in p.options}
        optimizer = p.optimizer_bytes * sum(pool.values())
        rates = [per_period * o.extra_s / freed[o.name] for o in p.options if freed[o.name] > 0]
        rates += [p.optimizer_s / optimizer] if optimizer > 0 else []
        layers = p.n_layers // p.n_stages if p.partition else min(p.base_layers.values())  # the counts hold in every stage
        if not rates or _most_freed(p, freed, layers, optimizer, room) < missing * (1 - TOLERANCE):
            return math.inf
        worst = max(worst, missing * max(min(rates), 0.0))
    if not p.partition:
        return p.base_s + worst
    mean = (p.n_layers * p.layer_s + p.edge_s["first"] + p.edge_s.get("last", 0.0)) / p.n_stages
    return p.base_s - p.n_micro * max(p.base_period_s - mean, 0.0) + worst


def _stages(p: StageProblem) -> dict[str, int]:
    """How many stages there are of each role."""
    return {role: p.n_stages - 2 if role == "middle" else 1 for role in p.roles}


def _needed(p: StageProblem, pool: dict[str, int]) -> float:
    """Bytes that the stages of a pool hold at least, with nothing recomputed or offloaded."""
    fixed = sum(n * p.fixed_bytes[role] for role, n in pool.items())
    if p.partition:
        return fixed + p.n_layers * min(p.layer_bytes.values())
    return fixed + sum(n * p.base_layers[role] * p.layer_bytes[role] for role, n in pool.items())


def _most_freed(p: StageProblem, freed: dict[str, float], n: int, optimizer_bytes: float, room_bytes: float) -> float:
    """No choice frees more bytes: every layer takes the best option without host memory, and as many as fit there a better one."""
    inside = max((freed[o.name] for o in p.options if not o.host_bytes), default=0.0)
    most = n * max(inside, 0.0)
    for o in p.options:
        if o.host_bytes:
            most += min(n, room_bytes / o.host_bytes) * max(freed[o.name] - inside, 0.0)
    part = min(1.0, room_bytes / p.optimizer_host_bytes) if p.optimizer_host_bytes > 0 else 1.0
    return most + part * optimizer_bytes


def greedy(p: StageProblem) -> StageSolution | None:
    """The usual way: keep the given partition and, while memory is over, take the cheapest step per byte freed; None if stuck.

    A step is one more layer of one option, or the whole optimizer to the host.
    """
    layers, count, offload = dict(p.base_layers), {o.name: 0 for o in p.options}, 0.0
    room = min(layers[r] for r in p.roles)
    while overflow_bytes(p, layers, count, offload)[0] > TOLERANCE * p.hbm_limit_bytes:
        steps: list[tuple[float, dict[str, int], float]] = []
        now = step_s(p, layers, count, offload)
        for o in p.options:
            if sum(count.values()) < room and o.freed_bytes[p.roles[0]] > 0:
                more = count | {o.name: count[o.name] + 1}
                steps.append(((step_s(p, layers, more, offload) - now) / o.freed_bytes[p.roles[0]], more, offload))
        if not offload and p.optimizer_bytes > 0:
            steps.append((p.optimizer_s / p.optimizer_bytes, count, 1.0))
        steps = [s for s in steps if overflow_bytes(p, layers, s[1], s[2])[1] <= TOLERANCE * p.host_limit_bytes]
        if not steps:
            return None
        _, count, offload = min(steps, key=lambda s: s[0])
    return StageSolution(
        layers=layers, count=count, offload_frac=offload, step_s=step_s(p, layers, count, offload), proved=False, gap_frac=1.0
    )
