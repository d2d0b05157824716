"""Routers: the choice they promise, and queueing laws of the engine behind them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from roofplan.costmodels.step_times import PS, StepTimes
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim.engine import Limits, Replica
from roofplan.sim.policies import POLICIES
from roofplan.sim.requests import Requests
from roofplan.sim.router import ROUTERS, route
from test_sim_engine import toy_times, workload

STEP_PS = 10**9


def fleet(requests: Requests, n: int) -> list[Replica]:
    limits = Limits(budget=64, max_seqs=8, blocks=60, block_tokens=16)
    return [Replica(requests, toy_times(), POLICIES["vllm-v1"], limits) for _ in range(n)]


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_serves_everything_and_repeats(router):
    rows = [(30, 1 + 7 * i % 60, 1 + 5 * i % 30, 0) for i in range(60)]
    runs = []
    for _ in range(2):
        requests = Requests(workload(rows))
        replicas = fleet(requests, 3)
        route(requests, replicas, router, seed=5)
        assert all(r.n_outstanding == 0 for r in replicas)
        assert all(r.n_steps for r in replicas)
        runs.append(requests.finish)
    assert runs[0] == runs[1]
    assert min(runs[0]) > 0


def test_least_outstanding_avoids_the_busy_replica():
    """A long answer holds replica 0; every later request that finds it busy goes to replica 1."""
    requests = Requests(workload([(0, 4, 500, 0)] + [(60, 4, 2, 0)] * 5))
    replicas = fleet(requests, 2)
    route(requests, replicas, "least-outstanding", seed=0)
    assert [len(r.pending) for r in replicas] == [1, 5]


def test_unknown_router():
    with pytest.raises(BadInput, match="router='best' is not known; legal: round-robin"):
        route(Requests(workload([(0, 4, 4, 0)])), [], "best", 0)


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
