"""Tables that are only checked: every row priced by some call or skipped for a stated reason, GPUs and files nobody knows included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from roofplan.calibrate.check import Checked, check_rows, reasons, summary, unpriced_tables
from roofplan.calibrate.cli import calibrate
from roofplan.calibrate.rows import gpus_of, load_tables
from roofplan.costmodels.roofline import Roofline
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import load_calibration
from roofplan.scenarios.errors import BadInput

ATTENTION = "device,model,phase,tp,hidden,q_heads,kv_heads,batch_size,prefill_chunk,kv_len,attn_us\n"
MOE = "device,num_tokens,num_experts,topk,experts_per_device,hidden,expert_hidden,routed_tokens,grouped_gemm_us\n"
MLP = "device,num_tokens,tp,hidden,ffn_hidden,q_heads,kv_heads,attn_pre_proj_us,attn_post_proj_us,mlp_up_proj_us,mlp_down_proj_us,add_us\n"


def test_a_table_of_products_with_an_odd_cell_is_refused(tmp_path: Path) -> None:
    for cells in ("0,4096,14336,32,8,40,,150,80,5", "1,4096,nan,32,8,40,,150,80,5", "1,4096,14336,32,8,40,,x,80,5"):
        (tmp_path / "vidur_mlp.csv").write_text(MLP + f"a100,32,{cells}\n")
        done = CliRunner().invoke(calibrate, ["check", "--kernels", str(tmp_path), "--json", "-"])
        assert isinstance(done.exception, BadInput)
        assert "must hold numbers above 0 alone" in str(done.exception)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vidur_attention.csv").write_text(
        ATTENTION
        + "a100,Llama-2-70b-hf,decode,2,8192,64,8,32,0,4000,300\n"
        + "a100,Llama-2-70b-hf,decode,2,8192,64,8,32,0,4000,3\n"
        + "a100,Llama-2-70b-hf,prefill,2,8192,64,8,1,2048,1024,700\n"
        + "mystery,Llama-2-70b-hf,prefill,2,8192,64,8,1,2048,1024,700\n"
    )
    (tmp_path / "frontier_moe.csv").write_text(MOE + "a800,4096,8,2,8,4096,14336,,12682\na800,4096,8,2,8,4096,14336,8192,12682\n")
    (tmp_path / "vidur_mlp.csv").write_text(MLP + "a100,32,1,4096,14336,32,8,40,,150,80,5\n")
    (tmp_path / "vidur_network.csv").write_text(
        "network,collective,num_workers,devices_per_node,bytes,median_us\n"
        "h100_dgx,all_reduce,8,8,1048576,40\nh100_dgx,send_recv,2,1,67108864,1900\nh100_dgx,gossip,8,8,1024,9\n"
    )
    (tmp_path / "splitwise_e2e.csv").write_text("hardware,prompt_ms\na100-80gb,3\nh100-80gb-pcap,4\n")
    return tmp_path


def checked(folder: Path) -> list[Checked]:
    tables = load_tables(folder, foreign=True)
    out = [c for name, own in gpus_of(tables).items() for c in check_rows(tables, registry.accelerator(name), own)]
    return out + list(unpriced_tables(tables, folder))


def test_every_row_is_priced_or_explained(folder: Path) -> None:
    parts = checked(folder)
    rows = summary(parts)
    assert (rows["vidur_attention"]["a100-80gb-sxm"]["n"], rows["vidur_attention"]["a100-80gb-sxm"]["n_skipped"]) == (2, 1)
    assert rows["vidur_attention"]["mystery"]["n_skipped"] == 1
    assert rows["frontier_moe"]["a800"]["n"] == 2
    assert rows["vidur_mlp"]["a100-80gb-sxm"]["n"] == 3
    assert (rows["vidur_network"]["h100-sxm"]["n"], rows["vidur_network"]["h100-sxm"]["n_skipped"]) == (2, 1)
    assert rows["splitwise_e2e"]["h100-80gb-pcap"] == {"n": 0, "median_ape": 0, "mape": 0, "p90_ape": 0, "n_skipped": 1}
    why = {(r["table"], r["gpu"]): r["reason"] for r in reasons(parts)}
    assert why["vidur_attention", "mystery"] == "no GPU called 'mystery' is known"
    assert why["vidur_attention", "a100-80gb-sxm"] == "reads its cache at over twice the peak of the memory"
    assert why["vidur_network", "h100-sxm"] == "neither an all-reduce nor a send"
    assert "whole requests" in why["splitwise_e2e", "a100-80gb-sxm"]


def test_rows_are_the_calls_they_stand_for(folder: Path) -> None:
    gpu = registry.accelerator("a100-80gb-sxm")
    roofline = Roofline(gpu, load_calibration(gpu))
    found = {c.family: c for c in checked(folder) if c.table == "vidur_attention" and len(c.measured_s)}
    heads = {"n_heads": 32, "n_kv_heads": 4, "qk_dim": 128, "v_dim": 128}
    decode = roofline.attention_s(batch=32, q_tokens=1, kv_tokens=4001, phase="decode", **heads)
    chunk = roofline.attention_s(batch=1, q_tokens=2048, kv_tokens=3072, phase="prefill", **heads)
    assert found["attention.decode"].predicted_s == pytest.approx([float(decode)])
    assert found["attention.prefill"].predicted_s == pytest.approx([float(chunk)])
    assert np.isnan(found["attention.prefill"].interval_frac).all()
    moe = next(c for c in checked(folder) if c.table == "frontier_moe" and len(c.measured_s))
    assert moe.predicted_s[0] == moe.predicted_s[1] == pytest.approx(12.7e-3, rel=0.3)


def test_a_folder_without_kernels_is_explained(tmp_path: Path) -> None:
    pd.DataFrame({"gpu": ["h100_sxm"], "ttft_ms": [3.0]}).to_parquet(tmp_path / "aic_serving_e2e.parquet")
    done = CliRunner().invoke(calibrate, ["check", "--kernels", str(tmp_path), "--json", "-"], catch_exceptions=False)
    out = json.loads(done.stdout)
    assert out["tables"]["aic_serving_e2e"]["h100-sxm"]["n_skipped"] == 1
    assert "validate --serving" in out["skipped"][0]["reason"]
