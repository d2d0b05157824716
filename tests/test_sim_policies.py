"""Policies as data, and the queue that orders by priority."""

from __future__ import annotations

import pytest
from roofplan.scenarios.errors import BadInput
from roofplan.sim.policies import POLICIES, PriorityQueue, policy_named


def test_names_and_the_message_for_an_unknown_one():
    assert all(policy_named(name).name == name for name in POLICIES)
    with pytest.raises(BadInput, match="policy='fifo' is not known; legal: vllm-v1"):
        policy_named("fifo")


def test_priority_then_arrival():
    queue = PriorityQueue([2, 0, 1, 0])
    for request in (0, 3, 2, 1):
        queue.append(request)
    assert (len(queue), queue[0]) == (4, 1)
    assert sorted(queue) == [0, 1, 2, 3]
    assert [queue.popleft() for _ in range(4)] == [1, 3, 2, 0]
