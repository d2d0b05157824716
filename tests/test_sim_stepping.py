"""The replica that plays every step: equal to the fast one where both apply, and to a token-by-token one where only it does."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import NaiveEngine, Seq
from naive_stepping import Guesser, NaiveStepping
from roofplan.costmodels.speculation_time import VerifyTimes
from roofplan.scenarios.serving_parts import KvTier, Speculation
from roofplan.sim.engine import Limits, Replica
from roofplan.sim.kvstore import PrefixCache, PromptBlocks
from roofplan.sim.policies import POLICIES
from roofplan.sim.requests import Requests
from roofplan.sim.speculate import Acceptance, Controller
from roofplan.sim.stepping import SteppingReplica
from roofplan.sim.tiers import Tier, Tiers
from test_sim_engine import CHAINS, REQUESTS, toy_times, workload

PLAIN = sorted(set(POLICIES) - {"layered"})
LAYERED = replace(POLICIES["layered"], layer_tokens=24)


def toy_verify(gammas: int, width: int = 1) -> VerifyTimes:
    times = toy_times(1200)
    fixed = [[x + 5_003 * g * (1 + n % 7) for n, x in enumerate(times.decode)] for g in range(gammas + 1)]
    return VerifyTimes(times=times, fixed=fixed, per_kv=[[s + 3 * g for s in times.decode_slope] for g in range(gammas + 1)], width=width)


def room(rows, block: int, seats: int, extra: int, spare: int, swap: bool) -> Limits:
    largest = max(-(-(p + o - 1) // block) for _, p, o, _ in rows)
    return Limits(budget=seats + extra, max_seqs=seats, blocks=largest + spare // block, block_tokens=block, swap=swap)


def played(engine: Replica, n: int, cut: int = 0) -> Requests:
    for q in range(n):
        assert engine.submit(q)
    engine.run(cut)
    engine.run()
    return engine.r


def seqs_of(rows, requests: Requests) -> list[Seq]:
    return [Seq(q, p, o, requests.ready[q], pr) for q, (_, p, o, pr) in enumerate(rows)]


def same(requests: Requests, engine: SteppingReplica, seqs: list[Seq], slow: NaiveEngine | NaiveStepping) -> None:
    assert list(requests.first) == [s.times[0] for s in seqs]
    assert list(requests.finish) == [s.times[-1] for s in seqs]
    assert (engine.n_steps, engine.n_preempted, engine.now) == (slow.n_steps, slow.n_preempted, slow.now)
    assert (engine.free, engine.n, engine.kv, engine.held, engine.n_outstanding) == (engine.blocks, 0, 0, 0, 0)
    gaps = [b - a for s in seqs for a, b in zip(s.times, s.times[1:], strict=False)]
    engine.gaps.fold()
    assert (engine.gaps.n_tokens, engine.gaps.total_ps) == (len(gaps), sum(gaps))


SHAPE = {
    "rows": REQUESTS, "seats": st.integers(1, 9), "extra": st.integers(0, 60), "block": st.sampled_from([1, 3, 16]),
    "spare": st.integers(0, 200), "swap": st.booleans(), "cut": st.integers(1, 400),
}  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=st.sampled_from(PLAIN), **SHAPE)
def test_without_speculation_it_equals_the_naive_engine(name, rows, seats, extra, block, spare, swap, cut):
    work, limits, policy = workload(rows), room(rows, block, seats, extra, spare, swap), POLICIES[name]
    engine = SteppingReplica(Requests(work), toy_times(), policy, limits)
    requests = played(engine, len(work), cut * 1_000_000)
    slow = NaiveEngine(seqs_of(rows, requests), toy_times(), policy, limits)
    slow.run()
    same(requests, engine, slow.seqs, slow)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(set(PLAIN) - {"static"})), chains=st.lists(st.sampled_from(CHAINS), min_size=25, max_size=25),
       tiered=st.booleans(), rate=st.sampled_from([1e4, 1e6, 1e8]), **SHAPE)  # fmt: skip
def test_prefix_cache_and_tiers_are_as_in_the_fast_engine(name, chains, tiered, rate, rows, seats, extra, block, spare, swap, cut):
    n, work, limits = len(rows), workload(rows), room(rows, 8, seats, extra, spare // 4, swap)
    starts = np.cumsum([0] + [len(chain) for chain in chains]).tolist()
    found = []
    for kind in (Replica, SteppingReplica):
        requests = Requests(work)
        blocks = PromptBlocks([h for chain in chains for h in chain], starts, list(requests.prompt), 16, 8)
        tiers = Tiers([Tier(KvTier(name="host", capacity_bytes=64, bytes_per_s=rate), 8.0)]) if tiered else None
        engine = kind(requests, toy_times(), POLICIES[name], limits, PrefixCache(blocks, tiers))
        played(engine, n, cut * 1_000_000)
        found.append((list(requests.first), list(requests.finish), engine.n_steps, engine.n_preempted, engine.free, engine.busy_ps))
    assert found[0] == found[1]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(name=st.sampled_from([*PLAIN, "layered"]), gamma=st.integers(1, 5), width=st.integers(1, 3), alpha=st.sampled_from([0.0, 0.6, 1.0]),
       spread=st.booleans(), controller=st.sampled_from(["fixed", "goodput"]), table=st.booleans(), **SHAPE)  # fmt: skip
def test_speculation_equals_a_token_by_token_engine(
    name, gamma, width, alpha, spread, controller, table, rows, seats, extra, block, spare, swap, cut
):
    work, limits = workload(rows), room(rows, block, seats, extra, spare, swap)
    policy = LAYERED if name == "layered" else POLICIES[name]
    spec = Speculation(
        method="tree" if width > 1 else "chain", draft_tokens=gamma, tree_width=width, accept_frac=alpha,
        accept_spread_frac=0.2 if spread and 0 < alpha < 1 else 0.0, controller=controller,
        gamma_by_batch=((2, gamma), (5, max(gamma - 2, 0))) if table else (),
    )  # fmt: skip
    verify, draws = toy_verify(gamma, width), Acceptance(spec, len(work), seed=3)
    control = Controller(spec, verify, seats, limits.budget)
    engine = SteppingReplica(Requests(work), verify.times, policy, limits, speculation=(control, draws), n_layers=3)
    requests = played(engine, len(work), cut * 1_000_000)

    @functools.cache
    def run(q: int, step: int) -> int:
        return int(draws.runs(np.array([q]), np.array([step]))[0])

    other = Controller(spec, verify, seats, limits.budget)
    guesser = Guesser(
        other.choose, lambda q, step, i: i < run(q, step),
        *((other.learn, other.watch) if other.moving else (lambda *_: None,) * 2),
    )  # fmt: skip
    slow = NaiveStepping(seqs_of(rows, requests), verify, policy, limits, guesser, n_layers=3)
    slow.run()
    same(requests, engine, slow.seqs, slow)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers=st.integers(1, 6), **SHAPE)
def test_layered_prefill_equals_a_naive_loop(layers, rows, seats, extra, block, spare, swap, cut):
    work, limits = workload(rows), room(rows, block, seats, extra, spare, swap)
    engine = SteppingReplica(Requests(work), toy_times(), LAYERED, limits, n_layers=layers)
    requests = played(engine, len(work), cut * 1_000_000)
    slow = NaiveStepping(seqs_of(rows, requests), toy_verify(0), LAYERED, limits, None, layers)
    slow.run()
    same(requests, engine, slow.seqs, slow)
