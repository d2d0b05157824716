"""Scores against closed forms: errors, one scalar, rank correlation, regret, repeats, memory labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.calibrate import training_score
from roofplan.calibrate.framework_fit import is_fitted
from roofplan.calibrate.training_plan import setting_of
from roofplan.calibrate.training_price import Priced
from roofplan.calibrate.training_rows import read_runs
from roofplan.calibrate.training_score import (
    Point,
    errors,
    memory_summary,
    points,
    ranks,
    regret,
    spearman,
    summarise,
    time_summary,
    was_fitted,
)
from roofplan.scenarios.framework import Framework

RUNS = {run.id: run for run in read_runs(Path(__file__).parent / "data" / "training" / "small.csv")}
SECONDS = st.lists(st.floats(0.1, 100), min_size=3, max_size=12)


def priced(run_id: str, predicted_s: float, *, name: str = "", ran: bool | None = True, fits: bool = True, **cells: object) -> Priced:
    run = dataclasses.replace(RUNS["T01282"], id=name or run_id, **cells)  # type: ignore[arg-type]
    return Priced(setting=setting_of(run), step_s=predicted_s, peak_bytes=predicted_s * 2**30, fits=fits, ran=ran)


def test_errors_by_hand() -> None:
    """Predictions 1.1, 1.8, 3 for 1, 2, 4: errors .1, .1, .25; the scalar centres the ratios 1.1, .9, .75 on .9."""
    e = errors([1.0, 2.0, 4.0], [1.1, 1.8, 3.0])
    assert e["n"] == 3
    assert e["mape"] == pytest.approx(0.15)
    assert e["median_ape"] == pytest.approx(0.1)
    assert e["scalar"] == pytest.approx(1 / 0.9)
    after = [1.1 / 0.9 - 1, 0.0, 1 - 0.75 / 0.9]
    assert e["mape_after_one_scalar"] == pytest.approx(np.mean(after))
    assert e["median_ape_after_one_scalar"] == pytest.approx(np.median(after))


@given(SECONDS, st.floats(0.2, 5))
def test_one_scalar_removes_any_constant_factor(true: list[float], factor: float) -> None:
    e = errors(true, [factor * t for t in true])
    assert e["mape_after_one_scalar"] == pytest.approx(0, abs=1e-9)
    assert e["scalar"] == pytest.approx(1 / factor)


def test_ranks_share_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))  # two neighbours swapped
    assert np.isnan(spearman([1, 2], [5, 5]))


@given(SECONDS)
def test_spearman_sees_order_only(true: list[float]) -> None:
    rho = spearman(true, [t**3 + 1 for t in true])
    assert np.isnan(rho) or rho == pytest.approx(1)


def test_regret_by_hand() -> None:
    grid = [Point((), "a", 1.0, 9.0), Point((), "b", 1.3, 5.0), Point((), "c", 2.0, 7.0)]
    assert regret(grid) == pytest.approx(0.3)  # b is picked, a was best
    assert regret(grid[:1]) == 0


@given(SECONDS)
def test_a_perfect_model_has_no_regret(true: list[float]) -> None:
    assert regret([Point((), str(i), t, 2 * t) for i, t in enumerate(true)]) == 0


def test_repeats_count_once_at_their_median() -> None:
    rows = [priced("a", 3.0, name=n, step_time_s=t, notes="") for n, t in (("a", 3.0), ("b", 5.0), ("c", 4.0))]
    rows.append(priced("d", 6.0, step_time_s=6.0, micro_batch=1, notes=""))
    found = points(rows, lambda r: r.setting.published_step_s, lambda r: r.step_s)
    assert sorted((p.published, p.predicted) for p in found) == [(4.0, 3.0), (6.0, 6.0)]
    assert time_summary(rows)["n"] == 2


def test_a_grid_is_one_model_card_count_and_batch() -> None:
    rows = [
        priced("a", 1.0, step_time_s=2.0, micro_batch=1, notes=""),
        priced("b", 2.0, step_time_s=1.0, micro_batch=2, notes=""),
        priced("c", 9.0, step_time_s=9.0, micro_batch=1, notes="", num_gpus=16, dp=8),  # another grid: alone in it
    ]
    summary = time_summary(rows)
    assert summary["regret"] == pytest.approx(1.0)
    assert summary["regret_max"] == pytest.approx(1.0)
    (group,) = summary["regret_groups"]
    assert (group["n_gpus"], group["n"]) == (8, 2)
    assert "mb2" in group["best"]
    assert "mb1" in group["picked"]
    assert summary["spearman"] is None  # no grid of three


def test_fitted_runs_are_marked_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def framework(name: str) -> Framework:
        return Framework(name=name, sources={"host_layer": "fitted on one run in five of HF-ultrascale-nanotron"})

    monkeypatch.setattr(training_score.registry, "framework", framework)
    rows = [priced(f"run{i}", 1.0, step_time_s=1.0 + i, micro_batch=i + 1, notes="") for i in range(20)]
    fitted = [r for r in rows if is_fitted(r.setting.run.id)]
    assert 0 < len(fitted) < 10
    assert [was_fitted(r) for r in rows] == [r in fitted for r in rows]
    summary = time_summary(rows)
    assert (summary["n"], summary["n_fitted"]) == (20 - len(fitted), len(fitted))
    assert sum(g["n"] for g in summary["regret_groups"]) == 20  # the grid stays whole
    other = dataclasses.replace(fitted[0].setting, run=dataclasses.replace(fitted[0].setting.run, source="Korthikanti2022-Table5"))
    assert not was_fitted(dataclasses.replace(fitted[0], setting=other))


def test_memory_labels_are_counted() -> None:
    rows = [
        priced("a", 1.0, peak_mem_gb=2.0, ran=True, fits=True),
        priced("b", 1.0, peak_mem_gb=1.0, ran=True, fits=False, micro_batch=4, notes=""),
        priced("c", 1.0, peak_mem_gb=9.0, ran=False, fits=True, micro_batch=8, notes=""),
        priced("d", 1.0, peak_mem_gb=None, ran=False, fits=False, micro_batch=16, notes=""),
        priced("e", 1.0, peak_mem_gb=None, step_time_s=None, ran=None, fits=False, notes="FAILED crash/oom"),
    ]
    m = memory_summary(rows)
    assert (m["n"], m["median_ape"]) == (2, pytest.approx(0.25))  # the one that died has no peak to compare
    assert (m["ran"], m["ran_called_not_fitting"], m["ran_out_of_memory"], m["ran_out_called_fitting"]) == (2, 1, 2, 1)
    assert (m["failed_unclear"], m["failed_unclear_called_not_fitting"]) == (1, 1)


def test_summary_is_by_source_in_order() -> None:
    rows = [priced("a", 1.0, step_time_s=1.0), priced("b", 1.0, source="llm-foundry", step_time_s=2.0, notes="")]
    summary = summarise(rows)
    assert list(summary) == ["HF-ultrascale-nanotron", "llm-foundry"]
    assert summary["llm-foundry"]["median_ape"] == pytest.approx(0.5)
    assert set(summary["llm-foundry"]) >= {"n", "mape", "median_ape", "mape_after_one_scalar", "spearman", "regret", "memory"}
