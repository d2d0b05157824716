"""The whole of ``validate --training``: its JSON contract on a small table, and the bars on the full one where it is at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from roofplan.calibrate.training_report import tables, validate_training

SMALL = Path(__file__).parent / "data" / "training" / "small.csv"
TIME_BAR = 0.12
"""Median error of step time, each source."""


@pytest.fixture(scope="module")
def small() -> dict[str, object]:
    return validate_training(SMALL)


def test_the_contract(small: dict[str, list[dict[str, object]]]) -> None:
    assert set(small) == {"rows", "skipped", "summary"}
    for row in small["rows"]:
        assert set(row) == {"id", "source", "metric", "published", "predicted", "error_frac", "fitted"}
        assert row["metric"] in ("step_time_s", "peak_mem_gb", "fits")
    for item in small["skipped"]:
        assert set(item) == {"id", "why"}
        assert item["why"]
    assert json.loads(json.dumps(small, allow_nan=False)) == small


def test_errors_are_signed_fractions(small: dict[str, list[dict[str, float]]]) -> None:
    timed = [row for row in small["rows"] if row["metric"] != "fits"]
    assert len(timed) > 30
    for row in timed:
        assert row["error_frac"] == pytest.approx(row["predicted"] / row["published"] - 1)


def test_every_row_is_scored_or_skipped_with_a_reason(small: dict[str, list[dict[str, str]]]) -> None:
    ids = {line.split(",", 1)[0] for line in SMALL.read_text(encoding="utf-8").splitlines()[1:]}
    scored, skipped = {row["id"] for row in small["rows"]}, {item["id"] for item in small["skipped"]}
    assert scored | skipped == ids
    assert not scored & skipped
    why = {item["id"]: item["why"] for item in small["skipped"]}
    assert "does not say whether of memory" in why["T01310"]
    assert why["T00412"] == "hybrid Mamba layers: the cost model has none"
    assert why["T01303"] == "dp*micro_batch*GA = 16 contradicts global_batch_seqs=256"


def test_a_row_out_of_memory_has_no_peak_to_score(small: dict[str, list[dict[str, object]]]) -> None:
    assert [row["metric"] for row in small["rows"] if row["id"] == "T01203"] == ["fits"]


def test_tables_for_people(small: dict[str, object]) -> None:
    console = Console(width=200, record=True, file=open_null())
    for table in tables(small):
        console.print(table)
    text = console.export_text()
    assert "HF-ultrascale-nanotron" in text
    assert "rows not priced" in text


def open_null() -> object:
    import io

    return io.StringIO()


@pytest.fixture(scope="module")
def full(data_dir: Path) -> dict[str, dict[str, dict[str, object]]]:
    path = data_dir / "training" / "training_truth.csv"
    return validate_training(path)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "source", ["vTrain-single", "Korthikanti2022-Table5", "Megatron-SC21-Table1", "Megatron-SC21-Table2", "llm-foundry", "NeMo-24.07-perf"]
)
def test_step_time_bar_by_source(full: dict[str, dict[str, dict[str, float]]], source: str) -> None:
    assert full["summary"][source]["median_ape"] <= TIME_BAR


@pytest.mark.parametrize("source", ["vTrain-single", "HF-ultrascale-nanotron"])
def test_median_regret_bar(full: dict[str, dict[str, dict[str, float]]], source: str) -> None:
    assert full["summary"][source]["regret"] <= 0.03


@pytest.mark.parametrize("source", ["HF-ultrascale-nanotron", "Megatron-LM-CI-golden", "ALST-ArcticTraining"])
def test_peak_memory_bar(full: dict[str, dict[str, dict[str, dict[str, float]]]], source: str) -> None:
    assert full["summary"][source]["memory"]["median_ape"] <= 0.10
