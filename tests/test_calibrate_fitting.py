"""Fitting a folder: only GPUs with measured products, kinds completed from kin, scores of rows not seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from roofplan.calibrate.fitting import fit_folder, measured_gpus, score_folder
from roofplan.scenarios.errors import BadFile, BadInput

SAMPLE = Path(__file__).parent / "data" / "kernels"


def test_the_sample_becomes_a_whole_calibration() -> None:
    (fitted,) = fit_folder(SAMPLE, ["h100"], seed=0, jobs=1)
    assert fitted.name == "h100-sxm"
    assert fitted.fit("gemm.bf16").n_rows == 60
    assert "of the installed h100-sxm" in fitted.fit("stream").source
    assert "AIConfigurator 0.12.0" in fitted.sources["aic_gemm"]
    assert "VLLM 0.24.0" in fitted.sources["aic_gemm"]


def test_scores_of_rows_left_out() -> None:
    scores = score_folder(SAMPLE, [], "rows", 0.25, 0)["h100-sxm"]
    assert scores["gemm.bf16"]["n"] < 30
    assert 0 < scores["gemm.bf16"]["median_ape"] < 0.5
    assert 0 <= scores["gemm.bf16"]["coverage"] <= 1


def test_unmeasured_gpus(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no aic_gemm rows of b200; it has h100-sxm"):
        measured_gpus(SAMPLE, ["b200"])
    (tmp_path / "aic_nccl.csv").write_text((SAMPLE / "aic_nccl.csv").read_text())
    with pytest.raises(BadFile, match="nothing to fit a calibration on"):
        measured_gpus(tmp_path, [])
