"""Kinds of replicas and the groups they form, against brute force."""

from __future__ import annotations

import pytest
from roofplan.costmodels.serving_memory import serve_memory
from roofplan.costmodels.serving_ops import serve_system
from roofplan.planner.serve_kinds import Rejected, candidates, group_sizes, kinds_of
from roofplan.planner.serve_space import MANY_SEATS, SEATS
from roofplan.scenarios.serving import serving_engine
from roofplan.scenarios.serving_parts import Speculation
from roofplan.sim.replica_kind import replica_model
from roofplan.sim.serving_metrics import Slo
from serve_asks import ask


def found(question):
    system, rejected = serve_system(question.cluster, serving_engine(question.engine)), Rejected()
    return kinds_of(question, system, rejected), rejected, system


def test_one_pricing_of_a_layout_serves_all_its_budgets():
    question = ask(prompt_tokens=4000, output_tokens=500)
    kinds, _, system = found(question)
    for kind in kinds.mixed:
        direct = replica_model(question.model, kind.plan, system, question.requests(1))
        assert kind.model.limits == direct.limits
        assert kind.model.memory == direct.memory
        n = kind.plan.token_budget
        assert kind.model.times.linear[: n + 1] == direct.times.linear[: n + 1]
        assert kind.model.times.decode[: direct.limits.max_seqs + 1] == direct.times.decode
        assert direct.memory == serve_memory(
            question.model, kind.plan, system.engine, system.accelerator, n, direct.limits.max_seqs, direct.limits.block_tokens
        )


def test_seats_widen_only_where_the_pool_holds_more_requests():
    short = {k.plan.max_num_seqs for k in found(ask(prompt_tokens=200, output_tokens=100))[0].mixed if k.plan.token_budget >= MANY_SEATS}
    long = {k.plan.max_num_seqs for k in found(ask(n_gpus=1, prompt_tokens=20_000, output_tokens=100))[0].mixed}
    assert short == {MANY_SEATS}
    assert long == {SEATS}


def test_groups_are_the_two_best_splits_of_each_pair_and_size():
    question = ask(n_gpus=4)
    kinds, _, _ = found(question)
    groups = [c for c in candidates(question, kinds) if c.prefill is not None]
    assert {c.n_gpus for c in groups} <= {2, 3, 4}
    for first in kinds.prefill:
        for second in kinds.decode:
            p, d = first.plan.n_gpus, second.plan.n_gpus
            mine = [c for c in groups if c.prefill is first and c.serve is second and c.n_gpus == 4]
            splits = [(x, y) for x in range(1, 5) for y in range(1, 5) if x * p + y * d == 4]
            values = sorted((min(x * first.bounds.prefill_per_s, y * second.bounds.decode_per_s) for x, y in splits), reverse=True)
            assert sorted((c.bound_per_s for c in mine), reverse=True) == values[:2]


def test_groups_fill_equal_parts_of_a_node_or_whole_nodes():
    assert group_sizes(ask(n_gpus=8)) == [2, 3, 4, 5, 6, 7, 8]
    assert group_sizes(ask(n_gpus=32)) == [2, 4, 8, 16, 24, 32]
    assert group_sizes(ask(n_gpus=1)) == []


def test_what_cannot_serve_is_counted_with_its_reason():
    _, rejected, _ = found(ask(n_gpus=1, model_name="llama3.1-405b"))
    assert set(rejected.count) == {"memory"}
    assert "no room for a KV cache" in rejected.example["memory"]
    rejected.add("memory", "another", 3)
    assert {reason: n for reason, n, _ in rejected.rows()}["memory"] == rejected.count["memory"]


def test_models_larger_than_a_node_get_replicas_over_nodes():
    kinds, _, _ = found(ask(n_gpus=16, model_name="llama3.1-405b", gpu_name="h100-sxm", slo=Slo()))
    assert kinds.mixed
    assert {k.plan.n_gpus for k in kinds.mixed} == {16}
    assert (8, 2) in {(k.plan.tp, k.plan.pp) for k in kinds.mixed}


def test_seats_are_no_more_than_the_recurrent_states_that_fit():
    """Plans carry the seats their replicas run with, so that engines are told the same."""
    kinds, _, _ = found(ask(n_gpus=8, gpu_name="b200", model_name="qwen3.5-397b-a17b", allow_quant=True, slo=Slo(ttft_s=10, tpot_s=1)))
    assert kinds.mixed
    for kind in kinds.mixed:
        assert kind.plan.max_num_seqs == kind.model.limits.max_seqs <= kind.model.memory.max_seqs
        assert kind.model.state_bytes == kind.model.memory.state_bytes_per_seq * kind.plan.tp * kind.plan.pp > 0
    assert len({kind.plan.max_num_seqs for kind in kinds.mixed}) > 2


def test_guesses_leave_room_for_fewer_states():
    """A seat with one guess holds three states; γ by batch size is worked out for the seats there are."""
    guess = Speculation(method="mtp", draft_tokens=1, draft_frac=0.05)
    loose = {"n_gpus": 8, "gpu_name": "b200", "model_name": "qwen3.5-397b-a17b", "slo": Slo(ttft_s=10, tpot_s=1)}
    kinds, _, _ = found(ask(speculation=guess, **loose))
    seats = {(k.plan.tp, k.plan.dp, k.plan.ep, k.plan.token_budget, bool(k.plan.speculation)): k.plan.max_num_seqs for k in kinds.mixed}
    both = [(n, seats[(*layout, False)]) for (*layout, guessing), n in seats.items() if guessing and (*layout, False) in seats]
    assert both
    assert all(guessing <= plain for guessing, plain in both)
    assert any(guessing < plain / 2 for guessing, plain in both)
    assert all(k.plan.speculation.gamma_by_batch[-1][0] <= k.plan.max_num_seqs for k in kinds.mixed if k.plan.speculation)


@pytest.mark.parametrize(("engine", "first"), [("vllm", False), ("sglang", True), ("trtllm", False)])
def test_sglang_sets_room_aside_on_the_decode_side_first(engine, first):
    question = ask(n_gpus=2, engine=engine)
    system = serve_system(question.cluster, serving_engine(engine))
    found = candidates(question, kinds_of(question, system, Rejected()))
    assert {c.deployment().decode_first for c in found if c.prefill is not None} == {first}
    assert not any(c.deployment().decode_first for c in found if c.prefill is None)
