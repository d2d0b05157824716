"""Pricing in batches equals pricing one by one; what cannot be priced is listed, never raised."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.calibrate.training_plan import setting_of
from roofplan.calibrate.training_price import Priced, batch_of, measured_bytes, price, price_runs
from roofplan.calibrate.training_rows import TrainingRun, read_runs
from roofplan.calibrate.training_score import summarise
from roofplan.costmodels.memory import train_memory
from roofplan.costmodels.system import make_system
from roofplan.costmodels.training import train_step

ROWS = read_runs(Path(__file__).parent / "data" / "training" / "small.csv")
RUNS = {run.id: run for run in ROWS}


def test_a_batch_prices_each_row_as_if_alone() -> None:
    together, _ = price_runs(ROWS)
    assert len(together) > 30
    for row in together:
        (alone,), _ = price_runs([row.setting.run])
        assert alone.step_s == pytest.approx(row.step_s, rel=1e-12)
        assert alone.peak_bytes == pytest.approx(row.peak_bytes, rel=1e-12)
        assert alone.fits == row.fits


def test_a_row_is_the_cost_model_on_its_setting() -> None:
    (row,), _ = price_runs([RUNS["T00606"]])
    s = row.setting
    system = make_system(s.cluster, "megatron-2022")
    assert row.step_s == pytest.approx(float(np.asarray(train_step(s.model, s.plan, s.work, system).step_time_s)))
    memory = train_memory(s.model, s.plan, s.work, system)
    tensors = np.asarray(memory.total_bytes) - memory.context_bytes - memory.fragmentation_bytes
    assert row.peak_bytes == pytest.approx(float(tensors))


def test_order_is_the_files_and_every_row_is_accounted_for() -> None:
    priced, skipped = price_runs(ROWS)
    place = {run.id: i for i, run in enumerate(ROWS)}
    where = [place[p.setting.run.id] for p in priced]
    assert where == sorted(where)
    assert {p.setting.run.id for p in priced} | {s.id for s in skipped} == set(place)
    assert not {p.setting.run.id for p in priced} & {s.id for s in skipped}


def test_the_row_at_fault_is_skipped_and_its_neighbours_are_not() -> None:
    odd = dataclasses.replace(RUNS["T01282"], id="odd", gpu="H100-81GB")
    alien = dataclasses.replace(RUNS["T01282"], id="alien", precision="nvfp4")  # the card has no such arithmetic
    priced, skipped = price_runs([RUNS["T01282"], odd, alien, RUNS["T01286"]])
    assert [p.setting.run.id for p in priced] == ["T01282", "T01286"]
    why = {s.id: s.why for s in skipped}
    assert "unknown GPU 'H100-81GB'" in why["odd"]
    assert "no nvfp4 arithmetic" in why["alien"]


@pytest.mark.parametrize(
    "cells", [{"num_gpus": 10**15, "dp": None}, {"seq_len": 10**15}, {"hidden": 10**15 - 40, "model": "x", "heads": 1}]
)
def test_monstrous_sizes_are_skipped(cells: dict[str, object]) -> None:
    run = dataclasses.replace(RUNS["T01282"], gpus_per_node=None, notes="", **cells)  # type: ignore[arg-type]
    priced, skipped = price_runs([run])
    assert len(priced) + len(skipped) == 1
    assert all(math.isfinite(p.step_s) for p in priced)


def test_unknown_micro_batch_takes_the_best_of_our_own_choices() -> None:
    (row,), _ = price_runs([RUNS["T00632"]])  # 174.6B: pp 12, 96 layers, micro-batch and interleaving not in the table
    assert row.setting.tuned
    best = row.setting
    tried = []
    for micro, vpp in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 4), (4, 1), (8, 1)):
        plan = dataclasses.replace(
            best.plan, micro_batch=micro, vpp=vpp, grad_accum=1536 // 4 // micro, schedule="interleaved" if vpp > 1 else "1f1b"
        )
        step, memory = price(best, plan, best.work, 384)
        if bool(np.all(memory.fits)):
            tried.append(float(np.asarray(step.step_time_s)))
    assert tried
    assert row.step_s <= min(tried) * (1 + 1e-12)


def test_batch_of_keeps_text_and_stacks_numbers() -> None:
    plans = [setting_of(RUNS[i]).plan for i in ("T01282", "T01286")]
    batch = batch_of(plans)
    assert np.array_equal(np.asarray(batch.pp), [2, 4])
    assert batch.framework == "nanotron"


def test_what_a_source_counts_as_memory() -> None:
    s = setting_of(RUNS["T01248"])
    memory = train_memory(s.model, s.plan, s.work, make_system(s.cluster, s.rule.framework))
    device, reserved, allocated = (float(measured_bytes(memory, kind)) for kind in ("device", "reserved", "allocated"))
    assert device == pytest.approx(float(np.asarray(memory.total_bytes)))
    assert device - reserved == pytest.approx(float(np.asarray(memory.context_bytes)))
    assert reserved - allocated == pytest.approx(float(np.asarray(memory.fragmentation_bytes)))


def test_labels_travel_with_the_price() -> None:
    priced, _ = price_runs([RUNS["T01203"], RUNS["T01248"]])
    assert [p.ran for p in priced] == [False, True]
    assert all(isinstance(p, Priced) for p in priced)


NUMBER_CELLS = (
    "layers",
    "heads",
    "kv_heads",
    "vocab",
    "num_gpus",
    "gpus_per_node",
    "tp",
    "pp",
    "vpp",
    "cp",
    "ep",
    "dp",
    "micro_batch",
    "seq_len",
)
WORD_CELLS = ("gpu", "interconnect", "cp_kind", "sharding", "precision", "recompute", "offload", "attention", "notes", "source")


@given(
    st.sampled_from(ROWS),
    st.dictionaries(st.sampled_from(NUMBER_CELLS), st.sampled_from([None, 0, 1, 2, 3, 8, 64, 1000, 10**6, 10**15]), max_size=4),
    st.dictionaries(
        st.sampled_from(WORD_CELLS), st.sampled_from(["", "x", "ring", "fsdp", "fp8", "full", "OOM", "H200", "torchtitan"]), max_size=2
    ),
)
@settings(max_examples=150)
def test_any_row_is_priced_or_skipped_with_a_sentence(run: TrainingRun, numbers: dict[str, int | None], words: dict[str, str]) -> None:
    changed = dataclasses.replace(run, **numbers, **words)  # type: ignore[arg-type]
    priced, skipped = price_runs([changed])
    assert len(priced) + len(skipped) == 1
    json.dumps(summarise(priced), allow_nan=False)
    assert all("\n" not in s.why and s.why for s in skipped)
