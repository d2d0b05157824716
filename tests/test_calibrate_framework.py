"""Fitting a framework's constants: made-up runs give back what made them, the command says what it fitted, bad input is one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from roofplan.calibrate.cli import calibrate
from roofplan.calibrate.framework_fit import fit_framework, is_fitted
from roofplan.calibrate.training_price import price_runs
from roofplan.calibrate.training_rows import read_runs
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput

SMALL = Path(__file__).parent / "data" / "training" / "small.csv"


def test_recovers_the_overhead_that_made_the_runs() -> None:
    """Runs of one setting under ids of both parts, each 0.12 s longer than the framework's own step."""
    item = price_runs(read_runs(SMALL))[0][0]
    start = dataclasses.replace(registry.framework(item.setting.rule.framework), step_overhead_s=0.01)
    own = registry.framework(item.setting.rule.framework).step_overhead_s
    runs = [
        dataclasses.replace(
            item.setting, run=dataclasses.replace(item.setting.run, id=f"r{i}"), published_step_s=item.step_s - own + 0.12, tuned=False
        )
        for i in range(30)
    ]
    fit = fit_framework(start, runs, ["step_overhead_s"])
    assert fit.framework.step_overhead_s == pytest.approx(0.12, rel=0.02)
    assert fit.n_fitted == sum(is_fitted(f"r{i}") for i in range(30))
    assert fit.n_fitted + fit.n_scored == 30
    assert fit.scored_error[1] < 0.001 < fit.scored_error[0]
    with pytest.raises(BadInput, match="'magic' is not a constant of a framework that can be fitted; legal: step_overhead_s"):
        fit_framework(start, runs, ["magic"])
    with pytest.raises(BadInput, match="cannot settle 1 constants; at least 2 are needed"):
        fit_framework(start, runs[:1], ["step_overhead_s"])


def test_command(data_dir: Path, tmp_path: Path) -> None:
    table = str(data_dir / "training" / "training_truth.csv")
    args = ["framework", "llm-foundry", "--training", table, "--free", "step_overhead_s", "--out", str(tmp_path / "f.toml"), "--json", "-"]
    done = json.loads(CliRunner().invoke(calibrate, args, catch_exceptions=False).stdout)
    assert done["n_fitted"] + done["n_scored"] > 200
    assert done["fitted_median_ape"][1] < 0.05
    assert "step_overhead" in (tmp_path / "f.toml").read_text()


def test_a_table_without_its_runs() -> None:
    with pytest.raises(BadInput, match="holds no run of torchtitan that can be priced; it has runs of"):
        CliRunner().invoke(
            calibrate, ["framework", "torchtitan", "--training", str(SMALL), "--free", "step_overhead_s"], catch_exceptions=False
        )
