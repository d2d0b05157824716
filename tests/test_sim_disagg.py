"""Disaggregated serving: links shared fairly against a brute-force re-computation, one request by hand, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.step_times import PS
from roofplan.scenarios.errors import BadInput
from roofplan.sim.disagg import FairLinks, KvLink, run_disaggregated
from roofplan.sim.engine import Limits, Replica
from roofplan.sim.policies import POLICIES
from roofplan.sim.requests import Requests
from test_sim_engine import toy_times, workload

LIMITS = Limits(budget=64, max_seqs=8, blocks=60, block_tokens=16)


def brute_force(flows: list[tuple[float, float, int, int]], rate: float) -> dict[int, float]:
    """Ends of transfers (start, bytes, sender, receiver) by re-computing every rate at every change."""
    ends: dict[int, float] = {}
    left = {i: size for i, (_, size, _, _) in enumerate(flows)}
    now = 0.0
    while len(ends) < len(flows):
        live = [i for i, f in enumerate(flows) if f[0] <= now + 1e-12 and i not in ends]
        shares = {i: rate / max(sum(flows[j][2] == flows[i][2] for j in live), sum(flows[j][3] == flows[i][3] for j in live)) for i in live}
        coming = min((f[0] for i, f in enumerate(flows) if f[0] > now + 1e-12), default=np.inf)
        finish = min((now + left[i] / shares[i] for i in live), default=np.inf)
        step = min(coming, finish)
        for i in live:
            left[i] -= (step - now) * shares[i]
            if left[i] <= 1e-9 * flows[i][1]:
                ends[i] = step
        now = step
    return ends


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12))
def test_fair_sharing_equals_brute_force(rows):
    flows = sorted((float(a), float(b), s, r) for a, b, s, r in rows)
    links = FairLinks(3, 3, KvLink(bytes_per_s=2.0))
    ends: dict[int, float] = {}
    todo = list(enumerate(flows))
    while len(ends) < len(flows):
        at, transfer = links.next_end()
        if todo and todo[0][1][0] <= at:
            i, (start, size, sender, receiver) = todo.pop(0)
            links.start(i, size, sender, receiver, start)
        else:
            assert links.end(transfer, at) == flows[transfer][3]
            ends[transfer] = at
    expected = brute_force(flows, 2.0)
    assert ends == pytest.approx(expected)
    assert links.bytes_moved == sum(f[1] for f in flows)


def test_two_transfers_of_one_sender_take_twice_as_long():
    links = FairLinks(1, 2, KvLink(bytes_per_s=10.0))
    links.start(0, 100.0, 0, 0, 0.0)
    links.start(1, 100.0, 0, 1, 0.0)
    assert links.next_end() == (20.0, 0)


def replicas(requests: Requests, n: int) -> list[Replica]:
    return [Replica(requests, toy_times(), POLICIES["vllm-v1"], LIMITS) for _ in range(n)]


def test_one_request_is_prefill_then_transfer_then_decode():
    requests = Requests(workload([(0, 40, 5, 0)]))
    link = KvLink(bytes_per_s=1e9, latency_s=1e-6, overlap_frac=0.25)
    run_disaggregated(requests, replicas(requests, 1), replicas(requests, 1), link, 1000.0)
    t = toy_times()
    prefill = t.step_ps(0, 0, [(40, 0)])
    arrives = round((prefill / PS + 40 * 1000.0 * 0.75 / 1e9 + 1e-6) * PS)
    expected = arrives + t.step_ps(0, 0, [(1, 40)]) + sum(t.step_ps(1, 41 + j, []) for j in (1, 2, 3))
    assert list(requests.first) == [prefill]
    assert list(requests.finish) == [expected]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(st.integers(0, 120), st.integers(1, 90), st.integers(1, 40), st.just(0)), min_size=1, max_size=25),
       n=st.integers(1, 3), m=st.integers(1, 3))  # fmt: skip
def test_every_token_is_made_once(rows, n, m):
    requests = Requests(workload(rows))
    prefill, decode = replicas(requests, n), replicas(requests, m)
    links = run_disaggregated(requests, prefill, decode, KvLink(bytes_per_s=1e8), 100.0)
    assert min(requests.finish) > 0
    for replica in prefill + decode:
        replica.gaps.fold()
        assert (replica.free, replica.n_outstanding) == (LIMITS.blocks, 0)
    assert sum(r.gaps.n_tokens for r in decode) == sum(o - 1 for _, _, o, _ in rows)
    assert links.bytes_moved == pytest.approx(sum(100.0 * p for _, p, o, _ in rows if o > 1))
    assert all(f >= a for a, f in zip(requests.first, requests.finish, strict=True))


def test_pools_and_links_that_cannot_be_are_refused():
    requests = Requests(workload([(0, 4, 4, 0)]))
    with pytest.raises(BadInput, match="got 1 and 0"):
        run_disaggregated(requests, replicas(requests, 1), [], KvLink(bytes_per_s=1.0), 1.0)
    with pytest.raises(BadInput, match="the rate must be more than 0"):
        KvLink(bytes_per_s=0)
    with pytest.raises(BadInput, match="overlap_frac=1 must be"):
        KvLink(bytes_per_s=1, overlap_frac=1)
