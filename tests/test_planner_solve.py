"""The integer program against brute force on small layouts, and against its greedy baseline."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.planner.constraints import Option, StageProblem
from roofplan.planner.solve import bound_s, greedy, overflow_bytes, solve, step_s

GIB = 2.0**30


def brute_force(p: StageProblem) -> float:
    """Best step time over every integer choice; a fractional optimizer share is the least that fits."""
    best = math.inf
    for layers in partitions(p):
        room = min(layers.values())
        for counts in itertools.product(range(room + 1), repeat=len(p.options)):
            if sum(counts) > room:
                continue
            count = {o.name: c for o, c in zip(p.options, counts, strict=True)}
            for part in shares(p, layers, count):
                device, host = overflow_bytes(p, layers, count, part)
                if device <= 1e-6 * GIB and host <= 1e-6 * GIB:
                    best = min(best, step_s(p, layers, count, part))
    return best


def partitions(p: StageProblem) -> list[dict[str, int]]:
    if not p.partition:
        return [{r: p.base_layers[r] for r in p.roles}]
    if p.n_stages == 1:
        return [{"first": p.n_layers}]
    out = []
    for first, last in itertools.product(range(1, p.n_layers), repeat=2):
        rest = p.n_layers - first - last
        if p.n_stages == 2 and rest == 0:
            out.append({"first": first, "last": last})
        elif p.n_stages > 2 and rest >= p.n_stages - 2 and rest % (p.n_stages - 2) == 0:
            out.append({"first": first, "middle": rest // (p.n_stages - 2), "last": last})
    return out


def shares(p: StageProblem, layers: dict[str, int], count: dict[str, int]) -> list[float]:
    if not p.fractional or p.optimizer_bytes <= 0:
        return [0.0, 1.0]
    return [0.0, min(1.0, max(0.0, overflow_bytes(p, layers, count, 0.0)[0] / p.optimizer_bytes)), 1.0]


def problem(
    *, n_stages: int = 1, n_layers: int = 8, limit: float = 40.0, host: float = 100.0, partition: bool = False, fractional: bool = False,
    layer: float = 6.0, head: float = 0.3, optimizer: float = 8.0, full_s: float = 0.03, host_s: float = 0.01, remat_s: float = 0.02,
) -> StageProblem:  # fmt: skip
    roles = {1: ("first",), 2: ("first", "last")}.get(n_stages, ("first", "middle", "last"))
    even = n_layers // n_stages
    base = dict.fromkeys(roles, even) | {"first": n_layers - even * (n_stages - 1)}
    waves = {"first": float(n_stages), "middle": max(n_stages - 1.0, 1.0), "last": 1.0}
    edge = {"first": 0.0, "middle": 0.0, "last": head} if n_stages > 1 else {"first": head}
    period = max(base[r] * 0.1 + edge[r] for r in roles)
    options = (
        Option(name="full", extra_s=full_s, freed_bytes={r: 0.9 * layer / n_stages * waves[r] * GIB for r in roles}),
        Option(name="offload", extra_s=host_s, freed_bytes={r: layer / n_stages * waves[r] * GIB for r in roles}, host_bytes=15 * GIB),
        Option(name="remat", extra_s=remat_s, freed_bytes={r: 0.55 * layer / n_stages * waves[r] * GIB for r in roles}),
    )
    return StageProblem(
        n_layers=n_layers, n_stages=n_stages, n_micro=4, vpp=1, base_s=4 * period + 1, base_period_s=period, base_layers=base, layer_s=0.1,
        edge_s=edge, fixed_bytes=dict.fromkeys(roles, 10 * GIB), hbm_limit_bytes=limit * GIB,
        layer_bytes={r: (0.2 + layer / n_stages * waves[r]) * GIB for r in roles}, host_fixed_bytes=5 * GIB, host_limit_bytes=host * GIB,
        options=options, partition=partition, optimizer_bytes=optimizer * GIB, optimizer_host_bytes=20 * GIB, optimizer_s=0.4,
        fractional=fractional,
    )  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n_stages=st.sampled_from([1, 2, 3, 4]), n_layers=st.integers(4, 9), limit=st.floats(12, 80), host=st.floats(5, 160),
    partition=st.booleans(), fractional=st.booleans(), layer=st.floats(0.5, 9), head=st.floats(0, 0.5),
    full_s=st.floats(0.001, 0.05), host_s=st.floats(0.0, 0.05), remat_s=st.floats(0.001, 0.05),
)  # fmt: skip
def test_the_solver_agrees_with_brute_force(n_stages: int, n_layers: int, fractional: bool, **rest: object) -> None:
    p = problem(n_stages=n_stages, n_layers=max(n_layers, n_stages), fractional=fractional and n_stages == 1, **rest)  # type: ignore[arg-type]
    found, best = solve(p), brute_force(p)
    assert bound_s(p) <= best + 1e-9
    if found is None:
        assert best == math.inf
        return
    assert found.proved
    assert found.gap_frac == 0.0
    assert found.step_s == pytest.approx(best, rel=1e-5)
    device, host = overflow_bytes(p, found.layers, found.count, found.offload_frac)
    assert device <= 1e-5 * p.hbm_limit_bytes
    assert host <= 1e-5 * p.host_limit_bytes
    simple = greedy(p)
    if simple is not None:
        assert simple.step_s >= found.step_s - 1e-9


def test_nothing_is_recomputed_when_everything_fits() -> None:
    found = solve(problem(limit=500))
    assert found is not None
    assert found.count == {"full": 0, "offload": 0, "remat": 0}
    assert found.offload_frac == 0


def test_a_heavy_head_takes_layers_off_the_last_stage() -> None:
    """Period of 4 stages, 16 layers of 0.1 s and a head of 0.2 s: 4,4,4,4 gives 0.6; 5,4,4,3 gives 0.5; 4.5 is out of reach."""
    p = problem(n_stages=4, n_layers=16, head=0.2, limit=500, partition=True)
    found = solve(p)
    assert found is not None
    assert found.layers["last"] == 3 or found.layers["last"] == 2
    assert found.step_s == pytest.approx(p.base_s - 4 * 0.1)


def test_the_solver_beats_greedy_where_the_cheapest_step_per_byte_overshoots() -> None:
    """5 GiB over: greedy takes remat twice (0.04 s, the best rate), one full recomputation (0.035 s) is enough."""
    p = problem(limit=54.6, host=10, full_s=0.035, remat_s=0.02, optimizer=0.0)
    best, simple = solve(p), greedy(p)
    assert best is not None
    assert simple is not None
    assert best.count == {"full": 1, "offload": 0, "remat": 0}
    assert simple.count == {"full": 0, "offload": 0, "remat": 2}
    assert simple.step_s - best.step_s == pytest.approx(4 * 0.005)


def test_greedy_gets_stuck_where_the_solver_finds_a_plan() -> None:
    """Host RAM for two layers, and layers already on remat cannot be taken back."""
    p = problem(limit=26, host=36, full_s=0.05, host_s=0.012, remat_s=0.02, optimizer=0.0)
    assert solve(p) is not None
    assert greedy(p) is None


def test_infeasible_is_none() -> None:
    assert solve(problem(limit=5)) is None
    assert greedy(problem(limit=5)) is None
