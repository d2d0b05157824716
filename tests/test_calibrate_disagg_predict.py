"""Measured disaggregated settings played: by hand for one client, and a shorter run beside the whole benchmark."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from roofplan.calibrate import disagg_predict, serving_predict
from roofplan.calibrate.serving_disagg import Split
from roofplan.calibrate.serving_points import ServePoint
from roofplan.calibrate.serving_predict import predict
from roofplan.calibrate.serving_recipes import Recipe
from roofplan.costmodels.serving_ops import serve_system
from roofplan.costmodels.step_times import PS
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, ServeWorkload, serving_engine
from roofplan.sim.replica_kind import replica_model

PLAN = EnginePlan(max_num_seqs=64)
POINT = ServePoint(
    id="x", source="x", model="llama3.1-8b", gpu="h100-sxm", n_gpus=2, plan=PLAN, isl=1000, osl=12, concurrency=1, static_batch=False,
    recipe=Recipe(), measured={}, split=Split(prefill=PLAN, n_prefill=1, n_decode=1, recipe=Recipe()),
)  # fmt: skip


def test_a_lone_client_waits_for_prompt_transfer_and_the_decode_workers_first_step():
    """Request, one eager prompt step, 1000 tokens of KV over NVLink, eleven decode steps; the prefill worker answers nobody."""
    engine, system = serving_engine("vllm"), serve_system(registry.cluster("h100-sxm", 8), serving_engine("vllm"))
    ones = {"arrival_s": [0.0] * 20, "prompt_tokens": [1000] * 20, "output_tokens": [12] * 20}
    np = pytest.importorskip("numpy")
    work = ServeWorkload(**{k: np.array(v) for k, v in ones.items()})
    model = registry.model("llama3.1-8b")
    eager = replica_model(model, PLAN, replace(system, engine=replace(engine, graph_tokens=())), work).times
    decode = replica_model(model, PLAN, system, work)
    link = system.network.intra
    kv_s = 1000 * 32 * 2 * 1024 * 2 / link.bytes_per_s + link.latency_s
    door = engine.request_cpu_s + engine.frontend_cpu_s + 1000 * engine.token_cpu_s
    first = door + eager.step_ps(0, 0, [(1000, 0)]) / PS + kv_s + decode.times.step_ps(0, 0, [(1, 1000)]) / PS
    rest = sum(decode.times.step_ps(1, 1001 + j, []) for j in range(1, 11)) / PS
    found = predict(POINT)
    assert found["ttft_s"] == pytest.approx(first, rel=1e-6)
    assert found["tpot_s"] == pytest.approx(rest / 11, rel=1e-6)
    assert found["output_tokens_per_s"] == pytest.approx(12 / (first + rest), rel=1e-3)


def test_prefill_workers_use_the_kernels_of_their_own_launch():
    """8-bit DeepSeek on two B200 nodes: products of 2.45e9 weights a rank take a prompt 0.26 s, not 0.03 s; decodes as before."""
    plan = EnginePlan(tp=8, weight_dtype="fp8_block", kv_dtype="fp8", engine="sglang", max_num_seqs=8, token_budget=16384)
    split = Split(prefill=plan, n_prefill=1, n_decode=1, recipe=Recipe())
    usual = replace(POINT, model="deepseek-r1", gpu="b200", n_gpus=16, plan=plan, isl=8192, split=split)
    few = predict(replace(usual, split=replace(split, recipe=Recipe(few_token_products=True))))
    assert few["ttft_s"] - predict(usual)["ttft_s"] == pytest.approx(0.88 * 2 * 8192 * 2.45e9 / 135e12 - 0.03, abs=0.01)
    assert few["tpot_s"] == pytest.approx(predict(usual)["tpot_s"], rel=1e-9)


def test_slow_streams_take_the_host_a_part_of_a_sequences_time():
    busy = replace(serving_engine("vllm"), sequence_cpu_s=1e-3)
    each = [predict(replace(POINT, split=replace(POINT.split, stream_steps=k)), busy)["tpot_s"] for k in (1, 10)]
    assert each[0] - each[1] == pytest.approx(0.9e-3 * 10 / 11, rel=1e-3)


def test_a_rate_limit_spreads_the_first_wave():
    many = replace(POINT, concurrency=64, split=replace(POINT.split, rate_per_s=10))
    assert predict(many)["ttft_s"] < predict(replace(many, split=POINT.split))["ttft_s"]


def test_the_first_wave_counts_for_more_where_clients_send_fewer_requests():
    """All clients at once wait longest: a fifth of the requests of five rounds, a tenth of ten."""
    many = replace(POINT, concurrency=64, osl=1000, recipe=Recipe(lengths_low_frac=0.5))
    ten, five = (predict(replace(many, split=replace(POINT.split, rounds=rounds)))["ttft_s"] for rounds in (10, 5))
    assert 1.3 * ten < five < 2 * ten


def test_four_waves_stand_for_ten(monkeypatch):
    """Loads of many clients are played for four waves: means within 3 % of the whole benchmark's, in less than half the time."""
    point = replace(POINT, concurrency=300, recipe=Recipe(lengths_low_frac=0.8), osl=200)
    found, spent = [], []
    for few in (256, 10_000):
        monkeypatch.setattr(disagg_predict, "FEW_CLIENTS", few)
        monkeypatch.setattr(serving_predict, "_split_metrics", {})
        start = time.process_time()
        found.append(predict(point))
        spent.append(time.process_time() - start)
    short, whole = found
    for metric in ("ttft_s", "tpot_s", "output_tokens_per_s"):
        assert short[metric] == pytest.approx(whole[metric], rel=0.03)
    assert spent[0] < spent[1]


def test_equal_settings_are_played_once(monkeypatch):
    predict(POINT)
    monkeypatch.setattr(serving_predict, "play_split", None)
    assert predict(replace(POINT, id="y", measured={"ttft_s": 1.0})) == predict(POINT)
