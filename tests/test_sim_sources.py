"""Closed loops against the laws of closed queueing networks."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.step_times import PS
from roofplan.scenarios.clients import Clients
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim.engine import Replica
from roofplan.sim.fleet import Fleet
from roofplan.sim.policies import POLICIES
from roofplan.sim.pooled import Pooled
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.router import Router
from roofplan.sim.sources import play
from test_sim_router import STEP_PS, constant_times


def looped(tokens, clients: Clients, *, stations: int = 1, seats: int = 1, router: str = "random", seed: int = 0, delay_ps: int = 0):
    """One closed loop over replicas whose every step takes STEP_PS: a request of ``n`` tokens is a service of ``n`` steps."""
    n = len(tokens)
    work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=np.ones(n, np.int64), output_tokens=tokens)
    requests = Requests(work)
    limits = Limits(budget=1000, max_seqs=seats, blocks=10**9, block_tokens=16)
    replicas = [Replica(requests, constant_times(per_token=False), POLICIES["vllm-v1"], limits) for _ in range(stations)]
    fleet = Fleet(requests, replicas)
    play(fleet, Pooled(fleet, Router(router, [[r] for r in replicas], work, seed)), clients, delay_ps, seed)
    return requests, replicas


def mva(clients: int, think: float, demands: list[float]) -> float:
    """Throughput of a product-form network by mean value analysis (Reiser and Lavenberg 1980)."""
    queue = [0.0] * len(demands)
    rate = 0.0
    for n in range(1, clients + 1):
        stays = [d * (1 + q) for d, q in zip(demands, queue, strict=True)]
        rate = n / (think + sum(stays))
        queue = [rate * stay for stay in stays]
    return rate


@pytest.mark.parametrize(("clients", "think", "stations"), [(1, 2.0, 1), (4, 3.0, 1), (6, 1.0, 2), (12, 0.0, 3)])
def test_exponential_services_and_thinking_are_the_product_form_network(clients, think, stations):
    """Random routing over equal exponential single servers: demands S/R each; MVA is exact. Within 4 standard errors over seeds."""
    rates = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        tokens = np.maximum(np.rint(rng.exponential(100, 1500)), 1).astype(np.int64)
        service_s = tokens.mean() * STEP_PS / PS
        spec = Clients(n_clients=clients, think_s=think * service_s, random_think=True)
        requests, _ = looped(tokens, spec, stations=stations, seed=seed)
        sent, done = np.array(requests.arrival), np.sort(np.array(requests.finish))
        middle = slice(len(done) // 10, -len(done) // 10)
        window = done[middle]
        rates.append((len(window) - 1) / ((window[-1] - window[0]) / PS) * service_s)
        assert np.all(np.diff(sent) >= 0)
    expected = mva(clients, think, [1 / stations] * stations)
    error = np.std(rates, ddof=1) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - expected) < 4 * error + 0.02 * expected


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 9])
def test_equal_services_meet_the_asymptotic_bound(clients):
    """Deterministic, one station, fixed think: X = min(N/(Z+S), 1/S) exactly, for a fixed cycle cannot queue before it saturates."""
    tokens = np.full(200, 100, np.int64)
    service_s = 100 * STEP_PS / PS
    requests, _ = looped(tokens, Clients(n_clients=clients, think_s=2 * service_s, ramp_s=3 * service_s))
    done = np.sort(np.array(requests.finish))[60:140] / PS
    rate = (len(done) - 1) / (done[-1] - done[0])
    assert rate == pytest.approx(min(clients / (3 * service_s), 1 / service_s), rel=0.03)


def test_never_more_in_the_system_than_clients_and_little_holds():
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 60, 400)
    spec = Clients(n_clients=7, think_s=1e-3)
    requests, replicas = looped(tokens, spec, stations=2, seats=3, router="least-outstanding", delay_ps=10**8)
    sent, done = np.array(requests.arrival), np.array(requests.finish)
    assert all(r.n_outstanding == 0 for r in replicas)
    assert np.all(np.array(requests.ready) - sent == 10**8)
    events = np.sort(np.concatenate([np.stack([done, np.full(400, -1)], 1), np.stack([sent, np.full(400, 1)], 1)]).view("i8,i8"), axis=0)
    inside = np.cumsum(events["f1"])
    assert inside.max() == 7
    # each client's cycle is stay + think: 7 clients' cycles fill the time until the queue of requests runs out
    assert np.sum(done - sent) + 400 * 10**9 == pytest.approx(7 * done.max(), rel=0.03)


def test_one_client_without_thinking_is_one_request_after_the_other():
    tokens = np.array([3, 5, 2], np.int64)
    requests, _ = looped(tokens, Clients(n_clients=1))
    assert list(requests.finish) == [3 * STEP_PS, 8 * STEP_PS, 10 * STEP_PS]
    assert list(requests.arrival) == [0, 3 * STEP_PS, 8 * STEP_PS]


def test_a_rejected_request_does_not_stop_its_client():
    n = 5
    work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=np.array([4, 400, 4, 400, 4]), output_tokens=np.full(n, 3))
    requests = Requests(work)
    limits = Limits(budget=500, max_seqs=2, blocks=4, block_tokens=16)
    fleet = Fleet(requests, [Replica(requests, constant_times(per_token=False), POLICIES["vllm-v1"], limits)])
    play(fleet, Pooled(fleet, Router("random", [fleet.replicas], work, 0)), Clients(n_clients=1), 0, 0)
    assert requests.rejected == [1, 3]
    assert all(requests.finish[q] > 0 for q in (0, 2, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"n_clients": 0}, "n_clients=0 must be from 1"), ({"think_s": -1}, "think_s=-1 must be"), ({"ramp_s": 1e7}, "ramp_s=1e")],
)
def test_clients_that_cannot_be(change, message):
    with pytest.raises(BadInput, match=message):
        Clients(**({"n_clients": 2} | change))
