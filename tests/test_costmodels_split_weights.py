"""Weights of the two sides of a split replica: together they are the model, copies and replication counted."""

from __future__ import annotations

import dataclasses

import pytest
from roofplan.costmodels.params import count_params
from roofplan.costmodels.split_weights import check_ffn_fits, split_weights_bytes
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import EnginePlan
from roofplan.scenarios.serving_parts import AttentionFfnSplit


@pytest.mark.parametrize("name", ["llama3.1-70b", "deepseek-v3", "qwen3-30b-a3b", "step-3"])
def test_one_gpu_a_side_holds_the_whole_model_once(name: str) -> None:
    model = registry.model(name)
    plan = EnginePlan(attention_ffn=AttentionFfnSplit(n_ffn_gpus=1))
    assert sum(split_weights_bytes(model, plan)) == pytest.approx(2 * count_params(model).total, rel=1e-4)


def test_groups_replicate_what_is_shared_and_deal_what_is_routed() -> None:
    model = registry.model("deepseek-v3")
    p = count_params(model)
    eight = EnginePlan(ep=8, attention_ffn=AttentionFfnSplit(n_ffn_gpus=8))
    routed = 2 * p.n_moe_layers * model.n_experts * p.expert / 8
    home = 2 * (p.n_moe_layers * (p.shared_per_layer + p.router_per_layer) + p.n_dense_ffn_layers * p.dense_ffn_per_layer)
    assert split_weights_bytes(model, eight)[1] == pytest.approx(routed + home)
    more = split_weights_bytes(model, dataclasses.replace(eight, redundant_experts=16))[1]
    assert more - routed - home == pytest.approx(2 * p.n_moe_layers * 16 * p.expert / 8)
    half = split_weights_bytes(model, dataclasses.replace(eight, tp=2))[0]
    assert half == pytest.approx((split_weights_bytes(model, eight)[0] - 2 * 61 * p.norm_per_layer) / 2 + 2 * 61 * p.norm_per_layer)


def test_what_does_not_fit_is_said() -> None:
    model, gpu = registry.model("deepseek-v3"), registry.accelerator("h200")
    plan = EnginePlan(attention_ffn=AttentionFfnSplit(n_ffn_gpus=4))
    with pytest.raises(BadInput, match=r"n_ffn_gpus=4 of h200 would hold 3\d\d\.\d GiB of FFN weights of deepseek-v3 each; 100\.0 GiB"):
        check_ffn_fits(model, plan, gpu, 100 * 2.0**30)
    check_ffn_fits(model, plan, gpu, 400 * 2.0**30)
    with pytest.raises(BadInput, match="the plan has no attention_ffn"):
        split_weights_bytes(model, EnginePlan())
