"""The step log against what it must add up to: tokens, time, steps and blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.sim.engine import Replica
from roofplan.sim.policies import POLICIES
from roofplan.sim.replica_state import Limits
from roofplan.sim.requests import Requests
from roofplan.sim.step_log import COLUMNS, StepLog
from test_sim_engine import REQUESTS, toy_times, workload


def logged(rows, name, limits):
    requests = Requests(workload(rows))
    engine = Replica(requests, toy_times(), POLICIES[name], limits)
    engine.log = StepLog()
    for q in range(len(requests)):
        assert engine.submit(q)
    engine.run()
    return engine, requests


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=REQUESTS, name=st.sampled_from(sorted(POLICIES)), seats=st.integers(1, 9), spare=st.integers(0, 12), swap=st.booleans())
def test_rows_add_up_to_the_run(rows, name, seats, spare, swap):
    blocks = max(-(-(p + o - 1) // 16) for _, p, o, _ in rows) + spare
    engine, requests = logged(rows, name, Limits(budget=seats + 40, max_seqs=seats, blocks=blocks, block_tokens=16, swap=swap))
    assert engine.log is not None
    c = engine.log.columns()
    assert c["n_steps"].sum() == engine.n_steps
    assert (c["end_ps"] - c["start_ps"]).sum() == engine.busy_ps
    assert np.all(c["start_ps"][1:] >= c["end_ps"][:-1])
    engine.gaps.fold()
    lost = engine.log.preemptions()
    assert len(lost["request"]) == engine.n_preempted
    if not engine.n_preempted:
        decoded = c["tokens"] - c["prompt_tokens"]
        assert decoded.sum() == sum(o - 1 for _, _, o, _ in rows) == engine.gaps.n_tokens
        assert c["prompt_tokens"].sum() == sum(p for _, p, _, _ in rows)
    assert c["free_blocks"].min() >= 0
    assert c["n_decoding"].max() <= seats
    assert c["end_ps"][-1] == max(requests.finish)


def test_a_lone_request_row_by_row():
    """A prompt of 20 in 16 and 4 tokens, then one stretch of three decodes over a cache that ends at 23 tokens."""
    engine, requests = logged([(0, 20, 4, 0)], "vllm-v1", Limits(budget=16, max_seqs=8, blocks=10, block_tokens=16))
    assert engine.log is not None
    c = engine.log.columns()
    assert list(c) == list(COLUMNS)
    assert c["tokens"].tolist() == [16, 4, 3]
    assert c["prompt_tokens"].tolist() == [16, 4, 0]
    assert c["n_steps"].tolist() == [1, 1, 3]
    assert c["n_prompts"].tolist() == [1, 1, 0]
    assert c["kv_tokens"].tolist() == [0, 0, 23]
    assert c["free_blocks"].tolist() == [8, 8, 8]
    assert c["end_ps"][1] == requests.first[0]
