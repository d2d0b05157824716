"""The searches behind "longest" and "best" numbers, against brute force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from roofplan.calibrate.case_setting import best_tokens_per_s, degrees, longest_fit, memory, model_of, scalar, step
from roofplan.scenarios.reference import Layout, select
from roofplan.scenarios.workload import TrainWorkload

LAYOUT = select(("alst-h100-8",))[0].layout


def fits(layout: Layout, seq: int) -> bool:
    return bool(np.all(memory(dataclasses.replace(layout, work=TrainWorkload(seq_tokens=seq, global_batch=1))).fits))


def test_longest_fit_is_on_the_edge() -> None:
    longest = int(longest_fit(LAYOUT))
    assert fits(LAYOUT, longest)
    assert not fits(LAYOUT, int(longest * 1.001))


def test_longest_power_of_two_and_other_limits() -> None:
    longest = longest_fit(LAYOUT)
    power = longest_fit(LAYOUT, power_of_two=True)
    assert power <= longest < 2 * power
    assert np.log2(power) == int(np.log2(power))
    assert longest_fit(LAYOUT, token_limit=100_000) == pytest.approx(100_000, rel=1e-3)


def test_nothing_fits_is_zero() -> None:
    small = dataclasses.replace(LAYOUT, gpu="t4", n_gpus=1, gpus_per_node=1, plan=dataclasses.replace(LAYOUT.plan, cp=1, cp_kind="none"))
    assert longest_fit(small) == 0.0


def test_degrees_fill_the_cluster() -> None:
    layout = select(("ulysses-30b-8k",))[0].layout
    found = list(degrees(layout, "cp", (1, 2)))
    assert len(found) == 2 * 7
    for choice in found:
        assert choice.plan.cp * choice.plan.dp == 64
        assert choice.work.global_batch == choice.plan.dp * choice.plan.micro_batch


def test_best_is_the_best_of_the_legal_ones_that_fit() -> None:
    layout = select(("ulysses-7b-16k",))[0].layout
    rates = [
        scalar(c.work.seq_tokens) * scalar(c.work.global_batch) / scalar(step(c).step_time_s)
        for c in degrees(layout, "cp")
        if bool(np.all(memory(c).fits)) and model_of(c).n_heads % scalar(c.plan.cp) == 0
    ]
    assert best_tokens_per_s(layout, "cp") == pytest.approx(max(rates))


def test_changes_reach_the_model() -> None:
    layout = select(("lightseq-dfa-33h-64k-8",))[0].layout
    assert (model_of(layout).n_heads, model_of(layout).n_kv_heads, model_of(layout).hidden) == (33, 33, 4096)
