"""Disaggregated rows: which launch they are a run of, and why the others are skipped."""

from __future__ import annotations

import pytest
from roofplan.calibrate.serving_points import read_points
from roofplan.calibrate.validate_serving import validate_serving

pd = pytest.importorskip("pandas", reason="measurement tables need the calibrate extra")

NONE = {f"{side}_{name}": None for side in ("prefill", "decode") for name in ("num_workers", "batch_size")}
ROW = NONE | {
    "gpu": "gb300", "framework": "trtllm", "framework_version": "0.8.1.post1", "model": "deepseek-ai/DeepSeek-R1", "mode": "disagg",
    "isl": 8192, "osl": 1024, "concurrency": 3228, "gemm_quant_mode": "nvfp4", "moe_quant_mode": "nvfp4", "precision": "fp4",
    "tp_size": None, "prefill_tp_size": 2, "prefill_attention_dp_size": 1, "prefill_moe_ep_size": 2, "decode_tp_size": 4,
    "decode_attention_dp_size": 1, "decode_moe_ep_size": 4, "measured_date": "2026-02-03", "ttft_ms": 4824.0, "tpot_ms": 44.7,
}  # fmt: skip
COUNTED = {
    "model": "deepseek-ai/DeepSeek-V3", "prefill_num_workers": 11, "prefill_tp_size": 1, "prefill_attention_dp_size": 2,
    "decode_num_workers": 3, "decode_tp_size": 1, "decode_attention_dp_size": 4,
}  # fmt: skip


def read(tmp_path, *rows):
    path = tmp_path / "points.csv"
    pd.DataFrame([ROW | row for row in rows]).to_csv(path, index=False)
    return read_points(path)


def test_load_day_and_gpus_name_the_launch(tmp_path):
    """11 workers of 2 GPUs fill 3 of 4; the columns say neither how many nor that attention is data parallel."""
    (point,), _ = read(tmp_path, {})
    split = point.split
    assert (split.n_prefill, split.prefill.dp, split.n_decode, point.plan.dp, point.n_gpus) == (11, 2, 3, 4, 34)
    assert (split.prefill.token_budget, split.stream_steps) == (16640 * 2, 100)  # TensorRT-LLM's limits are a rank's
    assert (point.plan.weight_dtype, point.plan.expert_dtype, point.plan.kv_dtype) == ("bf16", "nvfp4", "fp8")
    assert point.recipe.lengths_low_frac == 0.8


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"concurrency": 33, "decode_tp_size": 8}, "runs MTP"),
        ({"isl": 1024, "concurrency": 12, "decode_tp_size": 8}, "with and without speculation"),
        ({"concurrency": 7}, "no launch of that load and day"),
        ({"measured_date": "2025-11-02"}, "no launch of that load and day"),
        ({"gpu": "h100_sxm"}, "no launch of that load and day"),
        ({"concurrency": None}, "concurrency is not given"),
    ],
)
def test_rows_that_stay_skipped_say_why(tmp_path, row, why):
    points, (skipped,) = read(tmp_path, row)
    assert not points
    assert why in skipped["why"]


def test_rows_with_counts_take_the_plain_launch_or_their_own_columns(tmp_path):
    points, skipped = read(tmp_path, COUNTED, COUNTED | {"prefill_num_workers": 5, "concurrency": 100, "tpot_ms": 9.0})
    assert not skipped
    assert [(p.split.n_prefill, p.split.n_decode, p.split.prefill.token_budget) for p in points] == [(11, 3, 33280), (5, 3, 0)]


def test_the_same_measurement_with_counts_tells_the_workers(tmp_path):
    """A load that was run with and without MTP is skipped, unless the row with counts measured the very same figures."""
    both = {"isl": 1024, "concurrency": 12, "prefill_tp_size": 2, "decode_tp_size": 8, "decode_moe_ep_size": 8}
    points, skipped = read(tmp_path, both)
    assert not points
    assert "with and without speculation" in skipped[0]["why"]
    counted = COUNTED | {"isl": 1024, "concurrency": 12, "prefill_num_workers": 1, "decode_num_workers": 4}
    counted |= {"decode_tp_size": 8, "decode_attention_dp_size": 1}
    points, _ = read(tmp_path, both, counted)
    assert len(points) == 2
    assert points[0].split == points[1].split
    assert (points[0].model, points[0].plan) == (points[1].model, points[1].plan)  # the suite has one model for both labels


def test_rows_that_give_only_all_gpus_match_by_their_sum(tmp_path):
    row = {"gpu": "gb200", "framework_version": None, "measured_date": "2025-12-05", "isl": 8192, "concurrency": 538}
    points, skipped = read(
        tmp_path, row | {"prefill_tp_size": 48, "decode_tp_size": 48}, row | {"prefill_tp_size": 64, "decode_tp_size": 64}
    )
    assert [(p.split.n_prefill, p.plan.dp, p.n_gpus) for p in points] == [(4, 32, 48)]
    assert "runs MTP" in skipped[0]["why"]


HEAD = (
    "id,source,framework,version,model,precision,gpu,num_gpus,tp,isl,osl,concurrency,ep,dp_attention,disagg,prefill_gpus,decode_gpus,"
    "metric,value,notes\n"
)
KIMI = (
    "t-1,dump,TensorRT-LLM,1.1.0-dev.2,moonshotai/Kimi-K2.5,fp4,GB200,36,8,1024,1024,4,8,1,true,4,32,tpot_ms_mean,5.3,"
    '"measured=2026-04-18; decode worker; prefill 1x(tp1 pp1 dp4 ep4 bs1), decode 4 workers; x"\n'
)
QWEN = "t-2,docs,SGLang,main,Qwen3-235B-A22B-Instruct-2507,bf16,H20-3e-141GB,16,,1024,,,,,true,8,8,ttft_ms_mean,125.8,1P1D PD RoCE\n"
WIDE = "t-3,blog,SGLang,0.5,DeepSeek-V3,fp8,H800,128,1,4096,100,16,128,128,true,,128,tpot_ms_mean,9,decode only\n"


def test_truth_rows_are_read_from_their_notes(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text(HEAD + KIMI + QWEN + WIDE)
    (kimi, qwen), skipped = read_points(path)
    assert (kimi.split.n_prefill, kimi.split.prefill.dp, kimi.split.n_decode, kimi.plan.tp, kimi.n_gpus) == (1, 4, 4, 8, 36)
    assert (qwen.split.prefill.tp, qwen.plan.tp, qwen.concurrency, qwen.n_gpus) == (8, 8, 1, 16)
    assert "do not say how many workers" in skipped[0]["why"]


def test_disaggregated_rows_are_a_group_of_their_own(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text(HEAD + KIMI)
    result = validate_serving(path)
    fitted = {row["fitted"] for row in result["rows"]}
    groups = set() if True in fitted else {"dump, disaggregated", "all disaggregated"}
    assert [row["disaggregated"] for row in result["rows"]] == [True]
    assert set(result["summary"]) == groups
    assert abs(result["rows"][0]["error_frac"]) < 0.2
