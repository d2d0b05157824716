"""Streaming promises: token times against the engine's own, the moving average by its definition, what cannot be judged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.calibrate.promises import EMA_SPAN, kept, token_times_s, worst_average_gap_s
from roofplan.scenarios import registry
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, ServeWorkload
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.serve_result import ServeResult


def run(policy: str = "vllm-v0", n: int = 20, replicas: int = 1, log: bool = True) -> ServeResult:
    work = ServeWorkload(arrival_s=np.arange(n) * 0.05, prompt_tokens=np.full(n, 1500), output_tokens=np.full(n, 40))
    deployment = Deployment(plan=EnginePlan(policy=policy, token_budget=2048), n_replicas=replicas)
    return simulate_deployment(registry.model("llama3-8b"), registry.cluster("a100-80gb-sxm", replicas), deployment, work, log=log)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(gaps=st.lists(st.floats(0.001, 2.0), min_size=1, max_size=60))
def test_average_is_the_adjusted_one(gaps: list[float]) -> None:
    """``Σ (1−a)^i g_(t−i) / Σ (1−a)^i`` written out for every t."""
    a, averages = 2 / (EMA_SPAN + 1), []
    for t in range(len(gaps)):
        weights = [(1 - a) ** i for i in range(t + 1)]
        averages.append(sum(w * gaps[t - i] for i, w in enumerate(weights)) / sum(weights))
    assert worst_average_gap_s(np.array(gaps)) == pytest.approx(max(averages))


@pytest.mark.parametrize("policy", ["vllm-v0", "splitfuse", "vllm-v1"])
def test_each_request_has_as_many_tokens_as_it_answered(policy: str) -> None:
    out = run(policy)
    at = token_times_s(out)
    assert np.all(np.diff(at) > 0)
    for q in range(len(out.work)):
        mine = (at > out.first_s[q] + 1e-9) & (at <= out.finish_s[q] + 1e-9)
        assert mine.sum() == out.work.output_tokens[q] - 1


def test_promises_are_kept_by_slow_askers_and_broken_by_stalls() -> None:
    out = run()
    assert kept(out, 1.0, 0.1).all()
    assert not kept(out, 1e9, 0.1).any(), "no first token is that fast"
    assert not kept(out, 1.0, 1e4).any()
    v0, split = (kept(run(p, 40), 100.0, 12.0).mean() for p in ("vllm-v0", "splitfuse"))
    assert split >= v0, "whole prompts stall the answers of others"


def test_runs_without_one_log_cannot_be_judged() -> None:
    for out, logs in ((run(log=False), 0), (run(replicas=2), 2)):
        with pytest.raises(BadInput, match=f"{logs} step logs; token times need one replica and its log"):
            kept(out, 1.0, 1.0)
    assert dataclasses.replace(run(), logs={}).logs == {}
