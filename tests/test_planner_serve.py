"""Planning to serve: bounds that no simulation beats, promises kept, limits named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from roofplan.costmodels.serving_ops import serve_system
from roofplan.planner.cli_serve import plan_serve
from roofplan.planner.serve_search import ServeAsk, layouts, one_request, plan_serving, rate_bound
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan, serving_engine
from roofplan.sim.serving import replica_model, simulate_serving
from roofplan.sim.serving_metrics import Slo


def ask(**changes) -> ServeAsk:
    cluster = registry.cluster(changes.pop("gpu_name", "h200"), changes.pop("n_gpus", 4))
    base = {"model": registry.model("llama3.1-8b"), "gpu": registry.accelerator(cluster.gpu), "cluster": cluster, "prompt_tokens": 2000,
            "output_tokens": 200, "slo": Slo(ttft_s=2.0, tpot_s=0.03)}  # fmt: skip
    return ServeAsk(**(base | changes))


def flags(**changes) -> dict[str, object]:
    return {"model": "llama3.1-8b", "gpu": "h200", "n_gpus": 2, "isl": "2000", "osl": "200", "ttft": "2s", "tpot": "30ms"} | changes


@pytest.mark.parametrize(("isl", "osl"), [(200, 400), (4000, 50), (1000, 1000)])
@pytest.mark.parametrize("tp", [1, 2])
def test_no_simulated_rate_beats_the_bound(isl, osl, tp):
    """Everything queued at once is the most a replica can do; its rate stays under the bound taken without a promised TPOT."""
    question = ask(prompt_tokens=isl, output_tokens=osl, slo=Slo())
    plan = EnginePlan(tp=tp, token_budget=2048, max_num_seqs=256)
    system = serve_system(question.cluster, serving_engine("vllm"))
    kind = replica_model(question.model, plan, system, one_request(question))
    bound, why = rate_bound(question, plan, kind)
    assert why == ""
    cluster = question.cluster.with_gpus(tp)
    result = simulate_serving(question.model, cluster, plan, one_request(question, 3000), kind=kind)
    assert np.isfinite(result.finish_s).all()
    rate = 3000 / result.end_s
    assert 0.4 * bound < rate <= bound


def test_choices_keep_the_promises_under_their_bound_and_are_ranked():
    decision = plan_serving(ask())
    assert decision.n_candidates == len(list(layouts(ask())))
    rates = [c.goodput_per_s for c in decision.choices]
    assert rates == sorted(rates, reverse=True)
    for choice in decision.choices:
        assert 0 < choice.goodput_per_s <= choice.bound_per_s
        assert choice.ttft_s <= 2.0
        assert choice.tpot_s <= 0.03
        assert choice.n_replicas * choice.plan.n_gpus == 4
    assert decision == plan_serving(ask())


def test_a_stricter_promise_never_carries_more():
    loose, strict = (plan_serving(ask(slo=Slo(ttft_s=2.0, tpot_s=t))).choices[0].goodput_per_s for t in (0.05, 0.012))
    assert strict < loose


def test_layouts_divide_heads_and_use_low_precision_only_when_allowed():
    plain, allowed = list(layouts(ask(n_gpus=8))), list(layouts(ask(n_gpus=8, allow_quant=True)))
    assert {p.tp for p in plain} == {1, 2, 4, 8}
    assert {p.weight_dtype for p in plain} == {"bf16"}
    assert {p.kv_dtype for p in allowed} == {"bf16", "fp8"}
    assert all(p.weight_dtype == "bf16" for p in layouts(ask(gpu_name="a100-80gb-sxm", allow_quant=True)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"slo": Slo(ttft_s=0.001)}, "ttft"),
        ({"slo": Slo(tpot_s=0.0001)}, "tpot"),
        ({"model": registry.model("llama3.1-405b"), "n_gpus": 1}, "memory"),
    ],
)
def test_what_fails_is_named(changes, reason):
    decision = plan_serving(ask(**changes))
    assert decision.choices == ()
    assert {r for r, _, _ in decision.rejected} == {reason}


def test_context_beyond_the_model_is_refused():
    with pytest.raises(BadInput, match="isl \\+ osl = 9,000 tokens is over the 8,192 that llama3-8b was made for"):
        ask(model=registry.model("llama3-8b"), prompt_tokens=8000, output_tokens=1000)


def test_command_json(tmp_path):
    target = tmp_path / "serve.json"
    assert plan_serve(flags(rate="1"), str(target)) == 0
    data = json.loads(target.read_text())
    best = data["plans"][0]
    assert best["rank"] == 1
    assert data["scenario"]["task"] == "serve"
    assert set(best) >= {
        "layout",
        "pools",
        "goodput_per_s",
        "ttft_s",
        "tpot_s",
        "output_tokens_per_s_per_gpu",
        "memory",
        "cost_usd_per_mtoken",
    }
    mixed = next(p for p in data["plans"] if "mixed" in p["pools"])
    assert mixed["n_gpus_for_rate"] == mixed["layout"]["tp"]


def test_a_rate_nobody_carries_is_exit_1(capsys):
    assert plan_serve(flags(rate="1e6"), None) == 1
    assert "no layout keeps the promises; most fall to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"isl": None}, "--task serve needs --isl"),
        ({"n_gpus": None}, "--task serve needs --gpus"),
        ({"trace": "x.csv"}, "--trace is not used by plan --task serve"),
        ({"seq_tokens": 4096}, "--seq-tokens is for training"),
        ({"rate": "fast"}, "--rate fast must be a number"),
        ({"ttft": "2"}, "unit"),
    ],
)
def test_flags_that_cannot_be_used(changes, message):
    with pytest.raises(BadInput, match=message):
        plan_serve(flags(**changes), None)
