"""Pipelines played lane by lane: near the full simulator where micro-batches are even, and what they are made of."""

from __future__ import annotations

import pytest
from roofplan.costmodels.serving_ops import serve_system
from roofplan.planner.serve_kinds import Candidate, Rejected, candidates, kinds_of
from roofplan.planner.serve_play import Player
from roofplan.planner.serve_sketch import is_pipeline, lanes, quick
from roofplan.scenarios.serving import serving_engine
from roofplan.sim.serving_metrics import Slo
from serve_asks import ask


@pytest.fixture(scope="module")
def pipelines() -> tuple[Player, list[Candidate]]:
    question = ask(gpu_name="rtx4090", n_gpus=4, model_name="llama3-8b", prompt_tokens=500, output_tokens=200, slo=Slo(tpot_s=0.05))
    system = serve_system(question.cluster, serving_engine(question.engine))
    found = candidates(question, kinds_of(question, system, Rejected()))
    return Player(question, system), [c for c in found if is_pipeline(c.serve)]


def test_lanes_share_seats_and_blocks_and_pass_all_stages(pipelines):
    kind = next(c.serve for c in pipelines[1] if c.serve.plan.pp == 4)
    lane, n = lanes(kind, 700)
    assert n == 4
    assert lane.limits.blocks == kind.model.limits.blocks // 4
    assert lane.limits.max_seqs == kind.model.limits.max_seqs // 4
    whole = kind.model.times.whole
    assert lane.times.decode == whole.decode
    longer = whole.linear[512] - whole.linear[1] + whole.prefill[512]
    assert lane.times.prefill[512] == whole.prefill[512] + longer * 3 // 4
    assert lanes(kind, kind.model.limits.blocks * kind.model.limits.block_tokens) == (kind.model, 1)


def test_a_light_load_is_the_same_lane_by_lane(pipelines):
    player, found = pipelines
    for candidate in [c for c in found if c.prefill is None and c.serve.plan.token_budget == 512]:
        assert quick(candidate, 700)
        fast, full = (player.seen(candidate, 1, 0.01 * candidate.bound_per_s, full=way) for way in (False, True))
        assert fast.tpot_s == pytest.approx(full.tpot_s, rel=0.09)
        assert fast.e2e_s == pytest.approx(full.e2e_s, rel=0.09)


def test_a_loaded_pipeline_carries_no_more_in_full(pipelines):
    """Lanes do not wait for each other, so the quick play comes first and is at most a few steps of rate too low."""
    player, found = pipelines
    for candidate in [c for c in found if c.n_gpus == 4 and c.serve.plan.pp > 1 and c.serve.plan.token_budget in (512, 8192)][:4]:
        played = player.carried(candidate, 1)
        full = player.confirmed(played, 1)
        assert not played.confirmed
        assert full.confirmed
        assert 0.4 * played.goodput_per_s < full.goodput_per_s <= played.goodput_per_s
        over = player.seen(candidate, 1, 1.1 * played.goodput_per_s, full=True)
        assert over.failed


def test_a_confirmation_stops_where_it_cannot_win(pipelines):
    player, found = pipelines
    candidate = next(c for c in found if c.prefill is None)
    played = player.carried(candidate, 1)
    full = player.confirmed(played, 1)
    before = player.n_runs
    lost = player.confirmed(played, 1, at_least=full.goodput_per_s * 1.02, fall=30)
    assert player.n_runs <= before + 2
    assert lost.goodput_per_s == 0
    assert full.goodput_per_s < lost.upper_per_s <= played.upper_per_s
    assert player.confirmed(played, 1, at_least=0.5 * full.goodput_per_s, fall=7).goodput_per_s == full.goodput_per_s
