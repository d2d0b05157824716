"""A table of ``calibrate run`` as tables to fit: graph timings, the fastest kernel per shape, ordinary shapes only."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from roofplan.calibrate.check import check_rows, summary
from roofplan.calibrate.fitting import fit_folder
from roofplan.calibrate.own_runs import is_run, tables_of
from roofplan.calibrate.rows import gpus_of, load_tables
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadFile

GEMMS = pd.read_csv(Path(__file__).parent / "data" / "kernels" / "aic_gemm.csv")
SLOWER = 6.0
"""Times of an H100 times this are possible on an L40S."""


def run(folder: Path) -> Path:
    """A run on an L40S that measured the sample's products with two kernels and modes, three copies and a chunked prefill."""
    frames = []
    for kernel, mode, factor in (("cublas_gemm", "graph", 1.0), ("triton_gemm", "graph", 1.2), ("cublas_gemm", "eager", 3.0)):
        part = GEMMS[["m", "n", "k", "dtype"]].assign(
            kernel=kernel, mode=mode, family="gemm", latency_us=GEMMS["latency_us"] * SLOWER * factor
        )
        frames.append(part)
    quantised = frames[0].head(5).assign(dtype="fp8")
    copies = pd.DataFrame(
        {"num_bytes": [2**28, 2**29, 2**30] * 12, "dtype": "int8", "kernel": "device_copy", "mode": "graph", "family": "copy"}
    )
    copies["latency_us"] = 2 * copies["num_bytes"] / (0.8 * 864e9) * 1e6
    chunk = pd.DataFrame(
        [{"family": "attention_context", "kernel": "x", "mode": "graph", "dtype": "bfloat16", "prefix_len": 64, "latency_us": 9.0}]
    )
    path = folder / "l40s.parquet"
    pd.concat([*frames, quantised, copies, chunk]).assign(gpu="l40s", framework="torch", framework_version="2").to_parquet(path)
    return path


def test_fastest_graph_timings(tmp_path: Path) -> None:
    tables = tables_of(run(tmp_path))
    assert set(tables) == {"aic_gemm", "device_copy"}
    assert len(tables["aic_gemm"]) == len(GEMMS)
    assert sorted(tables["aic_gemm"]["latency_us"]) == pytest.approx(sorted(GEMMS["latency_us"] * SLOWER))


def test_a_run_becomes_a_calibration(tmp_path: Path) -> None:
    run(tmp_path)
    (fitted,) = fit_folder(tmp_path, [], seed=0, jobs=1)
    assert fitted.name == "l40s"
    assert fitted.fit("gemm.bf16").n_rows == 60
    assert fitted.fit("stream").coefficients["memory_frac"] == pytest.approx(0.8, rel=0.05)
    assert "calibrate run; sha256" in fitted.sources["aic_gemm"]
    assert fitted.fit("attention.decode.hd128").lent_by == "a100-80gb-sxm"
    tables = load_tables(tmp_path)
    rows = summary(list(check_rows(tables, registry.accelerator("l40s"), gpus_of(tables)["l40s"], fitted)))
    assert rows["aic_gemm"]["l40s"]["median_ape"] < 0.2


def test_not_a_run(tmp_path: Path) -> None:
    assert is_run(run(tmp_path))
    GEMMS.to_parquet(tmp_path / "aic_gemm.parquet")
    assert not is_run(tmp_path / "aic_gemm.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"PAR1")
    assert not is_run(tmp_path / "junk.parquet")
    pd.read_parquet(tmp_path / "l40s.parquet").assign(family="launch").to_parquet(tmp_path / "l40s.parquet")
    with pytest.raises(BadFile, match="no row of a kernel family that can be fitted"):
        tables_of(tmp_path / "l40s.parquet")
