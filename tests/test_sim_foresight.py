"""Prefill replicas played ahead: the same run to the bit, never past what their room allows, and only where nobody acts on them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.scenarios.clients import Clients
from roofplan.sim.clock import NEVER
from roofplan.sim.disagg import Disaggregated
from roofplan.sim.engine import Replica
from roofplan.sim.fleet import Fleet
from roofplan.sim.foresight import Foresight
from roofplan.sim.policies import POLICIES
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.router import Router
from roofplan.sim.sources import play
from roofplan.sim.step_log import StepLog
from test_sim_disagg import ROWS, placement, replicas
from test_sim_engine import toy_times, workload


def played(rows, n, m, ahead, small, *, policy="vllm-v1", router="round-robin", clients=None, nic=True, rate=1e8, **options):
    """A run's fleet, what it left of each request and pool, and on which replicas it looked ahead."""
    work = workload(rows)
    requests = Requests(work)
    pools = [Replica(requests, toy_times(), POLICIES[policy], small) for _ in range(n + m)]
    fleet = Fleet(requests, pools)
    place = placement(n, m, rate, nic_per_gpu=nic)
    sink = Disaggregated(fleet, n, Router(router, [[r] for r in pools[:n]], work, 0), place, 1000.0, **options)
    if not ahead:
        fleet.foresee = lambda which: None
    play(fleet, sink, clients, 0, 0)
    for replica in pools:
        replica.gaps.fold()
    each = [(r.now, r.n_steps, r.busy_ps, r.n_preempted, r.free, r.gaps.total_ps, r.gaps.max_ps, r.gaps.bins.tolist()) for r in pools]
    told = list(requests.first), list(requests.finish), requests.rejected, each, place.links.carried
    return fleet, told, [i for i, foresight in enumerate(fleet._foresight) if foresight is not None]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=ROWS, n=st.integers(1, 3), m=st.integers(1, 3), blocks=st.sampled_from([9, 14, 30, 200]), seats=st.sampled_from([2, 8]),
       rate=st.sampled_from([1e9, 5e7]), nic=st.booleans(), overlap=st.sampled_from([0.0, 0.6]), in_turn=st.booleans(),
       policy=st.sampled_from(["vllm-v1", "priority", "orca", "sglang", "decode-first", "static"]),
       router=st.sampled_from(["round-robin", "random"]))  # fmt: skip
def test_looking_ahead_changes_nothing(rows, n, m, blocks, seats, rate, nic, overlap, in_turn, policy, router):
    small = Limits(budget=64, max_seqs=seats, blocks=blocks, block_tokens=16)
    options = {"policy": policy, "router": router, "nic": nic, "rate": rate, "overlap_frac": overlap, "decode_in_turn": in_turn}
    _, plain, none = played(rows, n, m, False, small, **options)
    _, ahead, those = played(rows, n, m, True, small, **options)
    assert ahead == plain
    assert (none, those) == ([], list(range(n)))


def test_it_sees_as_far_as_the_pool_surely_has_room():
    """A pool of 6 blocks and prompts of 3: two are seen at once, the third only once one has let go, the fourth and last with the next."""
    requests = Requests(workload([(0, 40, 1, 0), (1, 40, 1, 0), (100, 40, 1, 0), (101, 40, 1, 0)]))
    replica = replicas(requests, 1, Limits(budget=64, max_seqs=8, blocks=6, block_tokens=16))[0]
    replica.hold, replica.seen = True, []
    for q in range(4):
        replica.submit(q)
    foresight, t = Foresight(replica), toy_times()
    assert foresight.look()
    first = t.step_ps(0, 0, [(40, 0)])
    assert (replica.ahead, replica.seen) == (None, [])
    assert foresight.told[0] == (0, [(0, first, first)])
    assert [[q for q, _, _ in ended] for _, ended in foresight.told] == [[0], [1]]
    assert requests.finish[2] == -1
    foresight.told.clear()
    assert not foresight.look()  # both still hold their KV
    for told, freed in (([[2]], 0), ([[3]], 1)):
        replica.let_go(freed)
        foresight.freed(freed)
        assert foresight.look()
        assert [[q for q, _, _ in ended] for _, ended in foresight.told] == told
        foresight.told.clear()
    assert foresight._horizon() == NEVER


def test_a_prompt_of_many_steps_is_told_step_by_step():
    """150 tokens in chunks of 64: three steps, of which the last ends it."""
    requests = Requests(workload([(0, 150, 1, 0)]))
    replica = replicas(requests, 1)[0]
    replica.hold, replica.seen = True, []
    replica.submit(0)
    foresight, t = Foresight(replica), toy_times()
    assert foresight.look()
    chunks = [t.step_ps(0, 0, [piece]) for piece in ((64, 0), (64, 64), (22, 128))]
    assert [start for start, _ in foresight.told] == [0, chunks[0], chunks[0] + chunks[1]]
    assert [ended for _, ended in foresight.told] == [[], [], [(0, sum(chunks), chunks[2])]]


@pytest.mark.parametrize("options", [{"router": "least-outstanding"}, {"clients": Clients(n_clients=2)}, {"decode_first": True}])
def test_where_requests_are_sent_as_the_run_goes_nobody_looks_ahead(options):
    small = Limits(budget=64, max_seqs=8, blocks=60, block_tokens=16)
    assert played([(0, 40, 5, 0)] * 4, 2, 1, True, small, **options)[2] == []


def test_a_replica_that_logs_its_steps_is_not_played_ahead():
    """Its rows name the free blocks, which depend on when others let go."""
    requests = Requests(workload([(0, 40, 5, 0)] * 2))
    fleet = Fleet(requests, replicas(requests, 2))
    fleet.replicas[0].log = StepLog()
    fleet.foresee(range(2))
    assert [foresight is not None for foresight in fleet._foresight] == [False, True]
