"""Constants of an eager engine: recovered from times made with known ones; the shipped profile is what the fit gives."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from roofplan.calibrate.early_fit import Timed, early_engine, error, fit_early, timed_rows
from roofplan.costmodels.serving import launched_kernels
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving import serving_engine

TRUE = {"launch_s": 30e-6, "step_cpu_s": 4e-3, "sequence_cpu_s": 1e-4, "kernel_frac": 1.1, "prefill_attention_frac": 3.5}


def made(n_kernels: int) -> list[Timed]:
    """Steps whose kernels take from 5 to 500 ms, of 0 to 64 sequences; those of none have attention of a tenth of that."""
    rows = []
    for linear_s in (0.005, 0.02, 0.1, 0.5):
        for n in (0, 1, 16, 64):
            host = TRUE["step_cpu_s"] + TRUE["sequence_cpu_s"] * n
            attention_s = 0.0 if n else linear_s / 10
            took = max(linear_s * TRUE["kernel_frac"], TRUE["launch_s"] * n_kernels) + 0.001 * n + host + 3.5 * attention_s
            rows.append(Timed(tp=4, n=n, measured_s=took, linear_s=linear_s, attention_s=attention_s, rest_s=0.001 * n))
    return rows


def test_known_constants_are_found():
    found, left = fit_early(made(960), 960)
    assert found == pytest.approx(TRUE, rel=1e-6)
    assert left == pytest.approx(0, abs=1e-9)
    assert error(made(960), 960, {**TRUE, "kernel_frac": 1.2}) > 0.03


def test_rows_are_priced_as_steps_of_the_engine(tmp_path):
    """Repeats are one row; longer prompts and other cards are left out; a table without the model is an error."""
    path = tmp_path / "table.csv"
    fields = ["model", "hardware", "prompt_size", "batch_size", "token_size", "prompt_ms", "token_ms", "tp"]
    table = [("llama2-70b", "a100-80gb", 512, 1, 128, 120, 40, 4), ("llama2-70b", "a100-80gb", 512, 1, 128, 130, 50, 4),
             ("llama2-70b", "a100-80gb", 512, 8, 128, 900, 60, 4), ("llama2-70b", "a100-80gb", 8192, 1, 128, 900, 60, 4),
             ("llama2-70b", "h100-80gb", 512, 1, 128, 60, 30, 4)]  # fmt: skip
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([fields, *table])
    rows = timed_rows(path, "llama2-70b", "a100-80gb", serving_engine("vllm-0.2"))
    assert [(r.n, r.measured_s) for r in rows] == [(1, 0.045), (0, 0.125), (8, 0.06)]
    assert [r.attention_s > 0 for r in rows] == [False, True, False]
    assert rows[1].linear_s > 3 * rows[0].linear_s  # 512 tokens against weights read once
    with pytest.raises(BadInput, match="has no row of bloom-176b on a100-80gb"):
        timed_rows(path, "bloom-176b", "a100-80gb", serving_engine("vllm-0.2"))


def test_the_shipped_profile_is_what_the_table_gives(data_dir):
    engine, found = serving_engine("vllm-0.2"), early_engine(data_dir / "kernels" / "splitwise_e2e.csv")
    assert {name: found[name] for name in TRUE} == pytest.approx({name: getattr(engine, name) for name in TRUE}, rel=0.05)
    assert found["log_error_left_out"] < 0.06
    assert not engine.graph_tokens
    assert launched_kernels(registry.model("llama2-70b"), engine.kernels_per_layer) == 960
    assert np.isfinite(found["log_error"])
