"""Acceptance draws follow their law, the controller never loses much, and speculation in the simulator gives what theory says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.acceptance import chain_tokens
from roofplan.costmodels.serving_ops import serve_system
from roofplan.scenarios import registry
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, ServeWorkload, serving_engine
from roofplan.scenarios.serving_parts import AttentionFfnSplit, Speculation
from roofplan.sim import arrivals
from roofplan.sim.batch import ROWS, Batch
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.replica_kind import replica_model
from roofplan.sim.serving import simulate_serving
from roofplan.sim.speculate import MEMORY_PS, Acceptance, Controller

A100 = registry.cluster("a100-80gb-sxm", 1)
LLAMA = registry.model("llama3-8b")


def spec(**given) -> Speculation:
    return Speculation(**({"draft_tokens": 5, "accept_frac": 0.7} | given))


def chat(n: int, rate_per_s: float, seed: int = 0) -> ServeWorkload:
    """Lengths as in the Azure conversation trace: 1155 prompt and 211 answer tokens on average."""
    return ServeWorkload(
        arrival_s=arrivals.poisson(n, rate_per_s, seed),
        prompt_tokens=arrivals.lengths(n, 1155, 0.9, seed, arrivals.PROMPT_STREAM, 14_000),
        output_tokens=arrivals.lengths(n, 211, 0.8, seed, arrivals.OUTPUT_STREAM, 1000),
    )


@pytest.mark.parametrize("alpha", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("gamma", [1, 3, 8])
def test_tokens_of_a_chain(alpha, gamma):
    """E = (1 − α^(γ+1))/(1 − α), within 4 standard errors of 100,000 draws."""
    runs = Acceptance(spec(accept_frac=alpha), 1000, 0).runs(np.arange(1000), np.arange(100)[:, None])
    tokens = 1 + np.minimum(runs, gamma)
    assert abs(tokens.mean() - chain_tokens(alpha, gamma)) < 4 * tokens.std() / np.sqrt(tokens.size)


def test_tokens_of_a_tree():
    """Three candidates a depth, each right with 0.5: a depth goes on with 1 − 0.5³ = 0.875, E = (1 − 0.875^5)/0.125 at depth 4."""
    runs = Acceptance(spec(method="tree", tree_width=3, accept_frac=0.5), 1000, 1).runs(np.arange(1000), np.arange(100)[:, None])
    tokens = 1 + np.minimum(runs, 4)
    assert abs(tokens.mean() - (1 - 0.875**5) / 0.125) < 4 * tokens.std() / np.sqrt(tokens.size)


def test_requests_differ_as_their_beta_says():
    alpha = Acceptance(spec(accept_spread_frac=0.15), 20_000, 2).alpha
    assert alpha.mean() == pytest.approx(0.7, abs=4 * 0.15 / np.sqrt(20_000))
    assert alpha.std() == pytest.approx(0.15, rel=0.03)
    widest = Acceptance(spec(accept_spread_frac=0.7**0.5 * 0.3**0.5), 20_000, 2).alpha
    assert set(widest) == {0.0, 1.0}
    assert widest.mean() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(("alpha", "run"), [(0.0, 0), (1.0, 1 << 20)])
def test_a_draft_always_wrong_and_one_never(alpha, run):
    assert np.all(Acceptance(spec(accept_frac=alpha), 5, 0).runs(np.arange(5), np.arange(7)[:, None]) == run)


def test_draws_depend_on_request_step_and_seed_alone():
    few, many, other = (Acceptance(spec(), n, seed) for n, seed in ((10, 0), (1000, 0), (10, 1)))
    q, j = np.arange(10), np.arange(500)[:, None]
    assert np.array_equal(few.runs(q, j), many.runs(q, j))
    assert np.array_equal(few.runs(q[3:4], j[70:71]), few.runs(q, j)[70:71, 3:4])
    assert not np.array_equal(few.runs(q, j), other.runs(q, j))
    flat = np.corrcoef(few.runs(q, j).T)
    assert np.abs(flat - np.eye(10)).max() < 5 / np.sqrt(500)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200)), min_size=1, max_size=60), st.sampled_from([1, 3, 16]))
def test_a_batch_keeps_count_of_tokens_and_blocks(events, block):
    """Whoever joins and leaves: sums over its sequences, blocks for each sequence, draws of the right step."""
    draws = Acceptance(spec(), 60, 0)
    batch, lengths, steps = Batch(60, block, draws), {}, {}
    for q, (gamma, tokens) in enumerate(events):
        batch.join(q, tokens, 10**6, -(-tokens // block))
        lengths[q], steps[q] = tokens, 0
        if tokens % 5 == 0:
            gone = next(iter(lengths))
            assert batch.leave(gone)[0] == lengths.pop(gone)
        held = batch.blocks
        grown = batch.growth(1 + gamma)
        assert held + grown >= sum(-(-(length + 1 + gamma) // block) for length in lengths.values())
        batch.advance(gamma, grow=True)
        for r in lengths:
            lengths[r] += 1 + min(int(draws.runs(np.array([r]), np.array([steps[r]]))[0]), gamma)
            steps[r] += 1
        assert (batch.n, batch.kv, batch.blocks) == (len(lengths), sum(lengths.values()), held + grown)
        assert sorted(batch.slot) == sorted(lengths)


def test_draws_go_on_past_a_table_and_a_preemption():
    draws = Acceptance(spec(), 2, 0)
    batch, gained = Batch(2, 16, draws), []
    batch.join(1, 10, 10**6, 1)
    for step in range(3 * ROWS):
        if step == 2 * ROWS - 7:
            tokens, blocks = batch.leave(1, back=True)
            batch.join(1, tokens, 10**6, blocks)
        batch.growth(6)
        gained.append(batch.advance(5, grow=True)[0])
    assert gained == [1 + min(run, 5) for run in draws.runs(np.array([1]), np.arange(3 * ROWS)).tolist()]


def controller(speculation: Speculation, seats: int = 256, budget: int = 2048) -> Controller:
    plan = EnginePlan(token_budget=budget, max_num_seqs=seats, speculation=speculation)
    kind = replica_model(LLAMA, plan, serve_system(A100, serving_engine("vllm")), chat(200, 1.0))
    assert kind.verify is not None
    return Controller(speculation, kind.verify, seats, budget)


def test_gamma_by_batch_is_looked_up_and_kept_inside_the_budget():
    table = controller(spec(gamma_by_batch=((4, 5), (100, 2))))
    assert [table.choose(n, n, 1000 * n) for n in (1, 4, 5, 100, 101)] == [5, 5, 2, 2, 0]
    fixed = controller(spec(), seats=512, budget=2048)
    assert [fixed.choose(n, n, 1000 * n) for n in (1, 341, 342, 512)] == [5, 5, 4, 3]


def test_goodput_stops_guessing_when_the_card_is_full():
    poor = controller(spec(accept_frac=0.4, draft_frac=0.1, controller="goodput"))
    chosen = [poor.choose(n, n, 500 * n) for n in (1, 16, 256)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] > 0
    assert chosen[-1] == 0


def test_goodput_learns_acceptance():
    good = controller(spec(accept_frac=0.9, controller="goodput"))
    before = good.choose(8, 8, 8000)
    draws = Acceptance(spec(accept_frac=0.2), 8, 0)
    for step in range(2000):
        runs = draws.runs(np.arange(8), np.array([step]))
        good.learn(int(np.minimum(runs, 3).sum()), int((runs < 3).sum()))
    assert good.accepted / good.tried == pytest.approx(0.2, abs=0.04)
    assert good.choose(8, 8, 8000) < before


def test_a_queue_of_prompts_lowers_gamma():
    good = controller(spec(controller="goodput"), budget=512)
    alone = good.choose(10, 10, 10_000)
    good.watch(2 * MEMORY_PS, 2 * MEMORY_PS, True)
    assert good.load_frac == 1.0
    assert good.choose(10, 10, 10_000, 100_000, 100) < alone
    good.watch(4 * MEMORY_PS, 0, False)
    assert good.load_frac == 0.0


def latency_s(speculation: Speculation | None, work: ServeWorkload, policy: str) -> float:
    plan = EnginePlan(token_budget=512, max_num_seqs=256, policy=policy, speculation=speculation)
    result = simulate_serving(LLAMA, A100, plan, work)
    return float(np.mean(result.finish_s - work.arrival_s))


@pytest.mark.parametrize("policy", ["vllm-v1", "sglang"])
@pytest.mark.parametrize("rate_per_s", [2.0, 5.0, 7.0])
def test_smartspec(policy, rate_per_s):
    """The goodput controller is within 3 % of the best of no speculation and fixed γ, at every load. Source: SmartSpec (2024)."""
    work = chat(700, rate_per_s)
    static = {g: latency_s(spec(draft_tokens=g, accept_spread_frac=0.1), work, policy) for g in (1, 2, 3, 5)}
    best = min(latency_s(None, work, policy), *static.values())
    assert latency_s(spec(accept_spread_frac=0.1, controller="goodput"), work, policy) < 1.03 * best


def test_five_guesses_lose_at_a_high_rate_and_win_at_a_low_one():
    five = spec(accept_frac=0.6)
    slow, fast = chat(300, 1.0), chat(900, 7.2)
    assert latency_s(five, slow, "vllm-v1") < 0.6 * latency_s(None, slow, "vllm-v1")
    assert latency_s(five, fast, "vllm-v1") > 1.2 * latency_s(None, fast, "vllm-v1")


def test_one_request_alone_takes_as_many_steps_as_its_acceptance_says():
    """300 answers of 401 tokens one after another: steps = tokens after the first over E, within 1 %."""
    n = 300
    work = ServeWorkload(arrival_s=np.arange(n) * 1000.0, prompt_tokens=np.full(n, 64), output_tokens=np.full(n, 401))
    plan = EnginePlan(speculation=spec(draft_tokens=3, accept_frac=0.8))
    result = simulate_serving(LLAMA, A100, plan, work)
    assert (result.n_steps - n) / n == pytest.approx(400 / chain_tokens(0.8, 3), rel=0.01)
    result.gaps.fold()
    assert result.gaps.n_tokens == 400 * n


def test_a_seed_gives_one_result_and_another_another():
    work, plan = chat(150, 4.0), EnginePlan(speculation=spec(accept_spread_frac=0.2))
    first, again, other = (simulate_serving(LLAMA, A100, plan, work, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.finish_s, again.finish_s)
    assert not np.array_equal(first.finish_s, other.finish_s)


def test_replicas_behind_a_router_and_pools_apart_speculate_too():
    """Two replicas with the same requests draw alike; prefill apart from decode saves the same steps."""
    work, plan = chat(200, 8.0), EnginePlan(speculation=spec())
    pair = registry.cluster("a100-80gb-sxm", 2)
    plain = simulate_serving(LLAMA, pair, replace(plan, speculation=None), work, n_prefill=1)
    for result in (
        simulate_serving(LLAMA, pair, plan, work, router="least-outstanding"),
        simulate_serving(LLAMA, pair, plan, work, n_prefill=1),
    ):
        assert np.all(result.finish_s >= result.first_s)
        assert np.mean(result.finish_s - result.first_s) < 0.75 * np.mean(plain.finish_s - plain.first_s)


def test_attention_apart_from_ffn_does_not_speculate():
    plan = EnginePlan(speculation=spec(), attention_ffn=AttentionFfnSplit(n_ffn_gpus=1))
    with pytest.raises(BadInput, match="speculation is not priced with attention apart from FFN"):
        simulate_serving(LLAMA, registry.cluster("a100-80gb-sxm", 2), plan, chat(10, 1.0))


@pytest.mark.parametrize(
    ("plan", "name"), [(EnginePlan(speculation=spec()), "speculation"), (EnginePlan(policy="layered"), "policy=layered")]
)
def test_gpus_split_by_sms_run_plain_engines_only(plan, name):
    with pytest.raises(BadInput, match=f"splits plain engines only; drop {name} from the plan"):
        simulate_deployment(LLAMA, A100, Deployment(plan=plan, prefill_sm_frac=0.4), chat(10, 1.0))


def test_checking_costs_less_than_the_whole_step_published():
    """LongSpec's QwQ-32B: 3.82 tokens a pass and 2.25 times the speed, so a step and its draft take 1.7 plain ones; checking alone less."""
    model, plan = registry.model("qwen2.5-32b"), EnginePlan(speculation=spec(draft_tokens=8, draft_frac=0.0), max_num_seqs=1)
    system = serve_system(A100, serving_engine("vllm"))
    work = ServeWorkload(arrival_s=np.zeros(1), prompt_tokens=np.array([16_000]), output_tokens=np.array([500]))
    verify = replica_model(model, plan, system, work).verify
    assert verify is not None
    plain, checked = (verify.step_ps(1, gamma, 16_384 + gamma, []) for gamma in (0, 8))
    assert 1 < checked / plain < 3.82 / 2.253
