"""The replica that plays every step: equal to the fast one where both apply, and to a token-by-token one where only it does."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import NaiveEngine, Seq
from naive_stepping import Guesser, NaiveStepping
from roofplan.costmodels.speculation_time import VerifyTimes
from roofplan.costmodels.step_times import StepTimes
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving_parts import KvTier, Speculation
from roofplan.sim.engine import Replica
from roofplan.sim.kvstore import PrefixCache, PromptBlocks
from roofplan.sim.policies import POLICIES
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.speculate import Acceptance, Controller
from roofplan.sim.stepping import SteppingReplica
from roofplan.sim.tiers import Tier, Tiers
from test_sim_engine import CHAINS, REQUESTS, toy_times, workload

PLAIN = sorted(set(POLICIES) - {"layered"})
LAYERED = replace(POLICIES["layered"], layer_tokens=24)


def toy_verify(gammas: int, width: int = 1, ranks: int = 1) -> VerifyTimes:
    times = toy_times(1200, ranks)
    fixed = [[x + 5_003 * g * (1 + n % 7) for n, x in enumerate(times.decode)] for g in range(gammas + 1)]
    layers = [[times.linear[min(n * (1 + g * width), 1199)] - 1_009 * g * n for n in range(1200)] for g in range(gammas + 1)]
    return VerifyTimes(
        times=times, layers=layers, fixed=fixed, per_kv=[[s + 3 * g for s in times.decode_slope] for g in range(gammas + 1)], width=width
    )


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
@given(name=st.sampled_from(PLAIN), ranks=st.sampled_from([1, 1, 3]), **SHAPE)
def test_without_speculation_it_equals_the_naive_engine(name, ranks, rows, seats, extra, block, spare, swap, cut):
    work, limits, policy = workload(rows), room(rows, block, seats, extra, spare, swap), POLICIES[name]
    engine = SteppingReplica(Requests(work), toy_times(ranks=ranks), policy, limits)
    requests = played(engine, len(work), cut * 1_000_000)
    slow = NaiveEngine(seqs_of(rows, requests), toy_times(ranks=ranks), policy, limits)
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
       spread=st.booleans(), controller=st.sampled_from(["fixed", "goodput"]), table=st.booleans(), ranks=st.sampled_from([1, 1, 3]),
       **SHAPE)  # fmt: skip
def test_speculation_equals_a_token_by_token_engine(
    name, gamma, width, alpha, spread, controller, table, ranks, rows, seats, extra, block, spare, swap, cut
):
    work, limits = workload(rows), room(rows, block, seats, extra, spare, swap)
    policy = LAYERED if name == "layered" else POLICIES[name]
    spec = Speculation(
        method="tree" if width > 1 else "chain", draft_tokens=gamma, tree_width=width, accept_frac=alpha,
        accept_spread_frac=0.2 if spread and 0 < alpha < 1 else 0.0, controller=controller,
        gamma_by_batch=((2, gamma), (5, max(gamma - 2, 0))) if table else (),
    )  # fmt: skip
    verify, draws = toy_verify(gamma, width, ranks), Acceptance(spec, len(work), seed=3)
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


@dataclass
class Bent:
    """Step times that are no sum of parts: affine ones, and the same to the power of 1.1."""

    times: StepTimes
    power: float = 1.0
    swap: int = 1_234_567
    max_tokens: int = 599

    def step_ps(self, n_decodes: int, kv_sum: int, chunks: list[tuple[int, int]]) -> int:
        ps = self.times.step_ps(n_decodes, kv_sum, chunks)
        return ps if self.power == 1 else round(ps**self.power)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from(PLAIN), **SHAPE)
def test_step_prices_that_are_affine_give_what_the_tables_give(name, rows, seats, extra, block, spare, swap, cut):
    work, limits = workload(rows), room(rows, block, seats, extra, spare, swap)
    name = "vllm-v0" if name == "static" else name  # padding rows attend to nothing, which a price of whole steps cannot tell
    engines = [Replica(Requests(work), toy_times(), POLICIES[name], limits),
               SteppingReplica(Requests(work), Bent(toy_times()), POLICIES[name], limits)]  # fmt: skip
    found = [(list(r.first), list(r.finish)) for r in (played(engine, len(work), cut * 1_000_000) for engine in engines)]
    assert found[0] == found[1]


def test_whole_step_prices_weigh_loading_against_computing():
    """A slow tier is not read: computing the prompt again, priced in chunks of the budget, is faster; a fast one is."""
    for rate, hits in ((1e3, 0), (1e9, 2)):
        requests = Requests(workload([(0, 40, 1, 0), (10**6, 200, 1, 0), (10**6, 40, 1, 0)]))
        blocks = PromptBlocks([1, 2, *range(10, 22), 1, 2], [0, 2, 14, 16], list(requests.prompt), 16, 8)
        tier = Tier(KvTier(name="host", capacity_bytes=800, bytes_per_s=rate), 8.0)
        limits = Limits(budget=16, max_seqs=8, blocks=25, block_tokens=8)
        played(SteppingReplica(requests, Bent(toy_times()), POLICIES["vllm-v1"], limits, PrefixCache(blocks, Tiers([tier]))), 3)
        assert tier.n_read == hits


def test_steps_that_are_not_affine_are_priced_whole():
    price, requests = Bent(toy_times(), 1.1), Requests(workload([(0, 20, 4, 0), (0, 30, 2, 0)]))
    limits = Limits(budget=64, max_seqs=8, blocks=10, block_tokens=16)
    played(SteppingReplica(requests, price, POLICIES["vllm-v1"], limits), 2)
    both, pair = price.step_ps(0, 0, [(20, 0), (30, 0)]), price.step_ps(2, 21 + 31, [])
    assert list(requests.first) == [both, both]
    assert list(requests.finish) == [both + pair + price.step_ps(1, 22, []) + price.step_ps(1, 23, []), both + pair]


def test_prompts_past_the_tables_are_rejected():
    limits = Limits(budget=64, max_seqs=8, blocks=1000, block_tokens=16)
    for policy, accepted in (("orca", False), ("vllm-v1", True)):
        engine = SteppingReplica(Requests(workload([(0, 595, 1, 0)])), Bent(toy_times()), POLICIES[policy], limits)
        assert engine.submit(0) is accepted
    assert not SteppingReplica(Requests(workload([(0, 100, 16_000, 0)])), toy_times(), POLICIES["vllm-v1"], limits).submit(0)


def test_layers_and_guesses_need_affine_tables():
    limits = Limits(budget=64, max_seqs=8, blocks=10, block_tokens=16)
    with pytest.raises(BadInput, match="speculation and policy=layered need affine step tables"):
        SteppingReplica(Requests(workload([(0, 20, 4, 0)])), Bent(toy_times()), POLICIES["layered"], limits)


def test_a_prompt_in_groups_of_layers_answers_after_as_many_steps():
    """50 tokens in groups of 24: three groups; each step costs a third of the whole prompt's and nothing else runs."""
    requests, times = Requests(workload([(0, 50, 1, 0)])), toy_times()
    limits = Limits(budget=64, max_seqs=8, blocks=10, block_tokens=16)
    engine = SteppingReplica(requests, times, LAYERED, limits, n_layers=48)
    played(engine, 1)
    assert engine.n_steps == 3
    assert requests.first[0] == 3 * ((times.linear[50] + times.prefill[50]) // 3 + times.decode[0])
