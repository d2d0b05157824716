"""What is not searched, held against the plan: its gains are those of the simulator, and what does not apply says why."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from roofplan.planner.cli_serve import plan_serve
from roofplan.planner.serve_compare import WAYS, _decoded_per_gpu, _edge, compare, read_names
from roofplan.planner.serve_judge import judge
from roofplan.planner.serve_play import Player
from roofplan.planner.serve_search import plan_serving
from roofplan.scenarios.deployment import Deployment
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim.deployment import simulate_deployment
from roofplan.sim.serving_metrics import Slo
from serve_asks import ask


class Failing:
    def __init__(self, failed: str) -> None:
        self.failed = failed


def bursty(n: int = 900) -> ServeWorkload:
    """Ten minutes of quiet, ten of load, ten of quiet."""
    gaps = np.concatenate([np.full(n // 6, 4.0), np.full(2 * n // 3, 1.0), np.full(n - n // 6 - 2 * n // 3, 4.0)])
    return ServeWorkload(
        arrival_s=np.cumsum(gaps), prompt_tokens=np.full(n, 2000), output_tokens=np.full(n, 200), source="made",
    )  # fmt: skip


@pytest.mark.parametrize("at_most", [1.0, 1.5, 40.0])
def test_the_edge_is_the_last_rate_carried(at_most):
    found = _edge(lambda rate: Failing("" if rate <= at_most else "ttft"), 1.0)
    assert found <= at_most < found * 1.0101


def test_no_edge_under_what_is_asked():
    assert _edge(lambda rate: Failing("ttft"), 1.0) == 0.0


def test_semi_pd_gains_what_the_simulator_says():
    question = ask(n_gpus=1, gpu_name="a100-80gb-sxm", model_name="llama3-8b", slo=Slo(ttft_s=2.0, tpot_s=0.06))
    decision = plan_serving(question)
    (found,) = compare(question, decision, ("semi-pd",))
    assert found.gain_frac > 0
    assert not found.deployable
    assert "research only" in found.sentence
    share = float(found.sentence.split("budget 8192, ")[1].split("%")[0]) / 100
    plan = decision.choices[0].plan
    deployment = Deployment(plan=replace(plan, token_budget=8192, max_num_seqs=256), prefill_sm_frac=share)
    for more, fails in ((1.0, False), (1.03, True)):
        rate = decision.choices[0].first_draw_per_s * (1 + found.gain_frac) * more
        n = Player(question, decision.system).n_requests(decision.choices[0].parts[0].played.candidate, rate)
        work = question.at_rate(question.requests(n), rate)
        result = simulate_deployment(question.model, question.cluster, deployment, work, engine=decision.system.engine)
        assert bool(judge(question, result, rate).failed) == fails


def test_routers_are_held_against_requests_dealt_in_turn():
    question = ask(n_gpus=2)
    decision = plan_serving(question)
    (found,) = compare(question, decision, ("router",))
    assert found.deployable
    assert found.gain_frac >= 0
    assert all(name in found.sentence for name in ("round-robin", "least-outstanding", "kv-aware"))


def test_autoscaling_pays_for_what_runs_within_the_promises():
    question = ask(n_gpus=2, gpu_name="l40s", trace=bursty(), keep_arrivals=True, slo=Slo(tpot_s=0.2))
    decision = plan_serving(question)
    (found,) = compare(question, decision, ("autoscale",))
    assert 0 <= found.gain_frac < 0.6
    assert "GPU-hours" in found.sentence


def test_decoding_alone_fills_the_promise():
    question = ask(n_gpus=1, slo=Slo(tpot_s=0.02))
    kind = plan_serving(question).choices[0].parts[0].played.candidate.serve
    context = 2100
    rate = _decoded_per_gpu(kind, context, 0.02)
    n = max(n for n in range(1, kind.model.limits.max_seqs + 1) if kind.model.times.step_ps(n, n * context, []) <= 0.02e12)
    assert rate == pytest.approx(n / (kind.model.times.step_ps(n, n * context, []) / 1e12))
    assert _decoded_per_gpu(kind, context, 1e-6) == 0.0


@pytest.mark.parametrize(
    ("changes", "name", "why"),
    [
        ({"objective": "latency"}, "semi-pd", "drop --concurrency and --objective latency"),
        ({"objective": "latency"}, "router", "drop --concurrency and --objective latency"),
        ({"n_gpus": 1}, "router", "each plan shown has one"),
        ({}, "autoscale", "give --trace, and no --rate"),
        ({"slo": Slo(ttft_s=2.0)}, "afd", "give --tpot"),
        ({}, "afd", "attention and FFN need one each"),
        ({"n_gpus": 1, "trace": bursty(60), "keep_arrivals": True}, "autoscale", "add GPUs"),
    ],
)
def test_what_does_not_apply_says_why(changes, name, why):
    question = ask(**changes)
    (found,) = compare(question, plan_serving(question), (name,))
    assert found.sentence.startswith(f"{name} is left out: ")
    assert why in found.sentence


def test_names_are_checked_before_anything_is_searched():
    assert read_names("semi-pd, router") == ("semi-pd", "router")
    assert read_names("") == ()
    with pytest.raises(BadInput, match=f"--compare 'sempd' is not known; legal: {', '.join(WAYS)}"):
        read_names("sempd")


def test_the_command_shows_what_was_compared(tmp_path, capsys):
    asked = {"model": "llama3.1-8b", "gpu": "h200", "n_gpus": 1, "isl": "2000", "osl": "200", "tpot": "30ms", "compare": "semi-pd,router"}
    assert plan_serve(asked, str(tmp_path / "a.json")) == 0
    rows = json.loads((tmp_path / "a.json").read_text())["compared"]
    assert [row["name"] for row in rows] == ["semi-pd", "router"]
    assert set(rows[0]) == {"name", "gain_frac", "deployable", "sentence"}
    assert "Compared: " in capsys.readouterr().out
