"""The job: where replicas run, limits of one scheduler, and contradictions refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from roofplan.planner.emit.serve.job import limits, make_job, parts
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.registry import cluster
from roofplan.scenarios.serving import EnginePlan, serving_engine
from serve_jobs import arguments_of, job_of


def places(**layout: Any) -> list[tuple[str, int, int, tuple[int, ...], int, int]]:
    name = layout.pop("name", "llama3.1-8b")
    return [(p.role, p.replica, p.node, p.gpus, p.rank, p.master) for p in parts(job_of(name, **layout))]


def test_small_replicas_share_a_node_and_do_not_straddle() -> None:
    """Three replicas of 3 GPUs on nodes of 8: two fit, the third goes to the next."""
    arguments = arguments_of(tp=1, pp=3, n_replicas=3) | {"cluster": cluster("h100-sxm", 16)}
    found = [(p.node, p.gpus, p.port) for p in parts(make_job(**arguments))]
    assert found == [(0, (0, 1, 2), 8100), (0, (3, 4, 5), 8101), (1, (0, 1, 2), 8102)]


def test_prefill_comes_first_and_large_replicas_take_whole_nodes() -> None:
    found = places(tp=8, pp=2, n_replicas=1, n_prefill=2, prefill=EnginePlan(tp=4))
    assert found == [
        ("prefill", 0, 0, (0, 1, 2, 3), 0, 0),
        ("prefill", 1, 0, (4, 5, 6, 7), 0, 0),
        ("decode", 2, 1, tuple(range(8)), 0, 1),
        ("decode", 2, 2, tuple(range(8)), 1, 1),
    ]


def test_limits_are_the_engines_where_the_plan_is_silent() -> None:
    own = serving_engine("vllm").limits_on("h100-sxm", 80 * 2**30)
    job = job_of(tp=1)
    assert (limits(job, job.deployment.plan).token_budget, limits(job, job.deployment.plan).max_num_seqs) == own
    said = limits(job, EnginePlan(dp=4, token_budget=1000, max_num_seqs=10, block_tokens=64))
    assert (said.token_budget, said.max_num_seqs, said.block_tokens) == (250, 3, 64)


@pytest.mark.parametrize(("context", "factor"), [(131072, 1.0), (131073, 2.0), (300_000, 4.0)])
def test_rope_factor_is_a_power_of_two(context: int, factor: float) -> None:
    assert job_of(context_tokens=context, rope_scaling=True).rope_factor == factor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens=0 must be at least 1"),
        ({"output_tokens": -1}, "output_tokens=-1 must be at least 1"),
        ({"context_tokens": 4000}, "context_tokens=4000 is less than a prompt and its answer, 4500"),
        ({"shared_prefix_tokens": 4000}, "shared_prefix_tokens=4000 must be from 0 to below prompt_tokens=4000"),
        (
            {"prompt_tokens": 200_000},
            r"a context of 200,500 tokens is over the 131,072 that llama3\.1-8b was made for; .*ask for rope scaling",
        ),
        ({"cluster": cluster("h100-sxm", 8), "n": 12}, r"12 replicas of 12 GPUs in all need 2 nodes of 8, the cluster has 1 \(8 GPUs\)"),
        (
            {"cluster": cluster("h100-sxm", 24), "tp": 12},
            "a serve replica of 12 GPUs is not whole nodes of 8; take a multiple of 8 or fewer",
        ),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    changes = dict(changes)
    layout = {"tp": changes.pop("tp", 1), "n_replicas": changes.pop("n", 1)}
    with pytest.raises(BadInput, match=message):
        make_job(**arguments_of(**layout) | changes)


def test_rope_scaling_needs_rope() -> None:
    arguments = arguments_of("bloom-7b1") | {"rope_scaling": True}
    with pytest.raises(BadInput, match="bloom-7b1 has alibi positions: rope scaling cannot stretch its 2,048 tokens"):
        make_job(**arguments)
