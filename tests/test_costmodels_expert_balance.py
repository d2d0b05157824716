"""Expert balance against published coverage, brute force on small cases, and counts drawn at random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.expert_balance import balanced, copies_of, load_factor, most_loaded, placements, uneven_s
from roofplan.costmodels.experts import chosen, expert_share_read
from roofplan.costmodels.serving_memory import weights_bytes
from roofplan.costmodels.serving_ops import messages_s, moe_s, own_experts_s, remote_nodes, serve_system, tp_all_reduce_s
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, serving_engine

QWEN = registry.model("qwen3-30b-a3b")


def test_published_coverage_lies_between_zipf_exponents() -> None:
    """Qwen3-30B-A3B touches 48, under 70 and 86.3 % of its 128 experts with 16, 64 and 128 tokens; even routing would 64, 98, 100 %."""
    flat, steep = (expert_share_read(128, 8, np.array([16.0, 64.0, 128.0]), skew=s) for s in (0.8, 1.25))
    for at, published in enumerate((0.48, 0.70, 0.863)):
        assert steep[at] <= published <= flat[at] + 0.01
    even = expert_share_read(128, 8, np.array([16.0, 64.0, 128.0]))
    assert even == pytest.approx([0.644, 0.984, 1.0], abs=2e-3)


def brute_force(share: np.ndarray, n_ranks: int, n_extra: int) -> float:
    """Least load of the most loaded rank over every way to make and place copies with equal slots."""
    n_slots, best = (len(share) + n_extra) // n_ranks, np.inf
    for extra in itertools.combinations_with_replacement(range(len(share)), n_extra):
        copies = np.ones(len(share))
        for e in extra:
            copies[e] += 1
        if copies.max() > n_ranks:
            continue
        each = np.repeat(share / copies, copies.astype(int))
        for ranks in itertools.product(range(n_ranks), repeat=len(each)):
            got = np.bincount(ranks, minlength=n_ranks)
            if np.all(got == n_slots):
                best = min(best, float(np.bincount(ranks, weights=each, minlength=n_ranks).max()))
    return best


@pytest.mark.parametrize(("n_experts", "n_extra", "n_ranks"), [(4, 0, 2), (4, 2, 2), (5, 1, 3), (6, 2, 2), (6, 0, 3)])
@pytest.mark.parametrize("skew", [0.5, 1.0, 1.5])
def test_greedy_packing_is_near_the_optimum(n_experts: int, n_extra: int, n_ranks: int, skew: float) -> None:
    share = chosen(n_experts, 2, skew)
    best, ours = brute_force(share, n_ranks, n_extra), balanced(share, n_ranks, n_extra).rank_share.max()
    assert best - 1e-12 <= ours <= best * (4 / 3 - 1 / (3 * n_ranks)) + 1e-12


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(2, 40), top_k=st.integers(1, 8), skew=st.floats(0, 2), ranks=st.integers(1, 8), rounds=st.integers(0, 3))
def test_copies_keep_every_token(n: int, top_k: int, skew: float, ranks: int, rounds: int) -> None:
    """Shares sum to top_k, slots are equal, each expert is there, and no load beats the mean or a copy's own share."""
    top_k = min(top_k, n)
    extra = min(-(n % -ranks) + rounds * ranks, n * (ranks - 1))
    if (n + extra) % ranks:
        return
    share = chosen(n, top_k, skew)
    p = balanced(share, ranks, extra)
    assert p.share_frac.sum() == pytest.approx(top_k)
    assert set(p.expert.ravel().tolist()) == set(range(n))
    assert np.bincount(p.expert.ravel(), weights=p.share_frac.ravel(), minlength=n) == pytest.approx(share)
    assert p.factor >= 1 - 1e-9
    copies = copies_of(share, extra, ranks)
    assert copies.max() <= ranks
    assert copies.sum() == n + extra


def test_more_copies_never_hurt_and_even_routing_needs_none() -> None:
    assert load_factor(256, 8, 0.0, 32) == pytest.approx(1)
    factors = [load_factor(256, 8, 1.0, 32, extra) for extra in (0, 32, 64, 128)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] > 3
    assert factors[1] < 1.1
    assert load_factor(256, 8, 1.0, 1) == 1


@pytest.mark.parametrize(("skew", "extra"), [(0.0, 0), (0.8, 0), (0.8, 16)])
def test_most_loaded_rank_matches_drawn_counts(skew: float, extra: int) -> None:
    """Independent choices of 512 tokens, 200 times: the mean largest count and the mean distinct experts of the fullest rank."""
    n, k, ep, tokens = 64, 4, 8, 512
    pairs, busy = most_loaded(n, k, skew, ep, extra, np.array([float(tokens)]))
    draw, top, read = np.random.default_rng(1), [], []
    for p in placements(n, k, skew, ep, extra)[:40]:
        for _ in range(200 if extra else 5):
            got = draw.binomial(tokens, np.minimum(p.share_frac, 1))
            top.append(got.sum(axis=1).max())
            read.append((got > 0).sum(axis=1).max())
    assert pairs[0] == pytest.approx(np.mean(top), rel=0.08)
    assert busy[0] == pytest.approx(np.mean(read), rel=0.06)


def test_long_arrays_are_interpolated_closely() -> None:
    sizes = np.arange(1.0, 3000.0)
    pairs, busy = most_loaded(128, 8, 0.9, 8, 8, sizes)
    for at in (0, 6, 99, 1501, 2998):
        one = most_loaded(128, 8, 0.9, 8, 8, sizes[at : at + 1])
        assert pairs[at] == pytest.approx(one[0][0], rel=0.01)
        assert busy[at] == pytest.approx(one[1][0], rel=0.01)


def test_even_plans_cost_what_they_did() -> None:
    """No skew and no copies: the even price itself, bit for bit."""
    tokens = np.array([1.0, 100.0, 5000.0])
    assert np.array_equal(uneven_s(QWEN, EnginePlan(tp=8), tokens, lambda t: 3 * t), 3 * tokens)


def test_skew_saves_on_few_tokens_and_costs_on_many() -> None:
    """Few tokens read fewer experts when routing is skewed; many load one rank more, and copies win that back."""
    system = serve_system(registry.cluster("h100-sxm", 8), serving_engine("vllm"))
    t = np.array([2.0, 2048.0])

    def price(**more: float) -> np.ndarray:
        plan = EnginePlan(dp=8, ep=8, **more)  # type: ignore[arg-type]
        return moe_s(QWEN, plan, system, 8 * t)

    slight, steep, eplb = price(expert_skew=1e-9), price(expert_skew=0.8), price(expert_skew=0.8, redundant_experts=32)
    assert steep[0] < slight[0]
    assert steep[1] > 1.3 * slight[1]
    assert slight[1] <= eplb[1] < 1.05 * slight[1]
    a100 = serve_system(registry.cluster("a100-80gb-sxm", 8), serving_engine("vllm"))
    assert moe_s(QWEN, EnginePlan(dp=8, ep=8, expert_skew=0.8), a100, 8 * t)[1] > 1.3 * moe_s(
        QWEN, EnginePlan(dp=8, ep=8), a100, 8 * t
    )[1]  # fmt: skip


def test_copies_take_memory() -> None:
    plain, more = (weights_bytes(QWEN, EnginePlan(dp=8, ep=8, redundant_experts=r)) for r in (0, 32))
    expert = 3 * QWEN.hidden * QWEN.moe_ffn_hidden * 2
    assert more - plain == pytest.approx(32 / 8 * expert * QWEN.n_layers)


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(BadInput, match=r"must divide evenly over ep=8 ranks; legal: 0, 8, 16"):
        load_factor(64, 4, 0.8, 8, 3)
    with pytest.raises(BadInput, match="already has a copy on each of 2 ranks"):
        balanced(chosen(2, 1, 1.0), 2, 4)


@pytest.mark.parametrize("ep", [16, 32, 64, 128])
def test_wide_expert_parallelism_prices_a_ranks_own_rows(ep: int) -> None:
    """Over many ranks a layer costs a few times its own rows' floor, as tokens come by all-to-all; not the pass over everyone's tokens."""
    model = registry.model("deepseek-v3")
    system = serve_system(registry.cluster("h800", ep), serving_engine("vllm"))
    t = np.array([16.0, 128.0])
    plan = EnginePlan(dp=ep, ep=ep, weight_dtype="fp8_block")
    got = own_experts_s(model, plan, system, t) + moe_s(model, plan, system, t * ep)
    expert = 3 * model.hidden * model.moe_ffn_hidden
    read = (256 / ep + 1) * expert / system.accelerator.hbm_bytes_per_s
    flops = 2 * 9 * t * expert / system.accelerator.peak_flops_per_s("fp8")
    floor = np.maximum(flops, read)
    assert np.all(got > 0.5 * floor)
    assert np.all(got < 8 * floor)


def test_one_token_reads_its_own_experts_and_many_read_all():
    assert most_loaded(128, 8, 0.0, 1, 0, np.array([0.0, 1.0, 1e6]))[1] == pytest.approx([0, 8, 128])


def test_tokens_go_once_to_each_node() -> None:
    """DeepSeek-V3, 8 of 256 experts in at most 4 groups: over 2 nodes one remote copy for 4, over 4 nodes 2.7 for 6, over 16 3.75."""
    model = registry.model("deepseek-v3")
    assert remote_nodes(model, 2) == pytest.approx((1 - 0.5**8) * 2 / 2)
    assert remote_nodes(model, 4) == pytest.approx(4 * (1 - 0.75**8) * 3 / 4)
    assert remote_nodes(model, 16) == pytest.approx(4 * 15 / 16)
    assert remote_nodes(QWEN, 16) == pytest.approx(16 * (1 - (15 / 16) ** QWEN.top_k) * 15 / 16)


def test_many_tokens_are_relayed_and_few_go_straight() -> None:
    """Never slower than a copy for each expert over the adapters, never faster than a copy for each node; well below at 4,096 tokens."""
    model, plan = registry.model("deepseek-v3"), EnginePlan(dp=32, ep=32, weight_dtype="fp8_block")
    system = serve_system(registry.cluster("h100-sxm", 32), serving_engine("vllm"))
    t = np.array([1.0, 16.0, 4096.0])
    got = messages_s(model, plan, system, t, True) - tp_all_reduce_s(system, 2.0 * model.hidden * t, 1)
    straight = sum(system.network.p2p_s(part * t * 8 * model.hidden * 24 / 32, 8) for part in (1, 2))
    nodes = sum(system.network.p2p_s(part * t * model.hidden * remote_nodes(model, 4), 8) for part in (1, 2))
    assert np.all(got <= straight)
    assert np.all(got >= nodes)
    assert got[0] == straight[0]
    assert got[2] < 0.7 * straight[2]
