"""Tables into families: keys, GPUs by their spellings, bad columns refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from roofplan.calibrate.rows import families, gpus_of, kernel_name, load_tables
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadFile

SAMPLE = Path(__file__).parent / "data" / "kernels"


def test_families_of_the_sample() -> None:
    tables = load_tables(SAMPLE)
    assert gpus_of(tables) == {"h100-sxm": ["h100_dgx", "h100_sxm"]}
    bounds = {b.key: b for b in families(tables, registry.accelerator("h100-sxm"), ["h100_dgx", "h100_sxm"])}
    assert set(bounds) >= {
        "gemm.bf16",
        "attention.prefill.hd128",
        "attention.decode.hd128",
        "mla.decode",
        "moe.bf16.triton_triton",
        "collective.p2p",
    }
    assert len(bounds["gemm.bf16"].seconds) == 60
    assert (bounds["gemm.bf16"].seconds > 0.9 * bounds["gemm.bf16"].floor_s).all()
    assert bounds["moe.bf16.triton_triton"].labels == ("h4096i14336k2e8",)


def test_every_trend_prices_its_rows() -> None:
    for bound in families(load_tables(SAMPLE), registry.accelerator("h100-sxm"), ["h100_dgx", "h100_sxm"]):
        every = [*range(len(bound.seconds))]
        start = {**bound.start, **{name: values[0] for name, values in bound.choices.items()}}
        price = bound.trend(start, every)
        assert (price > 0).all(), bound.key
        assert len(bound.coordinates) == len(bound.strengths), bound.key


def test_kernel_names_are_short() -> None:
    assert kernel_name("vllm_unquantizedfusedmoe_triton_tritonexperts") == "triton_triton"
    assert kernel_name("vllm_fused_moe") == "fused_moe"
    assert kernel_name("") == "default"


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such folder"):
        load_tables(tmp_path / "nowhere")
    with pytest.raises(BadFile, match="holds none of the measurement tables aic_gemm"):
        load_tables(tmp_path)
    (tmp_path / "aic_gemm.csv").write_text("gpu,dtype,m,n,k,latency_us\nh100_sxm,bfloat16,one,2,3,4\n")
    with pytest.raises(BadFile, match="row 1: m='one' must be a number above 0"):
        load_tables(tmp_path)
    for odd in ("0", "-1", "nan", "inf", "1e30", ""):
        (tmp_path / "aic_gemm.csv").write_text(f"gpu,dtype,m,n,k,latency_us\nh100_sxm,bfloat16,1,2,3,4\nh100_sxm,bfloat16,{odd},2,3,4\n")
        with pytest.raises(BadFile, match=r"row 2: m=.* must be a number above 0 and below"):
            load_tables(tmp_path)
    (tmp_path / "aic_gemm.csv").write_text("gpu,dtype,m,n,k,latency_us\nh100_sxm,bfloat16,1,2,3,-4\n")
    with pytest.raises(BadFile, match="no row has a positive latency_us"):
        load_tables(tmp_path)
    (tmp_path / "aic_gemm.csv").write_text("gpu,m\nh100_sxm,1\n")
    with pytest.raises(BadFile, match="lacks the columns latency_us, dtype, n, k"):
        load_tables(tmp_path)


def test_unknown_gpus_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "aic_gemm.csv").write_text("gpu,dtype,m,n,k,latency_us\nmystery,bfloat16,1,2,3,4\n")
    assert gpus_of(load_tables(tmp_path)) == {}
