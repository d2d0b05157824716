"""Steps of attention-data-parallel ranks by hand, and what they say of prompts on one rank and on all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.costmodels.serving_ops import serve_system
from roofplan.costmodels.step_times import PS, StepTimes
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, ServeWorkload, serving_engine
from roofplan.sim.replica_kind import replica_model, start_replicas
from roofplan.sim.requests import Requests

TIMES = StepTimes(
    linear=[0] + [1000 + 10 * t for t in range(1, 200)], decode=[5] * 200, decode_slope=[1] * 200, prefill=[7 * c for c in range(200)],
    prefill_slope=[0] * 200, ranks=4, own=[100 * t for t in range(200)],
)  # fmt: skip


@pytest.mark.parametrize(
    ("decodes", "pieces", "waiting", "rank_tokens", "more"),
    [
        (0, [(40, 280)], 0, 50, 100 * 40 - 100 * 10),  # alone: one rank has all 40, even ones would have 10; its attention is its own
        (8, [(40, 280)], 0, 50, 100 * 42 - 100 * 12),  # and two decodes of its own
        (0, [(40, 280), (20, 140)], 0, 50, 100 * 40 - 100 * 15 + 280 - 420),  # the longer one lasts
        (0, [(10, 70)] * 4, 0, 50, 70 - 280),  # one each: even, attention side by side
        (0, [(10, 70)] * 8, 0, 50, 140 - 560),  # two each
        (0, [(80, 560)], 3, 20, 560 / 4 - 560),  # a piece that stands for those that wait
        (0, [(80, 560)], 0, 1 << 62, 100 * 80 - 100 * 20),  # a policy that cuts no prompt
    ],
)
def test_the_busiest_rank_by_hand(decodes, pieces, waiting, rank_tokens, more):
    assert TIMES.uneven_ps(decodes, pieces, waiting, rank_tokens) == more


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(0, 30), st.integers(0, 5))
def test_no_step_is_faster_than_an_even_one_nor_slower_than_one_rank_for_all(sizes, decodes, waiting):
    pieces = [(c, TIMES.prefill[c]) for c in sizes]
    tokens, asked = decodes + sum(sizes), sum(ps for _, ps in pieces)
    step = TIMES.linear[tokens] + asked + TIMES.uneven_ps(decodes, pieces, waiting, 50)
    assert step >= TIMES.linear[tokens] + asked / 4
    assert step <= TIMES.linear[tokens] + asked + TIMES.own[tokens]


def test_a_lone_prompt_has_one_rank_and_eight_prompts_have_eight():
    """DeepSeek-V3 on eight H200: with attention on every rank by itself, TTFT of eight prompts is near that of one, and that is long."""
    system = serve_system(registry.cluster("h200", 8), serving_engine("vllm"))
    model, plan = registry.model("deepseek-v3"), EnginePlan(dp=8, ep=8, weight_dtype="fp8_block", token_budget=8 * 8192)

    def ttft_s(n: int) -> float:
        work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=np.full(n, 4000), output_tokens=np.full(n, 2))
        requests = Requests(work)
        (replica,) = start_replicas(replica_model(model, plan, system, work), plan, work, requests, 1)
        for q in range(n):
            replica.submit(q)
        replica.run()
        return max(requests.first) / PS

    one, eight, sixteen = ttft_s(1), ttft_s(8), ttft_s(16)
    assert one < eight < 3.5 * one
    assert eight < sixteen < 2.05 * eight
    shared = EnginePlan(tp=8, weight_dtype="fp8_block")
    work = ServeWorkload(arrival_s=np.zeros(1), prompt_tokens=np.full(1, 4000), output_tokens=np.full(1, 2))
    times = replica_model(model, shared, system, work).times
    assert isinstance(times, StepTimes)
    assert one > 1.3 * (times.linear[4000] + times.prefill[4000]) / PS
