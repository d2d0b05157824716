"""What a row says in seconds and as a memory label."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from roofplan.calibrate.training_published import failed_unclear, feasibility, published_step_s
from roofplan.calibrate.training_rows import read_runs
from roofplan.calibrate.training_sources import rule_of

RUNS = {run.id: run for run in read_runs(Path(__file__).parent / "data" / "training" / "small.csv")}


def test_hardware_tflops_become_the_papers_training_days() -> None:
    """174.6B, 384 GPUs, 153 TFLOPS: the paper prints 84 days for 300 B tokens."""
    run = RUNS["T00632"]
    seconds = published_step_s(run, rule_of(run.source))
    assert seconds is not None
    days = seconds * 300e9 / (1536 * 2048) / 86400
    assert "84 days" in run.notes
    assert days == pytest.approx(84, rel=0.01)


def test_a_stated_time_wins_and_a_coarse_one_is_dropped() -> None:
    assert published_step_s(RUNS["T00606"], rule_of("Korthikanti")) == 18.13
    slow = RUNS["T01684"]  # 44 tokens/s printed as an integer
    assert slow.step_time_s
    assert published_step_s(slow, rule_of(slow.source)) is None
    assert published_step_s(RUNS["T00614"], rule_of("Korthikanti2022-Fig1-mem")) is None


@pytest.mark.parametrize(
    ("notes", "peak", "label"),
    [
        ("ok", 50.0, True),
        ("OOM iter2", 50.0, False),
        ("baseline; OOM by fragmentation on rank 0", 58.8, False),
        ("went out of memory", None, False),
        ("close to oom", 70.0, True),
        ("GPU 47.7 GB but at the brink of CPU OOM", 47.7, True),
        ("FAILED crash/oom; GA=1", None, None),
        ("crashed after 10 steps", None, None),
        ("memory/feasibility row (max trainable seq): ok", None, True),
        ("", None, None),
    ],
)
def test_memory_labels(notes: str, peak: float | None, label: bool | None) -> None:
    run = dataclasses.replace(RUNS["T01220"], notes=notes, peak_mem_gb=peak, step_time_s=None, tflops_per_gpu=None)
    assert feasibility(run, rule_of(run.source)) is label


def test_a_run_with_a_step_time_ran_and_a_formula_did_not() -> None:
    run = dataclasses.replace(RUNS["T01220"], notes="mbs 8 OOMs")
    assert feasibility(run, rule_of(run.source)) is True
    assert feasibility(RUNS["T00614"], rule_of(RUNS["T00614"].source)) is None


def test_failures_without_a_cause() -> None:
    assert failed_unclear(RUNS["T01310"])
    assert not failed_unclear(RUNS["T01282"])
