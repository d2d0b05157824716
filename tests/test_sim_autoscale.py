"""Autoscaled pools: what is asked for, when it serves, who is let go, and what is paid."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.step_times import PS
from roofplan.scenarios import registry
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.serving import EnginePlan, ServeWorkload
from roofplan.scenarios.serving_parts import Autoscale
from roofplan.sim import arrivals
from roofplan.sim.autoscale import Autoscaler
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.engine import Replica
from roofplan.sim.fleet import Fleet
from roofplan.sim.policies import POLICIES
from roofplan.sim.pooled import Pooled
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.router import Router
from roofplan.sim.sources import play
from test_sim_router import constant_times

SPEC = Autoscale(min_replicas=1, max_replicas=4, target_requests=2, interval_s=1.0, provision_s=3.0, cooldown_s=5.0)


def scaled(arrival_s, tokens, spec=SPEC):
    """Replicas of one seat that take 1 ms a token."""
    n = len(arrival_s)
    work = ServeWorkload(arrival_s=np.array(arrival_s, float), prompt_tokens=np.ones(n, np.int64), output_tokens=np.array(tokens))
    requests = Requests(work)
    limits = Limits(budget=8, max_seqs=1, blocks=10**6, block_tokens=16)
    replicas = [Replica(requests, constant_times(per_token=False), POLICIES["vllm-v1"], limits) for _ in range(spec.max_replicas)]
    fleet = Fleet(requests, replicas)
    pool = Pooled(fleet, Router("least-outstanding", [[r] for r in replicas], work, 0))
    scaler = Autoscaler(fleet, pool, spec)
    play(fleet, pool, None, 0, 0)
    return requests, replicas, scaler


def test_a_burst_by_hand():
    """Six requests of 2 s at t = 0 on one replica. At 1 s it wants 6/2 = 3: two more asked for, which serve from 4 s on; they take the two
    requests that come at 4.5 s. From then on fewer are wanted; the pool shrinks 5 s after it last wanted more."""
    requests, replicas, scaler = scaled([0.0] * 6 + [4.5] * 2, [2000] * 8)
    assert [len(r.pending) for r in replicas] == [6, 1, 1, 0]
    assert [round(t / PS, 3) for t in requests.finish] == [2, 4, 6, 8, 10, 12, 6.5, 6.5]
    end = max(r.now for r in replicas)
    paid, steps = scaler.bill(end)
    assert steps[:2] == ((0.0, 1), (1.0, 3))
    # 3 are wanted up to 6 s (five outstanding), fewer after; within the cooldown of 5 s nothing shrinks before 12 s, when all is done
    assert steps == ((0.0, 1), (1.0, 3))
    assert paid == pytest.approx(12 + 2 * 11)


def test_a_replica_let_go_finishes_its_work_and_takes_no_more():
    """Four at 0 s: a second replica serves from 1 s and takes the long answer of 1.2 s; at 2 s one replica is enough for the two left, so
    it takes no more (the request of 8 s queues on the first), ends its answer at 16.2 s, and is paid for until then."""
    spec = Autoscale(min_replicas=1, max_replicas=2, target_requests=3, interval_s=1.0, provision_s=0.0, cooldown_s=0.0)
    requests, replicas, scaler = scaled([0.0] * 4 + [1.2, 8.0], [1500, 100, 100, 20_000, 15_000, 10], spec)
    assert [list(r.pending) for r in replicas] == [[0, 1, 2, 3, 5], [4]]
    assert [round(t / PS, 3) for t in requests.finish] == [1.5, 1.6, 1.7, 21.7, 16.2, 21.71]
    end = max(r.now for r in replicas)
    assert scaler.bill(end) == (pytest.approx(21.71 + 15.2), ((0.0, 1), (1.0, 2), (16.2, 1)))


def test_a_quiet_pool_stays_at_its_least():
    _, replicas, scaler = scaled([float(t) for t in range(20)], [100] * 20)
    assert [r.n_steps > 0 for r in replicas] == [True, False, False, False]
    end = max(r.now for r in replicas)
    assert scaler.bill(end) == (pytest.approx(end / PS), ((0.0, 1),))


def test_diurnal_load_costs_less_than_the_most_and_loses_nothing():
    n = 4000
    prompt, output = arrivals.lengths(n, 800, 0.5), arrivals.lengths(n, 150, 0.5, stream=arrivals.OUTPUT_STREAM)
    work = ServeWorkload(arrival_s=arrivals.diurnal(n, 10, 0.9, 300.0), prompt_tokens=prompt, output_tokens=output)
    model, cluster = registry.model("llama3-8b"), registry.cluster("a100-80gb-sxm", 4)
    spec = Autoscale(min_replicas=1, max_replicas=4, target_requests=20, interval_s=5.0, provision_s=10.0, cooldown_s=20.0)
    plan = EnginePlan()
    moving = simulate_deployment(model, cluster, Deployment(plan=plan, router="least-outstanding", autoscale=spec), work)
    fixed = simulate_deployment(model, cluster, Deployment(plan=plan, router="least-outstanding", n_replicas=4), work)
    assert np.all(np.isfinite(moving.finish_s))
    assert fixed.gpu_s == pytest.approx(4 * fixed.end_s)
    assert moving.gpu_s < 0.8 * fixed.gpu_s
    assert moving.gpu_s > moving.busy_s
    assert {n for _, n in moving.scaled} >= {1, 2, 3}
    assert np.nanmean(moving.first_s - work.arrival_s) >= np.nanmean(fixed.first_s - work.arrival_s)
    again = simulate_deployment(model, cluster, Deployment(plan=plan, router="least-outstanding", autoscale=spec), work)
    assert np.array_equal(again.finish_s, moving.finish_s)
    assert again.scaled == moving.scaled
