"""Importing public tables: the package's layout, its newest version of the preferred framework, units and lengths converted."""

from __future__ import annotations

from pathlib import Path

import pytest
from roofplan.calibrate.imports import import_tables
from roofplan.calibrate.rows import load_tables
from roofplan.scenarios.errors import BadFile, BadInput

ATTENTION = "batch_size,isl,num_heads,num_key_value_heads,head_dim,window_size,kv_cache_dtype,step,latency\n2,1,8,1,128,0,fp8,{},{}\n"


def package(folder: Path) -> Path:
    for framework, version, step, latency in (("vllm", "0.9.0", 3, 0.5), ("vllm", "0.24.0", 7, 0.01), ("sglang", "1.0.0", 9, 9)):
        place = folder / "h100_sxm" / "attention" / framework / version
        place.mkdir(parents=True)
        (place / "generation_attention_perf.csv").write_text(ATTENTION.format(step, latency))
    place = folder / "h100_sxm" / "comm" / "nccl" / "2.29"
    place.mkdir(parents=True)
    (place / "nccl_perf.csv").write_text(
        "op_name,nccl_dtype,num_gpus,message_size,latency\nalltoall,half,8,512,0.02\nalltoall,int8,8,512,0.02\n"
    )
    return folder


def test_package_layout(tmp_path: Path) -> None:
    written = import_tables(package(tmp_path / "data"), tmp_path / "out")
    assert written == {"aic_attention_generation": 1, "aic_nccl": 2}
    tables = load_tables(tmp_path / "out")
    row = tables["aic_attention_generation"].iloc[0]
    assert (row["kv_len"], row["latency_us"], row["num_kv_heads"], row["gpu"]) == (8, 10, 1, "h100_sxm")
    assert tables["aic_nccl"]["message_bytes"].tolist() == [1024, 512]


def test_another_framework(tmp_path: Path) -> None:
    import_tables(package(tmp_path / "data"), tmp_path / "out", framework="sglang")
    assert load_tables(tmp_path / "out")["aic_attention_generation"].iloc[0]["kv_len"] == 10


def test_tables_already_in_our_layout(tmp_path: Path) -> None:
    written = import_tables(Path(__file__).parent / "data" / "kernels", tmp_path)
    assert written["aic_gemm"] == 60


def test_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="holds no <gpu>/<kind>/<framework>/<version>"):
        import_tables(tmp_path, tmp_path / "out")
    place = tmp_path / "h100_sxm" / "gemm" / "vllm" / "1.0"
    place.mkdir(parents=True)
    (place / "gemm_perf.csv").write_text("m,latency\n1,2\n")
    with pytest.raises(BadFile, match="lacks dtype, n, k"):
        import_tables(tmp_path, tmp_path / "out")


def test_package_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofplan.calibrate.imports.PACKAGE", "no_such_package_at_all")
    with pytest.raises(BadInput, match="pip install aiconfigurator-core"):
        import_tables(None, tmp_path)
