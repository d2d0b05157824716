"""The emitted train.py really trains: every ZeRO stage, offload, precision, optimizer and model family, tiny, on two CPU ranks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from .harness import EXTRA, exit_codes, needs_extra, run_ranks, run_script
from .plans import job_of, write_deepspeed

RUNS: dict[str, dict[str, Any]] = {
    "ddp": {"dp": 2, "sharding": "ddp"},
    "zero1": {"dp": 2, "zero_stage": 1},
    "zero2-accumulate": {"dp": 2, "zero_stage": 2, "grad_accum": 2, "micro_batch": 2},
    "zero3": {"dp": 2, "zero_stage": 3, "recompute": "full"},
    "zero3-offload": {
        "dp": 2, "zero_stage": 3, "offload_optimizer": 1, "offload_params": 1, "recompute": "full", "offload_activations": 1,
        "tiled_mlp": 1, "fused_loss": 1,
    },
    "zero1-offload": {"dp": 2, "zero_stage": 1, "offload_optimizer": 1, "recompute": "full", "recompute_layers": 1},
    "alst": {
        "cp": 2, "cp_kind": "ulysses", "zero_stage": 3, "offload_optimizer": 1, "recompute": "full", "offload_activations": 1,
        "tiled_mlp": 1, "fused_loss": 1,
    },
    "remat": {"cp": 2, "cp_kind": "ulysses", "zero_stage": 3, "recompute": "remat", "offload_activations": 0.5, "fused_loss": 1},
    "fp32-sgd": {"dp": 2, "zero_stage": 3, "precision": "fp32", "optimizer": "sgd"},
    "eight-way-plan": {"cp": 8, "cp_kind": "ulysses", "zero_stage": 3, "recompute": "full"},
}  # fmt: skip


def losses(log: str) -> list[float]:
    return [float(x) for x in re.findall(r"^step \d+: loss ([0-9.]+)", log, re.MULTILINE)]


@pytest.mark.parametrize("name", RUNS)
def test_emitted_plan_trains(name: str, tmp_path: Path) -> None:
    layout = RUNS[name]
    write_deepspeed(tmp_path, job_of(**layout))
    lr = "0.5" if layout.get("optimizer") == "sgd" else "0.01"
    logs = run_ranks(2, tmp_path, lambda rank: run_script(tmp_path, "train.py", "--tiny", "--steps", "6", "--lr", lr))
    found = losses(logs[0])
    assert len(found) == 6, logs[0][-2000:]
    assert found[-1] < found[0] - 0.2, f"the loss did not fall: {found}"
    row = (tmp_path / "measured.csv").read_text().splitlines()
    assert len(row) == 2
    assert len(row[0].split(",")) == len(row[1].split(","))


@needs_extra
def test_lora_trains_its_adapters_only(tmp_path: Path) -> None:
    """With peft: the loss falls, and no other parameter has a gradient."""
    write_deepspeed(tmp_path, job_of(dp=2, zero_stage=3, lora_rank=4, recompute="full"))
    script = tmp_path / "train.py"
    shown = "engine, *_ = deepspeed.initialize"
    script.write_text(
        script.read_text().replace(
            shown, 'print("trained", {n.split(".")[-3] for n, p in wrapped.named_parameters() if p.requires_grad})\n    ' + shown
        )
    )

    def rank_main(rank: int) -> None:
        sys.path.append(str(EXTRA))
        run_script(tmp_path, "train.py", "--tiny", "--steps", "6", "--lr", "0.1")

    logs = run_ranks(2, tmp_path, rank_main)
    found = losses(logs[0])
    assert found[-1] < found[0] - 0.05, f"the loss did not fall: {found}"
    trained = re.search(r"^trained (.*)$", logs[0], re.MULTILINE)
    assert trained is not None
    assert eval(trained.group(1)) == {"lora_A", "lora_B"}


def test_bad_stage_is_refused_by_deepspeed(tmp_path: Path) -> None:
    write_deepspeed(tmp_path, job_of(dp=2, zero_stage=3), zero_optimization={"stage": 7})
    codes, _ = exit_codes(2, tmp_path, lambda rank: run_script(tmp_path, "train.py", "--tiny", "--steps", "1"))
    assert 0 not in codes


def test_wrong_number_of_ranks_is_refused(tmp_path: Path) -> None:
    write_deepspeed(tmp_path, job_of(dp=8, zero_stage=3))
    codes, logs = exit_codes(2, tmp_path, lambda rank: run_script(tmp_path, "train.py", "--steps", "1"))
    assert 0 not in codes
    assert any("the plan is for 8 ranks, started with 2" in log for log in logs)
