"""The report page: figures and tables of what was checked, readable without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from roofplan.calibrate.check import check_rows
from roofplan.calibrate.report import page
from roofplan.calibrate.rows import load_tables
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput


def test_page() -> None:
    tables = load_tables(Path(__file__).parent / "data" / "kernels")
    text = page(list(check_rows({"aic_gemm": tables["aic_gemm"]}, registry.accelerator("h100-sxm"), ["h100_sxm"])))
    assert text.startswith("<!doctype html>")
    assert "gemm.bf16" in text
    assert "inside the 80 % interval" in text
    assert "Worst rows" in text
    assert '<script src="http' not in text


def test_nothing_checked() -> None:
    with pytest.raises(BadInput, match="nothing to report"):
        page([])
