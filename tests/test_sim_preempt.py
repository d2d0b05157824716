"""Preemption by hand: who gives way, and what coming back costs."""

from __future__ import annotations

import pytest
from roofplan.sim.engine import Replica
from roofplan.sim.policies import POLICIES
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.step_log import StepLog
from test_sim_engine import toy_times, workload


def two_in_three_blocks(policy: str, swap: bool, priorities: tuple[int, int] = (0, 0)) -> tuple[Replica, Requests]:
    """Two prompts of a block each that both need a second block for their first decoded token; the pool has three."""
    requests = Requests(workload([(0, 16, 5, p) for p in priorities]))
    engine = Replica(requests, toy_times(), POLICIES[policy], Limits(budget=64, max_seqs=4, blocks=3, block_tokens=16, swap=swap))
    engine.log = StepLog()
    assert engine.submit(0)
    assert engine.submit(1)
    engine.run()
    return engine, requests


@pytest.mark.parametrize(
    ("policy", "priorities", "victim"), [("vllm-v1", (0, 0), 1), ("vllm-v1", (2, 0), 1), ("priority", (2, 0), 0), ("priority", (0, 0), 1)]
)
def test_the_newest_gives_way_or_the_least_urgent(policy, priorities, victim):
    engine, requests = two_in_three_blocks(policy, False, priorities)
    assert engine.log is not None
    assert engine.log.preemptions()["request"].tolist() == [victim]
    assert requests.finish[victim] > requests.finish[1 - victim]
    assert engine.free == 3


def test_recomputing_takes_the_prompt_and_the_answer_so_far():
    """After the first has ended (prompts, 4 decodes alone) the victim's 16 + 1 tokens are prefilled, then 3 decodes follow."""
    engine, requests = two_in_three_blocks("vllm-v1", False)
    t = toy_times()
    alone = sum(t.step_ps(1, 16 + j, []) for j in (1, 2, 3, 4))
    assert requests.finish[0] == requests.first[0] + alone
    back = t.step_ps(0, 0, [(17, 0)])
    assert requests.finish[1] == requests.finish[0] + back + sum(t.step_ps(1, 17 + j, []) for j in (1, 2, 3))
    assert engine.n_steps == 1 + 4 + 1 + 3


def test_swapping_copies_the_blocks_out_and_in_and_computes_one_token():
    engine, requests = two_in_three_blocks("vllm-v1", True)
    t = toy_times()
    assert requests.finish[0] == requests.first[0] + t.swap + sum(t.step_ps(1, 16 + j, []) for j in (1, 2, 3, 4))
    back = t.swap + t.step_ps(0, 0, [(1, 16)])
    assert requests.finish[1] == requests.finish[0] + back + sum(t.step_ps(1, 17 + j, []) for j in (1, 2, 3))
    assert engine.busy_ps == engine.now
