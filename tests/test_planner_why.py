"""Why a plan wins, what binds, and what would help: each sentence checked against the numbers it claims."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from roofplan.planner.advice import nearest_changes
from roofplan.planner.decide import Decision, decide, search, shortlist
from roofplan.planner.scenario_io import resolve
from roofplan.planner.why import PARTS, binding, bottleneck, closest_miss, degrees, options, why_lost, why_wins
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.scenario import MAX_SEQ, Scenario


@pytest.fixture(scope="module")
def decision() -> Decision:
    return decide(Scenario(model="llama3-8b", n_gpus=8, seq_tokens=131072))


def test_the_difference_is_broken_into_parts_that_add_up(decision: Decision) -> None:
    winner = decision.choices[0]
    for place, other in enumerate(decision.choices[1:], start=2):
        text = why_lost(winner, other, place)
        slower = other.step_time_s / winner.step_time_s - 1
        if slower < 0.0005:
            assert "as fast" in text
            continue
        assert text.startswith(f"rank {place} is {slower:.1%} slower per token: ")
        parts = {name: (float(getattr(other.step, name)) - float(getattr(winner.step, name))) / winner.step_time_s for name in PARTS}
        assert sum(parts.values()) == pytest.approx(slower, abs=1e-9)
        for share, name in re.findall(r"([+-][\d.]+)% ([A-Za-z ]+)", text):
            key = next(k for k, words in PARTS.items() if words == name.strip())
            assert float(share) / 100 == pytest.approx(parts[key], abs=6e-4)


def test_the_winners_time_is_accounted_for(decision: Decision) -> None:
    first = why_wins(decision)[0]
    shares = [int(share) for share in re.findall(r"(\d+)%", first)]
    assert 95 <= sum(shares) <= 105
    assert bottleneck(decision.choices[0]) in first


def test_the_binding_limit_is_the_one_whose_lifting_helps_most(decision: Decision) -> None:
    found = binding(decision)
    table, best = decision.searched[0].table, decision.choices[0].step_time_s
    only = table.breaks_only("hbm")
    assert found.limit == "hbm"
    assert found.gain_frac == pytest.approx(1 - float(table.step_time_s[only].min()) / best)
    assert found.gain_frac > 0


def test_without_any_limit_in_the_way_compute_binds() -> None:
    small = decide(Scenario(model="llama3.2-1b", n_gpus=1, gpu="b200", seq_tokens=1024, global_batch=1, micro_batch=1))
    assert binding(small).limit == "compute"


def test_heads_can_bind() -> None:
    """Ulysses over 64 GPUs with 32 heads: without the head rule all GPUs could share one sequence."""
    d = decide(Scenario(model="llama3-8b", n_gpus=64, seq_tokens=2**21, global_batch=1, framework="deepspeed"))
    assert not d.choices  # no legal layout at all: dp would have to be 2
    wide = decide(Scenario(model="llama3-8b", n_gpus=64, seq_tokens=2**22, global_batch=2, framework="deepspeed"))
    assert wide.choices[0].plan.cp == 32
    lifted = search(wide.problem, lifted=frozenset({"ulysses_divides_heads", "ulysses_divides_kv_heads"})).table
    assert lifted.row.size
    assert all(lifted.pick(i)[0].cp == 64 for i in range(0, lifted.row.size, 17))


def test_the_longest_sequence_names_the_limit_one_step_on() -> None:
    d = decide(Scenario(model="llama3-8b", n_gpus=8, seq_tokens=MAX_SEQ, objective="max-seq"))
    winner, found = d.choices[0], binding(d)
    assert found.limit in ("hbm", "host_ram")
    one = replace(winner.work, seq_tokens=int(winner.work.seq_tokens) + 1024)
    memory = d.problem.memory(winner.plan, one)
    over = {"hbm": memory.total_bytes > memory.limit_bytes, "host_ram": memory.host_bytes > memory.host_limit_bytes}
    assert over[found.limit]


def test_a_miss_names_the_closest_layout_and_by_how_much() -> None:
    d = decide(Scenario(model="llama3.1-405b", n_gpus=8))
    table = d.searched[0].table
    worst = np.maximum.reduce(list(table.use.values()))
    text = closest_miss(d.problem, d.searched[0])
    assert f"{worst.min() - 1:.0%} over" in text


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        ({"model": "llama3-70b", "n_gpus": 8, "seq_tokens": 2**20, "framework": "deepspeed"}, "--seq"),
        ({"model": "llama3-70b", "n_gpus": 8, "seq_tokens": 2**20, "framework": "deepspeed"}, "--gpus"),
        ({"model": "llama3-70b", "n_gpus": 8, "seq_tokens": 2**20, "framework": "deepspeed"}, "--host-ram"),
        ({"model": "llama3-70b", "n_gpus": 8, "seq_tokens": 2**20, "framework": "deepspeed"}, "--gpu "),
    ],
)
def test_each_advice_really_fits(asked: dict[str, object], flag: str) -> None:
    scenario = Scenario(**asked)  # type: ignore[arg-type]
    found = search(resolve(scenario))
    assert not found.table.fits.any()
    advice = next(line for line in nearest_changes(found) if line.startswith(flag))
    value = advice.split()[1]
    change = {
        "--seq": lambda: {"seq_tokens": int(value), "global_batch": 1},
        "--gpus": lambda: {"n_gpus": int(value)},
        "--host-ram": lambda: {"host_ram_bytes": float(value.removesuffix("GiB")) * 2**30},
        "--gpu ": lambda: {"gpu": value},
    }[flag]()
    assert shortlist(search(resolve(replace(scenario, **change))), 1)


def test_a_length_that_cannot_be_cut_is_rounded() -> None:
    """1,000,003 is a prime: no rank can share it; the multiple of 1,024 below it can."""
    scenario = Scenario(model="llama3-8b", n_gpus=8, seq_tokens=1_000_003)
    found = search(resolve(scenario))
    assert not found.table.fits.any()
    advice = nearest_changes(found)[0]
    seq, batch = (int(x) for x in re.findall(r"--seq (\d+) --global-batch (\d+) fits", advice)[0])
    assert 0 <= 1_000_003 - seq < 1024
    assert shortlist(search(resolve(replace(scenario, seq_tokens=seq, global_batch=batch))), 1)


def test_plans_in_words() -> None:
    plan = ParallelPlan(
        dp=2, tp=4, pp=4, cp=8, cp_inner=4, cp_kind="ulysses-ring", zero_stage=1, micro_batch=2, grad_accum=16, recompute="full",
        recompute_layers=3, layers_first=7, layers_last=5, offload_optimizer=0.25, framework="megatron", precision="fp8",  # type: ignore[arg-type]
    )  # fmt: skip
    assert degrees(plan) == "dp=2 tp=4 pp=4 cp=8 (ulysses-ring 4x2)"
    assert options(plan) == [
        "megatron", "zero-1", "micro-batch 2x16", "1f1b", "stages 7/../5 layers", "full recompute of 3 layers", "25% of optimizer on host",
        "fp8",
    ]  # fmt: skip
    assert degrees(ParallelPlan(dp=8)) == "dp=8"
