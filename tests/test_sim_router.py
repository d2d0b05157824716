"""Routers: the choice they promise, and queueing laws of the engine behind them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.step_times import PS, StepTimes
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim.engine import Replica
from roofplan.sim.fleet import Fleet
from roofplan.sim.kvstore import PrefixCache, PromptBlocks
from roofplan.sim.policies import POLICIES
from roofplan.sim.pooled import Pooled
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.router import ROUTERS, Router
from roofplan.sim.sources import play
from test_sim_engine import toy_times, workload

STEP_PS = 10**9


def fleet(requests: Requests, n: int) -> list[Replica]:
    limits = Limits(budget=64, max_seqs=8, blocks=60, block_tokens=16)
    return [Replica(requests, toy_times(), POLICIES["vllm-v1"], limits) for _ in range(n)]


def stores(requests: Requests, n: int, chains: list[list[int]]) -> list[PrefixCache]:
    """Prefix caches over blocks of 16 tokens, request ``i`` with the hashes ``chains[i]``."""
    starts = np.cumsum([0] + [len(c) for c in chains]).tolist()
    return [PrefixCache(PromptBlocks([h for c in chains for h in c], starts, list(requests.prompt), 16, 16)) for _ in range(n)]


def hashed(work: ServeWorkload, chains: list[list[int]]) -> ServeWorkload:
    starts = np.cumsum([0] + [len(c) for c in chains])
    return dataclasses.replace(work, block_starts=starts, block_ids=np.array([h for c in chains for h in c], np.int64), block_id_tokens=16)


def played(work, n, name, seed=0, chains=None):
    requests = Requests(work)
    replicas = fleet(requests, n)
    if chains:
        for replica, store in zip(replicas, stores(requests, n, chains), strict=True):
            replica.store = store
    crew = Fleet(requests, replicas)
    play(crew, Pooled(crew, Router(name, [[r] for r in replicas], work, seed)), None, 0, seed)
    return requests, replicas


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_serves_everything_and_repeats(router):
    rows = [(30, 1 + 7 * i % 60, 1 + 5 * i % 30, 0) for i in range(60)]
    chains = [[i % 5, 100 + i % 5][: p // 16] for i, (_, p, _, _) in enumerate(rows)]
    runs = []
    for _ in range(2):
        requests, replicas = played(hashed(workload(rows), chains), 3, router, seed=5, chains=chains)
        assert all(r.n_outstanding == 0 for r in replicas)
        assert all(r.n_steps for r in replicas)
        runs.append(requests.finish)
    assert runs[0] == runs[1]
    assert min(runs[0]) > 0


def test_least_outstanding_avoids_the_busy_replica():
    """A long answer holds replica 0; every later request that finds it busy goes to replica 1."""
    _, replicas = played(workload([(0, 4, 500, 0)] + [(60, 4, 2, 0)] * 5), 2, "least-outstanding")
    assert [len(r.pending) for r in replicas] == [1, 5]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60), st.integers(1, 40), st.just(0)), min_size=1, max_size=40),
       n=st.integers(1, 4), name=st.sampled_from(["least-outstanding", "kv-aware"]))  # fmt: skip
def test_state_is_that_of_replicas_played_step_by_step_to_each_arrival(rows, n, name):
    work = workload(rows)
    fast, _ = played(work, n, name)
    slow = Requests(work)
    replicas = fleet(slow, n)
    for q in range(len(work)):
        for replica in replicas:
            replica.run(slow.ready[q])
        loads = [r.n_outstanding if name == "least-outstanding" else r.queued_blocks() - r.free for r in replicas]
        replicas[loads.index(min(loads))].submit(q)
    for replica in replicas:
        replica.run()
    assert list(fast.finish) == list(slow.finish)


def test_power_of_two_choices_beats_random():
    """Mean stay under two random choices lies well under that of one (Mitzenmacher 2001), at 85 % load of one-seat replicas."""
    n, k = 6000, 10
    rng = np.random.default_rng(0)
    tokens = np.maximum(np.rint(rng.exponential(100, n)), 1).astype(np.int64)
    arrival = np.cumsum(rng.exponential(tokens.mean() * STEP_PS / PS / 0.85 / k, n))
    work = ServeWorkload(arrival_s=arrival, prompt_tokens=np.ones(n, np.int64), output_tokens=tokens)
    stay = {}
    for name in ("random", "power-of-two", "least-outstanding"):
        requests = Requests(work)
        limits = Limits(budget=8, max_seqs=1, blocks=10**9, block_tokens=16)
        replicas = [Replica(requests, constant_times(per_token=False), POLICIES["vllm-v1"], limits) for _ in range(k)]
        crew = Fleet(requests, replicas)
        play(crew, Pooled(crew, Router(name, [[r] for r in replicas], work, 1)), None, 0, 1)
        stay[name] = (np.array(requests.finish) - np.array(requests.arrival)).mean()
    assert stay["least-outstanding"] < stay["power-of-two"] < 0.6 * stay["random"]


def test_cache_aware_follows_the_prefix_until_loads_are_uneven():
    rows = [(0, 40, 400, 0), (60, 40, 400, 0)] + [(60, 40, 2, 0)] * 3
    chains = [[1, 2], [3, 4], [1, 2], [3, 4], [1, 5]]
    work = hashed(workload(rows), chains)
    _, replicas = played(work, 2, "cache-aware", chains=chains)
    assert [list(r.pending) for r in replicas] == [[0, 2, 4], [1, 3]]  # a block of 16 of 40 tokens is over the threshold of 0.3
    crowd = [(0, 40, 400, 0), (60, 40, 400, 0)] + [(0, 40, 400, 0)] * 198
    _, replicas = played(hashed(workload(crowd), [[1, 2]] * 200), 2, "cache-aware", chains=[[1, 2]] * 200)
    sent = [len(r.pending) for r in replicas]
    assert sent[0] > 100 > sent[1] > 0
    assert sent[0] - sent[1] <= 66  # 64 apart, and the one that tips it over


def test_prefix_hash_keeps_a_prefix_together():
    rows = [(5, 40, 3, 0)] * 60
    chains = [[i % 7] for i in range(60)]
    work = hashed(workload(rows), chains)
    _, replicas = played(work, 3, "prefix-hash")
    where = {q: i for i, r in enumerate(replicas) for q in r.pending}
    assert all(where[q] == where[q % 7] for q in range(60))
    assert len(set(where.values())) > 1


def test_routers_that_cannot_be():
    work, requests = workload([(0, 4, 4, 0)]), Requests(workload([(0, 4, 4, 0)]))
    groups = [[r] for r in fleet(requests, 2)]
    with pytest.raises(BadInput, match="router='best' is not known; legal: round-robin"):
        Router("best", groups, work, 0)
    with pytest.raises(BadInput, match="router=prefix-hash needs prompt blocks"):
        Router("prefix-hash", groups, work, 0)
    with pytest.raises(BadInput, match="router=cache-aware follows prefix caches, and they are off"):
        Router("cache-aware", groups, work, 0)


def constant_times(per_token: bool) -> StepTimes:
    """Every step takes STEP_PS, or STEP_PS for each token it carries (the engine as a shared processor)."""
    size = 2000
    linear = [0] + [STEP_PS * (t if per_token else 1) for t in range(1, size)]
    zeros = [0] * size
    return StepTimes(linear=linear, decode=zeros, decode_slope=zeros, prefill=zeros, prefill_slope=zeros)


def mean_sojourn(seats: int, load: float, draw, per_token: bool, n: int = 6000, seeds: int = 8) -> tuple[float, float]:
    """Mean time in the system in units of the mean service time, and its standard error over seeds; Poisson arrivals."""
    means = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        tokens = np.maximum(np.rint(draw(rng, n)), 1).astype(np.int64)
        service_s = tokens.mean() * STEP_PS / PS
        arrival = np.cumsum(rng.exponential(service_s / (load * (1 if per_token else seats)), n))
        requests = Requests(ServeWorkload(arrival_s=arrival, prompt_tokens=np.ones(n, np.int64), output_tokens=tokens))
        limits = Limits(budget=1900, max_seqs=seats, blocks=10**9, block_tokens=16)
        engine = Replica(requests, constant_times(per_token), POLICIES["vllm-v1"], limits)
        for q in range(n):
            engine.submit(q)
        engine.run()
        stay = (np.array(requests.finish) - np.array(requests.arrival))[n // 10 :].mean() / PS
        means.append(stay / service_s)
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(seeds))


def erlang_c(c: int, load: float) -> float:
    offered = c * load
    top = offered**c / math.factorial(c) / (1 - load)
    return top / (sum(offered**k / math.factorial(k) for k in range(c)) + top)


@pytest.mark.parametrize(("seats", "load"), [(1, 0.6), (4, 0.7)])
def test_exponential_answers_are_the_mmc_queue(seats, load):
    """M/M/c: mean stay ``1 + C(c,ρ)/(c(1−ρ))`` services (Erlang C); answers of 300 tokens on average make a step negligible."""
    mean, error = mean_sojourn(seats, load, lambda rng, n: rng.exponential(300, n), per_token=False)
    expected = 1 + erlang_c(seats, load) / (seats * (1 - load))
    assert abs(mean - expected) < 4 * error + 2 / 300


def test_any_answers_are_the_mg1_queue():
    """M/G/1 (Pollaczek-Khinchine): mean stay ``1 + ρ(1+cv²)/(2(1−ρ))``; here log-normal of cv 0.8."""
    sigma = math.sqrt(math.log1p(0.8**2))
    mean, error = mean_sojourn(1, 0.6, lambda rng, n: rng.lognormal(math.log(300) - sigma**2 / 2, sigma, n), per_token=False)
    assert abs(mean - (1 + 0.6 * (1 + 0.64) / (2 * 0.4))) < 4 * error + 2 / 300


def test_a_step_that_costs_its_tokens_is_processor_sharing():
    """M/G/1-PS: mean stay ``1/(1−ρ)`` whatever the distribution (insensitivity)."""
    for draw in (lambda rng, n: rng.exponential(200, n), lambda rng, n: np.full(n, 200)):
        mean, error = mean_sojourn(1500, 0.6, draw, per_token=True, n=3000)
        assert abs(mean - 1 / 0.4) < 4 * error + 0.03
