"""Rows of measured points: layouts that columns misstate, formats of published checkpoints, speculation that a table does not say."""

from __future__ import annotations

from pathlib import Path

import pytest
from roofplan.calibrate.serving_points import read_points
from roofplan.scenarios.serving import serving_engine

pd = pytest.importorskip("pandas", reason="measurement tables need the calibrate extra")

AIC = {
    "gpu": "b200_sxm", "framework": "trtllm", "framework_version": "1.2.0rc6.post2", "model": "deepseek-ai/DeepSeek-R1", "mode": "agg",
    "isl": 1024, "osl": 1024, "concurrency": 64, "gemm_quant_mode": "nvfp4", "moe_quant_mode": "nvfp4", "precision": "fp4", "tp_size": 8,
    "attention_dp_size": 1, "moe_tp_size": 8, "moe_ep_size": 1, "measured_date": "2026-02-03", "ttft_ms": 200.0, "tpot_ms": 20.0,
}  # fmt: skip


def aic_points(tmp_path: Path, *rows: dict[str, object]):
    path = tmp_path / "points.csv"
    pd.DataFrame([AIC | row for row in rows]).to_csv(path, index=False)
    return read_points(path)


def test_days_of_unsaid_speculation_are_skipped_with_the_pull_request(tmp_path):
    points, skipped = aic_points(tmp_path, {}, {"measured_date": "2026-02-06"}, {"measured_date": "2026-01-14"})
    assert [p.id for p in points] == ["points-0"]
    assert ["pull request 642" in skipped[0]["why"], "pull request 392" in skipped[1]["why"]] == [True, True]


QWEN = {
    "framework": "sglang", "framework_version": "0.5.9", "model": "Qwen/Qwen3.5-397B-A17B", "precision": "fp8", "gemm_quant_mode": "fp8",
    "moe_quant_mode": "fp8_block", "measured_date": "2026-03-24",
}  # fmt: skip


def test_todays_open_models_are_read_in_the_formats_they_ship_in(tmp_path):
    """8-bit checkpoints in blocks; of 4-bit ones attention and linear layers in 16 bits, experts in 4; states as the script says."""
    four = {"precision": "fp4", "gemm_quant_mode": "nvfp4", "moe_quant_mode": "nvfp4", "framework_version": "nightly-dev"}
    rows = (QWEN, QWEN | four, QWEN | {"model": "zhipuai/GLM-5"}, QWEN | four | {"model": "zhipuai/GLM-5"}, QWEN | {"measured_date": None})
    points, skipped = aic_points(tmp_path, *rows)
    assert not skipped
    assert [p.model for p in points] == ["qwen3.5-397b-a17b"] * 2 + ["glm-5"] * 2 + ["qwen3.5-397b-a17b"]
    assert [(p.plan.weight_dtype, p.plan.experts_in) for p in points[:4]] == [("fp8_block", "fp8_block"), ("bf16", "nvfp4")] * 2
    assert [p.plan.state_dtype for p in points] == ["bf16", "fp32", "fp32", "fp32", "bf16"]
    assert points[4].plan == points[0].plan


def test_runs_that_may_have_speculated_are_skipped(tmp_path):
    points, skipped = aic_points(
        tmp_path, QWEN | {"tp_size": 4, "moe_tp_size": 4}, QWEN | {"tp_size": 4, "moe_tp_size": 1, "moe_ep_size": 4}
    )
    assert [p.plan.ep for p in points] == [4]
    assert "unpublished acceptance rate (pull request 898" in skipped[0]["why"]


@pytest.mark.parametrize(
    ("columns", "layout"),
    [
        ({"tp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, (8, 1, 8)),
        ({"tp_size": 1, "attention_dp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, (1, 8, 8)),
        ({"tp_size": 4, "attention_dp_size": 4, "moe_tp_size": 1, "moe_ep_size": 16}, (4, 1, 4)),
        ({"tp_size": 8, "moe_tp_size": 1, "moe_ep_size": 8}, (8, 1, 8)),
        ({"tp_size": 1, "attention_dp_size": 4, "moe_tp_size": 2, "moe_ep_size": 2}, (1, 2, 2)),
    ],
)
def test_layouts_of_misstated_rows_are_recovered(tmp_path, columns, layout):
    """Tables of InferenceX carry tp·ep as tp (64 on eight GPUs) or the node's width as both tp and attention dp."""
    (found,), _ = aic_points(tmp_path, columns)
    assert (found.plan.tp, found.plan.dp, found.plan.ep) == layout


def test_layouts_that_contradict_themselves_are_skipped(tmp_path):
    points, skipped = aic_points(tmp_path, {"tp_size": 72, "moe_tp_size": 72}, {"tp_size": 2, "moe_tp_size": 4})
    assert not points
    assert all("not a layout of one node" in row["why"] for row in skipped)


@pytest.mark.parametrize(
    ("model", "gemm", "moe", "formats"),
    [
        ("deepseek-ai/DeepSeek-R1", "fp8", "fp8", ("fp8_block", "")),
        ("deepseek-ai/DeepSeek-R1", "nvfp4", "nvfp4", ("bf16", "nvfp4")),
        ("moonshotai/Kimi-K2.5", "int4_wo", "int4_wo", ("bf16", "int4")),
        ("openai/gpt-oss-120b", "nvfp4", "nvfp4", ("bf16", "mxfp4")),
        ("Qwen/Qwen3-235B-A22B-FP8", "fp8", "fp8", ("fp8_block", "")),
        ("meta-llama/Llama-3.1-70B", "nvfp4", "nvfp4", ("nvfp4", "")),
    ],
)
def test_checkpoints_are_in_the_formats_they_ship_in(tmp_path, model, gemm, moe, formats):
    (found,), _ = aic_points(tmp_path, {"model": model, "gemm_quant_mode": gemm, "moe_quant_mode": moe})
    assert (found.plan.weight_dtype, found.plan.expert_dtype) == formats


EVEN = {"tp_size": 4, "moe_tp_size": 2, "moe_ep_size": 2}
MINIMAX = {
    "framework": "vllm", "framework_version": "0.19.0", "model": "MiniMaxAI/MiniMax-M2.5", "tp_size": 2, "attention_dp_size": 2,
    "moe_tp_size": 1, "moe_ep_size": 4, "measured_date": "2026-04-22",
}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "layout"),
    [
        ({"concurrency": 1024}, (1, 2, 2)),
        ({"concurrency": 128}, (2, 1, 2)),
        ({"concurrency": 512, "isl": 8192}, (2, 1, 2)),
        ({"concurrency": 512, "isl": 8192, "gpu": "b300_sxm"}, (1, 2, 2)),
        ({"concurrency": 256, "measured_date": "2026-04-08"}, (2, 1, 2)),
        ({"concurrency": 512, "measured_date": "2026-04-08"}, (1, 2, 2)),
        ({"concurrency": 1024, "precision": "fp8", "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8"}, (2, 1, 2)),
    ],
)
def test_attention_ranks_are_told_by_the_search_space_of_the_day(columns, layout, tmp_path):
    (point,), _ = aic_points(tmp_path, MINIMAX | columns)
    assert (point.plan.tp, point.plan.dp, point.plan.ep) == layout


@pytest.mark.parametrize(
    ("columns", "layout"),
    [
        ({"concurrency": 16}, (8, 1, 8)),
        ({"concurrency": 8}, (8, 1, 1)),
        ({"concurrency": 256}, (1, 8, 8)),
        ({"concurrency": 64, "tp_size": 4, "moe_tp_size": 4, "isl": 8192}, (1, 4, 4)),
        ({"concurrency": 4, "gpu": "h200_sxm", "precision": "fp8", "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8"}, (8, 1, 8)),
        (
            {"concurrency": 64, "isl": 8192, "gpu": "h200_sxm", "precision": "fp8", "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8"},
            (1, 8, 8),
        ),
        ({"concurrency": 16, "measured_date": "2025-11-10"}, (8, 1, 1)),
        ({"model": "openai/gpt-oss-120b", "gpu": "h200_sxm"}, (8, 1, 8)),
        ({"model": "openai/gpt-oss-120b"}, (8, 1, 1)),
        ({"model": "openai/gpt-oss-120b", "concurrency": 256}, (1, 8, 8)),
        (EVEN | {"measured_date": "2025-12-15"}, (2, 1, 2)),
        (EVEN | {"measured_date": "2025-12-15", "isl": 4000}, (4, 1, 2)),
    ],
)
def test_layouts_that_a_script_chose_by_its_load(columns, layout, tmp_path):
    """The columns of TensorRT-LLM's runs up to 2 November 2025 say tensor parallelism alone; later ones multiply tp by ep."""
    (point,), _ = aic_points(tmp_path, {"framework_version": None, "measured_date": "2025-11-02"} | columns)
    assert (point.plan.tp, point.plan.dp, point.plan.ep) == layout


def test_words_tokenise_at_no_cost(tmp_path):
    """Runs of the AIConfigurator team have no day; their prompts are words."""
    own, public = aic_points(tmp_path, QWEN | {"model": "Qwen/Qwen3-32B", "measured_date": None}, QWEN)[0]
    engine = serving_engine("sglang")
    assert own.engine_of(engine).token_cpu_s == 0 < public.engine_of(engine).token_cpu_s


TRUTH = {
    "source": "a post", "framework": "vLLM", "version": "0.19.1", "model": "Llama-3.1-8B", "gpu": "H100", "isl": 20000, "osl": 2000,
    "concurrency": 8, "metric": "ttft_ms_p50", "value": 763.6,
}  # fmt: skip


def truth_points(tmp_path: Path, *rows: dict[str, object]):
    path = tmp_path / "truth.csv"
    pd.DataFrame([TRUTH | {"id": str(i)} | row for i, row in enumerate(rows)]).to_csv(path, index=False)
    points, skipped = read_points(path)
    assert not skipped
    return points


def test_a_row_runs_in_the_formats_it_states_or_its_checkpoint_ships_in(tmp_path):
    minimax = {"model": "MiniMaxAI/MiniMax-M2.5", "gpu": "H200-SXM", "num_gpus": 8, "tp": 8, "ep": 8}
    points = truth_points(tmp_path, {}, {"kv_dtype": "fp8"}, {"kv_dtype": "fp8 skip-SW"}, minimax, minimax | {"precision": "bf16"})
    assert [p.plan.kv_dtype for p in points] == ["bf16", "fp8", "fp8", "bf16", "bf16"]
    assert [p.plan.weight_dtype for p in points] == ["bf16", "bf16", "bf16", "fp8_block", "bf16"]


def test_the_cache_of_a_static_benchmark_grows_with_its_sequences_where_the_engines_does(tmp_path):
    """TurboMind admits what fits and preempts; a padded static batch would set aside the whole answer."""
    batch = {"source": "a static benchmark", "batch": 32}
    of_turbomind = batch | {"framework": "LMDeploy", "version": "0.2.0"}
    lmdeploy, padded = truth_points(tmp_path, of_turbomind, batch | {"source": "a table (static batching)"})
    assert (lmdeploy.plan.policy, padded.plan.policy) == ("", "static")
    assert lmdeploy.static_batch
