"""Prefill ranks with queues of their own: steps by hand, one rank beside a plain replica, seats held until KV has left, decode first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.step_times import PS, StepTimes
from roofplan.scenarios import registry
from roofplan.scenarios.clients import Clients
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.disagg import next_poll
from roofplan.sim.engine import Replica
from roofplan.sim.policies import POLICIES
from roofplan.sim.prefill_ranks import PrefillRanks
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.serve_result import ServeResult
from test_sim_engine import toy_times, workload

LIMITS = Limits(budget=128, max_seqs=8, blocks=60, block_tokens=16)
SHARED, OWN = 10, 100


def times(ranks: int) -> StepTimes:
    """A token costs 10 ps of shared work, 100 on its rank; attention is 1 ps a token and 1 more for each cached one."""
    linear = [SHARED * t + OWN * -(-t // ranks) for t in range(200)]
    n = range(200)
    return StepTimes(
        linear=linear, decode=[7] + [0] * 9, decode_slope=[0] * 10, prefill=list(n), prefill_slope=list(n), ranks=ranks,
        own=[OWN * t for t in n],
    )  # fmt: skip


def worker(work, ranks: int, rank_of: list[int], limits: Limits = LIMITS, **host) -> PrefillRanks:
    """A worker that was given all requests, on the ranks that the test wants."""
    requests = Requests(work)
    requests.output[:] = requests.output[:1] * 0 + type(requests.output)("q", [1] * len(work))
    found = PrefillRanks(requests, times(ranks), POLICIES["sglang"], limits, **host)
    found.hold, found.rank_of = True, rank_of
    for q in range(len(work)):
        assert found.submit(q)
    return found


def step(*by_rank: int) -> int:
    """A step with these tokens on its ranks, each a prompt's first."""
    return SHARED * sum(by_rank) + OWN * max(by_rank) + max(by_rank) + 7


def test_all_ranks_step_together_for_as_long_as_the_busiest():
    """Rank 0 has 60 and 50 tokens (its share of the budget is 64), rank 1 has 40: the second step carries 46 of rank 0 alone."""
    found = worker(workload([(0, 60, 1, 0), (0, 50, 1, 0), (0, 40, 1, 0)]), 2, [0, 0, 1])
    found.run()
    first = step(64, 40)
    assert list(found.r.finish) == [first, first + SHARED * 46 + OWN * 46 + 46 + 46 * 4 + 7, first]


def test_what_is_balanced_by_luck_is_faster():
    even, odd = (worker(workload([(0, 60, 1, 0), (0, 60, 1, 0)]), 2, ranks) for ranks in ([0, 1], [1, 1]))
    for found in (even, odd):
        found.run()
    assert max(even.r.finish) == step(60, 60) < max(odd.r.finish)


def test_a_step_is_formed_when_the_one_before_it_starts():
    """The last request comes during the first step: where another was there to form the second, it is in the third."""
    small = replace(LIMITS, budget=64)
    for others, start in ((2, 2 * step(64)), (1, step(64))):
        found = worker(workload([(0, 64, 1, 0)] * others + [(1, 10, 1, 0)]), 1, [0] * 3, small)
        found.r.ready[others] = 100
        found.run()
        assert found.r.finish[others] == start + step(10)


@pytest.mark.parametrize(
    ("host", "seen_later"), [({}, 0), ({"waits": True}, step(50)), ({"launch_ps": 7040}, step(50)), ({"launch_ps": 7039}, 0)]
)
def test_a_busy_host_looks_at_a_step_after_it_has_launched_the_next(host, seen_later):
    """Steps of 64 and 50 tokens: results of the first come with it; with the second, where the host waits for that; or once it is launched.

    The first takes 7,040 ps without attention: as long as launches of 7,040 ps, longer than those of 7,039.
    """
    found = worker(workload([(0, 64, 1, 0), (0, 50, 1, 0)]), 1, [0, 0], replace(LIMITS, budget=64), **host)
    found.run()
    assert found.r.finish[0] == step(64) + seen_later
    assert found.r.finish[1] == step(64) + step(50)


def test_launches_shorter_than_the_next_step_let_results_out_during_it():
    found = worker(workload([(0, 10, 1, 0), (0, 64, 1, 0)]), 1, [0, 0], replace(LIMITS, budget=64), launch_ps=1100)
    found.rank_budget = 10
    found.run()
    assert found.r.finish[0] == step(10) + 1100


def test_a_busy_host_forms_a_step_when_the_one_before_it_ends():
    """A request that comes during the first of two steps is in the second, where a host with time would have formed that already."""
    small = replace(LIMITS, budget=128)
    ends = []
    for waits in (True, False):
        found = worker(workload([(0, 100, 1, 0), (0, 100, 1, 0), (1, 10, 1, 0)]), 1, [0] * 3, small, waits=waits)
        found.r.ready[2] = 100
        found.run()
        ends.append(found.r.finish[2])
    alone = (SHARED + OWN) * 72 + 72 + 72 * 28 + 7  # the rest of the second prompt, 28 of whose tokens are cached
    assert ends == [step(128) + alone + (SHARED + OWN) * 10 + 10, step(128) + alone + step(10)]


@pytest.mark.parametrize("limits", [replace(LIMITS, max_seqs=1), replace(LIMITS, blocks=4)], ids=["seat", "pool"])
def test_seat_and_kv_are_held_until_the_kv_has_left(limits):
    found = worker(workload([(0, 60, 1, 0), (0, 60, 1, 0)]), 1, [0, 0], limits)
    found.run(10**9)
    assert (found.r.finish[0], found.r.finish[1], found.now) == (step(60), -1, step(60))
    found.now = 50_000
    found.let_go(0)
    found.run()
    assert found.r.finish[1] == 50_000 + step(60)


def test_one_rank_with_all_at_once_is_a_plain_replica():
    """Prompts that are all there at time 0: no step is late, and chunks fall alike."""
    work = workload([(0, 20 + 7 * i, 1, 0) for i in range(9)])
    limits = replace(LIMITS, blocks=500, max_seqs=32)
    ranked, requests = worker(work, 1, [0] * 9, limits), Requests(work)
    plain = Replica(requests, times(1), POLICIES["sglang"], limits)
    plain.hold = True
    for q in range(9):
        plain.submit(q)
    plain.run()
    ranked.run()
    assert (list(ranked.r.finish), ranked.busy_ps, ranked.n_steps) == (list(requests.finish), plain.busy_ps, plain.n_steps)


def test_a_prompt_over_its_ranks_share_of_the_pool_is_refused():
    found = worker(workload([(0, 60, 1, 0)]), 2, [0], replace(LIMITS, blocks=8))
    found.r.prompt[0] = 65
    assert not found.submit(0)
    assert found.r.rejected == [0]


def test_a_polling_replica_looks_before_every_so_many_steps():
    """In step 3 of steps of known time: it looks before step 10, 7 steps after that; an idle one at once."""
    requests = Requests(workload([(0, 10, 40, 0)]))
    replica = Replica(requests, toy_times(), POLICIES["sglang"], LIMITS)
    assert next_poll(replica, 5, 10) == 5
    replica.submit(0)
    replica.run(1)
    replica.run(replica.now + 2 * toy_times().step_ps(1, 12, []) + 1)
    each = toy_times().step_ps(replica.n, replica.kv + replica.n, [])
    assert replica.k == 3
    assert next_poll(replica, replica.now - 1, 10) == replica.now + 7 * each
    assert next_poll(replica, replica.now - 1, 1) == replica.now


def split(**fields: object) -> ServeResult:
    plan = EnginePlan(engine="sglang", max_num_seqs=4)
    pools = {"plan": plan, "n_prefill": 1, "decode_answers": True, "decode_first": True} | fields
    work = workload([(0, 2000, 200 + 10 * i, 0) for i in range(12)])
    model, cluster = registry.model("llama3-8b"), registry.cluster("h100-sxm", 8)
    return simulate_deployment(model, cluster, Deployment(**pools), work, clients=Clients(n_clients=8), log=True)


def test_a_prompt_waits_until_a_decode_replica_has_a_seat():
    """Eight clients on four seats: before the first answer four prompts are computed, all eight where KV may wait on the prefill side."""
    for first, computed in ((True, 4), (False, 8)):
        run = split(decode_first=first)
        log = run.logs["prefill 0"].columns()
        before = log["end_ps"] < min(run.finish_s) * PS
        assert log["prompt_tokens"][before].sum() == computed * 2000


def test_servers_that_poll_seldom_answer_later():
    """Half of 50 steps on average for those that come while others decode, and at once for the first four."""
    each, seldom = (split(poll_steps=k).first_s for k in (1, 50))
    assert list(seldom[:4]) == list(each[:4])
    assert all(seldom[4:8] > each[4:8])


def test_requests_in_turn_wait_for_the_replica_whose_turn_it_is():
    """Of five clients on two replicas of three seats three go to the first; with the least loaded chosen nobody waits, in turn some do."""
    lengths = [400, 20] * 10
    work = workload([(0, 100, n, 0) for n in lengths])
    model, cluster = registry.model("llama3-8b"), registry.cluster("h100-sxm", 8)
    waits = []
    for in_turn in (False, True):
        plan = EnginePlan(engine="sglang", max_num_seqs=3)
        pools = Deployment(plan=plan, n_replicas=2, n_prefill=1, decode_answers=True, decode_in_turn=in_turn)
        run = simulate_deployment(model, cluster, pools, work, clients=Clients(n_clients=5))
        assert not np.isnan(run.finish_s).any()
        waits.append((run.first_s - run.work.arrival_s).max())
    assert waits[1] > waits[0] + 0.5


def test_the_turn_goes_round():
    """Six requests at once on three replicas of one seat: each has two of them, so the second three start as the first three end."""
    work = workload([(0, 100, 50 + 10 * i, 0) for i in range(6)])
    plan = EnginePlan(engine="sglang", max_num_seqs=1)
    pools = Deployment(plan=plan, n_replicas=3, n_prefill=1, decode_answers=True, decode_in_turn=True)
    run = simulate_deployment(registry.model("llama3-8b"), registry.cluster("h100-sxm", 8), pools, work)
    assert all(run.first_s[3:] > run.finish_s[:3])


def test_what_it_cannot_play_is_one_sentence():
    with pytest.raises(BadInput, match="need prefill replicas"):
        Deployment(plan=EnginePlan(), decode_first=True)
    with pytest.raises(BadInput, match="poll_steps=0 must be at least 1"):
        Deployment(plan=EnginePlan(), n_prefill=1, poll_steps=0)
    with pytest.raises(BadInput, match="drop those"):
        split(prefill=EnginePlan(engine="sglang", pp=2))
