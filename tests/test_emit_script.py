"""The emitted training script is the template, with a plan.json that it can read without roofplan."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path

import pytest
from emit_jobs import ALST, FACTS, job_of
from roofplan.calibrate.training_plan import setting_of
from roofplan.calibrate.training_rows import read_runs
from roofplan.planner.emit.script import TRUTH_COLUMNS, emit, plan_json, template, truth_row
from roofplan.planner.emit.target import CannotExpress


def test_files() -> None:
    files = emit(job_of(**ALST))
    assert set(files) == {"train.py", "parts.py", "plan.json", "config.json"}
    assert files["train.py"] == template("train.py")
    plan = json.loads(files["plan.json"])
    assert plan["plan"]["cp"] == 8
    assert plan["workload"] == {"seq_tokens": 2**20, "global_batch": 1}
    assert plan["training"] == {"learning_rate": 1e-5, "gradient_clipping": 1.0}


@pytest.mark.parametrize("name", ["train.py", "train_fsdp2.py", "parts.py"])
def test_templates_are_readable_python(name: str) -> None:
    """At most 300 lines, no import of roofplan, a docstring, nothing left to fill in."""
    text = template(name)
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= 300
    assert "roofplan." not in "".join(line for line in text.splitlines() if "import" in line)
    assert max(len(line) for line in text.splitlines()) <= 140


def test_prediction_and_zero_stage() -> None:
    found = plan_json(job_of(dp=8, sharding="fsdp", zero_stage=3, facts=FACTS))
    assert found["predicted"] == {"step_time_s": 512.25, "peak_gib": 40.0, "tokens_per_s_per_gpu": 255.9, "error_frac": 0.08}
    assert found["plan"]["zero_stage"] == 3
    assert plan_json(job_of(dp=8))["predicted"]["step_time_s"] is None


def test_truth_row_has_the_columns_of_measured_runs() -> None:
    row = truth_row(job_of("mixtral-8x7b", 4096, dp=8, zero_stage=2, offload_optimizer=1))
    assert tuple(row) == TRUTH_COLUMNS
    assert (row["sharding"], row["offload"], row["num_experts"], row["top_k"]) == ("zero2", "optimizer", 8, 2)
    both = truth_row(job_of(dp=8, zero_stage=3, offload_optimizer=1, offload_params=1))
    assert (both["offload"], both["top_k"]) == ("optimizer+params", "")


def test_a_completed_row_is_read_back_as_the_plan(tmp_path: Path) -> None:
    """What the script writes after a run is a measured run to ``roofplan validate --training``, of this very layout."""
    job = job_of(**{**ALST, "dp": 2})
    row = truth_row(job) | {"step_time_s": "12.5", "tokens_per_s_per_gpu": "10.0", "peak_mem_gb": "60.0"}
    with (tmp_path / "measured.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    (run,) = read_runs(tmp_path / "measured.csv")
    read = setting_of(run)
    assert (read.model.name, read.cluster.n_gpus, read.work.seq_tokens, read.published_step_s) == ("llama3-8b", 16, 2**20, 12.5)
    same = ("dp", "tp", "pp", "cp", "cp_kind", "zero_stage", "sharding", "micro_batch", "grad_accum", "recompute", "precision")
    same += ("offload_optimizer", "offload_params", "offload_activations", "tiled_mlp", "fused_loss")
    assert {f: getattr(read.plan, f) for f in same} == {f: getattr(job.plan, f) for f in same}


def test_it_cannot_recompute_part_of_an_unfused_attention() -> None:
    with pytest.raises(CannotExpress, match="recompute=selective of an unfused attention; nearest: attention=flash"):
        emit(job_of(dp=8, recompute="selective", attention="unfused"))
    with pytest.raises(CannotExpress, match="attention=unfused with Ulysses"):
        emit(job_of(cp=8, cp_kind="ulysses", attention="unfused"))
    with pytest.raises(CannotExpress, match="tp=8"):
        emit(job_of(tp=8))
