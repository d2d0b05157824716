"""job.slurm asks for the plan's nodes and starts the launcher of its framework on each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from emit_jobs import ALST, job_of
from roofplan.planner.emit.slurm import emit
from roofplan.planner.emit.target import CannotExpress


def text_of(**layout: Any) -> str:
    return emit(job_of(**layout))["job.slurm"]


def test_resources() -> None:
    text = text_of(**ALST, dp=4)
    assert "#SBATCH --nodes=4\n" in text
    assert "#SBATCH --gpus-per-node=8\n" in text
    assert f"#SBATCH --cpus-per-task={job_of(dp=8).cluster.host_cores}\n" in text


@pytest.mark.parametrize(
    ("layout", "launcher"),
    [
        (ALST, "launch_torchrun.sh"),
        ({"tp": 8}, "launch_fsdp2.sh"),
        ({"dp": 8, "framework": "megatron"}, "megatron/pretrain.sh"),
        ({"pp": 8, "framework": "torchtitan", "sharding": "fsdp", "zero_stage": 3}, "torchtitan/run.sh"),
        ({"dp": 8, "framework": "torchtitan", "sharding": "fsdp", "zero_stage": 3, "recompute": "remat"}, "launch_torchrun.sh"),
    ],
)
def test_launcher_of_the_framework(layout: dict[str, Any], launcher: str) -> None:
    assert f"${{1:-{launcher}}}" in text_of(**layout)


def test_it_runs_the_launcher_it_is_given(tmp_path: Path) -> None:
    """With stand-ins for srun and scontrol: the first of more nodes than a pipe holds becomes MASTER_ADDR, arguments reach the launcher."""
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\nexec "$@"\n')
    (tmp_path / "scontrol").write_text("#!/usr/bin/env bash\nseq -f n%.0f 7 50000\n")
    (tmp_path / "mine.sh").write_text('printf "%s\\n" "$MASTER_ADDR" "$@"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.slurm").write_text(text_of(**ALST, dp=2))
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[7-8]"}
    done = subprocess.run(
        ["bash", "job.slurm", "mine.sh", "--steps", "2"], cwd=tmp_path, env=env, text=True, capture_output=True, check=True
    )
    assert done.stdout.splitlines() == ["n7", "--steps", "2"]


def test_no_job_without_a_launcher() -> None:
    with pytest.raises(CannotExpress, match="no launcher can express the plan"):
        emit(job_of(pp=8, schedule="dualpipe", grad_accum=16))
