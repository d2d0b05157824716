"""``roofplan calibrate``: the JSON contract, whole files, one sentence and exit code 2 for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from roofplan.calibrate.cli import calibrate
from roofplan.scenarios.calibration import read_calibration
from roofplan.scenarios.errors import BadInput

SAMPLE = Path(__file__).parent / "data" / "kernels"


def call(*args: str) -> str:
    result = CliRunner().invoke(calibrate, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_check_json_is_the_contract() -> None:
    tables = json.loads(call("check", "--kernels", str(SAMPLE), "--json", "-"))["tables"]
    assert set(tables) == {p.stem for p in SAMPLE.glob("*.csv")}
    assert set(tables["aic_gemm"]["h100-sxm"]) == {"n", "median_ape", "mape", "p90_ape", "n_skipped"}


def test_check_table_report_and_one_gpu(tmp_path: Path) -> None:
    shown = call(
        "check", "--kernels", str(SAMPLE), "--gpu", "H100", "--report", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")
    )
    assert "aic_gemm" in shown
    assert (tmp_path / "r.html").stat().st_size > 100_000
    assert json.loads((tmp_path / "r.json").read_text())["tables"]


def test_fit_writes_a_calibration_that_checks(tmp_path: Path) -> None:
    written = json.loads(call("fit", "--kernels", str(SAMPLE), "--out", str(tmp_path), "--json", "-"))["calibrations"]["h100-sxm"]
    assert Path(written["path"]) == tmp_path / "h100-sxm.toml"
    assert read_calibration(tmp_path / "h100-sxm.toml").name == "h100-sxm"
    checked = json.loads(
        call("check", "--kernels", str(SAMPLE), "--gpu", "h100-sxm", "--calibration", str(tmp_path / "h100-sxm.toml"), "--json", "-")
    )
    assert checked["tables"]["aic_gemm"]["h100-sxm"]["median_ape"] < 0.1


def test_holdout_only_scores(tmp_path: Path) -> None:
    out = json.loads(call("fit", "--kernels", str(SAMPLE), "--holdout", "0.25", "--out", str(tmp_path), "--json", "-"))
    assert out["families"]["h100-sxm"]["gemm.bf16"]["n"] > 5
    assert not list(tmp_path.iterdir())


def test_import(tmp_path: Path) -> None:
    assert "aic_gemm: 60 rows" in call("import", str(SAMPLE), "--out", str(tmp_path / "t"))


def test_wrong_gpu() -> None:
    with pytest.raises(BadInput, match="no measurements of b200 in"):
        CliRunner().invoke(calibrate, ["check", "--kernels", str(SAMPLE), "--gpu", "b200"], catch_exceptions=False)


def test_the_program_says_one_sentence_and_exits_2(tmp_path: Path) -> None:
    (tmp_path / "aic_gemm.parquet").write_bytes(b"PAR1")
    command = [sys.executable, "-c", "from roofplan.cli import main; main()", "calibrate", "check", "--kernels", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "not a readable parquet table" in done.stderr
    assert done.stdout == ""
