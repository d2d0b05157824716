"""Measured serving points and engine logs: what is read, what is skipped and why, and how far predictions are off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from roofplan.calibrate.serving_fit import fit_engine
from roofplan.calibrate.serving_formats import Unusable
from roofplan.calibrate.serving_names import engine_profile, model_name
from roofplan.calibrate.serving_points import ServePoint, read_points
from roofplan.calibrate.serving_predict import predict
from roofplan.calibrate.serving_recipes import Recipe
from roofplan.calibrate.validate_cli import validate
from roofplan.calibrate.validate_serving import is_fit_row, validate_serving, validate_serving_log
from roofplan.scenarios.errors import BadFile, BadInput
from roofplan.scenarios.serving import EnginePlan, serving_engine

pytest.importorskip("pandas", reason="measurement tables need the calibrate extra")

TRUTH = """id,source,framework,version,model,precision,gpu,num_gpus,tp,isl,osl,concurrency,batch,spec_decode,disagg,metric,value
a-1,TensorRT-LLM perf-overview v0.15,TensorRT-LLM,0.15.0,LLaMA v3.1 8B,fp8,H100-SXM,1,1,1000,1000,,,,False,output_tps_total,13000
a-2,blog,vLLM,0.19,Llama-3.1-8B,bf16,H100,1,1,1024,128,16,,none,False,tpot_ms_mean,9
a-3,blog,vLLM,0.19,Llama-3.1-8B,bf16,H100,1,1,1024,128,16,,mtp,False,tpot_ms_mean,9
a-4,blog,vLLM,0.19,Llama-3.1-8B,bf16,H100,1,1,1024,128,16,,none,True,tpot_ms_mean,9
a-5,blog,llama.cpp,1,Llama-3.1-8B,bf16,H100,1,1,1024,128,16,,none,False,tpot_ms_mean,9
a-6,blog,vLLM,0.19,Nobody-7B,bf16,H100,1,1,1024,128,16,,none,False,tpot_ms_mean,9
a-7,blog,vLLM,0.19,Llama-3.1-8B,bf16,H100,1,1,,128,16,,none,False,tpot_ms_mean,9
a-8,blog,vLLM,0.19,Llama-3.1-8B,bf16,H100,1,1,1024,128,,,none,False,tpot_ms_mean,9
a-9,blog,vLLM,0.19,Llama-3.1-8B,bf16,H100,1,1,1024,128,16,,none,False,kernel_tflops,9
a-10,blog,vLLM,0.19,llama3.1-405b,bf16,H100,1,1,1024,128,16,,none,False,tpot_ms_mean,9
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "truth.csv"
    path.write_text(TRUTH)
    return path


def test_rows_are_read_or_skipped_with_a_reason(table):
    points, skipped = read_points(table)
    assert [p.id for p in points] == ["a-1", "a-2", "a-10"]
    assert points[0].plan.engine == "trtllm-0.15"
    assert (points[0].plan.weight_dtype, points[0].plan.kv_dtype, points[0].concurrency) == ("fp8", "fp8", 0)
    assert points[1].measured == {"tpot_s": pytest.approx(0.009)}
    why = {row["id"]: row["why"] for row in skipped}
    for row, word in (
        ("a-3", "speculative"),
        ("a-4", "disaggregated"),
        ("a-5", "no profile"),
        ("a-6", "not in the registry"),
        ("a-7", "length is not published"),
        ("a-8", "neither concurrency nor batch"),
        ("a-9", "kernel_tflops"),
    ):
        assert word in why[row]


def test_scores_leave_fitted_rows_out_and_name_layouts_that_cannot_run(table):
    result = validate_serving(table)
    assert {row["id"] for row in result["rows"]} == {"a-1", "a-2"}
    assert "no room for a KV cache" in next(row["why"] for row in result["skipped"] if row["id"] == "a-10")
    scored = [row for row in result["rows"] if not row["fitted"]]
    assert sum(e["n"] for e in result["summary"].get("all", {}).values()) == len(scored)
    for row in result["rows"]:
        assert abs(row["error_frac"]) < 0.35


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama3.1-8b"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b"),
        ("LLaMA v3.1 70B", "llama3.1-70b"),
        ("Llama-2-70B (MLPerf llama2-70b-99.9)", "llama2-70b"),
        ("moonshotai/Kimi-K2.5", "kimi-k2"),
    ],
)
def test_spellings_of_models(text, name):
    assert model_name(text) == name


def test_engine_profiles_follow_the_release():
    assert engine_profile("vLLM", "0.19.0") == "vllm"
    assert engine_profile("vLLM", "0.5.4") == "vllm-0.6"
    assert engine_profile("vLLM", float("nan"), is_2024=True) == "vllm-0.6"
    assert engine_profile("TensorRT-LLM", "1.0.0rc3") == "trtllm-1.0"
    assert engine_profile("vLLM", "0.12.0") == "vllm-0.12"
    assert engine_profile("vLLM", "0.11.2", asynchronous=True) == "vllm"
    with pytest.raises(Unusable, match="has no profile"):
        engine_profile("", "1")


def point(**changes) -> ServePoint:
    base = {
        "id": "p",
        "source": "s",
        "model": "llama3.1-8b",
        "gpu": "h100-sxm",
        "n_gpus": 1,
        "plan": EnginePlan(engine="vllm"),
        "isl": 512,
        "osl": 64,
        "concurrency": 8,
        "static_batch": False,
        "recipe": Recipe(),
        "measured": {"tpot_s": 0.01},
    }
    return ServePoint(**(base | changes))


def test_one_client_gets_the_time_of_a_lone_request():
    """A closed loop of one client never waits: rate = tokens / (TTFT + steps), TPOT the lone decode step."""
    found = predict(point(concurrency=1))
    per_request = found["ttft_s"] + 63 * found["tpot_s"]
    assert found["output_tokens_per_s"] == pytest.approx(64 / per_request, rel=0.02)
    assert predict(point(concurrency=16))["tpot_s"] > found["tpot_s"]
    assert predict(point(concurrency=16))["output_tokens_per_s"] > 5 * found["output_tokens_per_s"]


def test_twice_the_replicas_at_twice_the_load_is_twice_the_throughput():
    one, two = predict(point()), predict(point(n_gpus=2, concurrency=16))
    assert two["output_tokens_per_s"] == pytest.approx(2 * one["output_tokens_per_s"])
    assert two["output_tokens_per_s_per_gpu"] == pytest.approx(one["output_tokens_per_s_per_gpu"])


def test_fit_recovers_host_times_that_were_put_in():
    """Points made with 4 ms of host time a step and 50 ms before the scheduler are fitted back to within 10 %."""
    slow = replace(serving_engine("vllm"), step_cpu_s=0.004, sequence_cpu_s=0.0, request_cpu_s=0.05)
    made = [point(isl=isl, osl=32, concurrency=c) for isl in (128, 256, 512) for c in (1, 2, 4, 8, 16)]
    made = [replace(p, measured={m: predict(p, slow)[m] for m in ("tpot_s", "ttft_s")}) for p in made]
    assert any(is_fit_row(p) for p in made)
    engine, how = fit_engine(made, "vllm")
    assert engine.step_cpu_s + 8 * engine.sequence_cpu_s == pytest.approx(0.004, rel=0.15)
    assert engine.request_cpu_s == pytest.approx(0.05, rel=0.1)
    assert how["mean_log_error"] < 0.2 * how["mean_log_error_before"]
    assert how["mean_log_error_ttft"] < 0.2 * how["mean_log_error_ttft_before"]
    with pytest.raises(BadInput, match="no measured point of engine sglang"):
        fit_engine(made, "sglang")


def test_profiles_of_one_runtime_are_fitted_on_both_their_rows():
    """Points of TensorRT-LLM 0.9 and 0.15 made with 3 ms a step: either profile's fit finds them, and uses the other's rows."""
    plans = [EnginePlan(engine=name) for name in ("trtllm-0.11", "trtllm-0.15")]
    slow = {p.engine: replace(serving_engine(p.engine), step_cpu_s=0.003) for p in plans}
    made = [point(plan=p, isl=isl, osl=32, concurrency=c) for p in plans for isl in (128, 256, 512) for c in (1, 2, 4, 8, 16)]
    made = [replace(p, measured={"tpot_s": predict(p, slow[p.plan.engine])["tpot_s"]}) for p in made]
    own = [p for p in made if is_fit_row(p) and p.plan.engine == "trtllm-0.15"]
    assert own
    for name in slow:
        engine, how = fit_engine(made, name)
        assert how["n_rows"] == 2 * len(own)
        assert engine.step_cpu_s == pytest.approx(0.003, rel=0.15)


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "RTXPRO6000_Llama"
    folder.mkdir()
    meta = {
        "model": "meta-llama/Llama-3.1-8B",
        "engine_kwargs": {"tensor_parallel_size": 1, "max_num_seqs": 128, "max_num_batched_tokens": 2048},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    rows = [
        {"input_toks": 512, "output_toks": 32, "queued_ts": 10.0 + i, "first_token_ts": 10.05 + i, "last_token_ts": 10.45 + i}
        for i in range(5)
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_log_is_replayed_and_compared(log_dir):
    result = validate_serving_log(log_dir)
    assert {(r["metric"], r["stat"]) for r in result["rows"]} == {
        (m, s) for m in ("ttft_s", "tpot_s", "e2e_s") for s in ("mean", "p50", "p90", "p95", "p99")
    }
    published = {(r["metric"], r["stat"]): r["published"] for r in result["rows"]}
    assert published["ttft_s", "mean"] == pytest.approx(0.05)
    assert published["tpot_s", "p99"] == pytest.approx(0.4 / 31)
    assert max(abs(r["error_frac"]) for r in result["rows"]) < 0.6


def test_a_preempted_request_finds_its_own_blocks(log_dir):
    """A pool too small for what runs: with the engine's prefix cache less is computed again, and the run is over sooner."""
    rows = [
        {"input_toks": 2000, "output_toks": 400, "queued_ts": 10.0 + i / 100, "first_token_ts": 10.05 + i / 100, "last_token_ts": 20.0}
        for i in range(12)
    ]
    (log_dir / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = json.loads((log_dir / "meta.json").read_text())
    seconds = {}
    for cached in (False, True):
        meta["kv_cache"] = {"num_gpu_blocks": 1000, "block_size": 16, "enable_prefix_caching": cached}
        (log_dir / "meta.json").write_text(json.dumps(meta))
        result = validate_serving_log(log_dir)
        assert result["summary"][log_dir.name]["preemptions"] > 0
        seconds[cached] = next(r["predicted"] for r in result["rows"] if r["id"] == "e2e_s mean")
    assert seconds[True] < 0.995 * seconds[False]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("meta.json", "{", "cannot be read as JSON"),
        ("meta.json", "{}", "lacks model or engine_kwargs"),
        ("requests.jsonl", '{"input_toks": 1', "line 1: not a finished request"),
        ("requests.jsonl", "", "no requests in it"),
    ],
)
def test_broken_logs_are_one_sentence(log_dir, file, text, message):
    (log_dir / file).write_text(text)
    result = CliRunner().invoke(validate, ["--serving-log", str(log_dir)])
    assert result.exit_code == 2
    assert message in result.output
    with pytest.raises(BadFile, match=message):
        validate_serving_log(log_dir)


def test_command_line_json_and_tables(table, log_dir):
    out = json.loads(CliRunner().invoke(validate, ["--serving", str(table), "--json", "-"]).output)
    assert set(out) == {"rows", "skipped", "summary"}
    assert "median error" in CliRunner().invoke(validate, ["--serving", str(table)]).output
    assert "e2e_s" in CliRunner().invoke(validate, ["--serving-log", str(log_dir)]).output
    both = CliRunner().invoke(validate, ["--serving", str(table), "--serving-log", str(log_dir)])
    assert (both.exit_code, "exclude each other" in both.output) == (2, True)


def test_full_tables(data_dir):
    """Medians that a change must not worsen (dense TPOT and throughput of rows no constant was fitted on)."""
    points = validate_serving(data_dir / "kernels" / "aic_serving_e2e.parquet")
    assert points["summary"]["all dense"]["tpot_s"]["median_ape"] < 0.085
    assert points["summary"]["all MoE"]["tpot_s"]["median_ape"] < 0.125
    assert points["summary"]["all dense"]["ttft_s"]["median_ape"] < 0.21
    assert points["summary"]["all MoE"]["ttft_s"]["median_ape"] < 0.23
    truth = validate_serving(data_dir / "serving" / "serving_truth.csv")
    assert truth["summary"]["TensorRT-LLM perf-overview v0.15"]["output_tokens_per_s"]["median_ape"] < 0.13
    assert np.isfinite([row["predicted"] for row in truth["rows"]]).all()


@pytest.mark.parametrize(("log", "tpot", "e2e", "ttft"), [("RTXPRO6000", 0.085, 0.1, 0.135), ("RTX4090", 0.06, 0.075, 0.125)])
def test_full_logs(data_dir, log, tpot, e2e, ttft):
    result = validate_serving_log(data_dir / "serving" / "vllm_logs" / f"{log}_Llama-3.1-8B")
    worst = next(iter(result["summary"].values()))["worst_error_frac"]
    assert worst["tpot_s"] < tpot
    assert worst["e2e_s"] < e2e
    assert worst["ttft_s"] < ttft
