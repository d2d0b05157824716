"""Decisions against a plain look at every candidate, and what each objective means."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.planner.decide import Choice, decide, rank, search, shape_keys, shortlist, variants
from roofplan.planner.scenario_io import BATCH_TOKENS, default_batch, resolve
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.scenario import Scenario


def scenario(**changed: object) -> Scenario:
    return Scenario(**({"model": "llama3-8b", "n_gpus": 8, "seq_tokens": 16384} | changed))  # type: ignore[arg-type]


def shape(choice: Choice) -> tuple[object, ...]:
    p = choice.plan
    return (p.dp, p.tp, p.pp, p.cp, p.cp_inner, p.ep, p.cp_kind)


def test_the_shortlist_is_the_best_of_every_shape() -> None:
    found = search(resolve(scenario()))
    table, best = found.table, {}
    for i in np.flatnonzero(table.fits):
        plan, _ = table.pick(int(i))
        key = (plan.dp, plan.tp, plan.pp, plan.cp, plan.cp_inner, plan.ep, plan.cp_kind)
        best[key] = min(best.get(key, np.inf), float(table.step_time_s[i]))
    expected = sorted(best.values())[:12]
    chosen = shortlist(found, 12)
    assert [c.step_time_s for c in chosen] == pytest.approx(expected, rel=1e-12)
    assert len({shape(c) for c in chosen}) == 12


def test_shape_keys_are_equal_for_equal_shapes_only() -> None:
    table = search(resolve(scenario(model="mixtral-8x7b"))).table
    keys, shapes = shape_keys(table), {}
    for i in range(0, table.row.size, 11):
        plan, _ = table.pick(i)
        shapes.setdefault((plan.dp, plan.tp, plan.pp, plan.cp, plan.cp_inner, plan.ep, plan.cp_kind), set()).add(int(keys[i]))
    assert all(len(found) == 1 for found in shapes.values())
    assert len({next(iter(found)) for found in shapes.values()}) == len(shapes)


def test_the_solver_only_improves_on_enumeration() -> None:
    decision = decide(scenario(seq_tokens=65536))
    best = shortlist(decision.searched[0], 1)[0]
    assert decision.choices[0].step_time_s <= best.step_time_s
    assert decision.solver.gap_frac == 0
    assert decision.n_candidates == decision.searched[0].table.row.size
    assert len({shape(c) for c in decision.choices}) == len(decision.choices)


def test_time_and_throughput_agree_on_a_given_batch() -> None:
    timed, fast = decide(scenario(global_batch=64)), decide(scenario(global_batch=64, objective="throughput"))
    assert [repr(c.plan) for c in timed.choices] == [repr(c.plan) for c in fast.choices]


def test_objectives_compare_the_right_problems() -> None:
    assert [p.global_batch for p in variants(resolve(scenario(objective="throughput")))] == [256, 512, 1024]
    assert [p.cluster.n_gpus for p in variants(resolve(scenario(objective="cost", n_gpus=32)))] == [32, 16, 8, 4, 2, 1]
    assert [p.cluster.n_gpus for p in variants(resolve(scenario(objective="cost", n_gpus=24)))] == [24]
    assert len({p.global_batch for p in variants(resolve(scenario(objective="cost", n_gpus=32)))}) == 1
    assert len(variants(resolve(scenario()))) == 1


def test_max_seq_is_the_longest_of_all_candidates() -> None:
    decision = decide(scenario(objective="max-seq", seq_tokens=0))
    table = decision.searched[0].table
    assert decision.choices[0].work.seq_tokens == table.seq_tokens.max()
    assert decision.solver.name == "bisection"
    assert table.fits.all()


def test_quantised_arithmetic_is_only_used_when_allowed() -> None:
    plain, allowed = decide(scenario(model="llama3-70b", n_gpus=64)), decide(scenario(model="llama3-70b", n_gpus=64, allow=("quant",)))
    assert {c.plan.precision for c in plain.choices} == {"bf16"}
    assert allowed.choices[0].plan.precision == "fp8"
    assert allowed.choices[0].step_time_s < plain.choices[0].step_time_s


@pytest.mark.parametrize(("name", "layers"), [("qwen3-next-80b-a3b", "gated-delta layers"), ("glm-5", r"sparse attention \(DSA\)")])
def test_models_that_are_only_served_are_refused_in_one_sentence(name: str, layers: str) -> None:
    with pytest.raises(BadInput, match=f"{name} has {layers}, whose training steps are not priced; plan it with --task serve"):
        decide(scenario(model=name))


def test_other_tasks_are_refused_in_one_sentence() -> None:
    with pytest.raises(BadInput, match="--task rl is not available"):
        decide(scenario(task="rl"))


def test_rank_keeps_the_best_of_equal_shapes() -> None:
    choices = decide(scenario()).choices
    assert rank([*reversed(choices), *choices], 3) == choices[:3]


BATCHES = [(8192, 8, 512), (2**20, 8, 4), (8192, 16384, 2048), (8192, 24, 384), (2**23, 8, 1), (1, 3, 3 * 2**20)]


@pytest.mark.parametrize(("seq", "n_gpus", "batch"), BATCHES)
def test_the_default_batch(seq: int, n_gpus: int, batch: int) -> None:
    """8K on 16,384 GPUs gives the 2,048 sequences of Llama 3 405B (Table 4 of its report: 16 M tokens)."""
    assert default_batch(seq, n_gpus) == batch
    assert batch * seq <= max(BATCH_TOKENS, 1024 * n_gpus) * 2 or batch == 1


def test_the_price_per_token_follows_from_the_clusters_price() -> None:
    choice = decide(scenario(price_usd_per_h=3.0)).choices[0]
    assert choice.usd_per_mtoken == pytest.approx(3.0 / 3600 * 8 * choice.step_time_s / choice.tokens * 1e6)
    free = decide(scenario(gpu="ascend-910b")).choices[0]
    assert free.usd_per_mtoken is None


def test_host_memory_and_margin_change_what_fits() -> None:
    long = {"seq_tokens": 0, "objective": "max-seq", "framework": "deepspeed"}
    small = decide(scenario(**long, host_ram_bytes=200e9)).choices[0]
    large = decide(scenario(**long, host_ram_bytes=4e12)).choices[0]
    assert small.work.seq_tokens < large.work.seq_tokens
    tight = decide(scenario(**long, host_ram_bytes=4e12, memory_margin_frac=0.3)).choices[0]
    assert tight.work.seq_tokens < large.work.seq_tokens


def test_the_kernel_index_limits_the_local_sequence() -> None:
    free = decide(Scenario(model="llama3-8b", n_gpus=1, gpu="h200", seq_tokens=0, objective="max-seq")).choices[0]
    bound = decide(Scenario(model="llama3-8b", n_gpus=1, gpu="h200", seq_tokens=0, objective="max-seq", index_bits=31)).choices[0]
    assert bound.work.seq_tokens == 524288
    assert free.work.seq_tokens > 524288
